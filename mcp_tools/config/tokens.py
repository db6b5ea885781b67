"""Who may call over HTTP: principals and their bearer tokens."""

from __future__ import annotations

from typing import Final

from mcp_tools.config.settings import Settings
from mcp_tools.config.values import TOKEN_RULE, is_strong_token
from mcp_tools.errors import ConfigError

MAX_FILE_BYTES: Final = 1024**2


def read_tokens(settings: Settings) -> dict[str, str]:
    """Return principal → bearer token, from `token_file` and `token`; empty when neither is set.

    Raises:
        ConfigError: The file cannot be read, holds no token, or a line is not `name:token`.
    """
    tokens = {"default": settings.token} if settings.token is not None else {}
    if settings.token_file is None:
        return tokens
    where = settings.token_file
    try:
        with open(where, encoding="utf-8") as file:
            lines = file.read(MAX_FILE_BYTES).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the token file {where} cannot be read: {error}") from error
    found = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, colon, token = line.strip().partition(":")
        # The line is not repeated in the message: it may be a token with its name forgotten.
        if not colon or not name.isprintable() or not name or not is_strong_token(token):
            raise ConfigError(f"{where}, line {number} is not `name:token`; for the token {TOKEN_RULE}")
        if name in tokens or token in tokens.values():
            raise ConfigError(f"{where}, line {number}: the name or the token is used twice")
        tokens[name] = token
        found += 1
    if not found:
        raise ConfigError(f"{where} holds no `name:token` line, so nobody could log in")
    return tokens
