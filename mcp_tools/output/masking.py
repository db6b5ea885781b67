"""Text that leaves us because something broke: bounded, and without anything that looks like a secret."""

from __future__ import annotations

import re
from typing import Final

from mcp_tools.output.plain import encodable, safe_str

MAX_ERROR_CHARS: Final = 2_000
MASK: Final = "[secret removed]"

# Forms that are secrets whatever surrounds them, then values that follow a telling name.
_TOKENS = re.compile(
    r"""
    \b(?:sk|pk|rk)[-_](?:[A-Za-z0-9]+[-_])*[A-Za-z0-9]{16,}      # API keys of several vendors
    | \bgh[pousr]_[A-Za-z0-9]{20,} | \bgithub_pat_\w{20,}        # GitHub
    | \bxox[abeprs]-[A-Za-z0-9-]{10,}                            # Slack
    | \b(?:AKIA|ASIA)[A-Z0-9]{16}\b                              # AWS key ids
    | \bAIza[\w-]{30,}                                           # Google
    | \beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*                          # JSON Web Tokens
    | -----BEGIN[ A-Z]{0,40}PRIVATE\ KEY-----.{0,8000}?(?:-----END[ A-Z]{0,40}PRIVATE\ KEY-----|\Z)
    """,
    re.VERBOSE | re.DOTALL,
)
_NAMED = re.compile(
    r"""(?i)\b([\w-]{0,40}(?:password|passwd|secret|token|api[_-]?key|authorization)[\w-]{0,40}
    ["']?\s{0,3}[=:]\s{0,3}["']?(?:(?:bearer|basic)\s{1,3})?)([^\s"',;&)]{4,})""",
    re.VERBOSE,
)
_IN_URL = re.compile(r"(\b[a-z][a-z0-9+.-]{0,20}://[^\s/:@]{0,100}:)[^\s/@]{1,200}(@)")


def mask_secrets(text: str) -> str:
    """Replace what looks like a key, a token or a password. Guesses by form: it can miss, and overdo."""
    text = _TOKENS.sub(MASK, text)
    text = _NAMED.sub(lambda match: match[1] + MASK, text)
    return _IN_URL.sub(rf"\1{MASK}\2", text)


def describe_exception(error: BaseException) -> str:
    """Render a tool's exception for a model: `TypeName: message`, masked, at most 2,000 characters."""
    name = encodable(type(error).__name__)
    # Cut before masking as well: a 50 MB message must not be searched for secrets.
    message = mask_secrets(safe_str(error)[: 2 * MAX_ERROR_CHARS])
    return shorten(f"{name}: {message}" if message else name, MAX_ERROR_CHARS)


def shorten(text: str, max_chars: int) -> str:
    """Return `text`, or its head, what was left out, and its tail, together about `max_chars`."""
    if len(text) <= max_chars:
        return text
    half = max_chars // 2
    return f"{text[:half]} …[{len(text) - 2 * half} characters left out]… {text[-half:]}"
