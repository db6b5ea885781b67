"""One URL, read strictly: what is not plainly an address on the web is refused, never repaired."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, unquote, urljoin

from mcp_tools.web.addresses import NAT64, Address
from mcp_tools.web.types import Refused

MAX_URL_CHARS: Final = 8192
_MAX_NAME: Final = 253
_MAX_PORT: Final = 65535
_PORTS: Final = {"http": 80, "https": 443}
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_CONTROL = re.compile(r"[\x00-\x20\x7f-\xa0\u2028\u2029\\\ud800-\udfff]")
_DOT = re.compile(r"%2e", re.IGNORECASE)
_UNRESERVED = re.compile(r"%(?:2[DE]|3[0-9]|4[1-9A-F]|5[0-9AF]|6[1-9A-F]|7[0-9AE])", re.IGNORECASE)
_SLASHES = re.compile(r"/{2,}")
_DECODINGS: Final = 3  # a server behind a proxy behind another
_KEPT: Final = "%/:?#[]@!$&'()*+,;=-._~"


@dataclass(frozen=True, slots=True, kw_only=True)
class Url:
    """A URL that may be asked, as far as its text goes.

    Args:
        scheme: `http` or `https`.
        host: In lower case, in ASCII, without brackets.
        port: As given, or the scheme's.
        target: Path and query, in ASCII, without dot segments and without a fragment.
        address: The host, where it is an address.
    """

    scheme: str
    host: str
    port: int
    target: str
    address: Address | None = None

    @property
    def netloc(self) -> str:
        """Host, and port where it is not the scheme's: what goes into `Host`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        """Scheme, host and port."""
        return f"{self.scheme}://{self.netloc}"

    def __str__(self) -> str:
        return self.origin + self.target


def parse(text: str) -> Url:
    """Read a URL.

    Raises:
        Refused: It is no URL of http or https, or one that programs read in different ways: with
            credentials, control characters, spaces, backslashes, zone ids, or an IPv4 address that is
            not four decimal numbers.
    """
    _check_characters(text)
    scheme, rest = _split_scheme(text)
    end = min((i for i in map(rest.find, "/?#") if i >= 0), default=len(rest))
    authority, tail = rest[:end], rest[end:].partition("#")[0]
    if "@" in authority:
        raise Refused("URLs with a user name or password are not asked; leave out what stands before '@'")
    host_text, port = _split_port(authority, scheme)
    host, address = _host(host_text)
    path, mark, query = tail.partition("?")
    path = _UNRESERVED.sub(lambda found: chr(int(found.group()[1:], 16)), quote(path, safe=_KEPT))
    path = _without_dots(path)
    if _hides_dots(path):
        raise Refused("the path hides '..' behind an encoding, which servers read in different ways")
    target = path + mark + quote(query, safe=_KEPT)
    return Url(scheme=scheme, host=host, port=port, target=target, address=address)


def spellings(url: Url) -> tuple[str, ...]:
    """Return how rules may name a page: its URL, its origin, its host with and without the port; the same
    with the port written out, with its name in Unicode, and without empty parts of the path.
    """
    place = f"[{url.host}]" if ":" in url.host else url.host
    ported = f"{place}:{url.port}"
    path, mark, query = url.target.partition("?")
    names = [str(url), url.origin, url.netloc, url.host, ported, f"{url.scheme}://{ported}{url.target}"]
    names.append(url.origin + _SLASHES.sub("/", path) + mark + query)
    if "xn--" in url.host:
        import idna

        name = ".".join(
            idna.ulabel(part) if part.startswith("xn--") else part for part in url.host.split(".")
        )
        names += [name, f"{name}:{url.port}", f"{url.scheme}://{name}", f"{url.scheme}://{name}{url.target}"]
    return tuple(dict.fromkeys(names))


def join(base: Url, location: str) -> Url:
    """Read where a redirect leads.

    Raises:
        Refused: As for `parse`.
    """
    # Servers send spaces there, and every program writes them as they should have been.
    location = location.strip(" \t").replace(" ", "%20")
    _check_characters(location)
    try:
        joined = urljoin(str(base), location)
    except ValueError:  # its text quotes the stranger's
        raise Refused("the page redirects to what is no URL") from None
    return parse(joined)


def allowed_hosts(entries: frozenset[str]) -> frozenset[tuple[str, int | None]]:
    """Read an owner's `host` and `host:port` entries; the port is None where every port is meant.

    Raises:
        ValueError: An entry is none.
    """
    read: set[tuple[str, int | None]] = set()
    for entry in entries:
        try:
            literal = ipaddress.ip_address(entry)
        except ValueError:
            pass
        else:
            read.add((str(literal), None))
            continue
        try:
            url = parse(f"http://{entry}")
        except Refused as error:
            raise ValueError(f"{entry!r} is no host or host:port: {error}") from None
        if url.target != "/":
            raise ValueError(f"{entry!r} is no host or host:port")
        read.add((url.host, url.port if re.search(r":[0-9]+\Z", entry) else None))
    return frozenset(read)


def _check_characters(text: str) -> None:
    if len(text) > MAX_URL_CHARS:
        raise Refused(f"the URL is longer than {MAX_URL_CHARS} characters")
    if found := _CONTROL.search(text):
        character = found.group()
        remedy = "; write it as %20" if character == " " else ""
        raise Refused(f"the URL contains {character!a}, which no URL may contain{remedy}")


def _split_scheme(text: str) -> tuple[str, str]:
    found = _SCHEME.match(text)
    scheme = found.group(1).lower() if found else ""
    if found is None or scheme not in _PORTS:
        raise Refused("only URLs that begin with http:// or https:// are asked")
    rest = text[found.end() :]
    if not rest.startswith("//") or rest.startswith("///"):
        raise Refused(f"after '{scheme}:' there must be '//' and a host, as in {scheme}://example.com/")
    return scheme, rest[2:]


def _split_port(authority: str, scheme: str) -> tuple[str, int]:
    if authority.startswith("["):
        inside, bracket, after = authority.partition("]")
        host = inside + bracket
        if not bracket or (after and not after.startswith(":")):
            raise Refused("the host in brackets is no IPv6 address")
        port = after[1:]
    else:
        host, _, port = authority.partition(":")
    if not port:
        return host, _PORTS[scheme]
    if not (port.isascii() and port.isdigit() and len(port) <= len(str(_MAX_PORT))):
        raise Refused("the port must be a number from 1 to 65535")
    if not 1 <= int(port) <= _MAX_PORT:
        raise Refused("the port must be a number from 1 to 65535")
    return host, int(port)


def _host(text: str) -> tuple[str, Address | None]:
    if text.startswith("["):
        try:
            literal = ipaddress.IPv6Address(text[1:-1])
        except ValueError:
            raise Refused("the host in brackets is no IPv6 address") from None
        if literal.scope_id is not None:
            raise Refused("addresses with a zone id lead to this machine's own links and are not asked")
        if literal.ipv4_mapped is not None or literal in NAT64:
            raise Refused(
                "an IPv4 address inside an IPv6 one counts as not public; write the IPv4 address itself"
            )
        return str(literal), literal
    name = _ascii_name(text)
    if _NUMBER.fullmatch(name.rpartition(".")[2]):
        # Programs read short, octal, hexadecimal and decimal forms differently; only one is unambiguous.
        try:
            address = ipaddress.IPv4Address(name)
        except ValueError:
            raise Refused("an IPv4 address must be four decimal numbers from 0 to 255") from None
        return str(address), address
    return name, None


def _ascii_name(text: str) -> str:
    if not text.isascii():
        import idna

        try:
            # Label by label, as it holds what only ASCII labels may: `_`, or hyphens in places 3 and 4.
            text = ".".join(
                label if label.isascii() else idna.alabel(label).decode("ascii")
                for label in idna.uts46_remap(text, std3_rules=False).split(".")
            )
        except UnicodeError:
            raise Refused("the host is no valid international name") from None
    name = text.lower().removesuffix(".")
    labels = name.split(".")
    if len(name) > _MAX_NAME or not all(_LABEL.fullmatch(label) for label in labels):
        raise Refused("the host is no valid name: labels have 1 to 63 letters, digits and hyphens")
    if any(label.startswith("xn--") for label in labels):
        import idna

        try:
            for label in labels:
                idna.ulabel(label) if label.startswith("xn--") else None
        except UnicodeError:
            raise Refused("the host is no valid international name") from None
    return name


def _hides_dots(path: str) -> bool:
    for _ in range(_DECODINGS):
        path = unquote(path)
        if ".." in re.split(r"[/\\]", path):
            return True
    return False


def _without_dots(path: str) -> str:
    # Servers resolve dots before they look at their rules; what robots.txt is asked about must be the same.
    if not path:
        return "/"
    kept: list[str] = []
    segments = path.split("/")[1:]
    for position, segment in enumerate(segments):
        plain = _DOT.sub(".", segment)
        if plain == "..":
            del kept[-1:]
        elif plain != ".":
            kept.append(segment)
            continue
        if position == len(segments) - 1:
            kept.append("")
    return "/" + "/".join(kept)
