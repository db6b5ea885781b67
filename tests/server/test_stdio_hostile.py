"""Clients that send what no client should, in bytes (B-01 to B-33). The server lives and answers."""

from __future__ import annotations

import json
import queue
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.server.wire import END_S, ENVELOPE, HANDSHAKE, Wire

SILENT_OR_GONE = (queue.Empty, AssertionError)
PARSE_ERROR, INVALID_REQUEST, METHOD_NOT_FOUND, INVALID_PARAMS = -32700, -32600, -32601, -32602
VALID = (
    b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"echo","arguments":{"text":"hello"}}}'
)

BAD_LINES: list[tuple[bytes, int, Any]] = [
    (b"{", PARSE_ERROR, None),
    (b"nonsense", PARSE_ERROR, None),
    (b'{"jsonrpc":"2.0","id":1,"method":"ping"', PARSE_ERROR, None),
    (b"\xff\xfe\x00", PARSE_ERROR, None),
    (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"x":"\\ud800"}}', PARSE_ERROR, 1),
    (b'{"jsonrpc":"2.0","id":"\\ud800","method":"ping"}', PARSE_ERROR, None),
    (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"x":"\xed\xa0\x80"}}', PARSE_ERROR, 1),
    (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"x":NaN}}', PARSE_ERROR, 1),
    (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"x":-Infinity}}', PARSE_ERROR, 1),
    (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"x":"\x00"}}', PARSE_ERROR, None),
    (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"x":' + b"9" * 6000 + b"}}", PARSE_ERROR, None),
    (b"[" * 300 + b"]" * 300, PARSE_ERROR, None),
    (b'\xef\xbb\xbf{"jsonrpc":"2.0","id":1,"method":"ping"}', PARSE_ERROR, 1),
    (b"[]", INVALID_REQUEST, None),
    (b'"text"', INVALID_REQUEST, None),
    (b"42", INVALID_REQUEST, None),
    (b"null", INVALID_REQUEST, None),
    (b"{}", INVALID_REQUEST, None),
    (b'{"jsonrpc":"1.0","id":2,"method":"ping"}', INVALID_REQUEST, 2),
    (b'{"id":3,"method":"ping"}', INVALID_REQUEST, 3),
    (b'{"jsonrpc":"2.0","id":4}', INVALID_REQUEST, 4),
    (b'{"jsonrpc":"2.0","id":5,"method":42}', INVALID_REQUEST, 5),
    (b'{"jsonrpc":"2.0","id":null,"method":"ping"}', INVALID_REQUEST, None),
    (b'{"jsonrpc":"2.0","id":1.5,"method":"ping"}', INVALID_REQUEST, None),
    (b'{"jsonrpc":"2.0","id":true,"method":"ping"}', INVALID_REQUEST, None),
    (b'{"jsonrpc":"2.0","id":{"a":1},"method":"ping"}', INVALID_REQUEST, None),
    (b'{"jsonrpc":"2.0","id":"' + b"i" * 1000 + b'","method":"ping"}', INVALID_REQUEST, None),
    (b'{"jsonrpc":"2.0","id":6,"method":"ping","params":[1]}', INVALID_PARAMS, 6),
    (b'{"jsonrpc":"2.0","id":8,"method":"ping","result":{}}', INVALID_REQUEST, 8),
    (b'{"jsonrpc":"2.0","id":9,"method":"no/such/method"}', METHOD_NOT_FOUND, 9),
    (b'{"jsonrpc":"2.0","id":10,"method":"tools/call","params":{}}', INVALID_PARAMS, 10),
    (b'{"jsonrpc":"2.0","id":11,"method":"tools/call","params":{"name":5}}', INVALID_PARAMS, 11),
    (
        b'{"jsonrpc":"2.0","id":12,"method":"tools/call","params":{"name":"echo","arguments":[1]}}',
        INVALID_PARAMS,
        12,
    ),
    (
        b'{"jsonrpc":"2.0","id":13,"method":"logging/setLevel","params":{"level":"\\u0000"}}',
        INVALID_PARAMS,
        13,
    ),
    (b'{"jsonrpc":"2.0","id":14,"method":"tools/list","params":{"cursor":"x"}}', INVALID_PARAMS, 14),
]


@pytest.fixture(scope="module")
def shared_wire(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with Wire(tmp_path_factory.mktemp("shared")) as connection:
        yield connection.initialize()


@pytest.fixture
def wire(shared_wire: Wire) -> Wire:
    """A connection that looks new; a server takes most of a second to start."""
    shared_wire.ping()
    shared_wire.forget()
    return shared_wire


@pytest.fixture
def last_wire(tmp_path: Path) -> Any:
    """For tests that end the server."""
    with Wire(tmp_path) as connection:
        yield connection.initialize()


def test_every_bad_line_is_answered_and_none_stops_the_server(wire: Wire) -> None:
    for line, code, request_id in BAD_LINES:
        wire.write(line + b"\n")
        answer = wire.message(lambda message: "error" in message)
        assert (answer["error"]["code"], answer["id"]) == (code, request_id), (line, answer)
    wire.ping()


def test_without_the_guard_bad_lines_are_not_answered_and_some_stop_the_server(tmp_path: Path) -> None:
    # The attacks, against the SDK's own server: they are worth the guard.
    bare = str(Path(__file__).with_name("bare_sdk_server.py"))
    with Wire(tmp_path, program=bare) as wire:
        wire.initialize()
        for line, _, _ in BAD_LINES[:20]:
            wire.write(line + b"\n")
        wire.ping()
        assert len(wire.drain()) < 10
        wire.call("s", "surrogate")
        with pytest.raises(SILENT_OR_GONE):
            wire.ping(wait_s=1)
    with Wire(tmp_path, program=bare) as wire:
        wire.initialize()
        wire.call("e", "exit")
        with pytest.raises(SILENT_OR_GONE):
            wire.ping(wait_s=1)


def test_random_and_mutated_lines_do_not_stop_the_server(wire: Wire) -> None:
    rng = random.Random(20)
    for _ in range(200):
        wire.write(
            bytes(rng.randrange(256) for _ in range(rng.randrange(1, 200))).replace(b"\n", b" ") + b"\n"
        )
    for _ in range(200):
        changed = bytearray(VALID)
        changed[rng.randrange(len(changed))] = rng.randrange(256)
        wire.write(bytes(changed).replace(b"\n", b" ") + b"\n")
    wire.ping()
    # Each answered at most once, and every line on stdout is a message.
    assert len(wire.drain()) <= 400
    assert all(json.loads(line)["jsonrpc"] == "2.0" for line in wire.raw_lines)


def test_two_million_brackets_do_not_reach_a_stack(wire: Wire) -> None:
    for brackets in (b"[", b'{"a":'):
        wire.write(b'{"jsonrpc":"2.0","id":1,"method":"ping","params":' + brackets * 2_000_000 + b"\n")
        assert wire.message(lambda m: "error" in m)["error"]["code"] == PARSE_ERROR
    wire.ping()


def test_a_message_that_is_too_long_is_answered_in_bounded_memory(wire: Wire) -> None:
    before_kb = wire.status("VmHWM")
    wire.write(b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"x":"')
    for _ in range(64):
        wire.write(b"x" * 1024 * 1024)
    # Answered while the line has not even ended.
    error = wire.message(lambda m: "error" in m)["error"]
    assert error["code"] == INVALID_REQUEST
    assert "16,777,216 bytes" in error["message"]
    wire.write(b'"}}\n')
    wire.ping()
    assert wire.status("VmHWM") - before_kb < 60_000


def test_a_large_message_within_the_limit_is_served(wire: Wire) -> None:
    wire.call(1, "echo", text="x" * 3_000_000)
    assert len(wire.answer(1)["result"]["content"][0]["text"]) <= 1_000_000


def test_an_id_in_use_is_not_given_to_a_second_call(wire: Wire) -> None:
    for number in range(20):
        wire.call(number, "slow", steps=1, step_s=0.05)
        wire.call(number, "slow", steps=1, step_s=0.05)
    wire.call("later", "echo", text="later")
    assert wire.answer("later")["result"]["content"][0]["text"] == "later"
    for number in range(20):
        wire.message(lambda m, n=number: m.get("id") == n and "result" in m)
    time.sleep(0.1)
    answers = Counter(json.loads(line).get("id") for line in wire.raw_lines)
    assert all(answers[number] == 2 for number in range(20))
    wire.call(3, "echo", text="again")
    assert (
        wire.message(lambda m: m.get("id") == 3 and "result" in m)["result"]["content"][0]["text"] == "again"
    )


def test_an_id_as_text_and_as_number_is_one_id(wire: Wire) -> None:
    wire.call(5, "slow", steps=1, step_s=0.2)
    wire.call("5", "echo", text="x")
    assert wire.answer("5")["error"]["code"] == INVALID_REQUEST
    assert wire.answer(5)["result"]["content"][0]["text"] == "done"


def test_a_batch_is_refused_and_nothing_of_it_runs(wire: Wire) -> None:
    batch = [
        {"jsonrpc": "2.0", "id": 1, "method": "ping"},
        {
            "jsonrpc": "2.0",
            "id": 2,
            "method": "tools/call",
            "params": {"name": "change_state", "arguments": {}},
        },
    ]
    wire.send(batch)
    assert wire.message(lambda m: "error" in m)["error"]["code"] == INVALID_REQUEST
    wire.ping()
    assert wire.calls() == []


def test_a_call_sent_as_a_notification_does_nothing(wire: Wire) -> None:
    for arguments in ({}, [1]):
        wire.send(
            {
                "jsonrpc": "2.0",
                "method": "tools/call",
                "params": {"name": "change_state", "arguments": arguments},
            }
        )
    wire.ping()
    assert wire.calls() == []


def test_a_number_out_of_range_or_of_another_type_does_not_reach_the_tool(wire: Wire) -> None:
    values = [b"1e999", b"-1e999", b'"5"', b"true", b"1.5", b"[1]", b"null", b'{"a":1}']
    for value in values:
        arguments = b'{"a":1,"b":' + value + b"}"
        params = b'{"name":"add","arguments":' + arguments + b"}"
        wire.write(b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":' + params + b"}\n")
        result = wire.answer(1)["result"]
        assert result["isError"] is True, value
        assert "b:" in result["content"][0]["text"]
    assert wire.calls() == ["add validation_error invalid_arguments"] * len(values)


def test_malformed_arguments_are_recorded_and_named(wire: Wire) -> None:
    wire.request(1, "tools/call", {"name": "echo", "arguments": "text"})
    error = wire.answer(1)["error"]
    assert error["code"] == INVALID_PARAMS
    assert "arguments must be an object" in error["message"]
    assert wire.calls() == ["echo validation_error invalid_arguments"]
    wire.request(2, "tools/call", {"name": "pieces"})
    assert "result" in wire.answer(2)
    wire.request(3, "tools/call", {"name": "pieces", "arguments": None})
    assert "result" in wire.answer(3)


def test_cancelling_early_late_twice_or_with_odd_ids_does_no_harm(wire: Wire) -> None:
    for odd in (None, 1.5, True, [], {}, "", -1, 2**70, "nobody"):
        wire.cancel(odd)
    wire.send({"jsonrpc": "2.0", "method": "notifications/cancelled"})
    wire.send({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {}})
    for number in range(60):
        wire.cancel(number)
        wire.call(number, "blocks", marker=str(number))
        if number % 3:
            wire.cancel(number)
            wire.cancel(number)
    for number in range(0, 60, 3):
        wire.until(f"begun {number}", wire.effects)
        wire.cancel(number)
    deadline = time.monotonic() + 5
    while len(wire.calls()) < 60 and time.monotonic() < deadline:
        time.sleep(0.01)
    for number in range(60):
        wire.call(number, "echo", text=f"second {number}")
        assert wire.answer(number)["result"]["content"][0]["text"] == f"second {number}"
    answers = Counter(json.loads(line).get("id") for line in wire.raw_lines)
    assert all(answers[number] == 1 for number in range(60))


def test_one_byte_at_a_time_is_understood(wire: Wire) -> None:
    for byte in VALID + b"\r\n\n":
        wire.write(bytes([byte]))
    assert wire.answer(7)["result"]["content"][0]["text"] == "hello"


def test_half_a_line_and_then_the_end_is_a_clean_end(last_wire: Wire) -> None:
    last_wire.write(VALID[:30])
    assert last_wire.end() < END_S


def test_a_last_line_without_a_line_break_is_answered(last_wire: Wire) -> None:
    last_wire.write(VALID)
    last_wire.end()
    assert last_wire.answer(7)["result"]["content"][0]["text"] == "hello"


def until_quiet(last_wire: Wire) -> int:
    """Wait until no more calls finish; return how many have."""
    seen, since = -1, time.monotonic()
    while time.monotonic() - since < 0.7:
        if (count := len(last_wire.calls())) != seen:
            seen, since = count, time.monotonic()
        time.sleep(0.05)
    return seen


def ask_for_a_lot(last_wire: Wire, numbers: range) -> None:
    for number in numbers:
        last_wire.call(number, "big", characters=300_000)


def test_a_client_that_does_not_read_costs_bounded_memory(tmp_path: Path) -> None:
    with Wire(tmp_path, reads=False) as wire:
        wire.request("init", "initialize", HANDSHAKE)
        wire.send({"jsonrpc": "2.0", "method": "notifications/initialized"})
        ask_for_a_lot(wire, range(150))
        wire.until("big success -", wire.calls)
        until_quiet(wire)
        first_kb = wire.status("VmRSS")
        ask_for_a_lot(wire, range(150, 300))
        finished = until_quiet(wire)
        # 90 MB are asked for; a bounded part of them has been made.
        assert wire.status("VmRSS") - first_kb < 20_000
        assert finished < 250
        wire.start_reading()
        for number in range(300):
            assert len(wire.answer(number)["result"]["content"][0]["text"]) == 300_000


def test_a_client_that_does_not_read_can_still_leave(tmp_path: Path) -> None:
    with Wire(tmp_path, reads=False) as wire:
        wire.request("init", "initialize", HANDSHAKE)
        wire.send({"jsonrpc": "2.0", "method": "notifications/initialized"})
        ask_for_a_lot(wire, range(200))
        wire.until("big success -", wire.calls)
        assert wire.end() < END_S


def test_a_reply_that_is_not_a_clear_yes_is_never_a_yes(tmp_path: Path) -> None:
    replies: list[dict[str, Any]] = [
        {"result": {"action": "decline"}},
        {"result": {"action": "cancel"}},
        {"result": {"action": "accept"}},
        {"result": {"action": "accept", "content": None}},
        {"result": {"action": "accept", "content": {"approve": False}}},
        {"result": {"action": "accept", "content": {"approve": "true"}}},
        {"result": {"action": "accept", "content": {"approve": 1}}},
        {"result": {"action": "accept", "content": {"approve": {"approve": True}}}},
        {"result": {"action": "accept", "content": [True]}},
        {"result": {"action": "ACCEPT", "content": {"approve": True}}},
        {"result": {"approve": True}},
        {"result": "accept"},
        {"result": True},
        {"result": None},
        {"error": {"code": -32603, "message": "no"}},
        {"error": "accept"},
        {"result": {"action": "accept", "content": {"approve": True}}, "error": {"code": 1, "message": "no"}},
    ]
    with Wire(tmp_path) as wire:
        wire.initialize(elicitation={})
        for number, reply in enumerate(replies):
            wire.call(number, "needs_yes", line=f"line-{number}")
            question = wire.message(lambda m: m.get("method") == "elicitation/create")
            wire.send({"jsonrpc": "2.0", "id": question["id"], **reply})
            result = wire.answer(number)["result"]
            assert result["isError"] is True, reply
            assert "nothing was done" in result["content"][0]["text"]
        assert wire.effects() == []
        # The way in does work.
        wire.call("yes", "needs_yes", line="yes")
        question = wire.message(lambda m: m.get("method") == "elicitation/create")
        assert question["params"]["requestedSchema"]["required"] == ["approve"]
        yes = {"action": "accept", "content": {"approve": True}}
        wire.send({"jsonrpc": "2.0", "id": question["id"] + 1, "result": yes})  # nobody asked this
        wire.send({"jsonrpc": "2.0", "id": question["id"], "result": yes})
        wire.send({"jsonrpc": "2.0", "id": question["id"], "result": yes})
        assert wire.answer("yes")["result"]["isError"] is False
        assert len(wire.effects()) == 1


@pytest.mark.parametrize("capability", [{}, {"elicitation": {"url": {}}}], ids=["none", "url-only"])
def test_a_client_that_cannot_show_a_form_is_refused(tmp_path: Path, capability: dict[str, Any]) -> None:
    with Wire(tmp_path) as wire:
        wire.initialize(**capability)
        wire.call(1, "needs_yes", line="x")
        text = wire.answer(1)["result"]["content"][0]["text"]
        assert "Retrying will not help" in text
        assert ("by URL only" in text) == bool(capability)
        assert wire.effects() == []


def test_a_form_capability_is_enough_in_either_spelling(tmp_path: Path) -> None:
    with Wire(tmp_path) as wire:
        wire.initialize(elicitation={"form": {}, "url": {}})
        wire.call(1, "needs_yes", line="x")
        assert wire.message(lambda m: m.get("method") == "elicitation/create")["params"]["mode"] == "form"


def test_nothing_runs_before_the_handshake(tmp_path: Path) -> None:
    with Wire(tmp_path) as wire:
        wire.call(1, "change_state")
        assert "error" in wire.answer(1)
        # This alone opens the gate of the SDK.
        wire.send({"jsonrpc": "2.0", "method": "notifications/initialized"})
        wire.call(2, "change_state")
        assert "error" in wire.answer(2)
        wire.request(3, "initialize", HANDSHAKE | {"protocolVersion": "1999-01-01"})
        assert wire.answer(3)["result"]["protocolVersion"] == "2025-11-25"
        wire.request(4, "initialize", HANDSHAKE)
        wire.answer(4)
        wire.call(5, "echo", text="now")
        assert wire.answer(5)["result"]["content"][0]["text"] == "now"
        assert wire.calls() == ["echo success -"]


def test_an_unknown_modern_version_is_refused_and_the_eras_do_not_mix(tmp_path: Path) -> None:
    with Wire(tmp_path) as wire:
        wrong = ENVELOPE | {"io.modelcontextprotocol/protocolVersion": "2999-01-01"}
        wire.call(1, "change_state", meta=wrong)
        assert wire.answer(1)["error"]["code"] == -32022
        wire.call(2, "change_state")
        assert "error" in wire.answer(2)
        wire.call(3, "change_state", meta={"io.modelcontextprotocol/protocolVersion": 5})
        assert "error" in wire.answer(3)
        assert wire.calls() == []
        wire.call(4, "echo", meta=ENVELOPE, text="modern")
        assert wire.answer(4)["result"]["resultType"] == "complete"
        wire.request(5, "initialize", HANDSHAKE)
        assert wire.answer(5)["error"]["code"] == -32022


def test_a_modern_reply_that_is_not_a_clear_yes_is_never_a_yes(tmp_path: Path) -> None:
    replies: list[Any] = [
        {"action": "accept"},
        {"action": "accept", "content": {"approve": "true"}},
        {"action": "ACCEPT", "content": {"approve": True}},
        {"approve": True},
        {"roots": []},
        True,
        None,
    ]
    with Wire(tmp_path) as wire:
        for reply in replies:
            wire.call(1, "needs_yes", meta=ENVELOPE, line="x")
            first = wire.answer(1)["result"]
            assert first["resultType"] == "input_required"
            params = {"name": "needs_yes", "arguments": {"line": "x"}, "_meta": ENVELOPE}
            params |= {"requestState": first["requestState"], "inputResponses": {"confirm": reply}}
            wire.request(2, "tools/call", params)
            answer = wire.answer(2)
            assert "error" in answer or answer["result"]["isError"] is True, reply
        assert wire.effects() == []


def test_odd_progress_tokens_are_ignored_or_refused(wire: Wire) -> None:
    for number, token in enumerate([None, True, 1.5, [1], {"a": 1}, "", "t" * 10_000, 2**64]):
        wire.call(number, "slow", meta={"progressToken": token}, steps=2)
        wire.answer(number)
    wire.call("a", "slow", meta={"progressToken": "same"}, steps=1, step_s=0.1)
    wire.call("b", "slow", meta={"progressToken": "same"}, steps=1, step_s=0.1)
    assert "result" in wire.answer("a")
    assert "result" in wire.answer("b")
    wire.ping()


def test_a_call_that_waits_for_a_person_keeps_its_client_from_giving_up(tmp_path: Path) -> None:
    with Wire(tmp_path) as wire:
        wire.initialize(elicitation={})
        wire.call(1, "needs_yes", meta={"progressToken": "p"}, line="x")
        progress = wire.message(lambda m: m.get("method") == "notifications/progress")["params"]
        assert progress["progressToken"] == "p"
        assert "waiting for a person" in progress["message"]
        wire.message(lambda m: m.get("method") == "elicitation/create")


def test_large_requests_wait_for_each_other(tmp_path: Path) -> None:
    with Wire(tmp_path) as wire:
        wire.initialize()
        before_kb = wire.status("VmRSS")
        for number in range(8):
            wire.call(number, "blocks", marker="x" * 10_000_000)
        wire.call("small", "echo", text="x")
        # Seven of them are 70 MB; one waits, and what comes after it waits too.
        with pytest.raises(queue.Empty):
            wire.answer("small", wait_s=1)
        assert wire.status("VmRSS") - before_kb < 400_000
        wire.cancel(0)
        wire.cancel(7)
        assert wire.answer("small")["result"]["content"][0]["text"] == "x"


def test_refusals_are_cheap(wire: Wire) -> None:
    wire.ping()
    begun = time.monotonic()
    for number in range(100):
        wire.call(number, "fails" if number % 2 else "no_such_tool", how="value")
        wire.answer(number)
    assert (time.monotonic() - begun) / 100 < 0.01


def test_many_calls_leave_nothing_behind(wire: Wire) -> None:
    def some(count: int, name: str) -> None:
        for number in range(count):
            wire.call(f"{name}-{number}", "echo", text="x" * 100)
            wire.answer(f"{name}-{number}")

    some(300, "warm")
    wire.drain()
    before_kb, descriptors = wire.status("VmRSS"), wire.descriptors()
    some(1000, "run")
    assert wire.status("VmRSS") - before_kb < 1_000
    assert wire.descriptors() == descriptors


def test_questions_and_cancellations_get_in_while_every_place_is_taken(tmp_path: Path) -> None:
    with Wire(tmp_path) as wire:
        wire.initialize(elicitation={})
        for number in range(32):
            wire.call(number, "needs_yes", line=f"line-{number}")
        questions = [wire.message(lambda m: m.get("method") == "elicitation/create") for _ in range(32)]
        for number in range(100, 100 + 256 - 32):
            wire.call(number, "blocks", marker=str(number))
        wire.ping()
        wire.call("withdrawn", "effect_of", text="never")
        wire.call("after", "echo", text="waits its turn")
        wire.cancel("withdrawn")  # still waiting outside
        yes = {"action": "accept", "content": {"approve": True}}
        for question in questions:
            wire.send({"jsonrpc": "2.0", "id": question["id"], "result": yes})
        for number in range(100, 100 + 256 - 32):
            wire.cancel(number)
        for number in range(32):
            assert "result" in wire.answer(number)
        assert wire.answer("after")["result"]["content"][0]["text"] == "waits its turn"
        wire.ping()
        assert not any("effect_of" in call for call in wire.calls())


def test_what_waits_is_bounded_and_the_rest_is_refused_as_too_many(tmp_path: Path) -> None:
    with Wire(tmp_path) as wire:
        wire.initialize()
        for number in range(256):
            wire.call(number, "blocks", marker=str(number))
        for number in range(1000, 1012):
            wire.call(number, "echo", text="x" * 4_000_000)
        refused = wire.message(lambda m: "error" in m)
        assert refused["error"]["code"] == -32000
        assert "too many" in refused["error"]["message"]
        for number in range(256):
            wire.cancel(number)
        assert "result" in wire.answer(1000)
        wire.ping()
