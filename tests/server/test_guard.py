"""The first look at a message, without a server around it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp_types.jsonrpc import JSONRPCError, JSONRPCNotification, JSONRPCRequest, JSONRPCResponse

from mcp_tools.server.guard import MAX_ID, Accept, Drop, Reply, check_message
from mcp_tools.server.traffic import Lines


def checked(message: Any) -> Accept | Reply | Drop:
    return check_message(json.dumps(message).encode())


@pytest.mark.parametrize("request_id", [0, -5, MAX_ID, "", "abc", "é" * 256])
def test_a_request_passes_with_its_id_and_params(request_id: Any) -> None:
    sent = {"jsonrpc": "2.0", "id": request_id, "method": "tools/call", "params": {"x": [1, {"y": None}]}}
    verdict = checked(sent)
    assert isinstance(verdict, Accept)
    assert isinstance(verdict.message, JSONRPCRequest)
    assert verdict.message.model_dump(exclude_unset=True) == sent


def test_a_notification_passes_and_null_params_count_as_none() -> None:
    verdict = checked({"jsonrpc": "2.0", "method": "notifications/initialized", "params": None})
    assert isinstance(verdict, Accept)
    assert isinstance(verdict.message, JSONRPCNotification)
    assert verdict.message.model_dump(exclude_unset=True) == {
        "jsonrpc": "2.0",
        "method": "notifications/initialized",
    }


def test_a_response_and_an_error_pass() -> None:
    response = {"jsonrpc": "2.0", "id": 1, "result": {"action": "accept"}}
    error = {"jsonrpc": "2.0", "id": 1, "error": {"code": -1, "message": "no"}}
    verdicts = [checked(response), checked(error)]
    assert [type(v.message) for v in verdicts if isinstance(v, Accept)] == [JSONRPCResponse, JSONRPCError]


@pytest.mark.parametrize(
    "rest",
    [
        {"result": "accept"},
        {"result": None},
        {"error": "no"},
        {"error": None},
        {"error": {"code": "x", "message": 5}},
        {"result": {}, "error": {"code": 1, "message": "both"}},
    ],
    ids=str,
)
def test_a_malformed_response_reaches_the_one_who_waits_as_an_error(rest: dict[str, Any]) -> None:
    verdict = checked({"jsonrpc": "2.0", "id": 4, **rest})
    assert isinstance(verdict, Accept)
    assert isinstance(verdict.message, JSONRPCError)
    assert verdict.message.id == 4


@pytest.mark.parametrize(
    "message",
    [
        {"jsonrpc": "2.0", "id": None, "result": {}},
        {"jsonrpc": "2.0", "result": {}},
        {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": [1]},
    ],
    ids=str,
)
def test_what_nobody_waits_for_is_dropped(message: dict[str, Any]) -> None:
    assert isinstance(checked(message), Drop)
    assert isinstance(check_message(b" \r\n"), Drop)


def test_a_message_over_the_limit_is_not_even_parsed() -> None:
    verdict = check_message(b"[" * 1001, max_bytes=1000)
    assert isinstance(verdict, Reply)
    assert verdict.error.error.message == "the message is longer than 1,000 bytes"


def test_an_integer_beyond_what_python_prints_is_no_id() -> None:
    verdict = check_message(b'{"jsonrpc":"2.0","id":' + b"9" * 4000 + b',"method":"ping"}')
    assert isinstance(verdict, Reply)
    assert verdict.error.id is None


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
_names = st.sampled_from(["jsonrpc", "id", "method", "params", "result", "error"])
_values = _json | st.sampled_from(["2.0", "ping", 1])


@given(st.binary(max_size=300))
def test_no_bytes_make_it_raise(raw: bytes) -> None:
    assert isinstance(check_message(raw), Accept | Reply | Drop)


@given(st.dictionaries(_names, _values))
def test_no_object_makes_it_raise_and_a_readable_id_comes_back(message: dict[str, Any]) -> None:
    verdict = check_message(json.dumps(message, ensure_ascii=True).encode())
    assert isinstance(verdict, Accept | Reply | Drop)
    if isinstance(verdict, Reply) and verdict.error.id is not None:
        assert verdict.error.id == message["id"]


@given(st.lists(st.binary(max_size=30).map(lambda line: line.replace(b"\n", b"")), max_size=8), st.data())
def test_lines_come_out_whole_however_they_come_in(lines: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(line + b"\n" for line in lines) + b"rest"
    splitter, out = Lines(max_bytes=20), []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        out += splitter.feed(stream[:size])
        stream = stream[size:]
    # A line that is too long is announced once, whole or in parts.
    assert out == [line if len(line) <= 20 else None for line in lines]
    assert splitter.rest() == b"rest"
