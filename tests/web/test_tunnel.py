"""Pages of https through the owner's proxy: what it sees, and what it cannot change."""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from mcp_tools.web.types import Unreachable
from tests.web.conftest import MakeClient
from tests.web.listener import Answer, listening, says
from tests.web.test_client import certificate

WAIT_S = 10.0


def tunnel_to(find_port: Callable[[], int]) -> Answer:
    """A proxy that opens the tunnel it is asked for, to this port whatever the name."""

    def answer(peer: socket.socket, _: bytes) -> None:
        with socket.create_connection(("127.0.0.1", find_port()), timeout=WAIT_S) as far:
            peer.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            sides = {peer: far, far: peer}
            with contextlib.suppress(OSError):
                while ready := select.select(list(sides), [], [], WAIT_S)[0]:
                    for side in ready:
                        data = side.recv(65536)
                        if not data:
                            return
                        sides[side].sendall(data)

    return answer


async def test_a_page_of_https_comes_through_a_tunnel_that_sees_only_its_host(
    client: MakeClient, tmp_path: Path
) -> None:
    server, trusting = certificate(tmp_path, "site.example")
    with listening(says(b"secret"), server) as site, listening(tunnel_to(lambda: site.port)) as proxy:
        web = client(proxy=f"http://me:word@127.0.0.1:{proxy.port}", ssl_context=trusting)
        assert (await web.get("https://site.example/private?x=1")).body == b"secret"
        (seen,) = proxy.heads
        assert seen.startswith(b"CONNECT site.example:443 HTTP/1.1\r\n")
        assert b"proxy-authorization: basic" in seen.lower()
        assert b"private" not in seen
        (asked,) = site.heads
        assert asked.startswith(b"GET /private?x=1 HTTP/1.1\r\n")
        assert b"proxy-authorization" not in asked.lower()
        # Whoever sits at the other end of the tunnel must be whom we asked for.
        with pytest.raises(Unreachable, match="certificate"):
            await web.get("https://other.example/")
        assert len(site.heads) == 1


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (says(b"no", status="403 Forbidden"), "proxy refused"),
        (says(b"who?", status="407 Proxy Authentication Required"), "proxy refused"),
        (says(b"", status="200 OK"), "TLS"),
    ],
    ids=["forbidden", "unknown", "no tunnel"],
)
async def test_a_proxy_that_opens_no_tunnel_is_named(client: MakeClient, answer: Answer, said: str) -> None:
    with listening(answer) as proxy:
        with pytest.raises(Unreachable, match=said):
            await client(proxy=proxy.url()).get("https://site.example/")
        assert proxy.connections == 1
