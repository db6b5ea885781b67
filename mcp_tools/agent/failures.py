"""What an SDK raised → a `ModelError` that holds neither the prompt nor a key."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from mcp_tools.agent.types import ModelError
from mcp_tools.output.masking import mask_secrets, shorten
from mcp_tools.output.plain import encodable, strings_in
from mcp_tools.retry_after import retry_after_s

MAX_TEXT_CHARS: Final = 500
_NOT_WORD: Final = re.compile(r"[\W_]")
_PIECE_CHARS: Final = 12
MAX_WAIT_S: Final = 7 * 86_400.0
QUOTE_CHARS: Final = 24
"""So many characters of what was sent, in a row, make a quotation of a provider's message."""
MAX_COMPARED_CHARS: Final = 5_000_000
_FORM: Final = frozenset({"role", "type", "id", "name", "status", "media_type", "tool_use_id", "call_id"})
_WIRE: Final = frozenset({"anthropic", "openai", "httpx2", "httpx", "httpcore2", "httpcore", "h11", "h2"})
_WORDS: Final[Mapping[int, str]] = {
    400: "the provider refused the request",
    401: "the provider refused the key",
    403: "the provider forbids this to the key",
    404: "the provider has no such model or address",
    413: "the request is too large for the provider",
    429: "the provider's limit of requests or tokens is reached",
    529: "the provider is overloaded",
}
# An error inside of a stream or of an answer comes after a status of 200; what it was is told by its type
# (Anthropic) or its code (OpenAI).
_STATUS: Final[Mapping[str, int]] = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}
PICTURE_CODES: Final = frozenset(
    {
        "empty_image_file",
        "failed_to_download_image",
        "image_content_policy_violation",
        "image_file_not_found",
        "image_file_too_large",
        "image_parse_error",
        "image_too_large",
        "image_too_small",
        "invalid_base64_image",
        "invalid_image",
        "invalid_image_format",
        "invalid_image_mode",
        "invalid_image_url",
        "unsupported_image_media_type",
    }
)
"""Of OpenAI: a picture in the request is the reason. Source: `ResponseError` of its SDK."""
_STATUS_OF_CODE: Final[Mapping[str, int]] = {
    "rate_limit_exceeded": 429,
    "insufficient_quota": 429,
    "tokens": 429,
    "requests": 429,
    "server_error": 500,
    "invalid_prompt": 400,
    "context_length_exceeded": 400,
    **dict.fromkeys(PICTURE_CODES, 400),
}
_UNSENT: Final = frozenset(
    {"ConnectError", "ConnectTimeout", "PoolTimeout", "LocalProtocolError", "UnsupportedProtocol"}
)
"""Of the HTTP library: nothing of a request has left."""
_HALF: Final = re.compile("[\ud800-\udfff]")
_NO_HEADER: Final = "the key or a header holds characters that cannot be sent"


class Told(Exception):
    """An error that came as data and not as an HTTP status."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        super().__init__("the provider failed")
        kind = body.get("code") or body.get("type") or ""
        self.body = {"type": kind, "message": body.get("message")}
        self.status_code = _STATUS_OF_CODE.get(str(kind))


def model_error(
    error: Exception, *, sent: Sequence[Any], secrets: Sequence[object], where: str = ""
) -> ModelError:
    """Say what happened in words.

    Args:
        error: What the SDK, or the connection under it, raised.
        sent: What went to the provider; a message that quotes it is left out.
        secrets: Keys, which no message may hold.
        where: Said where there is no such model.
    """
    status = getattr(error, "status_code", None)
    kind, said = _of_body(getattr(error, "body", None))
    is_late = False
    if not isinstance(status, int) or status < 400:
        status, is_late = _STATUS.get(kind), True
    said = _presentable(said, sent, secrets)
    if status is None:
        if not isinstance(error, Told):
            return _without_status(error)
        message = f"the provider failed ({kind or 'it does not say why'})"
        return ModelError(f"{message}: {said}" if said else message)
    what = _WORDS.get(status, "the provider failed" if status >= 500 else "the provider refused the request")
    message = f"{what} (HTTP {status}{f', {kind}' if kind else ''})"
    if status == 404 and where:
        message = f"{message}; {where}"
    wait_s = _retry_after(getattr(getattr(error, "response", None), "headers", None))
    return ModelError(
        f"{message}: {said}" if said else message,
        status=status,
        retry_after_s=wait_s,
        may_have_cost=is_late or isinstance(error, Told),
    )


def _without_status(error: Exception) -> ModelError:
    name = type(error).__name__
    is_unsent = type(error.__cause__).__name__ in _UNSENT
    if name == "APIConnectionError":
        if isinstance(error.__cause__, ValueError) or type(error.__cause__).__name__ == "LocalProtocolError":
            what = _NO_HEADER
        elif is_unsent:
            what = "the provider cannot be reached"
        else:
            what = "the provider cannot be reached, or it broke off before it had answered"
        return ModelError(what, may_have_cost=not is_unsent)
    if isinstance(error, UnicodeEncodeError):
        # Headers are ASCII; the body takes everything but halves of characters.
        is_half = _HALF.search(error.object[error.start : error.end])
        what = "the messages hold half a character (a lone surrogate), which cannot be sent"
        return ModelError(what if is_half else _NO_HEADER, may_have_cost=False)
    if isinstance(error, TypeError) and "authentication" in str(error):
        what = "there is no key for Anthropic: set ANTHROPIC_API_KEY, or give a client that has one"
        return ModelError(what, may_have_cost=False)
    if isinstance(error, TypeError) and "JSON serializable" in str(error):
        return ModelError("the messages hold what cannot be written as JSON", may_have_cost=False)
    if "Timeout" in name:
        what = f"the provider did not answer in time ({name}); the request can be repeated"
        return ModelError(what, may_have_cost=not is_unsent)
    if type(error).__module__.partition(".")[0] in _WIRE or isinstance(error, OSError):
        return ModelError(f"the answer did not arrive whole ({name}); the request can be repeated")
    return ModelError(f"the answer could not be read ({name})")


def _of_body(body: object) -> tuple[str, str]:
    """Type and message of an error's body, as far as it has them."""
    inner = body.get("error", body) if isinstance(body, Mapping) else None
    if not isinstance(inner, Mapping):
        return "", ""
    kind, said = inner.get("type"), inner.get("message")
    is_word = isinstance(kind, str) and kind.isascii() and kind.replace("_", "").isalpha() and len(kind) < 50
    return kind if is_word else "", said if isinstance(said, str) else ""  # type: ignore[return-value]


def _presentable(said: str, sent: Sequence[Any], secrets: Sequence[object]) -> str:
    said = shorten(mask_secrets(encodable(said[: 2 * MAX_TEXT_CHARS])), MAX_TEXT_CHARS)
    if any(isinstance(secret, str) and _says(said, secret) for secret in secrets):
        return ""
    texts = [text for part in sent for text in _written(part)]
    if sum(map(len, texts)) > MAX_COMPARED_CHARS:
        return ""  # comparing would hold up everything else
    # Every eighth window of sixteen: each quotation of 23 characters or more holds a whole one.
    windows = {said[i : i + 16] for i in range(0, len(said) - 15, 8)}
    for text in texts:
        is_quoted = text.strip() in said if 8 <= len(text) < QUOTE_CHARS else False
        if is_quoted or any(window in text for window in windows):
            return ""
    return said


def _says(said: str, secret: str) -> bool:
    """Whether a piece of a secret is in what was said, however it is spaced or cased there."""
    within, whole = (_NOT_WORD.sub("", text).lower() for text in (said, secret))
    pieces = (whole[i : i + _PIECE_CHARS] for i in range(max(1, len(whole) - _PIECE_CHARS + 1)))
    return any(piece and piece in within for piece in pieces)


def _written(part: Any) -> list[str]:
    """The strings that people, tools and models wrote, without the words of the API's own form."""
    if isinstance(part, list | tuple):
        return [text for item in part for text in _written(item)]
    if isinstance(part, Mapping) and ("role" in part or "type" in part):
        kept = {name: value for name, value in part.items() if name not in _FORM}
        content = kept.pop("content", None)
        return [*strings_in(list(kept.values())), *_written(content)]
    return strings_in(part)


def _retry_after(headers: Any) -> float | None:
    if headers is None:
        return None
    exact_ms = retry_after_s(headers, name="retry-after-ms", most_s=MAX_WAIT_S * 1000)
    return retry_after_s(headers, most_s=MAX_WAIT_S) if exact_ms is None else exact_ms / 1000
