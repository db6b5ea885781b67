"""Which addresses are the public internet's, and which lead somewhere else."""

from __future__ import annotations

import ipaddress
from typing import Final

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_NOT_PUBLIC_4: Final = tuple(
    ipaddress.IPv4Network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT: a provider's inside, and some clouds' metadata
        "127.0.0.0/8",
        "169.254.0.0/16",  # link-local, and the metadata service of most clouds
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.31.196.0/24",
        "192.52.193.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "192.175.48.0/24",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
        "168.63.129.16/32",  # a public number that Azure answers inside its hosts
    )
)
_GLOBAL_6: Final = ipaddress.IPv6Network("2000::/3")
_NOT_PUBLIC_6: Final = tuple(
    ipaddress.IPv6Network(text)
    for text in (
        "2001::/23",  # protocol assignments, Teredo and ORCHID among them
        "2001:db8::/32",
        "2002::/16",  # 6to4: a relay decides which IPv4 network it becomes
        "2620:4f:8000::/48",
        "3fff::/20",
    )
)
_MAPPED: Final = ipaddress.IPv6Network("::ffff:0:0/96")
NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_ISATAP: Final = frozenset({0x00005EFE, 0x02005EFE})


def is_public(address: Address) -> bool:
    """Say whether an address is one of the public internet's, by the registries of special addresses.

    Mapped (`::ffff:a.b.c.d`) and NAT64 (`64:ff9b::/96`) addresses are what the IPv4 address inside them is:
    networks without IPv4 reach all of it that way. Every other way to write IPv4 inside IPv6 is not
    public, whatever is inside: 6to4, Teredo, IPv4-compatible, and NAT64 for local use
    (`64:ff9b:1::/48`), where the network decides at which bits the address begins.
    Source: IANA's special-purpose address registries; RFC 6052, RFC 8215, RFC 5214.
    """
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _NOT_PUBLIC_4)
    if address.scope_id is not None:
        return False
    bits = int(address)
    if address in _MAPPED or address in NAT64:
        return is_public(ipaddress.IPv4Address(bits & 0xFFFFFFFF))
    if address not in _GLOBAL_6 or any(address in network for network in _NOT_PUBLIC_6):
        return False
    if bits >> 32 & 0xFFFFFFFF in _ISATAP:
        return is_public(ipaddress.IPv4Address(bits & 0xFFFFFFFF))
    return True
