"""F-03, F-06, F-10, and addresses: each shown by a listener that would have seen the connection."""

from __future__ import annotations

import datetime
import socket
import ssl
import time
from collections.abc import Sequence
from pathlib import Path

import anyio
import pytest

from mcp_tools.web.client import WebClient
from mcp_tools.web.types import Reach, Refused, Unreachable
from tests.web.conftest import MakeClient
from tests.web.listener import Answer, Listener, listening, says


def names(*addresses: str):
    async def resolver(host: str, port: int) -> Sequence[str]:
        return addresses

    return resolver


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_same_request_is_refused_unless_its_host_is_allowed(client: MakeClient, backend: str) -> None:
    async def ask() -> None:
        with listening(says(b"seen")) as listener:
            for host in ("127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]"):
                with pytest.raises(Refused, match="not public"):
                    await client().get(listener.url(host=host))
            assert listener.connections == 0
            answer = await client(f"127.0.0.1:{listener.port}").get(listener.url())
            assert (answer.status, answer.body, listener.connections) == (200, b"seen", 1)

    anyio.run(ask, backend=backend)


@pytest.mark.parametrize(
    "addresses", [("127.0.0.1",), ("8.8.8.8", "127.0.0.1"), ("127.0.0.1", "8.8.8.8"), ("::ffff:127.0.0.1",)]
)
async def test_one_bad_address_behind_a_name_refuses_all(
    client: MakeClient, addresses: tuple[str, ...]
) -> None:
    with listening(says()) as listener:
        with pytest.raises(Refused):
            await client(resolver=names(*addresses)).get(listener.url(host="site.example"))
        assert listener.connections == 0
        allowed = client("site.example", resolver=names("127.0.0.1"))
        assert (await allowed.get(listener.url(host="site.example"))).status == 200


async def test_a_name_is_looked_up_once_and_what_was_checked_is_dialled(
    client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    async def changing(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return ["127.0.0.2"] if len(asked) == 1 else ["127.0.0.1"]

    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError(f"a second lookup of {args}")

    with listening(says()) as listener:
        monkeypatch.setattr(socket, "getaddrinfo", never)
        # Nobody listens on 127.0.0.2; a client that looked again would reach the listener.
        with pytest.raises(Unreachable):
            await client("site.example", resolver=changing).get(listener.url(host="site.example"))
        assert (asked, listener.connections) == (["site.example"], 0)


def redirecting(location: str, status: str = "302 Found") -> Answer:
    return says(b"moved", status=status, Location=location)


@pytest.mark.parametrize("status", ["301 M", "302 F", "303 S", "307 T", "308 P"])
@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "[::ffff:7f00:1]", "2130706433", "0x7f.1", "127.1", "[::1]", "0"]
)
async def test_a_redirect_is_checked_as_its_first_url_was(client: MakeClient, status: str, host: str) -> None:
    with (
        listening(says(b"inside")) as inside,
        listening(redirecting(inside.url(host=host), status)) as outside,
    ):
        resolver = names("127.0.0.1")
        with pytest.raises(Refused):
            await client("site.example", resolver=resolver).get(outside.url(host="site.example"))
        assert (outside.connections, inside.connections) == (1, 0)


@pytest.mark.parametrize("location", ["file:///etc/passwd", "data:,x", "http://u@127.0.0.1/", "//a\tb/"])
async def test_a_redirect_to_what_is_no_web_page_is_refused(client: MakeClient, location: str) -> None:
    with listening(redirecting(location)) as listener, pytest.raises(Refused):
        await client("127.0.0.1").get(listener.url())


async def test_redirects_end_after_five_and_in_a_circle(client: MakeClient) -> None:
    def onwards(peer: socket.socket, head: bytes) -> None:
        number = int(head.split()[1].strip(b"/"))
        step = redirecting(f"/{number - 1}") if number else says(b"end")
        step(peer, head)

    with listening(onwards) as listener:
        web = client("127.0.0.1")
        answer = await web.get(listener.url("/5"))
        assert (answer.body, len(answer.redirects), answer.url) == (b"end", 5, listener.url("/0"))
        with pytest.raises(Unreachable, match="more than 5"):
            await web.get(listener.url("/20"))
        assert listener.connections == 12
    with listening(redirecting("/")) as listener, pytest.raises(Unreachable, match="in a circle; trying"):
        await client("127.0.0.1").get(listener.url())
    answer = says(status="302 Found", Location="/", Set_Cookie="seen=1")
    with listening(answer) as listener, pytest.raises(Unreachable, match="circle until a cookie comes back"):
        await client("127.0.0.1").get(listener.url())


async def test_a_redirect_without_a_place_and_one_in_the_page_are_answers(client: MakeClient) -> None:
    page = b'<meta http-equiv="refresh" content="0;url=http://127.0.0.1:1/">'
    for status in ("302 Found", "200 OK"):
        with listening(says(page, status=status)) as listener:
            answer = await client("127.0.0.1").get(listener.url())
            assert (answer.status, answer.body, listener.connections) == (int(status[:3]), page, 1)


async def test_nothing_is_carried_to_another_host(client: MakeClient) -> None:
    with (
        listening(says()) as second,
        listening(
            says(b"", status="302 F", Location=second.url("/?a", host="127.0.0.1"), Set_Cookie="id=1")
        ) as first,
    ):
        await client("127.0.0.1").get(first.url("/secret"), headers={"X-Token": "t"})
        assert b"x-token" in first.heads[0].lower()
        head = second.heads[0].lower()
        for carried in (b"cookie", b"authorization", b"referer", b"x-token", b"origin", b"secret"):
            assert carried not in head
        with pytest.raises(ValueError, match="no credentials"):
            await client("127.0.0.1").get(first.url(), headers={"Cookie": "a=b"})


async def test_the_environment_and_netrc_change_nothing(
    client: MakeClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with listening(says(b"proxied")) as proxy, listening(says(b"direct")) as listener:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "https_proxy"):
            monkeypatch.setenv(name, proxy.url())
        netrc = tmp_path / "netrc"
        netrc.write_text("machine 127.0.0.1 login a password b\n")
        monkeypatch.setenv("NETRC", str(netrc))
        web = client("127.0.0.1")
        assert (await web.get(listener.url())).body == b"direct"
        assert (proxy.connections, b"authorization" in listener.heads[0].lower()) == (0, False)
        configured = client("127.0.0.1", proxy=f"http://me:word@127.0.0.1:{proxy.port}")
        assert (await configured.get("http://site.example/x")).body == b"proxied"
        assert proxy.heads[0].startswith(b"GET http://site.example:80/x HTTP/1.1\r\n")
        assert b"proxy-authorization: basic" in proxy.heads[0].lower()
        with pytest.raises(Refused):
            await client(proxy=proxy.url()).get("http://169.254.169.254/")
        assert proxy.connections == 1


async def test_ask_sends_its_key_and_follows_nothing(client: MakeClient) -> None:
    with listening(redirecting("/elsewhere")) as listener:
        answer = await client("127.0.0.1").ask(
            "POST", listener.url("/search"), json={"q": "é"}, headers={"Authorization": "Bearer k"}
        )
        assert (answer.status, answer.headers["location"], listener.connections) == (302, "/elsewhere", 1)
        assert b"Authorization: Bearer k" in listener.heads[0]
        with pytest.raises(Refused) as caught:
            await client("127.0.0.1").ask("GET", listener.url(), headers={"X-Key": "secret\r\nX: y"})
        assert "secret" not in str(caught.value)


def trickle(start: bytes, drop: bytes) -> Answer:
    def answer(peer: socket.socket, _: bytes) -> None:
        peer.sendall(start)
        for _ in range(100):
            time.sleep(0.05)
            peer.sendall(drop)

    return answer


@pytest.mark.parametrize(
    "answer",
    [
        trickle(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", b"x"),
        trickle(b"HTTP/1.1 200 OK\r\nX: ", b"x"),
        trickle(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
        trickle(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    ],
    ids=["slow body", "slow header", "endless early hints", "slow chunks"],
)
async def test_a_slow_answer_ends_at_the_deadline_of_the_whole_request(
    client: MakeClient, answer: Answer
) -> None:
    with listening(answer) as listener:
        started_s = time.monotonic()
        with pytest.raises(Unreachable, match=r"within 0\.5 s"):
            await client("127.0.0.1", deadline_s=0.5).get(listener.url())
        assert time.monotonic() - started_s < 3
        assert listener.connections == 1


async def test_tls_and_names_that_never_come_end_at_the_deadline(client: MakeClient) -> None:
    async def never(host: str, port: int) -> Sequence[str]:
        await anyio.sleep_forever()
        return []

    with anyio.fail_after(5), listening(says()) as listener:
        for resolver in (names("127.0.0.1"), never):
            web = client("site.example", resolver=resolver, deadline_s=0.4)
            with pytest.raises(Unreachable, match="within"):
                # The listener waits for the end of a head, which a TLS hello never has.
                await web.get(listener.url(host="site.example", scheme="https"))
        assert listener.connections == 1


async def test_headers_have_a_limit(client: MakeClient) -> None:
    def answer(peer: socket.socket, _: bytes) -> None:
        peer.sendall(b"HTTP/1.1 200 OK\r\n")
        while True:
            peer.sendall(b"X: " + b"y" * 1000 + b"\r\n")

    with listening(answer) as listener, pytest.raises(Unreachable):
        await client("127.0.0.1").get(listener.url())


def test_a_client_that_verifies_nothing_cannot_be_made() -> None:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with pytest.raises(ValueError, match="must verify"):
        WebClient(Reach(), user_agent="x", ssl_context=context)


def certificate(folder: Path, name: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    trusting = ssl.create_default_context(cafile=folder / "cert.pem")
    return server, trusting


async def test_certificates_are_verified_for_the_name_that_was_asked(
    client: MakeClient, tmp_path: Path
) -> None:
    server, trusting = certificate(tmp_path, "site.example")
    resolver = names("127.0.0.1")

    def secure(listener: Listener, host: str) -> str:
        return listener.url(host=host, scheme="https")

    with listening(says(b"secret"), server) as listener:
        web = client("site.example", "other.example", resolver=resolver, ssl_context=trusting)
        assert (await web.get(secure(listener, "site.example"))).body == b"secret"
        with pytest.raises(Unreachable, match="certificate"):
            await web.get(secure(listener, "other.example"))
        with pytest.raises(Unreachable, match="certificate"):
            await client("site.example", resolver=resolver).get(secure(listener, "site.example"))
        assert len(listener.heads) == 1
