"""Sessions over HTTP: whose they are, how many there are, when they end."""

from __future__ import annotations

import json

import anyio
import pytest

from mcp_tools.executor import ToolExecutor
from mcp_tools.server.handler import build_server
from mcp_tools.server.http import HttpLimits
from tests.server.http.http_peer import (
    ALICE,
    BOB,
    INITIALIZE,
    Answer,
    ask,
    call,
    call_in_session,
    in_session,
    make_registry,
    modern,
    open_session,
    request,
    result_of,
    rpc,
    serving,
    sse_session,
    tokens,
    wire,
)


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
