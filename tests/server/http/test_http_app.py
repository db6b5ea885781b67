"""MCP over HTTP, byte by byte: what is served, to whom, and with which headers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anyio
import pytest

from mcp_tools.executor import ToolExecutor
from mcp_tools.server.handler import build_server
from mcp_tools.server.http import HttpLimits, build_app, events
from tests.server.http.http_peer import (
    ALICE,
    BOB,
    HANDSHAKE,
    INITIALIZE,
    Answer,
    ask,
    call,
    in_session,
    make_registry,
    make_server,
    modern,
    open_session,
    plain_uvicorn,
    request,
    rpc,
    serving,
    sse_session,
    tokens,
    wire,
)


def result_of(answer: Answer) -> Any:
    assert answer.status == 200, answer
    return answer.json()["result"]


def said(answer: Answer) -> Any:
    return json.loads(result_of(answer)["content"][0]["text"])


def call_in_session(tool: str, arguments: dict[str, Any], request_id: int = 2) -> bytes:
    return rpc("tools/call", {"name": tool, "arguments": arguments}, request_id)


# --- Who is calling -------------------------------------------------------------------------


async def test_without_tokens_everybody_on_the_machine_is_local() -> None:
    async with serving() as served:
        answer = await ask(served.port, call("whoami", {}, port=served.port))
        assert said(answer) == {"principal": "local", "transport": "http", "session_id": None}


async def test_the_name_of_the_token_reaches_the_tool_in_both_eras_and_over_sse() -> None:
    async with serving(tokens=tokens()) as served:
        port = served.port
        modern_answer = await ask(port, call("whoami", {}, port=port, token=ALICE))
        assert said(modern_answer) == {"principal": "alice", "transport": "http", "session_id": None}

        session_id = await open_session(port, BOB)
        body = call_in_session("whoami", {})
        answer = await ask(port, in_session(session_id, body, port=port, token=BOB))
        assert said(answer) == {"principal": "bob", "transport": "http", "session_id": session_id}

        async with sse_session(port, ALICE) as (stream, path):
            for message in (INITIALIZE, rpc("notifications/initialized", request_id=None), body):
                assert (
                    await ask(port, request("POST", path, port=port, body=message, token=ALICE))
                ).status == 202
            await stream.event()
            _, data = await stream.event()
            caller = json.loads(json.loads(data)["result"]["content"][0]["text"])
            assert caller == {"principal": "alice", "transport": "sse", "session_id": path.partition("=")[2]}


async def test_callers_do_not_mix_on_one_connection() -> None:
    """asyncio can start a request in the context of the one before it on the same connection."""
    async with serving(tokens=tokens()) as served, wire(served.port) as connection:
        for token, name in [(ALICE, "alice"), (BOB, "bob"), (ALICE, "alice")]:
            await connection.send(call("whoami", {}, port=served.port, token=token))
            assert said(await connection.answer())["principal"] == name
        pipelined = [call("whoami", {}, port=served.port, token=token) for token in (BOB, ALICE, BOB)]
        await connection.send(b"".join(pipelined))
        assert [said(await connection.answer())["principal"] for _ in pipelined] == ["bob", "alice", "bob"]


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        f"Basic {ALICE}",
        f"Bearer {ALICE}x",
        f"bearer{ALICE}",
        "Bearer tökén",
        f"Bearer {ALICE} {ALICE}",
    ],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/mcp"),
        ("GET", "/mcp"),
        ("DELETE", "/mcp"),
        ("GET", "/sse"),
        ("POST", "/messages/?session_id=x"),
    ],
)
async def test_without_a_valid_token_nothing_is_served(
    authorization: str | None, method: str, path: str
) -> None:
    async with serving(tokens=tokens()) as served:
        body = INITIALIZE if method == "POST" else None
        headers = {"Authorization": authorization}
        answer = await ask(served.port, request(method, path, port=served.port, headers=headers, body=body))
        assert answer.status == 401
        assert answer.headers["www-authenticate"].startswith("Bearer")


async def test_the_scheme_of_a_token_is_not_case_sensitive() -> None:
    async with serving(tokens=tokens()) as served:
        headers = {"Authorization": f"bEARER  {ALICE}"}
        answer = await ask(
            served.port, request("POST", "/mcp", port=served.port, headers=headers, body=INITIALIZE)
        )
        assert answer.status == 200


@pytest.mark.parametrize(
    "doubled",
    [
        "Host: 127.0.0.1:{port}",
        f"Authorization: Bearer {BOB}",
        "Content-Type: text/plain",
        "Mcp-Session-Id: x",
        "Origin: http://localhost:{port}",
    ],
    ids=lambda text: text.partition(":")[0],
)
async def test_a_header_that_decides_something_comes_once(doubled: str) -> None:
    async with serving(tokens=tokens()) as served:
        data = modern(
            "tools/list",
            port=served.port,
            token=ALICE,
            Mcp_Session_Id="x",
            Origin=f"http://localhost:{served.port}",
        )
        head, _, body = data.partition(b"\r\n\r\n")
        line = doubled.format(port=served.port).encode()
        answer = await ask(served.port, head + b"\r\n" + line + b"\r\n\r\n" + body)
        assert answer.status == 400


# --- Sessions -------------------------------------------------------------------------------


async def test_a_session_of_another_principal_looks_like_none() -> None:
    """C-11, C-17: POST, GET and DELETE with a foreign, an unknown and an ended session."""
    async with serving(tokens=tokens()) as served:
        port = served.port
        session_id = await open_session(port, ALICE)

        async def delete(session_id: str, token: str) -> Answer:
            return await ask(
                port,
                request("DELETE", "/mcp", port=port, headers={"Mcp-Session-Id": session_id}, token=token),
            )

        foreign = await ask(port, in_session(session_id, call_in_session("whoami", {}), port=port, token=BOB))
        unknown = await ask(port, in_session("0" * 32, call_in_session("whoami", {}), port=port, token=BOB))
        assert (foreign.status, foreign.body) == (unknown.status, unknown.body) == (404, unknown.body)
        headers = {"Mcp-Session-Id": session_id}
        assert (await ask(port, request("GET", "/mcp", port=port, headers=headers, token=BOB))).status == 404
        assert (await delete(session_id, BOB)).status == 404
        assert (await delete("0" * 32, ALICE)).status == 404

        assert (await ask(port, in_session(session_id, rpc("ping"), port=port, token=ALICE))).status == 200
        assert (await delete(session_id, ALICE)).status == 204
        assert (await delete(session_id, ALICE)).status == 404
        assert (await ask(port, in_session(session_id, rpc("ping"), port=port, token=ALICE))).status == 404


async def test_an_sse_session_is_bound_to_who_opened_it() -> None:
    """C-18."""
    async with serving(tokens=tokens()) as served, sse_session(served.port, ALICE) as (_, path):
        assert path.startswith("/messages/?session_id=")  # relative: no host to be led to
        for other, token in [
            (path, BOB),
            (path[:-1] + "x", ALICE),
            ("/messages/", ALICE),
            (path + "&session_id=x", ALICE),
        ]:
            answer = await ask(
                served.port, request("POST", other, port=served.port, body=INITIALIZE, token=token)
            )
            assert answer.status == 404, other
        # Its id is worth nothing on the other transport.
        session_id = path.partition("=")[2]
        answer = await ask(served.port, in_session(session_id, rpc("ping"), port=served.port, token=ALICE))
        assert answer.status == 404
        assert (
            await ask(served.port, request("POST", path, port=served.port, body=INITIALIZE, token=ALICE))
        ).status == 202


async def test_the_endpoint_event_names_no_host_whatever_the_client_says() -> None:
    """C-15, C-18."""
    async with serving(allowed_hosts=["mcp.example"]) as served, wire(served.port) as stream:
        headers = {
            "Host": "mcp.example",
            "X-Forwarded-Host": "evil.example",
            "X-Forwarded-Prefix": "/evil",
            "Forwarded": "host=evil.example",
        }
        await stream.send(request("GET", "/sse", port=served.port, headers=headers))
        await stream.head()
        _, path = await stream.event()
        assert path.startswith("/messages/?session_id=")


async def test_forwarding_headers_change_neither_host_nor_caller() -> None:
    """C-15."""
    async with serving(tokens=tokens()) as served:
        forwarded = {
            "X_Forwarded_Host": f"localhost:{served.port}",
            "Forwarded": f"host=localhost:{served.port}",
            "X_Forwarded_For": "127.0.0.1",
        }
        answer = await ask(
            served.port, modern("tools/list", port=served.port, token=ALICE, Host="evil.example", **forwarded)
        )
        assert answer.status == 421
        answer = await ask(served.port, modern("tools/list", port=served.port, **forwarded))
        assert answer.status == 401


async def test_sessions_are_counted_over_both_transports_and_for_each_principal() -> None:
    limits = HttpLimits(sessions=3, sessions_each=2)
    async with serving(tokens=tokens(), limits=limits) as served:
        port = served.port
        opening = request("POST", "/mcp", port=port, body=INITIALIZE, token=ALICE)
        first = await open_session(port, ALICE)
        async with sse_session(port, ALICE):
            assert (await ask(port, opening)).status == 503
            assert (await ask(port, request("GET", "/sse", port=port, token=ALICE))).status == 503
            await open_session(port, BOB)
            assert (
                await ask(port, request("POST", "/mcp", port=port, body=INITIALIZE, token=BOB))
            ).status == 503
            # What is open goes on, and calls without a session do too.
            assert (await ask(port, in_session(first, rpc("ping"), port=port, token=ALICE))).status == 200
            assert (await ask(port, call("echo", {"text": "x"}, port=port, token=ALICE))).status == 200
        headers = {"Mcp-Session-Id": first}
        assert (
            await ask(port, request("DELETE", "/mcp", port=port, headers=headers, token=ALICE))
        ).status == 204
        await open_session(port, ALICE)


async def test_a_refused_opening_takes_no_session() -> None:
    async with serving(limits=HttpLimits(sessions=1, sessions_each=1)) as served:
        port = served.port
        for body in (rpc("ping"), rpc("tools/list"), b"{", b"[]"):
            answer = await ask(port, request("POST", "/mcp", port=port, body=body))
            assert answer.status == 400
        await open_session(port)


async def test_an_idle_session_ends_over_both_transports() -> None:
    async with serving(limits=HttpLimits(session_idle_s=0.3)) as served:
        port = served.port
        session_id = await open_session(port)
        async with sse_session(port) as (stream, path):
            with pytest.raises(EOFError):
                await stream.event()
        answer = await ask(port, in_session(session_id, rpc("ping"), port=port))
        assert answer.status == 404
        assert (await ask(port, request("POST", path, port=port, body=rpc("ping")))).status == 404


async def test_a_call_keeps_its_session_open_beyond_the_idle_time() -> None:
    async with serving(limits=HttpLimits(session_idle_s=0.3)) as served:
        port = served.port
        session_id = await open_session(port)
        body = call_in_session("wait", {"seconds": 0.8})
        assert (
            result_of(await ask(port, in_session(session_id, body, port=port)))["content"][0]["text"]
            == "waited"
        )
        async with sse_session(port) as (stream, path):
            for message in (INITIALIZE, rpc("notifications/initialized", request_id=None), body):
                await ask(port, request("POST", path, port=port, body=message))
            await stream.event()
            assert "waited" in (await stream.event())[1]


async def test_ten_sessions_with_equal_ids_get_their_own_answers() -> None:
    """B-25 (CVE-2026-25536)."""
    async with serving(tokens=tokens()) as served:
        port = served.port

        async def caller(number: int) -> None:
            token = (ALICE, BOB)[number % 2]
            session_id = await open_session(port, token)
            for round_number in range(3):
                text = f"caller {number} round {round_number}"
                body = call_in_session("echo", {"text": text}, request_id=7)
                answer = await ask(port, in_session(session_id, body, port=port, token=token))
                assert result_of(answer)["content"][0]["text"] == text

        async def sse_caller(number: int) -> None:
            async with sse_session(port, ALICE) as (stream, path):
                messages = [INITIALIZE, rpc("notifications/initialized", request_id=None)]
                messages.append(call_in_session("echo", {"text": f"sse {number}"}, request_id=7))
                for message in messages:
                    await ask(port, request("POST", path, port=port, body=message, token=ALICE))
                await stream.event()
                assert (
                    json.loads((await stream.event())[1])["result"]["content"][0]["text"] == f"sse {number}"
                )

        with anyio.fail_after(30):
            async with anyio.create_task_group() as group:
                for number in range(10):
                    group.start_soon(caller, number)
                    group.start_soon(sse_caller, number)


async def test_a_rubbish_last_event_id_replays_nothing_and_harms_nothing() -> None:
    """C-16."""
    async with serving() as served:
        port = served.port
        session_id = await open_session(port)
        for rubbish in ("x", "0" * 5000, "../../etc/passwd", "%00", session_id):
            headers = {"Mcp-Session-Id": session_id, "Last-Event-ID": rubbish}
            async with wire(port) as stream:
                await stream.send(request("GET", "/mcp", port=port, headers=headers))
                status, _ = await stream.head()
                assert status in (200, 400)
        assert (await ask(port, in_session(session_id, rpc("ping"), port=port))).status == 200


async def test_list_changed_reaches_a_handshake_client_on_both_transports() -> None:
    registry = make_registry()
    async with serving(build_server(ToolExecutor(registry))) as served:
        port = served.port
        opening = await ask(port, request("POST", "/mcp", port=port, body=INITIALIZE))
        assert result_of(opening)["capabilities"]["tools"]["listChanged"] is True
        session_id = await open_session(port)
        async with wire(port) as stream, sse_session(port) as (sse_stream, path):
            headers = {"Mcp-Session-Id": session_id, "Accept": "text/event-stream"}
            await stream.send(request("GET", "/mcp", port=port, headers=headers))
            await stream.head()
            for message in (
                INITIALIZE,
                rpc("notifications/initialized", request_id=None),
                rpc("ping", request_id=9),
            ):
                await ask(port, request("POST", path, port=port, body=message))
            await sse_stream.event()
            await sse_stream.event()

            @registry.register
            def fresh() -> str:
                """Be new."""
                return ""

            for listener in (stream, sse_stream):
                _, data = await listener.event()
                assert json.loads(data)["method"] == "notifications/tools/list_changed"


# --- Answers that take their time ---------------------------------------------------------------


async def test_a_silent_call_keeps_its_answer_alive_in_both_eras_and_over_sse(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(events, "PING_S", 0.1)
    async with serving() as served:
        port = served.port
        session_id = await open_session(port)
        body = call_in_session("wait", {"seconds": 0.5})
        for data in (call("wait", {"seconds": 0.5}, port=port), in_session(session_id, body, port=port)):
            answer = await ask(port, data)
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert answer.body.count(b": ping") >= 2
            assert answer.json()["result"]["content"][0]["text"] == "waited"
        async with sse_session(port) as (stream, path):
            for message in (INITIALIZE, rpc("notifications/initialized", request_id=None), body):
                await ask(port, request("POST", path, port=port, body=message))
            seen = b""
            async for chunk in stream.chunks():
                seen += chunk
                if b"waited" in seen:
                    break
            assert seen.count(b": ping") >= 2


@pytest.mark.parametrize("era", ["modern", "handshake"])
async def test_a_call_that_says_nothing_is_answered_with_one_document(era: str) -> None:
    async with serving() as served:
        port = served.port
        if era == "modern":
            data = call("echo", {"text": "x"}, port=port)
        else:
            data = in_session(await open_session(port), call_in_session("echo", {"text": "x"}), port=port)
        answer = await ask(port, data)
        assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize("era", ["modern", "handshake"])
async def test_progress_comes_before_the_result_on_the_same_answer(era: str) -> None:
    async with serving() as served:
        port = served.port
        params = {"name": "steps", "arguments": {"count": 3}, "_meta": {"progressToken": "t"}}
        if era == "modern":
            data = modern("tools/call", params, port=port)
        else:
            data = in_session(await open_session(port), rpc("tools/call", params, 2), port=port)
        answer = await ask(port, data)
        messages = [
            json.loads(line[6:]) for line in answer.body.decode().splitlines() if line[:6] == "data: "
        ]
        assert [message.get("method") for message in messages] == ["notifications/progress"] * 3 + [None]
        assert [message["params"]["progress"] for message in messages[:3]] == [1, 2, 3]
        assert all(message["params"]["progressToken"] == "t" for message in messages[:3])
        assert messages[-1]["result"]["content"][0]["text"] == "3 steps"


@pytest.mark.parametrize("around", ["us", "another server"])
async def test_a_modern_client_that_leaves_withdraws_its_call(around: str, tmp_path: Path) -> None:
    async with (
        serving() if around == "us" else plain_uvicorn(build_app(make_server()))  # type: ignore[attr-defined]
    ) as served:
        port = served if isinstance(served, int) else served.port
        async with wire(port) as connection:
            await connection.send(call("until_withdrawn", {"folder": str(tmp_path)}, port=port))
            with anyio.fail_after(10):
                while not (tmp_path / "begun").exists():  # noqa: ASYNC110
                    await anyio.sleep(0.01)
        with anyio.fail_after(10):
            while not (tmp_path / "withdrawn").exists():  # noqa: ASYNC110
                await anyio.sleep(0.01)


async def test_a_handshake_client_that_leaves_does_not_withdraw_its_call_but_can(tmp_path: Path) -> None:
    async with serving() as served:
        port = served.port
        session_id = await open_session(port)
        body = call_in_session("until_withdrawn", {"folder": str(tmp_path)}, request_id=5)
        async with wire(port) as connection:
            await connection.send(in_session(session_id, body, port=port))
            with anyio.fail_after(10):
                while not (tmp_path / "begun").exists():  # noqa: ASYNC110
                    await anyio.sleep(0.01)
        assert (await ask(port, in_session(session_id, rpc("ping", request_id=6), port=port))).status == 200
        assert not (tmp_path / "withdrawn").exists()
        cancelled = rpc("notifications/cancelled", {"requestId": 5}, request_id=None)
        assert (await ask(port, in_session(session_id, cancelled, port=port))).status == 202
        with anyio.fail_after(10):
            while not (tmp_path / "withdrawn").exists():  # noqa: ASYNC110
                await anyio.sleep(0.01)


async def test_a_withdrawn_handshake_call_is_answered_so_that_its_post_ends(tmp_path: Path) -> None:
    async with serving() as served, wire(served.port) as connection:
        port = served.port
        session_id = await open_session(port)
        body = call_in_session("until_withdrawn", {"folder": str(tmp_path)}, request_id=5)
        await connection.send(in_session(session_id, body, port=port))
        with anyio.fail_after(10):
            while not (tmp_path / "begun").exists():  # noqa: ASYNC110
                await anyio.sleep(0.01)
        duplicate = await ask(port, in_session(session_id, body, port=port))
        assert (duplicate.status, duplicate.json()["error"]["code"]) == (400, -32600)
        cancelled = rpc("notifications/cancelled", {"requestId": 5}, request_id=None)
        await ask(port, in_session(session_id, cancelled, port=port))
        assert (await connection.answer()).json()["error"]["code"] == -32800


async def test_ending_a_session_ends_its_calls_and_streams(tmp_path: Path) -> None:
    async with serving() as served, wire(served.port) as connection, wire(served.port) as stream:
        port = served.port
        session_id = await open_session(port)
        headers = {"Mcp-Session-Id": session_id}
        await stream.send(request("GET", "/mcp", port=port, headers=headers))
        await stream.head()
        second = await ask(port, request("GET", "/mcp", port=port, headers=headers))
        assert second.status == 409
        body = call_in_session("until_withdrawn", {"folder": str(tmp_path)}, request_id=5)
        await connection.send(in_session(session_id, body, port=port))
        with anyio.fail_after(10):
            while not (tmp_path / "begun").exists():  # noqa: ASYNC110
                await anyio.sleep(0.01)
        assert (await ask(port, request("DELETE", "/mcp", port=port, headers=headers))).status == 204
        assert (await connection.answer()).status == 404
        with pytest.raises(EOFError):
            await stream.event()
        with anyio.fail_after(10):
            while not (tmp_path / "withdrawn").exists():  # noqa: ASYNC110
                await anyio.sleep(0.01)


@pytest.mark.parametrize("accept", [None, "application/json", "text/event-stream", "text/html"])
async def test_a_client_must_take_both_kinds_of_answer(accept: str | None) -> None:
    async with serving() as served:
        port = served.port
        for data in (
            modern("tools/list", port=port, Accept=accept),
            request("POST", "/mcp", port=port, body=INITIALIZE, headers={"Accept": accept}),
        ):
            assert (await ask(port, data)).status == 406
        taken = modern("tools/list", port=port, Accept="application/*;q=0.9, text/event-stream")
        assert (await ask(port, taken)).status == 200


# --- What is refused, and how ------------------------------------------------------------------


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
