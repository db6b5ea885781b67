"""What is refused over HTTP, and how every answer looks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest

from mcp_tools.executor import ToolExecutor
from mcp_tools.server.handler import build_server
from mcp_tools.server.http import build_app
from tests.server.http.http_peer import (
    ALICE,
    BOB,
    HANDSHAKE,
    INITIALIZE,
    ask,
    call,
    make_registry,
    make_server,
    modern,
    open_session,
    request,
    rpc,
    serving,
    sse_session,
    tokens,
    wire,
)


@pytest.mark.parametrize(
    "kind",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "",
        None,
        "application/json-seq",
        "text/plain; application/json",
        "application/json, text/plain",
        "application/json; charset=utf-16",
    ],
)
async def test_only_plain_json_is_a_call(kind: str | None, tmp_path: Path) -> None:
    """C-03: what a page of another site can send without asking does nothing."""
    async with serving() as served:
        data = modern(
            "tools/call",
            {"name": "mark", "arguments": {"path": str(tmp_path / "made")}},
            port=served.port,
            Content_Type=kind,
        )
        assert (await ask(served.port, data)).status == 415
        async with sse_session(served.port) as (_, path):
            answer = await ask(
                served.port,
                request("POST", path, port=served.port, body=INITIALIZE, headers={"Content-Type": kind}),
            )
            assert answer.status == 415
        assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "kind",
    [
        "application/json",
        "Application/JSON",
        "application/json; charset=utf-8",
        "application/json;charset=UTF-8",
    ],
)
async def test_json_may_name_its_charset(kind: str) -> None:
    async with serving() as served:
        assert (
            await ask(served.port, modern("tools/list", port=served.port, Content_Type=kind))
        ).status == 200


@pytest.mark.parametrize("method", ["PUT", "PATCH", "TRACE", "OPTIONS", "HEAD", "CONNECT", "BREW", "post"])
@pytest.mark.parametrize("path", ["/mcp", "/sse", "/messages/?session_id=x"])
async def test_a_method_that_is_not_served_is_refused(method: str, path: str) -> None:
    """C-03."""
    async with serving() as served:
        async with wire(served.port) as connection:
            await connection.send(request(method, path, port=served.port, body=INITIALIZE))
            status, headers = await connection.head()
        assert status == 405
        assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/mcp/",
        "/MCP",
        "/mcp/x",
        "//mcp",
        "/sse/",
        "/messages",
        "/.well-known/oauth-protected-resource",
        "/../mcp",
        "http://127.0.0.1/mcp",
        "*",
    ],
)
async def test_any_other_path_is_not_found(path: str) -> None:
    async with serving(tokens=tokens()) as served:
        assert (await ask(served.port, request("GET", path, port=served.port))).status == 404


@pytest.mark.parametrize("path", ["/mcp", "/sse", "/messages/?session_id=x", "/", "/nowhere"])
async def test_host_and_origin_are_checked_on_every_path(path: str) -> None:
    async with serving() as served:
        for method in ("GET", "POST", "DELETE", "OPTIONS"):
            body = INITIALIZE if method == "POST" else None
            for headers, status in [
                ({"Host": "evil.example"}, 421),
                ({"Host": "localhost:evil.example"}, 421),
                ({"Origin": "http://evil.example"}, 403),
                ({"Origin": "null"}, 403),
            ]:
                answer = await ask(
                    served.port, request(method, path, port=served.port, headers=headers, body=body)
                )
                assert answer.status == status, (method, headers)


async def test_one_transport_alone_serves_its_own_paths_only() -> None:
    async with serving(with_streamable=False) as served:
        assert (
            await ask(served.port, request("POST", "/mcp", port=served.port, body=INITIALIZE))
        ).status == 404
        async with sse_session(served.port):
            pass
    async with serving(with_sse=False) as served:
        assert (await ask(served.port, request("GET", "/sse", port=served.port))).status == 404
        await open_session(served.port)


@pytest.mark.parametrize(
    "changed",
    [{"Mcp_Method": "tools/list"}, {"Mcp_Name": "echo"}, {"Mcp_Method": None}, {"Mcp_Name": None}],
    ids=["other method", "other tool", "no method", "no tool"],
)
async def test_headers_that_disagree_with_the_body_are_refused(
    changed: dict[str, str | None], tmp_path: Path
) -> None:
    """B-37."""
    async with serving() as served:
        arguments = {"name": "mark", "arguments": {"path": str(tmp_path / "made")}}
        answer = await ask(served.port, modern("tools/call", arguments, port=served.port, **changed))
        assert answer.status == 400
        assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("mirrored", "status"),
    [("eu", 200), ("us", 400), (None, 400), ("=?base64?ZXU=?=", 200), ("=?base64?%%?=", 400)],
)
async def test_an_argument_that_a_header_mirrors_must_agree_with_it(
    mirrored: str | None, status: int
) -> None:
    """B-37, for arguments that a schema publishes to proxies."""
    registry = make_registry()
    schema = {"type": "object", "properties": {"region": {"type": "string", "x-mcp-header": "Region"}}}

    @registry.register(parameters=schema)
    def where(region: str = "nowhere") -> str:
        """Say where."""
        return region

    async with serving(build_server(ToolExecutor(registry))) as served:
        params = {"name": "where", "arguments": {"region": "eu"}}
        answer = await ask(
            served.port, modern("tools/call", params, port=served.port, Mcp_Param_Region=mirrored)
        )
        assert answer.status == status
        twice = modern("tools/call", params, port=served.port, Mcp_Param_Region="eu")
        twice = twice.replace(
            b"Mcp-Param-Region: eu\r\n", b"Mcp-Param-Region: eu\r\nMcp-Param-Region: us\r\n"
        )
        assert (await ask(served.port, twice)).status == 400


@pytest.mark.parametrize("version", ["2026-07-28x", "1.0", "DRAFT-2099", "2026-07-28, 2025-11-25"])
async def test_a_version_we_do_not_know_is_refused(version: str) -> None:
    async with serving() as served:
        answer = await ask(served.port, modern("tools/list", port=served.port, MCP_Protocol_Version=version))
        assert answer.status == 400


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"[" + rpc("ping") + b"]",
        b"null",
        b'"x"',
        b"\xff",
        rpc("ping").replace(b"ping", b"\\ud800"),
        b'{"jsonrpc":"2.0","id":1,"method":"ping","params":[]}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"x":NaN}}',
    ],
    ids=[
        "empty",
        "cut",
        "no messages",
        "batch",
        "null",
        "string",
        "not utf-8",
        "surrogate",
        "array params",
        "brackets",
        "braces",
        "nan",
    ],
)
@pytest.mark.parametrize("era", [HANDSHAKE, "2026-07-28", "sse"])
async def test_a_body_that_is_no_message_is_answered_and_harms_nobody(body: bytes, era: str) -> None:
    """B-05 and the nested brackets of C-06."""
    async with serving() as served:
        port = served.port
        if era == "sse":
            async with sse_session(port) as (_, path):
                answer = await ask(port, request("POST", path, port=port, body=body))
        else:
            session_id = await open_session(port) if era == HANDSHAKE else None
            headers = {"MCP-Protocol-Version": era, "Mcp-Session-Id": session_id}
            answer = await ask(port, request("POST", "/mcp", port=port, body=body, headers=headers))
        assert answer.status == 400
        assert answer.json()["error"]["code"] in (-32700, -32600, -32602)
        assert (await ask(port, call("echo", {"text": "x"}, port=port))).status == 200


async def test_every_answer_says_how_it_may_be_used_and_nothing_about_the_server() -> None:
    """C-19."""
    async with serving(tokens=tokens()) as served:
        port = served.port
        asked = [
            call("echo", {"text": "x"}, port=port, token=ALICE),
            call("nowhere", {}, port=port, token=ALICE),
            request("POST", "/mcp", port=port, body=INITIALIZE, token=ALICE),
            request("POST", "/mcp", port=port, body=INITIALIZE),
            request("GET", "/nowhere", port=port),
            request("GET", "/mcp", port=port, headers={"Host": "evil.example"}),
            request("POST", "/mcp", port=port, body=b"{", token=ALICE),
            b"garbage\r\n\r\n",
        ]
        for data in asked:
            answer = await ask(port, data)
            assert answer.headers["x-content-type-options"] == "nosniff", data
            assert "no-store" in answer.headers["cache-control"], data
            assert not {"server", "x-powered-by", "access-control-allow-origin"} & answer.headers.keys()
            assert b"Traceback" not in answer.body
        async with wire(port) as stream:
            await stream.send(request("GET", "/sse", port=port, token=ALICE))
            _, headers = await stream.head()
            assert headers["x-content-type-options"] == "nosniff"
            assert "no-store" in headers["cache-control"]
            assert "server" not in headers


async def test_a_fault_of_ours_is_an_answer_without_a_trace(caplog: pytest.LogCaptureFixture) -> None:
    """C-19: an ASGI app that breaks below us."""
    server = make_server()
    app = build_app(server)

    async def broken(*_: Any) -> None:
        raise RuntimeError("the secret of the house")

    app._streamable._modern.post = broken  # type: ignore[union-attr, method-assign]
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": rpc("tools/list"), "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [
        (b"host", b"127.0.0.1:8000"),
        (b"content-type", b"application/json"),
        (b"accept", b"*/*"),
        (b"mcp-protocol-version", b"2026-07-28"),
    ]
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": "/mcp",
        "scheme": "http",
        "headers": headers,
        "server": ("127.0.0.1", 8000),
        "query_string": b"",
    }
    await app(scope, receive, send)
    assert sent[0]["status"] == 500
    assert sent[1]["body"] == b"internal error"
    assert "the secret of the house" in caplog.text  # in the log, where it belongs


async def test_refusals_are_logged_but_cannot_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="mcp_tools.server.http")
    async with serving(tokens=tokens()) as served:
        for _ in range(20):
            answer = await ask(served.port, call("echo", {"text": "x"}, port=served.port, token=BOB + "x"))
            assert answer.status == 401
    refused = [record.message for record in caplog.records if "refused" in record.message]
    assert 1 <= len(refused) <= 3
    assert "401" in refused[0]
    assert BOB not in caplog.text


async def test_an_app_without_us_around_it_serves_by_its_lifespan() -> None:
    """Embedding: an ASGI server that knows lifespans needs nothing else."""
    app = build_app(make_server())
    to_app, from_app = anyio.Event(), anyio.Event()
    stop = anyio.Event()
    said_by_app: list[str] = []

    async def receive() -> dict[str, Any]:
        if not to_app.is_set():
            to_app.set()
            return {"type": "lifespan.startup"}
        await stop.wait()
        return {"type": "lifespan.shutdown"}

    async def send(message: Any) -> None:
        said_by_app.append(message["type"])
        from_app.set()

    async with anyio.create_task_group() as group:
        group.start_soon(app, {"type": "lifespan"}, receive, send)
        with anyio.fail_after(5):
            await from_app.wait()
        stop.set()
    assert said_by_app == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
