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
from itertools import pairwise
from typing import Final

_FOLDERS: Final = frozenset(
    """.git .hg .githooks .husky .ssh .gnupg .aws .azure .kube .docker .devcontainer .circleci .direnv
    .vscode .cursor .idea .windsurf .zed .vim .emacs.d .claude .codex .gemini .continue
    .bashrc.d .zshrc.d .profile.d .ipython""".split()  # noqa: SIM905 (a list of 30 quoted names is harder to read)
)
"""A folder of this name and everything in it, wherever it is (also a `.git` that is a file)."""

_FILES: Final = frozenset(
    """.bashrc .bash_profile .bash_login .bash_logout .bash_aliases .profile .login .cshrc .tcshrc
    .kshrc .zshrc .zshenv .zprofile .zlogin .zlogout .inputrc .xprofile .xinitrc .xsession .xsessionrc
    .pam_environment .gitconfig .gitmodules .gitattributes .mcp.json mcp.json claude_desktop_config.json
    .claude.json mcp_config.json mcp_tools.toml .netrc .pgpass .npmrc .yarnrc .yarnrc.yml .pypirc pip.conf
    .pre-commit-config.yaml .gitlab-ci.yml jenkinsfile .vimrc .exrc .nvimrc .emacs .gdbinit .lldbinit
    .bash_completion .dir-locals.el .tmux.conf .screenrc .wgetrc .curlrc .pythonrc .pythonrc.py
    sitecustomize.py usercustomize.py .rprofile .irbrc .pnpmfile.cjs init.gradle .devcontainer.json
    opencode.json mise.toml .mise.toml lefthook.yml .lefthook.yml pyvenv.cfg authorized_keys
    authorized_keys2 known_hosts id_rsa id_ed25519 id_ecdsa crontab
    autorun.inf desktop.ini""".split()  # noqa: SIM905
)

_PREFIXES: Final = (".env",)  # .env, .env.local, .envrc
_SUFFIXES: Final = (".pth", ".desktop", ".service", ".code-workspace")

_EDITORS: Final = ("code", "code - insiders", "cursor", "vscodium", "zed")

_BELOW: Final = {
    ".github": ("workflows", "actions"),
    ".config": (
        *("git", "fish", "tmux", "wezterm", "autostart", "systemd", "environment.d"),
        *("mcp-tools", "mcp_tools", "claude", "nvim", *_EDITORS),
    ),
    ".cargo": ("config", "config.toml"),
    ".gradle": ("init.gradle", "init.d"),
    ".yarn": ("plugins", "releases"),
    ".local": ("bin",),
    "library": ("launchagents",),
    "application support": ("claude", *_EDITORS),
}
"""Names that count directly below the folder before them, with everything in them."""

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
    for index, (above, name) in enumerate(pairwise(folded)):
        # `project.git/hooks` is a bare repository's.
        if name in _BELOW.get(above, ()) or (name == "hooks" and above.endswith(".git")):
            return f"{parts[index]}/{parts[index + 1]}"
    if folded and _is_protected_file(folded[-1]):
        return parts[-1]
    return None


def _is_protected_file(name: str) -> bool:
    return name in _FILES or name.startswith(_PREFIXES) or name.endswith(_SUFFIXES)


def _is_short_form(name: str) -> bool:
    match = _SHORT_NAME.fullmatch(name)
    return match is not None and match[1] in _SHORT_STARTS
