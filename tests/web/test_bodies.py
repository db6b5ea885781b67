"""F-05: bodies that are larger than they look, or never end. Memory is measured in a process of its own."""

from __future__ import annotations

import gzip
import json
import random
import socket
import subprocess
import sys
import zlib

import pytest

from mcp_tools.web.bodies import Body
from mcp_tools.web.types import Unreachable
from tests.web.conftest import MakeClient
from tests.web.listener import Answer, listening, says

MEBIBYTE = 1024**2
GROWTH_BYTES = 50 * MEBIBYTE
ASKING = """
import anyio, json, resource, sys
from mcp_tools.web.client import WebClient
from mcp_tools.web.types import Reach, WebError

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

async def main():
    port, paths = sys.argv[1], sys.argv[2:]
    web = WebClient(Reach(hosts=frozenset({"127.0.0.1"})), user_agent="x")
    await web.get(f"http://127.0.0.1:{port}/small")
    before, seen = peak(), []
    for path in paths:
        try:
            answer = await web.get(f"http://127.0.0.1:{port}{path}")
            seen.append([len(answer.body), answer.is_cut])
        except WebError as error:
            seen.append([str(error)])
    print(json.dumps({"growth": peak() - before, "seen": seen}))

anyio.run(main)
"""


def bomb(encoding: str, size_mebibytes: int) -> Answer:
    """Zeros, compressed while they are sent."""

    def answer(peer: socket.socket, _: bytes) -> None:
        peer.sendall(f"HTTP/1.1 200 OK\r\nContent-Encoding: {encoding}\r\n\r\n".encode())
        packer = zlib.compressobj(wbits=31 if encoding == "gzip" else 15)
        zeros = bytes(MEBIBYTE)
        for _ in range(size_mebibytes):
            peer.sendall(packer.compress(zeros))
        peer.sendall(packer.flush())

    return answer


def endless(peer: socket.socket, _: bytes) -> None:
    peer.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        peer.sendall(b"10000\r\n" + bytes(65536) + b"\r\n")


def padded(peer: socket.socket, _: bytes) -> None:
    peer.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        peer.sendall(b"1;" + b"x" * 60000 + b"\r\ny\r\n")


def test_bombs_of_10_gb_and_bodies_without_end_cost_less_than_50_mib() -> None:
    answers = {
        b"/small": says(),
        b"/gzip": bomb("gzip", 10 * 1024),
        b"/deflate": bomb("deflate", 10 * 1024),
        b"/endless": endless,
        b"/padded": padded,
    }

    def answer(peer: socket.socket, head: bytes) -> None:
        answers[head.split()[1]](peer, head)

    with listening(answer) as listener:
        asked = [sys.executable, "-c", ASKING, str(listener.port), "/gzip", "/deflate", "/endless", "/padded"]
        run = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=True)
    told = json.loads(run.stdout)
    whole = [8 * MEBIBYTE, True]
    assert told["seen"][:3] == [whole, whole, whole]
    assert "too many bytes" in told["seen"][3][0]
    assert told["growth"] < GROWTH_BYTES


@pytest.mark.parametrize("encoding", ["br", "zstd", "compress", "gzip, gzip", "gzip, br", "made-up"])
async def test_what_was_not_asked_for_is_refused_in_words(client: MakeClient, encoding: str) -> None:
    with (
        listening(says(b"x" * 100, Content_Encoding=encoding)) as listener,
        pytest.raises(Unreachable, match="compressed"),
    ):
        await client("127.0.0.1").get(listener.url())


PAGE = b"a page " * 1000
RAW = zlib.compress(PAGE)[2:-4]


@pytest.mark.parametrize(
    ("encoding", "sent"),
    [
        ("gzip", gzip.compress(PAGE)),
        ("x-gzip", gzip.compress(PAGE[:700]) + gzip.compress(PAGE[700:])),
        ("gzip", gzip.compress(PAGE) + bytes(100)),
        ("deflate", zlib.compress(PAGE)),
        ("deflate", RAW),
        ("gzip", gzip.compress(PAGE)[:-8]),
        ("gzip", gzip.compress(PAGE)[:-3]),
        ("deflate", zlib.compress(PAGE)[:-4]),
        ("identity", PAGE),
        ("UTF-8", PAGE),
        ("none, binary", PAGE),
        ("", PAGE),
    ],
    ids=[
        "gzip",
        "two parts",
        "padding",
        "zlib",
        "raw",
        "no check",
        "half a check",
        "zlib without check",
        "identity",
        "charset",
        "no codings",
        "none",
    ],
)
@pytest.mark.parametrize("step", [1, 100_000])
def test_what_was_asked_for_is_read_however_it_arrives(encoding: str, sent: bytes, step: int) -> None:
    body = Body(encoding, max_bytes=10_000)
    for start in range(0, len(sent), step):
        body.take(sent[start : start + step])
    assert (body.finish(), body.is_cut) == (PAGE, False)


@pytest.mark.parametrize("encoding", ["gzip", ""])
def test_a_body_that_just_fits_is_not_cut(encoding: str) -> None:
    for room, is_cut in ((len(PAGE), False), (len(PAGE) - 1, True)):
        body = Body(encoding, max_bytes=room)
        body.take(gzip.compress(PAGE) if encoding else PAGE)
        assert (body.finish(), body.is_cut) == (PAGE[:room], is_cut)


def test_damaged_and_broken_off_and_endless_parts_are_told() -> None:
    with pytest.raises(Unreachable, match="damaged"):
        Body("gzip", max_bytes=100).take(b"no gzip")
    stored = random.Random(1).randbytes(300)  # what cannot be compressed is sent as it is
    for sent in (gzip.compress(bytes(range(256)) * 20), gzip.compress(stored)):
        for end in range(1, len(sent) - 8):
            body = Body("gzip", max_bytes=10**6)
            body.take(sent[:end])
            with pytest.raises(Unreachable, match="broke off"):
                body.finish()
    with pytest.raises(Unreachable, match="too many parts"):
        Body("gzip", max_bytes=10**6).take(gzip.compress(b"") * 1001)


async def test_a_length_that_lies_is_a_broken_answer(client: MakeClient) -> None:
    def answer(peer: socket.socket, _: bytes) -> None:
        peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nshort")

    with listening(answer) as listener, pytest.raises(Unreachable, match="broke off"):
        await client("127.0.0.1").get(listener.url())
