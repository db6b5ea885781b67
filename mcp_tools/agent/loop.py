"""A model and its tools in turns, until the model wants nothing more or a limit is reached."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import anyio
import anyio.to_thread

from mcp_tools.agent.calls import Calls, Tools
from mcp_tools.agent.step import history_of, model_of
from mcp_tools.agent.telemetry import ended, invoked, told
from mcp_tools.agent.types import (
    DEFAULT_MAX_TOKENS,
    DEFAULT_MODEL,
    AgentLimits,
    AgentRun,
    Confirm,
    Message,
    Model,
    ModelError,
    OnCall,
    OnProgress,
    OnResult,
    OnText,
    StopReason,
    Turn,
)
from mcp_tools.observe.cost import cost_of
from mcp_tools.types import CallContext, ExecutionResult, MediaContent, ToolCall, ToolOutput, Usage

MAX_EMPTY_TURNS: Final = 3
"""Without text or calls, one after another. One may be an accident; asked again, a model often goes on."""
MAX_SAME_TURNS: Final = 5
"""With the same calls, the same results and not a word, one after another."""
MAX_CUT_TURNS: Final = 3
"""Cut off in the middle of calls, one after another."""

_FULL: Final = "model_context_window_exceeded"
_GO_ON: Final[Message] = {"role": "user", "content": "Please continue."}
"""After an empty answer: a model that took its turn for done does so again when it is asked the same."""

_Stop = tuple[StopReason, str]


async def run_agent(
    prompt_or_messages: str | Sequence[Message],
    tools_system: Tools,
    *,
    client: Any = None,
    model: str = DEFAULT_MODEL,
    max_tokens: int = DEFAULT_MAX_TOKENS,
    system: str | None = None,
    limits: AgentLimits | None = None,
    confirm: Confirm | None = None,
    on_text: OnText | None = None,
    on_call: OnCall | None = None,
    on_result: OnResult | None = None,
    on_progress: OnProgress | None = None,
    context: CallContext | Mapping[str, Any] | None = None,
    scope: anyio.CancelScope | None = None,
) -> AgentRun:
    """Let a model work with tools until it wants nothing more or a limit is reached.

    Args:
        prompt_or_messages: What a person says, or a history in the provider's form, which is not changed.
        tools_system: A `ToolSystem`: its visible tools are offered, and its rules and limits hold.
        client: See `model_for`.
        model, max_tokens, system, confirm, on_text, on_call, on_result, on_progress, context: See
            `run_agent_step`.
        limits: When it ends by itself. None: `AgentLimits()`. Tokens and cost are looked at after each turn,
            so they can be passed by what one turn uses.
        scope: Not entered yet. Whoever cancels it, such as by a button, stops the run at once as a limit
            would: what runs is cancelled, and the run returns. An answer that was still on its way is not in
            the history, nor in `usage`. None: only limits do that.
    Returns:
        Also where it failed or a limit was reached. The history in it can always be gone on with: each call
        has its result, and one that was stopped has one that says so.
    Raises:
        TypeError: `client` is none that can be used, or the messages are no list of messages.
        ValueError: There is nothing to ask.
        ModelError: The SDK is not installed.
    Cancelling it cancels the calls that run, and is recorded with each of them.
    """
    messages = history_of(prompt_or_messages)

    async def ask(asked: Model) -> Turn:
        return await told(
            asked,
            run.asked(),
            tools_system.executor.visible_tools(),
            model=model,
            max_tokens=max_tokens,
            system=system,
            on_text=on_text,
        )

    def calls_of(turn: Turn) -> Calls:
        return Calls(
            turn,
            tools_system,
            confirm=confirm,
            on_call=on_call,
            on_result=on_result,
            on_progress=on_progress,
            context=context,
        )

    async with model_of(client) as asked, invoked(asked) as span:
        run = _Run(messages, asked, name=model, limits=limits if limits is not None else AgentLimits())
        stop = await run.refusal()
        scope = scope if scope is not None else anyio.CancelScope()
        end = math.inf if run.limits.seconds is None else anyio.current_time() + run.limits.seconds
        scope.deadline = min(scope.deadline, end)
        with scope:
            while stop is None:
                try:
                    run.is_answering = True
                    turn = await ask(asked)
                    run.is_answering = False
                except ModelError as error:
                    run.error = error
                    run.is_answering = error.may_have_cost
                    stop = StopReason.FAILED, str(error)
                else:
                    stop = await run.take(turn, calls_of(turn) if turn.calls else None)
        if stop is None:
            if anyio.current_time() < end:
                stop = StopReason.INTERRUPTED, "the run was interrupted"
            else:
                stop = (
                    StopReason.TIME,
                    f"the run was stopped after {run.limits.seconds:g} s, the limit of its time",
                )
            await run.close(stop[1])
        return ended(span, run.ended(*stop))


class _Run:
    """What a run has come to."""

    def __init__(self, messages: list[Message], model: Model, *, name: str, limits: AgentLimits) -> None:
        self.messages = messages
        self._model = model
        self.limits = limits
        self.error: ModelError | None = None
        self.is_answering = False
        self._is_counted = True
        self._is_priced = True
        self._name = name
        self._text = ""
        self._steps = 0
        self._asked = Usage()
        self._used = Usage()
        self._results: list[tuple[ToolCall, ExecutionResult]] = []
        self._open: tuple[Turn, Calls] | None = None
        self._pause_at: int | None = None  # where an answer begins that only paused
        self._empty = 0
        self._cut = 0
        self._same = 0
        self._last: object = None

    async def refusal(self) -> _Stop | None:
        """Say what forbids the first turn: a limit of nothing, or one on cost that could not be kept."""
        if self.limits.cost_usd is None or await _price(self._name, 1, 1) is not None:
            return self._limit()
        detail = (
            f"what {self._name!r} costs is not known, so a limit on cost cannot be kept; install the extra "
            "`prices`, name a model that has a price, or set no such limit"
        )
        return StopReason.COST, detail

    def asked(self) -> list[Message]:
        """Return what the next request holds."""
        return [*self.messages, _GO_ON] if self._empty and self._pause_at is None else self.messages

    async def take(self, turn: Turn, calls: Calls | None) -> _Stop | None:
        """Add a turn, run its calls, and say whether the run ends with it."""
        self._steps += 1
        with anyio.CancelScope(shield=True):  # what was received was paid; looking up its price is short
            self._asked += await self._usage(turn)
        is_paused = turn.stop == "pause_turn" and bool(turn.messages)
        if turn.text.strip() or turn.stop == "refusal":
            self._text = turn.text
        if calls is not None:
            return await self._take_calls(turn, calls)
        if not (turn.text.strip() or turn.is_cut or is_paused or turn.stop == "refusal"):
            # It is not kept: a history with an empty answer in it would be refused.
            self._empty += 1
            if self._empty >= MAX_EMPTY_TURNS:
                return StopReason.SILENT, f"the model said nothing and asked for nothing {self._empty} times"
            return self._limit()
        start = len(self.messages)
        self._keep(turn)
        if is_paused and self._pause_at is None:
            self._pause_at = start
        if turn.is_cut:
            what = "its context window" if turn.stop == _FULL else "max_tokens"
            return StopReason.CUT, f"the model's answer did not fit into {what}; it is incomplete"
        if is_paused:
            return self._limit()
        if turn.stop != "refusal":  # what had only paused goes with it: nothing has ended that
            self._pause_at = None
        return _finished(turn)

    def _keep(self, turn: Turn) -> None:
        if self._empty and turn.messages and self._pause_at is None:
            self.messages.append(dict(_GO_ON))
        self._empty = 0
        self.messages.extend(turn.messages)

    async def _take_calls(self, turn: Turn, calls: Calls) -> _Stop | None:
        self._keep(turn)
        self._pause_at = None
        self._open = (turn, calls)
        if (stop := self._spent()) is not None:
            await self.close(stop[1])
            return stop
        calls_usd = 0.0

        def is_enough(result: ExecutionResult) -> bool:
            nonlocal calls_usd
            calls_usd += result.usage.cost_usd if result.usage is not None else 0.0
            return self.limits.cost_usd is not None and self._cost_usd() + calls_usd >= self.limits.cost_usd

        await calls.run(is_enough)
        await self.close("the limit of the run's cost was reached")
        if turn.stop == "refusal":
            return _finished(turn)
        return self._going_round(turn, calls) or self._limit()

    async def close(self, why: str) -> None:
        """Answer what has no answer yet, and put the results where the provider wants them."""
        if self._open is None:
            return
        (turn, calls), self._open = self._open, None
        withdrawn = calls.withdraw(why)
        # Nothing is awaited before: who is cancelled has a whole history or an open turn, nothing between.
        self.messages.extend(self._model.results(turn, calls.results))
        for call, result in calls.in_order():
            self._results.append((call, result))
            if (used := result.usage) is not None:
                # Not its tokens: what comes back to the model is counted where it is sent.
                self._used += Usage(
                    calls=used.calls, cost_usd=used.cost_usd, sandbox_cpu_s=used.sandbox_cpu_s
                )
        await calls.tell_of(withdrawn)

    def ended(self, stop: StopReason, detail: str) -> AgentRun:
        """Return what became of the run."""
        # An answer that only paused can be gone on with by nobody but the model.
        if self._pause_at is not None:
            del self.messages[self._pause_at :]
        return AgentRun(
            text=self._text,
            messages=self.messages,
            stop=stop,
            detail=detail,
            steps=self._steps,
            usage=self._asked + self._used,
            is_usage_whole=self._is_counted and not self.is_answering,
            is_cost_whole=self._is_priced,
            results=tuple(self._results),
            error=self.error,
        )

    def _going_round(self, turn: Turn, calls: Calls) -> _Stop | None:
        if turn.stop == _FULL:
            return StopReason.CUT, "the model's context window is full"
        self._cut = self._cut + 1 if turn.is_cut else 0
        if self._cut >= MAX_CUT_TURNS:
            return StopReason.CUT, f"{self._cut} answers in a row did not fit into max_tokens"
        now = [(call.name, call.arguments, _seen(result)) for call, result in calls.in_order()]
        is_same = not turn.text.strip() and now == self._last
        self._same = self._same + 1 if is_same else 1
        self._last = now
        if self._same >= MAX_SAME_TURNS:
            detail = f"the model made the same calls {self._same} times without a word, with the same results"
            return StopReason.SILENT, detail
        return None

    def _limit(self) -> _Stop | None:
        """Say which limit forbids one more turn."""
        if self.limits.steps is not None and self._steps >= self.limits.steps:
            turns = "1 turn" if self._steps == 1 else f"{self._steps} turns"
            return StopReason.STEPS, f"the run was stopped after {turns}, the limit of its steps"
        return self._spent()

    def _spent(self) -> _Stop | None:
        if not self._is_counted and (self.limits.tokens is not None or self.limits.cost_usd is not None):
            stop = StopReason.TOKENS if self.limits.tokens is not None else StopReason.COST
            return stop, "the provider did not say what its answer used, so the limit cannot be kept"
        tokens = self._asked.input_tokens + self._asked.output_tokens
        if self.limits.tokens is not None and tokens >= self.limits.tokens:
            return (
                StopReason.TOKENS,
                f"the run has used {tokens:,} tokens; its limit is {self.limits.tokens:,}",
            )
        cost_usd = self._cost_usd()
        if self.limits.cost_usd is not None and cost_usd >= self.limits.cost_usd:
            detail = f"the run has cost {cost_usd:.4f} US dollars; its limit is {self.limits.cost_usd:g}"
            return StopReason.COST, detail
        return None

    def _cost_usd(self) -> float:
        return self._asked.cost_usd + self._used.cost_usd

    async def _usage(self, turn: Turn) -> Usage:
        usage = turn.usage
        if usage is None:
            self._is_counted = False
            return Usage()
        if usage.cost_usd > 0:
            return usage
        price = await _price(self._name, usage.input_tokens, usage.output_tokens)
        self._is_priced = self._is_priced and price is not None
        # The model that answered may have a name of its own without a price; a limit must hold then too.
        return usage if self.limits.cost_usd is None else replace(usage, cost_usd=price or 0.0)


def _seen(result: ExecutionResult) -> tuple[object, ...]:
    """What a model sees of a result, in a form that can be compared."""
    pieces = result.result.content if isinstance(result.result, ToolOutput) else ()
    return result.to_observation(), *(hash(piece.data) for piece in pieces if isinstance(piece, MediaContent))


def _finished(turn: Turn) -> _Stop:
    if turn.stop == "refusal":
        return StopReason.REFUSED, "the model refused to go on"
    return StopReason.FINISHED, "the model wants nothing more"


async def _price(model: str, input_tokens: int, output_tokens: int) -> float | None:
    return await anyio.to_thread.run_sync(cost_of, model, input_tokens, output_tokens)
