"""Answers over HTTP: one document or a stream, and what happens when either side leaves."""

from __future__ import annotations

import json
from pathlib import Path

import anyio
import pytest

from mcp_tools.executor import ToolExecutor
from mcp_tools.registry import ToolRegistry
from mcp_tools.server.handler import build_server
from mcp_tools.server.http import build_app, events
from mcp_tools.types import ErrorCode, ExecutionResult
from tests.server.http.http_peer import (
    INITIALIZE,
    ask,
    call,
    call_in_session,
    in_session,
    make_server,
    modern,
    open_session,
    plain_uvicorn,
    request,
    rpc,
    serving,
    sse_session,
    wire,
)


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


async def test_a_handshake_client_that_leaves_takes_its_open_question_along() -> None:
    registry = ToolRegistry()

    @registry.register(requires_confirmation=True)
    def erase() -> str:
        """Erase."""
        return "erased"

    ended = anyio.Event()
    codes: list[ErrorCode | None] = []

    def note(result: ExecutionResult) -> None:
        codes.append(result.error_code)
        if result.error_code is ErrorCode.CANCELLED:
            ended.set()

    executor = ToolExecutor(registry, hooks=[note])
    async with serving(build_server(executor)) as served:
        port = served.port
        opening = json.loads(INITIALIZE)
        opening["params"]["capabilities"] = {"elicitation": {}}
        opened = await ask(port, request("POST", "/mcp", port=port, body=json.dumps(opening).encode()))
        session_id = opened.headers["mcp-session-id"]
        await ask(
            port,
            in_session(session_id, rpc("notifications/initialized", request_id=None), port=port),
        )
        with anyio.fail_after(10):
            async with wire(port) as connection:
                await connection.send(in_session(session_id, call_in_session("erase", {}), port=port))
                await connection.reader.readuntil(b"elicitation/create")
            await ended.wait()
        assert codes[-1] is ErrorCode.CANCELLED


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
