"""Bearer tokens: who a request comes from.

A table of `name:token` lines; the name is the principal that everything else (policy, audit,
sessions) sees. Only digests of the tokens stay in memory.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from mcp_tools.errors import ConfigError

TOKEN_VARIABLE: Final = "MCP_TOOLS_TOKEN"  # noqa: S105 - the name of a variable, not a token
DEFAULT_PRINCIPAL: Final = "default"
LOCAL_PRINCIPAL: Final = "local"
MIN_TOKEN_CHARS: Final = 16
MAX_FILE_BYTES: Final = 256 * 1024

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_TOKEN = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    digest: bytes


class TokenTable:
    """Who may call, by token. Frozen after it is made.

    Args:
        tokens: Pairs of name and token. Names are 1 to 64 of `A-Z a-z 0-9 . _ @ -` and unique; tokens
            are at least 16 visible ASCII characters and unique.
        source: Where they come from, for error messages.
    Raises:
        ConfigError: A name or token is not acceptable. The text never holds a token.
    """

    def __init__(self, tokens: Iterable[tuple[str, str]], *, source: str = "tokens") -> None:
        entries: list[_Entry] = []
        for name, token in tokens:
            _check(name, token, source)
            entry = _Entry(name, _digest(token.encode("ascii")))
            for other in entries:
                if other.name == name:
                    raise ConfigError(
                        f"{source}: the name {name!r} appears twice; give each token its own name"
                    )
                if hmac.compare_digest(other.digest, entry.digest):
                    raise ConfigError(f"{source}: {other.name!r} and {name!r} have the same token")
            entries.append(entry)
        self._entries: Final = tuple(entries)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def names(self) -> tuple[str, ...]:
        """The principals, in the order given."""
        return tuple(entry.name for entry in self._entries)

    def principal_of(self, token: bytes) -> str | None:
        """Return whose token this is, or None. Takes any bytes and never raises.

        Digests are compared, so neither the length nor a common prefix of a guess shows in the time
        taken; every entry is compared, so neither does the position of the match.
        """
        presented = _digest(token)
        found: str | None = None
        for entry in self._entries:
            if hmac.compare_digest(entry.digest, presented):
                found = entry.name
        return found

    def __repr__(self) -> str:
        return f"TokenTable({', '.join(self.names)})"


def load_tokens(
    token_file: str | os.PathLike[str] | None = None, environ: Mapping[str, str] | None = None
) -> TokenTable | None:
    """Gather the tokens of a file and of `MCP_TOOLS_TOKEN`.

    Args:
        token_file: `name:token` lines; blank lines and lines that start with `#` are skipped. It must be
            a regular file that only its owner can read.
        environ: Where `MCP_TOOLS_TOKEN` is looked up; its principal is `default`. None: nowhere.
    Returns:
        The table, or None where neither source is given.
    Raises:
        ConfigError: The file cannot be read or trusted, holds no token, or a line is wrong.
    """
    tokens: list[tuple[str, str]] = []
    sources: list[str] = []
    if token_file is not None:
        tokens += _parse(_read_private_file(os.fspath(token_file)), os.fspath(token_file))
        sources.append(os.fspath(token_file))
    variable = (environ or {}).get(TOKEN_VARIABLE)
    if variable:
        tokens.append((DEFAULT_PRINCIPAL, variable))
        sources.append(TOKEN_VARIABLE)
    return TokenTable(tokens, source=" and ".join(sources)) if sources else None


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def _check(name: str, token: str, source: str) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{source}: {name[:64]!r} is not a name; use 1 to 64 of A-Z a-z 0-9 . _ @ -")
    if name == LOCAL_PRINCIPAL:
        raise ConfigError(f"{source}: the name 'local' is kept for callers without a token; choose another")
    if len(token) < MIN_TOKEN_CHARS:
        raise ConfigError(
            f"{source}: the token of {name!r} is shorter than {MIN_TOKEN_CHARS} characters; "
            "make one with `python -c 'import secrets; print(secrets.token_urlsafe(32))'`"
        )
    if not _TOKEN.fullmatch(token):
        raise ConfigError(f"{source}: the token of {name!r} has characters other than visible ASCII")


def _parse(text: str, path: str) -> list[tuple[str, str]]:
    tokens: list[tuple[str, str]] = []
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        name, separator, token = line.partition(":")
        if not separator:
            # The line may be a bare token, so it is not repeated here.
            raise ConfigError(f"{path}, line {number}: expected `name:token`")
        tokens.append((name.strip(), token.strip()))
    if not tokens:
        raise ConfigError(f"{path}: no token in it; write one `name:token` line for each caller")
    return tokens


def _read_private_file(path: str) -> str:
    try:
        # O_NONBLOCK: opening a FIFO must not wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        raise ConfigError(f"token file {path}: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as file:
        # The open file is looked at, not the path, so it cannot be swapped in between.
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise ConfigError(f"token file {path}: not a regular file")
        if found.st_mode & 0o077:
            raise ConfigError(f"token file {path}: others can read or change it; run `chmod 600 {path}`")
        if found.st_uid not in (os.geteuid(), 0):
            raise ConfigError(f"token file {path}: belongs to another user; it must be yours or root's")
        content = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"token file {path}: larger than {MAX_FILE_BYTES} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"token file {path}: not UTF-8 (byte {error.start})") from error
