"""Names whose change can run code or give rights away later: a person is asked even where a policy
pre-approves writes.

The list is about consequences: what a shell, git, Python, an editor, an SSH or an MCP client reads
and acts on by itself. A name it misses is asked about as any other write is; one too many costs a
question.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Final

_FOLDERS: Final = frozenset(
    """.git .ssh .gnupg .vscode .cursor .idea .claude .windsurf .zed .aws .azure .kube .docker .husky
    .githooks .devcontainer .circleci .direnv .bashrc.d .zshrc.d .profile.d .ipython""".split()  # noqa: SIM905 (a list of 20 quoted names is harder to read)
)
"""A folder of this name and everything in it, wherever it is (also a `.git` that is a file)."""

_FILES: Final = frozenset(
    """.bashrc .bash_profile .bash_login .bash_logout .bash_aliases .profile .login .cshrc .tcshrc
    .kshrc .zshrc .zshenv .zprofile .zlogin .zlogout .inputrc .xprofile .xinitrc .xsession .xsessionrc
    .pam_environment .gitconfig .gitmodules .gitattributes .mcp.json mcp.json claude_desktop_config.json
    .claude.json mcp_config.json mcp_tools.toml .netrc .pgpass .npmrc .yarnrc .yarnrc.yml .pypirc pip.conf
    .pre-commit-config.yaml .gitlab-ci.yml jenkinsfile .vimrc .exrc .nvimrc .emacs .gdbinit .lldbinit
    .tmux.conf .screenrc .wgetrc .curlrc .pythonrc .pythonrc.py sitecustomize.py usercustomize.py
    pyvenv.cfg authorized_keys authorized_keys2 known_hosts id_rsa id_ed25519 id_ecdsa crontab
    autorun.inf desktop.ini""".split()  # noqa: SIM905
)

_PREFIXES: Final = (".env",)  # .env, .env.local, .envrc
_SUFFIXES: Final = (".pth", ".desktop", ".service", ".code-workspace")

_SEQUENCES: Final = (
    (".github", "workflows"),
    (".github", "actions"),
    (".config", "git"),
    (".config", "fish"),
    (".config", "autostart"),
    (".config", "systemd"),
    (".config", "environment.d"),
    (".config", "mcp-tools"),
    (".config", "mcp_tools"),
    (".config", "claude"),
    (".config", "code"),
    (".config", "nvim"),
    ("library", "launchagents"),
    ("application support", "claude"),
    (".local", "bin"),
)

# What the 8.3 short form of a protected name starts with on FAT and NTFS (`GIT~1` is `.git`,
# CVE-2014-9390): dots and spaces go, six characters stay.
_SHORT_NAME: Final = re.compile(r"([^.~]{1,6})~[0-9]{1,3}(\..{0,3})?")


def _short_start(name: str) -> str:
    bare = name.lstrip(".")
    return re.sub(r"[. ]", "", bare.rpartition(".")[0] or bare)[:6]


_SHORT_STARTS: Final = frozenset(map(_short_start, (*_FOLDERS, *_FILES, *_PREFIXES)))


def fold(name: str) -> str:
    """Return what a forgiving file system may take `name` for.

    Case and compatibility forms are folded (FAT, NTFS, APFS, ext4 casefold), characters that print
    nothing removed (HFS+), NTFS stream suffixes, trailing dots and spaces cut.
    """
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    if not plain.isprintable():
        plain = "".join(c for c in plain if unicodedata.category(c) not in ("Cf", "Cc"))
    return plain.partition(":")[0].rstrip(". ")


def why_protected(parts: Sequence[str]) -> str | None:
    """Say which name makes the path one to ask about, or return None.

    Args:
        parts: The components of the real absolute path, without a leading slash.
    """
    folded = [fold(part) for part in parts]
    for part, name in zip(parts, folded, strict=True):
        if name in _FOLDERS or _is_short_form(name):
            return part
    for first, second in _SEQUENCES:
        for index in range(len(folded) - 1):
            if folded[index] == first and folded[index + 1] == second:
                return f"{parts[index]}/{parts[index + 1]}"
    if folded and _is_protected_file(folded[-1]):
        return parts[-1]
    return None


def _is_protected_file(name: str) -> bool:
    return name in _FILES or name.startswith(_PREFIXES) or name.endswith(_SUFFIXES)


def _is_short_form(name: str) -> bool:
    match = _SHORT_NAME.fullmatch(name)
    return match is not None and match[1] in _SHORT_STARTS
