"""Names that programs act on by themselves are found whatever their spelling."""

from __future__ import annotations

import pytest

from mcp_tools.builtin.workspace.protected import fold, why_protected


@pytest.mark.parametrize(
    "path",
    [
        ".git",
        ".git/hooks/pre-commit",
        ".git/config",
        "sub/.git/config",
        ".GIT/config",
        ".Git/Hooks/x",
        ".g\u200cit/config",  # HFS+ ignores the joiner
        ".git./config",  # NTFS cuts the dot
        ".git::$INDEX_ALLOCATION/config",
        "\uff0egit/config",  # a full-width dot
        "GIT~1/config",
        "git~2/hooks/x",
        ".bashrc",
        ".ZSHRC",
        ".profile",
        ".env",
        ".env.local",
        ".ENVRC",
        ".mcp.json",
        "mcp~1.jso",
        "claude_desktop_config.json",
        "CLAUDE~1.JSO",
        ".vscode/tasks.json",
        ".cursor/mcp.json",
        ".ssh/authorized_keys",
        "lib/sitecustomize.py",
        "lib/usercustomize.py",
        "lib/x.pth",
        "mcp_tools.toml",
        ".github/workflows/ci.yml",
        ".config/git/config",
        ".hg/hgrc",
        ".codex/config.toml",
        ".gemini/settings.json",
        ".continue/config.json",
        "opencode.json",
        ".cargo/config",
        ".cargo/config.toml",
        ".devcontainer.json",
        ".emacs.d/init.el",
        ".dir-locals.el",
        ".vim/plugin/x.vim",
        ".mise.toml",
        "mise.toml",
        "lefthook.yml",
        ".lefthook.yml",
        ".config/Code - Insiders/User/settings.json",
        ".config/Cursor/User/settings.json",
        ".config/VSCodium/User/settings.json",
        ".config/zed/settings.json",
        ".config/wezterm/wezterm.lua",
        ".config/tmux/tmux.conf",
        "Library/Application Support/Code/User/settings.json",
        ".gradle/init.gradle",
        "init.gradle",
        ".pnpmfile.cjs",
        ".yarn/plugins/x.cjs",
        ".yarn/releases/yarn.cjs",
        ".Rprofile",
        ".irbrc",
        ".bash_completion",
        "sub.git/hooks/post-update",
        "Sub.GIT/Hooks/post-update",
    ],
)
def test_is_protected(path: str) -> None:
    assert why_protected(path.split("/")) is not None


@pytest.mark.parametrize(
    "path",
    [
        "src/main.py",
        "git/config",
        ".gitignore",
        "environment.py",
        "notes~1.txt",
        "a.pth.txt",
        ".github/x.md",
        ".cargo/registry/x",
        ".yarn/cache/x",
        "hooks/x",
        "sub.git/objects/x",
        ".config/x",
        "build.gradle",
    ],
)
def test_is_not_protected(path: str) -> None:
    assert why_protected(path.split("/")) is None


def test_folding_keeps_ordinary_names() -> None:
    assert fold("README.md") == "readme.md"
    assert fold("Straße") == "strasse"
