"""From a URL to the addresses that may be dialled for it."""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import anyio.to_thread

from mcp_tools.web.addresses import is_public
from mcp_tools.web.types import Refused, Unreachable
from mcp_tools.web.urls import Url

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""Given a name and a port, returns texts of addresses, or raises OSError."""
MAX_LOOKUPS: Final = 32
_NOT_PUBLIC: Final = (
    "leads to an address that is not public (this machine, a private network or a reserved range), which is "
    "never asked; trying again will not help. The owner can allow a host with MCP_TOOLS_WEB_HOSTS"
)
_lookups = threading.BoundedSemaphore(MAX_LOOKUPS)


async def resolve(host: str, port: int) -> Sequence[str]:
    """Ask the system for a name's addresses.

    Raises:
        OSError: It has none.
        Unreachable: Too many lookups are under way: they cannot be ended, so they are counted.
    """

    def look_up() -> list[str]:
        if not _lookups.acquire(blocking=False):
            raise Unreachable("too many names are being looked up; try again later", retry_after_s=10)
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        finally:
            _lookups.release()
        return list(dict.fromkeys(str(entry[4][0]) for entry in found))

    return await anyio.to_thread.run_sync(look_up, abandon_on_cancel=True)


async def addresses_of(url: Url, *, resolver: Resolver, is_allowed: bool) -> list[str]:
    """Look up a host once and check all it stands for. What is returned is what must be dialled.

    One address that is not public refuses them all: no public site has one, so the name is either an
    inside name or an attack, and which of its addresses would have been dialled is luck.

    Args:
        is_allowed: The owner named this host: its addresses need not be public.
    Raises:
        Refused: An address is not public.
        Unreachable: There is none.
    """
    if url.address is not None:
        texts: Sequence[str] = [str(url.address)]
    else:
        try:
            texts = await resolver(url.host, url.port)
        except (OSError, UnicodeError):
            texts = ()
        if not texts:
            raise Unreachable(f"no address was found for {url.host}; check the name")
    try:
        found = [ipaddress.ip_address(text) for text in texts]
    except ValueError:
        raise Unreachable(f"the addresses found for {url.host} cannot be read") from None
    if not is_allowed and not all(map(is_public, found)):
        raise Refused(f"{url.host} {_NOT_PUBLIC}")
    return [str(address) for address in found]
