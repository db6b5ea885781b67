"""The client: one request, within one deadline, along checked addresses only."""

from __future__ import annotations

import functools
import json as jsonlib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit

import anyio
import anyio.lowlevel

from mcp_tools.web import urls
from mcp_tools.web.bodies import ACCEPT_ENCODING, Body
from mcp_tools.web.names import Resolver, addresses_of, refuse_inside_names, resolve
from mcp_tools.web.pace import Pace
from mcp_tools.web.types import Astray, MayFollow, Reach, Refused, Unreachable, WebResponse

if TYPE_CHECKING:
    import ssl

    import httpcore2

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_OURS: Final = frozenset(
    {"host", "connection", "content-length", "transfer-encoding", "te", "upgrade", "accept-encoding"}
)
_CARRIED: Final = frozenset({"authorization", "proxy-authorization", "cookie", "referer", "origin"})
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"})
_WIRE_SLACK_BYTES: Final = 1024**2
_MANY_PIECES: Final = 5_000
_SMALL_BYTES: Final = 64
_PIECES_AT_ONCE: Final = 200


class WebClient:
    """Asks the web: `Web` over HTTP/1.1 and TLS.

    Each request has connections of its own: what was checked for one is never dialled for another, and a
    client can be used from several event loops.

    Args:
        reach: Where requests may go and how much is taken.
        user_agent: Sent with every request.
        resolver: Finds addresses of names. None: the system's.
        ssl_context: Verifies servers. None: the system's authorities. One that verifies nothing is refused.
        pace: Spaces requests of `get`, host by host. None: one of its own.
    Raises:
        ValueError: `reach` names a host or a proxy that is none, or `ssl_context` verifies nothing.
    """

    def __init__(
        self,
        reach: Reach,
        *,
        user_agent: str,
        resolver: Resolver | None = None,
        ssl_context: ssl.SSLContext | None = None,
        pace: Pace | None = None,
    ) -> None:
        if ssl_context is not None and not (ssl_context.check_hostname and ssl_context.verify_mode):
            raise ValueError("ssl_context must verify certificates and host names")
        self._reach = reach
        self._hosts = urls.allowed_hosts(reach.hosts)
        self._proxy = None if reach.proxy is None else _read_proxy(reach.proxy)
        self._user_agent = user_agent
        self._resolver = resolver or resolve
        self._ssl_context = ssl_context
        self._pace = pace or Pace()

    async def get(
        self,
        url: str,
        *,
        accept: str = "*/*",
        headers: Mapping[str, str] | None = None,
        may_follow: MayFollow | None = None,
    ) -> WebResponse:
        """Fetch a page, following redirects. Carries no cookies, no credentials and no referrer.

        Args:
            headers: Sent to the first host only.
            may_follow: As `Web` says.
        Raises:
            ValueError: `headers` holds credentials; that is what `ask` is for.
            Refused, Unreachable: As `Web` says.
        """
        if headers and _CARRIED & {name.lower() for name in headers}:
            raise ValueError("get carries no credentials and no referrer; use ask")
        with anyio.move_on_after(self._reach.deadline_s):
            return await self._follow(urls.parse(url), accept, headers or {}, may_follow)
        raise self._too_slow()

    async def ask(
        self, method: str, url: str, *, json: Any = None, headers: Mapping[str, str] | None = None
    ) -> WebResponse:
        """Send a request to a service that the owner named. Redirects are answers here.

        Raises:
            ValueError: The method is none of HTTP's usual ones, or `json` is no JSON.
            Refused, Unreachable: As `Web` says.
        """
        if method not in _METHODS:
            raise ValueError(f"unknown method {method!r}; use one of {', '.join(sorted(_METHODS))}")
        content = None if json is None else jsonlib.dumps(json, allow_nan=False).encode()
        fields = {"Accept": "application/json"}
        if content is not None:
            fields["Content-Type"] = "application/json"
        with anyio.move_on_after(self._reach.deadline_s):
            target = urls.parse(url)
            return await self._send(method, target, _merged(fields, headers or {}), content)
        raise self._too_slow()

    async def aclose(self) -> None:
        """Do nothing: no connection outlives its request."""

    def _too_slow(self) -> Unreachable:
        return Unreachable(f"there was no whole answer within {self._reach.deadline_s:g} s")

    async def _follow(
        self, url: urls.Url, accept: str, headers: Mapping[str, str], may_follow: MayFollow | None
    ) -> WebResponse:
        passed: list[str] = []
        sets_cookies = False
        fields = _merged({"Accept": accept}, headers)
        while True:
            async with self._pace.turn(url.netloc):
                answer = await self._send("GET", url, fields, None)
            location = answer.headers.get("location")
            if answer.status not in _REDIRECTS or location is None:
                return WebResponse(
                    url=answer.url,
                    status=answer.status,
                    headers=answer.headers,
                    body=answer.body,
                    is_cut=answer.is_cut,
                    redirects=tuple(passed),
                )
            passed.append(str(url))
            sets_cookies = sets_cookies or "set-cookie" in answer.headers
            target = urls.join(url, location)
            if str(target) in passed:
                why = " until a cookie comes back, and none are kept" if sets_cookies else ""
                raise Astray(f"the page redirects in a circle{why}; trying again will not help")
            if len(passed) > self._reach.max_redirects:
                raise Astray(f"the page redirects more than {self._reach.max_redirects} times")
            if may_follow is not None:
                await may_follow(str(target))
            if target.origin != url.origin:
                fields = {"Accept": accept}
            url = target

    async def _send(
        self, method: str, url: urls.Url, fields: Mapping[str, str], content: bytes | None
    ) -> WebResponse:
        import httpcore2

        from mcp_tools.web.dialling import Dialler

        addresses = await self._addresses(url)
        dialler = Dialler(addresses, max_bytes=4 * self._reach.max_bytes + _WIRE_SLACK_BYTES)
        standard = {
            "Host": url.netloc,
            "User-Agent": self._user_agent,
            "Accept-Encoding": ACCEPT_ENCODING,
            "Connection": "close",
        }
        lines = [(name.encode(), value.encode()) for name, value in {**standard, **fields}.items()]
        if content is not None:
            lines.append((b"Content-Length", str(len(content)).encode()))
        request = httpcore2.Request(
            method,
            httpcore2.URL(scheme=url.scheme, host=_wire_host(url), port=url.port, target=url.target.encode()),
            headers=lines,
            content=content,
        )
        pool = httpcore2.AsyncConnectionPool(
            ssl_context=self._ssl_context or _system_authorities(),
            proxy=self._proxy,
            network_backend=dialler,
            max_keepalive_connections=0,
        )
        try:
            async with pool:
                answer = await pool.handle_async_request(request)
                try:
                    if dialler.stream is not None:
                        dialler.stream.in_body = True
                    return await self._read(url, answer)
                finally:
                    await answer.aclose()
        except httpcore2.LocalProtocolError:
            raise Refused("the request cannot be sent: a header holds what no header may") from None
        except (
            httpcore2.NetworkError,
            httpcore2.ProtocolError,
            httpcore2.TimeoutException,
            OSError,  # of TLS, once the connection is there
        ) as error:
            raise Unreachable(_why(url, error)) from None
        except httpcore2.ProxyError:
            raise Unreachable("the configured proxy refused to connect") from None
        finally:
            await dialler.aclose()

    async def _addresses(self, url: urls.Url) -> list[str]:
        is_allowed = bool({(url.host, None), (url.host, url.port)} & self._hosts)
        if self._proxy is None:
            return await addresses_of(url, resolver=self._resolver, is_allowed=is_allowed)
        if url.address is not None:
            await addresses_of(url, resolver=self._resolver, is_allowed=is_allowed)
        elif not is_allowed:
            refuse_inside_names(url)
        host = self._proxy.url.host.decode("ascii")
        scheme = self._proxy.url.scheme.decode("ascii")
        named = urls.parse(f"{scheme}://[{host}]" if ":" in host else f"{scheme}://{host}")
        return await addresses_of(named, resolver=self._resolver, is_allowed=True)

    async def _read(self, url: urls.Url, answer: httpcore2.Response) -> WebResponse:
        headers: dict[str, str] = {}
        encodings = []
        for raw_name, raw_value in answer.headers:
            name = raw_name.decode("latin-1").lower()
            headers.setdefault(name, _text(raw_value))
            if name == "content-encoding":
                encodings.append(_text(raw_value))
        body = Body(",".join(encodings), max_bytes=self._reach.max_bytes)
        # The body of a redirect is for people; nobody is shown it, and it could be endless.
        is_wanted = answer.status not in _REDIRECTS or "location" not in headers
        if is_wanted:
            pieces = taken_bytes = 0
            async for data in answer.aiter_stream():
                pieces += 1
                taken_bytes += len(data)
                if pieces > _MANY_PIECES and taken_bytes < pieces * _SMALL_BYTES:
                    body.is_cut = True  # each piece costs, however small it is
                    break
                if pieces % _PIECES_AT_ONCE == 0:
                    await anyio.lowlevel.checkpoint()  # they may all be here already
                if not body.take(data):
                    break
        return WebResponse(
            url=str(url), status=answer.status, headers=headers, body=body.finish(), is_cut=body.is_cut
        )


@functools.cache
def _system_authorities() -> ssl.SSLContext:
    import httpcore2

    return httpcore2.default_ssl_context()


def _merged(ours: Mapping[str, str], theirs: Mapping[str, str]) -> dict[str, str]:
    names = {name.lower() for name in theirs}
    for name, value in theirs.items():
        if not _TOKEN.fullmatch(name) or name.lower() in _OURS:
            raise Refused(f"the header {name[:40]!a} cannot be set")
        # The value may be a secret: it is not in the text.
        if not value.isascii() or not value.isprintable():
            raise Refused(f"the value of the header {name[:40]} has characters that no header may have")
    return {name: value for name, value in ours.items() if name.lower() not in names} | dict(theirs)


def _wire_host(url: urls.Url) -> bytes:
    return url.host.encode("ascii")


def _text(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _why(url: urls.Url, error: Exception) -> str:
    import ssl

    import httpcore2

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"the certificate of {url.netloc} is not valid for it"
        if isinstance(cause, ssl.SSLError):
            return f"{url.netloc} speaks no TLS that can be used here; is it http:// there?"
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, httpcore2.ConnectError | httpcore2.ConnectTimeout):
        return f"{url.netloc} does not accept connections; trying again later can help"
    if isinstance(error, httpcore2.RemoteProtocolError):
        return f"the answer of {url.netloc} broke off or is no HTTP; trying again can help"
    return f"the connection to {url.netloc} broke; trying again can help"


def _read_proxy(text: str) -> httpcore2.Proxy:
    import httpcore2

    # The URL may hold a password: no text of an error quotes it.
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise ValueError("the proxy's URL cannot be read") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("the proxy must be a URL of http or https with a host")
    auth = None
    if parts.username is not None:
        auth = (unquote(parts.username).encode(), unquote(parts.password or "").encode())
    url = httpcore2.URL(scheme=parts.scheme, host=parts.hostname, port=port, target="/")
    return httpcore2.Proxy(url, auth=auth)
