"""A yes is bound to one call, works once, and does not last."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from pydantic import BaseModel, Field, SecretStr

from mcp_tools import (
    Approval,
    CallContext,
    Confirmation,
    ErrorCode,
    ExecutionResult,
    ExecutionStatus,
    Preview,
    ToolError,
    ToolExecutor,
    ToolRegistry,
)
from mcp_tools.confirmation.ledger import (
    MAX_OPEN_PER_PRINCIPAL,
    Binding,
    ConfirmationLedger,
    Verdict,
)
from mcp_tools.policy import RulePolicy


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


class World:
    """A tool that changes something, whose preview shows the state it was made from."""

    def __init__(self, **options: Any) -> None:
        self.clock = Clock()
        self.state = "v1"
        self.effects: list[tuple[str, bool, str | None]] = []
        self.records: list[ExecutionResult] = []
        self.registry = ToolRegistry()
        self.executor = ToolExecutor(
            self.registry,
            confirmations=ConfirmationLedger(ttl_s=60, clock=self.clock),
            hooks=[self.records.append],
            **options,
        )

        def preview(text: str, dry: bool) -> Preview | None:
            return None if dry else Preview(text=f"would write {text}", state=self.state)

        @self.registry.register(requires_confirmation=True, preview=preview, title="Change it")
        async def change(text: str, context: CallContext, dry: bool = False) -> str:
            self.effects.append((text, context.asked, context.approved_state))
            return "done"

    async def ask(self, **context: Any) -> Confirmation:
        result = await self.executor.execute("change", {"text": "x"}, CallContext(**context))
        assert result.confirmation is not None
        return result.confirmation

    async def answer(
        self, question: Confirmation, text: str = "x", tool: str = "change", **context: Any
    ) -> ExecutionResult:
        approval = Approval(confirmation_id=question.id, channel="test")
        return await self.executor.execute(tool, {"text": text}, CallContext(approval=approval, **context))


@pytest.fixture
def world() -> World:
    return World()


async def test_the_question_says_everything_and_nothing_ran(world: World) -> None:
    result = await world.executor.execute("change", {"text": "x"})
    question = result.confirmation
    assert question is not None
    assert (result.status, result.error_code) == (
        ExecutionStatus.PERMISSION_DENIED,
        ErrorCode.CONFIRMATION_REQUIRED,
    )
    assert replace(question, id="") == Confirmation(
        id="",
        tool_name="change",
        title="Change it",
        parameters={"text": "x", "dry": False},
        preview="would write x",
        reason="change requires confirmation",
        principal="local",
        expires_in_s=60,
    )
    assert world.effects == []


async def test_a_yes_runs_the_call_once_with_the_state_that_was_shown(world: World) -> None:
    question = await world.ask()
    first = await world.answer(question)
    second = await world.answer(question)
    assert (first.result, first.channel) == ("done", "test")
    assert second.error_code is ErrorCode.CONFIRMATION_INVALID
    assert world.effects == [("x", True, "v1")]


@pytest.mark.parametrize(
    "changed",
    [{"text": "y"}, {"principal": "eve"}, {"session_id": "other"}],
    ids=["arguments", "principal", "session"],
)
async def test_a_yes_is_bound_to_arguments_principal_and_session(
    world: World, changed: dict[str, str]
) -> None:
    """ACCEPTANCE B-19."""
    question = await world.ask()
    result = await world.answer(question, **changed)  # type: ignore[arg-type]
    assert result.error_code is ErrorCode.CONFIRMATION_INVALID
    assert world.effects == []


def nested(leaf: str, depth: int) -> Any:
    value: Any = leaf
    for _ in range(depth):
        value = [value]
    return value


class Hidden(BaseModel):
    shown: int = 1
    hidden: str = Field(default="", exclude=True)


@pytest.mark.parametrize(
    ("shown", "run"),
    [
        (nested("safe", 55), nested("evil", 55)),
        ("a" * 5_000 + "safe", "a" * 5_000 + "evil"),
        ({"password": "aaaa"}, {"password": "bbbb"}),
        ({"hidden": {"hidden": "safe"}}, {"hidden": {"hidden": "evil"}}),
        (Hidden(hidden="safe"), Hidden(hidden="evil")),
        ([1], [True]),
        ({"a": 1, "b": 2}, {"a": 1}),
    ],
    ids=["deep", "long", "secret", "excluded", "instance", "bool", "less"],
)
async def test_a_yes_is_bound_to_what_a_preview_abbreviates(shown: Any, run: Any) -> None:
    class Arguments(BaseModel):
        x: Any = None
        password: SecretStr | None = None
        hidden: Hidden | None = None

    registry = ToolRegistry()
    executor = ToolExecutor(registry)
    ran: list[Any] = []

    @registry.register(parameters=Arguments, requires_confirmation=True)
    def tool(x: Any, password: Any, hidden: Any) -> None:
        ran.append((x, password, hidden))

    def arguments(value: Any) -> dict[str, Any]:
        by_name = isinstance(value, dict) and set(value) <= set(Arguments.model_fields)
        return value if by_name else {"x": value}

    question = (await executor.execute("tool", arguments(shown))).confirmation
    assert question is not None
    context = CallContext(approval=Approval(confirmation_id=question.id))
    result = await executor.execute("tool", arguments(run), context)
    assert (result.error_code, ran) == (ErrorCode.CONFIRMATION_INVALID, [])
    question = (await executor.execute("tool", arguments(run))).confirmation
    assert question is not None
    context = CallContext(approval=Approval(confirmation_id=question.id))
    assert (await executor.execute("tool", arguments(run), context)).is_success


async def test_what_is_too_deep_to_be_shown_cannot_be_asked_about(world: World) -> None:
    world.registry.register("any", requires_confirmation=True)(lambda x: x)
    result = await world.executor.execute("any", {"x": nested("evil", 61)})
    assert result.error_code is ErrorCode.INVALID_ARGUMENTS


async def test_a_yes_dies_with_the_registration_it_was_given_for(world: World) -> None:
    question = await world.ask()
    world.registry.remove("change")
    ran: list[str] = []
    world.registry.register("change", requires_confirmation=True)(lambda text: ran.append(text))
    result = await world.answer(question)
    assert (result.error_code, ran) == (ErrorCode.CONFIRMATION_INVALID, [])


async def test_a_context_cannot_claim_that_somebody_was_asked(world: World) -> None:
    seen: list[CallContext] = []

    @world.registry.register
    def look(context: CallContext) -> None:
        seen.append(context)

    await world.executor.execute("look", {}, CallContext(asked=True, approved_state="v1"))
    await world.executor.execute("look", {}, {"asked": True, "approved_state": "v1"})
    assert [(context.asked, context.approved_state) for context in seen] == [(False, None)] * 2


async def test_a_yes_is_bound_to_the_tool(world: World) -> None:
    ran: list[str] = []
    world.registry.register("other", requires_confirmation=True)(lambda text: ran.append(text))
    result = await world.answer(await world.ask(), tool="other")
    assert result.error_code is ErrorCode.CONFIRMATION_INVALID
    assert ran == []


async def test_another_principal_cannot_spoil_a_question(world: World) -> None:
    question = await world.ask(principal="ann")
    await world.answer(question, principal="eve")
    assert (await world.answer(question, principal="ann")).result == "done"


async def test_a_yes_dies_when_the_world_changed_and_the_question_is_asked_anew(world: World) -> None:
    question = await world.ask()
    world.state = "v2"
    result = await world.answer(question)
    assert result.error_code is ErrorCode.CONFIRMATION_INVALID
    assert world.effects == []
    assert result.confirmation is not None
    await world.answer(result.confirmation)
    assert world.effects == [("x", True, "v2")]


async def test_a_late_yes_is_refused_whatever_the_wall_clock_says(world: World) -> None:
    """ACCEPTANCE B-21: only the monotonic clock counts."""
    question = await world.ask()
    world.clock.now += 60
    result = await world.answer(question)
    assert (result.error_code, world.effects) == (ErrorCode.CONFIRMATION_INVALID, [])
    assert "expired" in (result.error or "")


async def test_a_yes_to_another_server_process_is_refused(world: World) -> None:
    assert (await world.answer(await World().ask())).error_code is ErrorCode.CONFIRMATION_INVALID


async def test_a_refusal_closes_the_question_and_is_recorded(world: World) -> None:
    asked = await world.executor.execute("change", {"text": "x"})
    assert asked.confirmation is not None
    refused = await world.executor.record_refusal(
        asked, code=ErrorCode.DECLINED, message="the person declined", channel="test"
    )
    assert refused.to_observation() == "Error (permission_denied): the person declined"
    assert (await world.answer(asked.confirmation)).error_code is ErrorCode.CONFIRMATION_INVALID
    codes = [record.error_code for record in world.records]
    assert codes == [ErrorCode.CONFIRMATION_REQUIRED, ErrorCode.DECLINED, ErrorCode.CONFIRMATION_INVALID]


async def test_a_preview_of_nothing_needs_nobody_unless_a_rule_asks() -> None:
    world = World()
    result = await world.executor.execute("change", {"text": "x", "dry": True})
    assert (result.result, world.effects) == ("done", [("x", False, None)])
    strict = World(policy=RulePolicy.parse(ask=["change"]))
    assert (await strict.executor.execute("change", {"text": "x", "dry": True})).confirmation is not None


async def test_a_failing_preview_tells_nothing_where_a_rule_wants_a_person_first() -> None:
    """Otherwise edits that fail on purpose would read a file guess by guess, with nobody asked."""

    def preview(guess: str) -> Preview:
        raise ToolError("edit 2 does not occur" if guess == "right" else "edit 1 does not occur")

    async def said(guess: str, **rules: list[str]) -> str | None:
        registry = ToolRegistry()
        registry.register("edit", requires_confirmation=True, preview=preview)(lambda guess: None)
        executor = ToolExecutor(registry, policy=RulePolicy.parse(**rules))
        return (await executor.execute("edit", {"guess": guess})).error

    assert await said("right") == "edit 2 does not occur"  # the oracle, where nothing is protected
    hidden = {await said(guess, ask=["*"]) for guess in ("right", "wrong")}
    assert len(hidden) == 1
    assert "edit" not in (hidden.pop() or "")


async def test_policy_can_allow_deny_and_ask() -> None:
    policy = RulePolicy.parse(allow=["change(ok*)"], deny=["change(*secret*)"], ask=["free"])
    world = World(policy=policy)
    world.registry.register("free")(lambda: "free")
    allowed = await world.executor.execute("change", {"text": "okay"})
    denied = await world.executor.execute("change", {"text": "ok secret"})
    asked = await world.executor.execute("free", {})
    assert (allowed.result, world.effects) == ("done", [("okay", False, None)])
    assert denied.error_code is ErrorCode.DENIED
    assert denied.error == "change is denied by deny rule 'change(*secret*)'; retrying will not help"
    assert asked.confirmation is not None


async def test_a_pattern_sees_strings_however_deep() -> None:
    registry = ToolRegistry()
    executor = ToolExecutor(registry, policy=RulePolicy.parse(deny=["tool(*secret*)"], allow=["tool(ok*)"]))
    registry.register("tool", requires_confirmation=True)(lambda items: "ran")
    denied = await executor.execute("tool", {"items": [{"name": "ok"}, {"name": "a secret"}]})
    asked = await executor.execute("tool", {"items": [{"name": "ok"}, {"name": "other"}]})
    allowed = await executor.execute("tool", {"items": [{"name": "ok"}, {"name": "okay", "n": 1}]})
    assert denied.error_code is ErrorCode.DENIED
    assert asked.error_code is ErrorCode.CONFIRMATION_REQUIRED
    assert allowed.result == "ran"


async def test_a_denied_call_cannot_be_confirmed_into_running() -> None:
    world = World(policy=RulePolicy.parse(deny=["change(x)"]))
    result = await world.executor.execute("change", {"text": "x"}, {"confirmed": True})
    assert (result.error_code, world.effects) == (ErrorCode.DENIED, [])


async def test_a_bare_deny_hides_the_tool() -> None:
    world = World(policy=RulePolicy.parse(deny=["chan*"]))
    assert world.executor.visible_tools() == []
    assert (await world.executor.execute("change", {"text": "x"})).error_code is ErrorCode.UNKNOWN_TOOL


async def test_a_tool_can_ask_what_the_rules_say_of_what_it_comes_across() -> None:
    policy = RulePolicy.parse(deny=["walk(secret/**)"], ask=["walk(*.env)"], allow=["walk"])
    registry = ToolRegistry()
    executor = ToolExecutor(registry, policy=policy)

    @registry.register(subjects=lambda: ["."])
    def walk(context: CallContext) -> list[str]:
        found = ["a", "secret", "secret/b", ("SECRET/c", "/root/x"), "d.env"]
        return [str(name) for name in found if context.permits(name)]

    assert (await executor.execute("walk")).result == ["a"]
    assert (await executor.execute("walk", {}, {"confirmed": True})).result == ["a"]
    free = ToolExecutor(registry)
    assert len((await free.execute("walk")).result) == 5


async def test_a_place_outside_an_allow_rule_is_not_permitted_unless_a_person_was_asked() -> None:
    registry = ToolRegistry()
    executor = ToolExecutor(registry, policy=RulePolicy.parse(allow=["write(notes/**)"]))

    @registry.register(requires_confirmation=True, subjects=lambda path, led_to: [path])
    def write(path: str, led_to: str, context: CallContext) -> bool:
        return context.permits(led_to)

    inside = {"path": "notes/a", "led_to": "notes/b"}
    elsewhere = {"path": "notes/a", "led_to": "src/a"}
    assert (await executor.execute("write", inside)).result is True
    assert (await executor.execute("write", elsewhere)).result is False
    assert (await executor.execute("write", {**elsewhere, "path": "x"}, {"confirmed": True})).result is True


async def test_must_ask_raises_the_bar_above_an_allow_rule() -> None:
    registry = ToolRegistry()
    executor = ToolExecutor(registry, policy=RulePolicy.parse(allow=["write"]))

    def must_ask(path: str) -> str | None:
        return "it starts with a dot" if path.startswith(".") else None

    @registry.register(must_ask=must_ask, subjects=lambda path: [path])
    def write(path: str) -> str:
        return "written"

    assert (await executor.execute("write", {"path": "a"})).result == "written"
    asked = await executor.execute("write", {"path": ".env"})
    assert asked.confirmation is not None
    assert asked.confirmation.reason == "it starts with a dot"
    assert not asked.confirmation.can_be_allowed


async def test_the_question_says_why_and_whether_a_rule_could_answer_it() -> None:
    def must_ask(path: str) -> str | None:
        return "protected" if path == ".env" else None

    async def asked(path: str, **rules: list[str]) -> tuple[str, bool]:
        registry = ToolRegistry()
        registry.register("write", requires_confirmation=True, must_ask=must_ask)(lambda path: path)
        executor = ToolExecutor(registry, policy=RulePolicy.parse(**rules))
        question = (await executor.execute("write", {"path": path})).confirmation
        assert question is not None
        return question.reason, question.can_be_allowed

    assert await asked("a") == ("write requires confirmation", True)
    assert await asked(".env") == ("protected", False)
    assert await asked("a", ask=["write"]) == ("ask rule 'write'", False)
    assert await asked(".env", allow=["write"]) == ("protected", False)


@pytest.mark.parametrize("helper", ["preview", "must_ask", "subjects"])
async def test_a_helper_that_refuses_ends_the_call(helper: str) -> None:
    def refuses(path: str) -> Any:
        raise ToolError(f"{path} is outside")

    registry = ToolRegistry()
    executor = ToolExecutor(registry, policy=RulePolicy.parse(allow=["other"]))
    ran: list[str] = []
    needs_yes = helper == "preview"
    register = registry.register("tool", requires_confirmation=needs_yes, **{helper: refuses})  # type: ignore[call-overload]
    register(lambda path: ran.append(path))
    if helper == "must_ask":
        executor = ToolExecutor(registry)
    result = await executor.execute("tool", {"path": "x"})
    assert (result.error_code, result.error, ran) == (ErrorCode.TOOL_ERROR, "x is outside", [])


async def test_needs_confirmation_records_and_runs_nothing(world: World) -> None:
    assert await world.executor.needs_confirmation("change", {"text": "x"}) is True
    assert await world.executor.needs_confirmation("change", {"text": 1}) is False
    assert (world.records, world.effects, len(world.executor.confirmations)) == ([], [], 0)


def binding(**changes: Any) -> Binding:
    base: dict[str, Any] = {
        "tool_name": "t",
        "registration": "r",
        "arguments": {"a": 1},
        "principal": "p",
        "session_id": None,
        "state": None,
    }
    return Binding(**(base | changes))


def test_digests_differ_wherever_anything_differs() -> None:
    variants = [
        binding(),
        binding(tool_name="t2"),
        binding(registration="r2"),
        binding(arguments={"a": True}),
        binding(arguments={"a": 1.0}),
        binding(arguments={"a": {1: "x"}}),
        binding(arguments={"a": {"1": "x"}}),
        binding(arguments={"a": "1"}),
        binding(arguments={"a": 1, "b": None}),
        binding(principal="q"),
        binding(session_id="s"),
        binding(state=""),
    ]
    assert len({variant.digest() for variant in variants}) == len(variants)
    assert binding(arguments={"a": 1, "b": 2}).digest() == binding(arguments={"b": 2, "a": 1}).digest()


def test_open_questions_are_bounded_per_principal() -> None:
    """ACCEPTANCE R-08: a flood by one principal does not push out another's question."""
    ledger = ConfirmationLedger()
    anns = ledger.issue(binding(principal="ann"))
    ids = [ledger.issue(binding(principal="eve")) for _ in range(MAX_OPEN_PER_PRINCIPAL + 5)]
    assert len(ledger) == MAX_OPEN_PER_PRINCIPAL + 1
    assert ledger.redeem(ids[0], binding(principal="eve")) is Verdict.UNKNOWN
    assert ledger.redeem(ids[-1], binding(principal="eve")) is Verdict.ACCEPTED
    assert ledger.redeem(anns, binding(principal="ann")) is Verdict.ACCEPTED


def test_expired_questions_do_not_accumulate() -> None:
    clock = Clock()
    ledger = ConfirmationLedger(ttl_s=10, clock=clock)
    for principal in range(50):
        ledger.issue(binding(principal=str(principal)))
    clock.now += 11
    ledger.issue(binding())
    assert len(ledger) == 1
