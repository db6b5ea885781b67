"""From a URL to the addresses that may be dialled for it."""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import socket
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import anyio.to_thread

from mcp_tools.web.addresses import is_public
from mcp_tools.web.types import Busy, Refused, Unreachable
from mcp_tools.web.urls import Url

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""Given a name and a port, returns texts of addresses, or raises OSError."""
MAX_LOOKUPS: Final = 32
_NOT_PUBLIC: Final = (
    "leads to an address that is not public (this machine, a private network or a reserved range), which is "
    "never asked; trying again will not help. The owner can allow a host with MCP_TOOLS_WEB_HOSTS"
)
MAX_OF_DOMAIN: Final = 8
MAX_WAIT_S: Final = 5.0
_LOOK_S: Final = 0.05
_INSIDE: Final = (".localhost", ".local", ".internal", ".home.arpa", ".lan")
# Ports of protocols that take lines of text and might act on a request's.
_NOT_OF_THE_WEB: Final = frozenset({
    1, 7, 9, 11, 13, 15, 17, 19, 20, 21, 22, 23, 25, 37, 42, 43, 53, 69, 77, 79, 87, 95, 101, 102,
    103, 104, 109, 110, 111, 113, 115, 117, 119, 123, 135, 137, 139, 143, 161, 179, 389, 427, 465,
    512, 513, 514, 515, 526, 530, 531, 532, 540, 548, 554, 556, 563, 587, 601, 636, 873, 989, 990,
    993, 995, 1433, 1521, 1719, 1720, 1723, 2049, 3306, 3389, 3659, 4045, 4190, 5060, 5061, 5432,
    6000, 6379, 6566, 6665, 6666, 6667, 6668, 6669, 6679, 6697, 10080, 11211, 27017,
})  # fmt: skip
_lock = threading.Lock()
_under_way: Counter[str] = Counter()


async def resolve(host: str, port: int) -> Sequence[str]:
    """Ask the system for a name's addresses.

    Raises:
        OSError: It has none.
        Busy: Too many lookups are under way. They cannot be ended, so they are counted: together, and of one
            domain, whose servers may never answer.
    """

    domain = ".".join(host.split(".")[-2:])

    has_started = False

    def look_up() -> list[str]:
        nonlocal has_started
        has_started = True
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        finally:
            _has_ended(domain)
        return list(dict.fromkeys(str(entry[4][0]) for entry in found))

    until = anyio.current_time() + MAX_WAIT_S
    while not _has_begun(domain):
        if anyio.current_time() > until:
            raise Busy("too many names are being looked up; try again later", retry_after_s=10)
        await anyio.sleep(_LOOK_S)
    try:
        return await anyio.to_thread.run_sync(look_up, abandon_on_cancel=True)
    except BaseException:
        if not has_started:  # it was withdrawn before a thread had it
            _has_ended(domain)
        raise


def _has_begun(domain: str) -> bool:
    with _lock:
        if _under_way[domain] >= MAX_OF_DOMAIN or _under_way.total() >= MAX_LOOKUPS:
            return False
        _under_way[domain] += 1
        return True


def _has_ended(domain: str) -> None:
    with _lock:
        _under_way[domain] -= 1
        if not _under_way[domain]:
            del _under_way[domain]


def refuse_inside_names(url: Url) -> None:
    """Refuse names that mean a place inside everywhere, for whoever cannot look them up.

    Raises:
        Refused: It is one.
    """
    if "." not in url.host or url.host.endswith(_INSIDE):
        raise Refused(f"{url.host} {_NOT_PUBLIC}")
    _refuse_foreign_port(url)


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
    if not is_allowed and not all(is_public(address) and not _is_own(str(address)) for address in found):
        raise Refused(f"{url.host} {_NOT_PUBLIC}")
    if not is_allowed:
        _refuse_foreign_port(url)
    return [str(address) for address in found]


def _refuse_foreign_port(url: Url) -> None:
    if url.port in _NOT_OF_THE_WEB:
        raise Refused(
            f"port {url.port} is another protocol's and is not asked; the owner can allow {url.netloc} with "
            "MCP_TOOLS_WEB_HOSTS"
        )


def _is_own(address: str) -> bool:
    """Whether a public address is this machine's: what a firewall hides there is not public."""
    return _binds(address) and not _binds_anything(":" in address)


@functools.cache
def _binds_anything(is_six: bool) -> bool:
    # Some machines are set up to bind addresses that are not theirs (yet), so binding says nothing there.
    return _binds("2001:db8::1" if is_six else "192.0.2.1")


def _binds(address: str) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.bind((address, 0))
        return True
    return False
