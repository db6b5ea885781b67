"""Every transport, both eras, one set of expectations: the SDK's client against a real server process."""

from __future__ import annotations

import uuid
from typing import Any

import anyio
import mcp_types as types
import pytest
from mcp.shared.exceptions import MCPError

from tests.server.peers import Peer, text_of

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def accept(_params: Any) -> types.ElicitResult:
    return types.ElicitResult(action="accept", content={"approve": True})


def answering(reply: Any, *, after_s: float = 0.06) -> Any:
    """Answer with this, no faster than a person could."""

    async def answer(_params: Any) -> Any:
        await anyio.sleep(after_s)
        return reply

    return answer


def a_line() -> str:
    return uuid.uuid4().hex


def written(peer: Peer, line: str) -> int:
    return sum(effect.startswith(f"wrote {line} ") for effect in peer.effects)


async def test_tools_are_listed_with_everything_a_client_needs(peer: Peer) -> None:
    tools = (await peer.client.list_tools()).tools
    by_name = {tool.name: tool for tool in tools}
    assert [tool.name for tool in tools][:4] == ["echo", "add", "slow", "blocks"]
    echo, add = by_name["echo"], by_name["add"]
    assert (echo.title, echo.description) == ("Echo", "Return the text.")
    assert echo.input_schema["required"] == ["text"]
    assert echo.annotations is not None
    hints = echo.annotations
    assert (hints.read_only_hint, hints.destructive_hint, hints.idempotent_hint, hints.open_world_hint) == (
        True,
        True,
        False,
        False,
    )
    assert add.output_schema is not None
    assert add.output_schema["properties"] == {"total": {"type": "integer"}}
    assert [tool.name for tool in (await peer.client.list_tools(cache_mode="refresh")).tools] == [
        tool.name for tool in tools
    ]


async def test_a_call_returns_text_and_structured_content_each_complete(peer: Peer) -> None:
    assert text_of(await peer.call("echo", text="grüße\u2028")) == "grüße\u2028"
    result = await peer.call("add", a=2, b=3)
    assert not result.is_error
    assert result.structured_content == {"total": 5}
    assert text_of(result) == '{\n  "total": 5\n}'


async def test_bad_arguments_are_a_tool_error_that_names_the_field(peer: Peer) -> None:
    for arguments, field in [
        ({"a": "2", "b": 3}, "a"),
        ({"a": 2}, "b"),
        ({"a": 2, "b": 3, "tex": 1}, "tex"),
        ({}, "a"),
        ({"a": True, "b": 3}, "a"),
    ]:
        result = await peer.call("add", **arguments)
        assert result.is_error, arguments
        assert field in text_of(result)
        assert result.structured_content is None


async def test_an_unknown_tool_is_a_protocol_error_and_is_recorded(peer: Peer) -> None:
    name = f"ech_{a_line()[:8]}"
    with pytest.raises(MCPError) as caught:
        await peer.call(name)
    assert caught.value.error.code == types.INVALID_PARAMS
    assert name in caught.value.error.message
    assert f"{name} error unknown_tool" in peer.calls


async def test_progress_rises_and_arrives_before_the_result(peer: Peer) -> None:
    seen: list[tuple[float, float | None, str | None]] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        seen.append((progress, total, message))

    with anyio.fail_after(10):
        arguments = {"steps": 3, "step_s": 0.08}
        result = await peer.client.call_tool("slow", arguments, progress_callback=on_progress)
    assert text_of(result) == "done"
    assert seen == [(1, 3, "step 1"), (2, 3, "step 2"), (3, 3, "step 3")]


async def test_cancelling_reaches_the_tool_and_is_recorded(peer: Peer) -> None:
    marker = a_line()
    before = peer.calls.count("blocks cancelled cancelled")
    async with anyio.create_task_group() as group:
        group.start_soon(peer.client.call_tool, "blocks", {"marker": marker})
        await peer.until_effect(f"begun {marker}")
        group.cancel_scope.cancel()
    await peer.until_effect(f"cancelled {marker}")
    await peer.until_call("blocks cancelled cancelled", before + 1)
    assert text_of(await peer.call("echo", text="still there")) == "still there"


async def test_a_yes_lets_exactly_this_call_run_once(peer: Peer) -> None:
    peer.on_question = accept
    line = a_line()
    result = await peer.call("needs_yes", line=line)
    assert not result.is_error
    assert written(peer, line) == 1
    assert "asked=True" in next(effect for effect in peer.effects if line in effect)
    [question] = peer.questions
    assert question.startswith("Allow needs_yes (Append a line) to run?\n")
    assert f'  line: "{line}"' in question
    assert f"| + {line}" in question


@pytest.mark.parametrize("action", ["decline", "cancel"])
async def test_a_no_runs_nothing_and_is_recorded(peer: Peer, action: Any) -> None:
    before = peer.calls.count("needs_yes permission_denied declined")
    peer.on_question = answering(types.ElicitResult(action=action))
    line = a_line()
    result = await peer.call("needs_yes", line=line)
    assert result.is_error
    assert "nothing was done" in text_of(result)
    assert written(peer, line) == 0
    assert peer.calls.count("needs_yes permission_denied declined") == before + 1


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # the client is made to send rubbish
async def test_nothing_but_a_clear_yes_counts(peer: Peer) -> None:
    line = a_line()
    replies: list[Any] = [
        types.ElicitResult(action="accept"),
        types.ElicitResult(action="accept", content={}),
        types.ElicitResult(action="accept", content={"approve": False}),
        types.ElicitResult(action="accept", content={"approve": "true"}),
        types.ElicitResult(action="accept", content={"approve": 1}),
        types.ElicitResult(action="accept", content={"approve": ["true"]}),
        types.ElicitResult(action="accept", content={"approve": None}),
        types.ElicitResult(action="accept", content={"confirm": True, "yes": True}),
        types.ElicitResult.model_construct(action="ACCEPT", content={"approve": True}),
        types.ErrorData(code=-1, message="no form here"),
    ]
    for reply in replies:
        peer.on_question = answering(reply, after_s=0)
        try:
            result = await peer.call("needs_yes", line=line)
        except MCPError:
            continue  # the client itself, or the envelope, refuses the reply
        assert result.is_error, reply
        assert "nothing was done" in text_of(result)
    assert written(peer, line) == 0


async def test_a_client_that_declines_at_once_is_told_that_it_showed_nothing(
    handshake_peer: Peer,
) -> None:
    peer = handshake_peer  # a 2026-07-28 client alone knows how long it showed the question
    peer.on_question = answering(types.ElicitResult(action="decline"), after_s=0)
    result = await peer.call("needs_yes", line=a_line())
    assert "shown the question to nobody" in text_of(result)
    assert "allow = [" in text_of(result)


async def test_without_elicitation_the_call_is_refused_with_what_a_person_can_do(mute_peer: Peer) -> None:
    line = a_line()
    result = await mute_peer.call("needs_yes", line=line)
    assert result.is_error
    said = text_of(result)
    for words in (
        "Retrying will not help",
        'allow = ["needs_yes"]',
        "mcp-tools call needs_yes",
        "elicitation",
    ):
        assert words in said
    assert written(mute_peer, line) == 0
    assert "needs_yes permission_denied denied" in mute_peer.calls


async def test_the_same_call_again_asks_again(peer: Peer) -> None:
    peer.on_question = accept
    line = a_line()
    for times in (1, 2):
        await peer.call("needs_yes", line=line)
        assert len(peer.questions) == times
        assert written(peer, line) == times


async def test_the_same_call_with_the_same_key_is_one_effect(peer: Peer) -> None:
    peer.on_question = accept
    line, results = a_line(), []

    async def send(line: str, key: Any) -> None:
        with anyio.fail_after(20):
            meta: Any = {"mcp-tools/idempotencyKey": key}
            results.append(await peer.client.call_tool("needs_yes", {"line": line}, meta=meta))

    key = a_line()
    await send(line, key)
    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(send, line, key)
    assert [result.content for result in results] == [results[0].content] * 4
    assert written(peer, line) == 1
    other = a_line()
    await send(other, key)
    assert written(peer, other) == 1
    for wrong in ("", "k" * 201, 5):
        with pytest.raises(MCPError, match="1 to 200 characters"):
            await send(line, wrong)
    assert written(peer, line) == 1


async def test_what_changed_while_a_person_was_thinking_is_asked_again(peer: Peer) -> None:
    changed = False

    async def answer(params: Any) -> types.ElicitResult:
        nonlocal changed
        if not changed:
            changed = True
            await peer.client.call_tool("change_state", {})
        return await accept(params)

    peer.on_question = answer
    line = a_line()
    result = await peer.call("needs_yes", line=line)
    assert not result.is_error
    assert len(peer.questions) == 2
    assert written(peer, line) == 1


async def test_a_late_yes_is_refused(impatient_peer: Peer) -> None:
    peer = impatient_peer
    peer.on_question = answering(types.ElicitResult(action="accept", content={"approve": True}), after_s=0.7)
    line = a_line()
    result = await peer.call("needs_yes", line=line)
    assert result.is_error
    assert "nobody answered within 0.5 s" in text_of(result)
    await anyio.sleep(0.3)
    assert written(peer, line) == 0
    peer.on_question = accept
    assert not (await peer.call("needs_yes", line=line)).is_error


async def test_a_call_withdrawn_while_a_person_is_asked_never_runs(handshake_peer: Peer) -> None:
    peer = handshake_peer  # a 2026-07-28 call has ended when its question is shown
    asked = anyio.Event()
    line = a_line()
    before = peer.calls.count("needs_yes cancelled cancelled")

    async def answer(params: Any) -> types.ElicitResult:
        asked.set()
        await anyio.sleep(5)
        return await accept(params)

    peer.on_question = answer
    async with anyio.create_task_group() as group:
        group.start_soon(peer.client.call_tool, "needs_yes", {"line": line})
        with anyio.fail_after(10):
            await asked.wait()
        group.cancel_scope.cancel()
    await peer.until_call("needs_yes cancelled cancelled", before + 1)
    assert written(peer, line) == 0


# --- 2026-07-28: the state that travels through the client ------------------------------------


async def _first_round(peer: Peer, line: str) -> types.InputRequiredResult:
    with anyio.fail_after(10):
        first = await peer.client.session.call_tool("needs_yes", {"line": line}, allow_input_required=True)
    assert isinstance(first, types.InputRequiredResult)
    assert first.request_state is not None
    return first


async def _second_round(peer: Peer, name: str, line: str, state: str | None, answered: bool = True) -> Any:
    yes = types.ElicitResult(action="accept", content={"approve": True})
    with anyio.fail_after(10):
        return await peer.client.session.call_tool(
            name,
            {"line": line},
            input_responses={"confirm": yes} if answered else None,
            request_state=state,
            allow_input_required=True,
        )


async def test_a_replayed_yes_runs_nothing(modern_peer: Peer) -> None:
    """It gets the result of the call that the yes was for, like any client that heard no answer."""
    line = a_line()
    first = await _first_round(modern_peer, line)
    done = await _second_round(modern_peer, "needs_yes", line, first.request_state)
    assert not done.is_error
    results = []

    async def replay() -> None:
        results.append(await _second_round(modern_peer, "needs_yes", line, first.request_state))

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(replay)
    assert [result.content for result in results] == [done.content] * 5
    assert all(result.meta["mcp-tools/account"]["joined"] for result in results)
    assert written(modern_peer, line) == 1


async def test_one_yes_sent_many_times_at_once_has_one_effect(modern_peer: Peer) -> None:
    line = a_line()
    first = await _first_round(modern_peer, line)
    outcomes = []

    async def answer() -> None:
        outcomes.append((await _second_round(modern_peer, "needs_yes", line, first.request_state)).is_error)

    async with anyio.create_task_group() as group:
        for _ in range(10):
            group.start_soon(answer)
    assert outcomes == [False] * 10
    assert written(modern_peer, line) == 1


async def test_a_yes_does_not_fit_other_arguments_another_tool_or_a_changed_state(modern_peer: Peer) -> None:
    line = a_line()
    first = await _first_round(modern_peer, line)
    state = first.request_state
    assert state is not None
    middle = len(state) // 2
    bent = state[:middle] + ("A" if state[middle] != "A" else "B") + state[middle + 1 :]
    for name, other_line, other_state in [
        ("needs_yes", line + "x", state),
        ("echo", line, state),
        ("needs_yes", line, bent),
        ("needs_yes", line, "made up"),
        ("needs_yes", line, "v1." + "A" * 80),
    ]:
        with pytest.raises(MCPError) as caught:
            await _second_round(modern_peer, name, other_line, other_state)
        assert caught.value.error.code == types.INVALID_PARAMS
    assert written(modern_peer, line) == written(modern_peer, line + "x") == 0


async def test_an_answer_without_its_state_and_a_state_without_an_answer_run_nothing(
    modern_peer: Peer,
) -> None:
    line = a_line()
    first = await _first_round(modern_peer, line)
    for state, answered in [(None, True), (first.request_state, False)]:
        result = await _second_round(modern_peer, "needs_yes", line, state, answered)
        assert result.is_error
    # The empty answer has used the question up.
    result = await _second_round(modern_peer, "needs_yes", line, first.request_state)
    assert result.is_error
    assert written(modern_peer, line) == 0


async def test_a_yes_does_not_hold_at_another_server_process(
    modern_peer: Peer, other_modern_peer: Peer
) -> None:
    line = a_line()
    first = await _first_round(modern_peer, line)
    with pytest.raises(MCPError) as caught:
        await _second_round(other_modern_peer, "needs_yes", line, first.request_state)
    assert caught.value.error.code == types.INVALID_PARAMS
    assert written(other_modern_peer, line) == 0


# --- everything else that must be the same everywhere -----------------------------------------


async def test_whatever_a_tool_raises_is_a_tool_error_and_the_server_lives(peer: Peer) -> None:
    raised = ["value", "system_exit", "keyboard_interrupt", "generator_exit", "cancelled", "memory"]
    raised += ["group", "unprintable", "stop_iteration", "timeout"]
    for how in raised:
        for tool in ("fails", "fails_in_thread"):
            result = await peer.call(tool, how=how)
            assert result.is_error, (tool, how)
            assert text_of(result).startswith("Error (")
    assert (await peer.call("fails", how="recursion")).is_error
    assert text_of(await peer.call("echo", text="alive")) == "alive"


async def test_a_tool_error_reaches_the_model_word_for_word(peer: Peer) -> None:
    result = await peer.call("fails", how="tool_error")
    assert text_of(result) == "Error (error): the moon is in the wrong phase; try again tomorrow"


async def test_odd_results_arrive_as_valid_json(peer: Peer) -> None:
    for which, expected in {
        "surrogate": "a\\udc80b",
        "nan": '"nan"',
        "bytes": "AP8=",
        "object": "<odd \\udc80>",
        "big_int": "0x",
        "keys": "\\udcff",
        "none": "null",
        "list": '"three": 3',
        "surrogate_in_dict": "\\ud800",
    }.items():
        result = await peer.call("odd", which=which)
        assert not result.is_error, which
        assert expected in text_of(result).replace("\\\\", "\\"), which


async def test_a_huge_result_is_shortened_and_says_so(peer: Peer) -> None:
    plain = await peer.call("big", characters=3_000_000)
    assert len(text_of(plain)) <= 1_000_000
    assert "3,000,000 characters" in text_of(plain)
    structured = await peer.call("big", characters=3_000_000, in_dict=True)
    assert structured.structured_content is not None
    assert structured.structured_content["n"] == 1
    assert "shortened" in structured.structured_content["text"]
    assert len(text_of(structured)) <= 1_000_000
    assert "shortened" in text_of(structured)


async def test_every_kind_of_content_arrives(peer: Peer) -> None:
    result = await peer.call("pieces")
    assert [block.type for block in result.content] == ["text", "image", "audio", "resource", "resource_link"]
    assert result.structured_content == {"count": 4}
    only = await peer.call("structured_only")
    assert only.structured_content == {"answer": 42}
    assert text_of(only) == '{\n  "answer": 42\n}'


async def test_printing_does_not_get_between_the_messages(peer: Peer) -> None:
    assert text_of(await peer.call("noisy")) == "clean"
    if peer.transport == "stdio":
        assert text_of(await peer.call("reads_stdin")) == "''"


async def test_methods_that_are_not_offered_are_refused_harmlessly(peer: Peer) -> None:
    for ask in (peer.client.list_resources, peer.client.list_prompts, peer.client.list_resource_templates):
        with pytest.raises(MCPError) as caught:
            await ask()
        assert caught.value.error.code == types.METHOD_NOT_FOUND
    assert text_of(await peer.call("echo", text="on")) == "on"


async def test_the_tool_knows_who_calls(peer: Peer) -> None:
    who = (await peer.call("who")).structured_content
    assert who is not None
    assert (who["principal"], who["transport"]) == ("local", peer.transport)
    has_session = peer.transport == "sse" or (peer.transport == "http" and not peer.is_modern)
    assert (who["session_id"] is not None) == has_session


async def test_a_client_hears_that_the_list_of_tools_changed(peer: Peer) -> None:
    async def change_and_check() -> None:
        assert text_of(await peer.call("change_list")) in ("added", "removed")

    if peer.is_modern:
        with anyio.fail_after(10):
            async with peer.client.listen(tools_list_changed=True) as events:
                await change_and_check()
                event = await anext(aiter(events))
        assert type(event).__name__ == "ToolsListChanged"
        return
    peer.notifications.clear()
    peer.notified = anyio.Event()
    assert peer.client.server_capabilities.tools is not None
    assert peer.client.server_capabilities.tools.list_changed is True
    await change_and_check()
    with anyio.fail_after(10):
        while not any(isinstance(n, types.ToolListChangedNotification) for n in peer.notifications):
            await peer.notified.wait()
            peer.notified = anyio.Event()
