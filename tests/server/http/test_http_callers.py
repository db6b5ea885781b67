"""Who is calling over HTTP: tokens, and how their names reach the tool."""

from __future__ import annotations

import json

import pytest

from tests.server.http.http_peer import (
    ALICE,
    BOB,
    INITIALIZE,
    ask,
    call,
    call_in_session,
    in_session,
    modern,
    open_session,
    request,
    rpc,
    said,
    serving,
    sse_session,
    tokens,
    wire,
)


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
