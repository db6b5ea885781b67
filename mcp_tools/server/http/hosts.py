"""Which Host and Origin headers are answered: the defence against DNS rebinding and cross-site requests.

A page that a browser shows cannot choose the Host it sends: it is the name the page was loaded from or
asked for. So only names that are ours are answered, compared whole; nothing is parsed, since a parser
that stops at a colon takes `localhost:evil.example` for `localhost`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from mcp_tools.errors import ConfigError

LOOPBACK_NAMES: Final = ("127.0.0.1", "localhost", "[::1]")

_HOST = re.compile(r"(?P<name>[a-z0-9]([a-z0-9._-]*[a-z0-9])?|\[[0-9a-f:.]+\])(:(?P<port>[0-9]{1,5}))?")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://" + _HOST.pattern)


class HostCheck:
    """Exact allow-lists for the Host and Origin headers. Frozen after it is made.

    Always answered: loopback names with the port the connection came in on, and the address the
    connection came in on (an address in the Host header cannot be the work of DNS).

    Args:
        hosts: More names: `name` (alone, or with the port we listen on) or `name:port` (exactly so).
        origins: Origins of web pages that may call, such as `https://app.example`, beside our own.
    Raises:
        ConfigError: An entry is not a plain host or origin; wildcards are not offered.
    """

    def __init__(self, hosts: Iterable[str] = (), origins: Iterable[str] = ()) -> None:
        self._bare: set[str] = set()
        self._exact: set[str] = set()
        for entry in hosts:
            found = _HOST.fullmatch(entry.lower())
            if found is None:
                raise ConfigError(
                    f"allowed host {entry!r}: use `name` or `name:port`, without scheme, path or wildcard"
                )
            (self._exact if found["port"] else self._bare).add(entry.lower())
        self._origins: set[str] = set()
        for entry in origins:
            if not _ORIGIN.fullmatch(entry.lower()):
                raise ConfigError(
                    f"allowed origin {entry!r}: use `scheme://name[:port]`, without path or wildcard"
                )
            self._origins.add(entry.lower())
        # One entry for each address of this machine that a connection came in on.
        self._names_at = lru_cache(maxsize=64)(self._make_names)

    def allows_host(self, host: str | None, server: tuple[str, int | None] | None) -> bool:
        """Whether a request with this Host header, that came in at this local address, is ours to answer."""
        return host is not None and host.lower() in self._names_at(*(server or (None, None)))

    def allows_origin(self, origin: str | None, server: tuple[str, int | None] | None, scheme: str) -> bool:
        """Whether a page from this origin may call; None means that no page is involved."""
        if origin is None:
            return True
        origin = origin.lower()
        if origin in self._origins:
            return True
        prefix = f"{scheme}://"
        return origin.startswith(prefix) and origin.removeprefix(prefix) in self._names_at(
            *(server or (None, None))
        )

    def _make_names(self, address: str | None, port: int | None) -> frozenset[str]:
        names = self._exact | self._bare
        if port is not None:
            ours = [*LOOPBACK_NAMES, *self._bare, *_literal(address)]
            names |= {f"{name}:{port}" for name in ours}
            if port in (80, 443):
                names |= set(ours)
        return frozenset(names)


def _literal(address: str | None) -> list[str]:
    """Write a local address as a Host header has it; nothing for a socket path or a name."""
    try:
        parsed = ipaddress.ip_address((address or "").partition("%")[0])
    except ValueError:
        return []
    if parsed.is_unspecified:
        return []
    if isinstance(parsed, ipaddress.IPv6Address):
        return [f"[{parsed.compressed}]", *([str(parsed.ipv4_mapped)] if parsed.ipv4_mapped else [])]
    return [str(parsed)]
