"""What is looked at before a request is served: pure functions from headers to an answer, or to facts."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from mcp_types import INTERNAL_ERROR, INVALID_REQUEST
from mcp_types.jsonrpc import JSONRPCMessage

from mcp_tools.server.guard import Accept, Drop, Reply, check_message
from mcp_tools.server.http.limits import HttpLimits

Scope = dict[str, Any]
Header = tuple[bytes, bytes]

# Every one of these changes who is asked, for whom, or where the body ends: two of them is one too many.
_SINGLE: Final = frozenset(
    {
        b"host",
        b"origin",
        b"authorization",
        b"content-type",
        b"content-encoding",
        b"content-length",
        b"transfer-encoding",
        b"upgrade",
        b"mcp-session-id",
        b"mcp-protocol-version",
        b"mcp-method",
    }
)


@dataclass(frozen=True, slots=True)
class Answer:
    """A short answer, most often a refusal: status, text, and headers beyond the usual ones."""

    status: int
    text: str
    headers: tuple[Header, ...] = ()
    media_type: bytes = b"text/plain; charset=utf-8"


JSON: Final = b"application/json"
CLOSE: Final[Header] = (b"connection", b"close")
RETRY_SOON: Final[Header] = (b"retry-after", b"1")

DISAGREEING_LENGTH: Final = Answer(400, "both Content-Length and Transfer-Encoding", (CLOSE,))
BUSY: Final = Answer(503, "too many requests at once; try again later", (RETRY_SOON,))
STOPPING: Final = Answer(503, "the server is stopping", (CLOSE,))
TOO_LARGE: Final = Answer(413, "the request body is too large")
FAULT: Final = Answer(500, "internal error")
ENDED: Final = Answer(204, "")
NOT_ACCEPTABLE: Final = Answer(406, "Accept must name application/json and text/event-stream")
NOT_FOUND: Final = Answer(404, "not found")
BODY_UNWANTED: Final = Answer(400, "this method takes no body")
NEEDS_SESSION: Final = Answer(400, "the Mcp-Session-Id header is missing")
UNAUTHORIZED: Final = Answer(
    401, "a valid bearer token is required", ((b"www-authenticate", b'Bearer realm="mcp-tools"'),)
)


def rpc_error(status: int, code: int, message: str, *headers: Header) -> Answer:
    """Make an answer whose body is a JSON-RPC error, for what MCP itself defines."""
    body = {"jsonrpc": "2.0", "id": None, "error": {"code": code, "message": message}}
    return Answer(status, json.dumps(body), headers, JSON)


# One answer for an unknown, an ended and a foreign session: the caller cannot tell which it is.
NO_SESSION: Final = rpc_error(404, INVALID_REQUEST, "Session not found")
TOO_MANY_SESSIONS: Final = rpc_error(503, INTERNAL_ERROR, "Too many open sessions", RETRY_SOON)


def method_not_allowed(allowed: Iterable[str]) -> Answer:
    """Refuse a method on a path that serves others."""
    return Answer(405, "method not allowed", ((b"allow", ", ".join(allowed).encode()),))


class Headers:
    """The headers that matter here, each at most once, as bytes."""

    __slots__ = ("_found", "accept", "refusal")

    def __init__(self, raw: Iterable[Header], limits: HttpLimits) -> None:
        found: dict[bytes, bytes] = {}
        self._found = found
        self.refusal: Answer | None = None
        self.accept = b""
        size = count = 0
        for name, value in raw:
            size += len(name) + len(value)
            count += 1
            if name in _SINGLE:
                if name in found:
                    self.refusal = Answer(400, f"more than one {name.decode()} header", (CLOSE,))
                found[name] = value
            elif name == b"accept":
                self.accept += b"," + value
        if size > limits.header_bytes or count > limits.header_count:
            self.refusal = Answer(431, "the request headers are too large", (CLOSE,))

    def get(self, name: bytes) -> bytes | None:
        """Return the value, or None where the header is absent."""
        return self._found.get(name)

    def text(self, name: bytes) -> str | None:
        """Return the value as text; any byte has one."""
        value = self._found.get(name)
        return None if value is None else value.decode("latin-1")


def framing_refusal(scope: Scope, headers: Headers, limits: HttpLimits) -> Answer | None:
    """Refuse what could be read in two ways, and protocols that are not served."""
    if headers.refusal is not None:
        return headers.refusal
    if headers.get(b"transfer-encoding") is not None and headers.get(b"content-length") is not None:
        # h11 keeps such a connection open; RFC 9112, section 6.1 wants it closed.
        return DISAGREEING_LENGTH
    if scope["http_version"] not in ("1.1", "1.0"):
        return Answer(505, "use HTTP/1.1", (CLOSE,))
    if headers.get(b"upgrade") is not None:
        return Answer(400, "upgrades are not offered", (CLOSE,))
    if len(scope.get("raw_path") or b"") + len(scope.get("query_string", b"")) > limits.target_bytes:
        return Answer(414, "the request target is too long", (CLOSE,))
    return None


def media_refusal(headers: Headers, limits: HttpLimits) -> Answer | None:
    """Refuse a POST whose body is not plain JSON of acceptable size, before any of it is read.

    A page of another site can send forms and text without asking first, but not `application/json`.
    """
    kind, _, parameters = (headers.get(b"content-type") or b"").lower().partition(b";")
    if kind.strip() != b"application/json" or parameters.strip() not in (b"", b"charset=utf-8"):
        return Answer(415, "Content-Type must be application/json")
    if (headers.get(b"content-encoding") or b"identity").strip().lower() != b"identity":
        return Answer(415, "compressed bodies are not accepted")
    length = headers.get(b"content-length")
    if length is not None and (not length.isdigit() or int(length[:20]) > limits.body_bytes):
        return TOO_LARGE
    return None


def accepts(headers: Headers, *wanted: bytes) -> bool:
    """Whether the client says that it takes all of these media types."""
    taken = {kind.partition(b";")[0].strip().lower() for kind in headers.accept.split(b",")}
    return all(
        kind in taken or b"*/*" in taken or kind.partition(b"/")[0] + b"/*" in taken for kind in wanted
    )


def has_body(headers: Headers) -> bool:
    """Whether the request announces a body."""
    return (headers.get(b"content-length") or b"0").strip(b"0") != b"" or (
        headers.get(b"transfer-encoding") is not None
    )


def bearer_token(headers: Headers) -> bytes | None:
    """Return the token of an `Authorization: Bearer …` header, or None."""
    scheme, separator, token = (headers.get(b"authorization") or b"").partition(b" ")
    if not separator or scheme.lower() != b"bearer":
        return None
    return token.strip(b" ")


def read_message(body: bytes) -> JSONRPCMessage | Answer:
    """Return the one message that a body holds, or the answer that says why it holds none."""
    match check_message(body, max_bytes=len(body)):
        case Accept(message):
            return message
        case Reply(error):
            text = error.model_dump_json(by_alias=True, exclude_unset=True)
            return Answer(400, text, media_type=JSON)
        case Drop(reason):
            return rpc_error(400, INVALID_REQUEST, reason)
