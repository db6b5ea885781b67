"""The words of the agent loop: what a model is asked, what it answers, and when the loop ends."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Literal, Protocol

from mcp_tools.errors import McpToolsError
from mcp_tools.types import Confirmation, ExecutionResult, Tool, ToolCall, Usage

Message = dict[str, Any]
"""One entry of a history, in the provider's own form; never changed in place."""
Api = Literal["anthropic", "openai-responses", "openai-chat"]
DEFAULT_MODEL: Final = "claude-sonnet-5-5"
DEFAULT_MAX_TOKENS: Final = 4096

OnText = Callable[[str], Awaitable[None] | None]
"""Told of a model's text as it comes, piece by piece. What it raises is logged and changes nothing."""
OnCall = Callable[[ToolCall], Awaitable[None] | None]
"""Told of each tool call before it runs."""
OnResult = Callable[[ToolCall, ExecutionResult], Awaitable[None] | None]
"""Told of each tool call that ended."""
OnProgress = Callable[[ToolCall, float, float | None, str | None], Awaitable[None] | None]
"""Told of what a tool says of its progress: how far, of how much, and a sentence."""
Confirm = Callable[[Confirmation], bool | Awaitable[bool]]
"""Puts one question to a person; only `True` itself is a yes."""


class ModelError(McpToolsError):
    """A model could not be asked, or its answer could not be read. The history is as it was before.

    Args:
        message: What happened and what a person can do about it; no keys and no prompt in it.
        status: HTTP status, where there was one.
        retry_after_s: What the provider said, where it did.
        may_have_cost: Whether the provider may have begun to answer, and charges for it. None: if there is
            no status.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        retry_after_s: float | None = None,
        may_have_cost: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s
        self.may_have_cost = status is None if may_have_cost is None else may_have_cost


@dataclass(frozen=True, slots=True, kw_only=True)
class BadCall:
    """A tool call whose arguments are no JSON object; it is answered with an error and not run.

    Args:
        id, name: As the model sent them.
        problem: What is wrong, for the model.
    """

    id: str
    name: str
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One answer of a model.

    Args:
        texts: Every text, in order; blocks of text that stand next to each other are one.
        calls: What it wants to have run, in order; those that cannot be read are `BadCall`s.
        messages: What goes into the history for it: complete, in the provider's form.
        stop: Why it stopped, as the provider says: `end_turn`, `tool_use`, `max_tokens`, `stop`, …
        is_cut: It stopped for want of tokens; calls in it may be incomplete, and are then not run.
        model: The model that answered, by its own name.
        usage: Tokens, and their price where it is known. None: the provider did not say how many.
    """

    texts: tuple[str, ...]
    calls: tuple[ToolCall | BadCall, ...]
    messages: tuple[Message, ...]
    stop: str | None
    is_cut: bool
    model: str
    usage: Usage | None

    @property
    def text(self) -> str:
        """All of its text."""
        return "\n".join(self.texts)


class Model(Protocol):
    """One provider's API, behind an asynchronous client of its own SDK."""

    api: Api

    async def ask(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool],
        *,
        model: str,
        max_tokens: int,
        system: str | None,
        on_text: OnText | None,
    ) -> Turn:
        """Have the model answer once.

        Args:
            messages: The history in the provider's form; plain `{"role": "user", "content": "text"}` is
                such a form everywhere. It is not changed.
            tools: In the order of the registry, so that what a provider caches stays the same.
            on_text: None: the answer is not streamed.
        Raises:
            ModelError: After the SDK's own retries.
        """
        ...

    def results(self, turn: Turn, results: Mapping[str, ExecutionResult]) -> tuple[Message, ...]:
        """Render the results of a turn's calls for the next request, errors flagged, in their order.

        Each call of the turn has an answer here, also bad ones and those that never ran: without one the
        provider refuses the history.
        """
        ...


class StopReason(StrEnum):
    """Why a loop ended."""

    FINISHED = "finished"  # the model wanted nothing more
    REFUSED = "refused"  # the model, or its provider's filter, would not go on
    STEPS = "steps"
    TIME = "time"
    TOKENS = "tokens"
    COST = "cost"
    CUT = "cut"  # the model's answer did not fit into max_tokens
    SILENT = "silent"  # several turns without text or calls
    INTERRUPTED = "interrupted"  # `scope` was cancelled
    FAILED = "failed"  # a ModelError; it is in `AgentRun.error`


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentLimits:
    """When a loop ends by itself. Calls that run at that moment are cancelled and recorded.

    Args:
        steps: Turns of the model.
        seconds: Of the whole run, questions to a person included.
        tokens: Sent and received together, as the provider counts them.
        cost_usd: Of the model and of the tools together; where a model's price is not known and this is set,
            the run is refused before the first turn. None for any of them: no such limit.
    Raises:
        ValueError: One of them is negative or no number.

    A limit on tokens or cost ends a run whose provider does not say what an answer used.
    """

    steps: int | None = 50
    seconds: float | None = 900.0
    tokens: int | None = None
    cost_usd: float | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "seconds", "tokens", "cost_usd"):
            value = getattr(self, name)
            is_number = isinstance(value, int | float) and value >= 0  # NaN is not, either
            if value is not None and not is_number:
                raise ValueError(f"AgentLimits.{name} must be a number from 0, or None, and not {value!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentRun:
    """What became of a run.

    Args:
        text: The model's last text.
        messages: The whole history, in the provider's form; good for a next run, also after a limit.
        stop: Why it ended.
        detail: The same in a sentence for a person.
        steps: Turns of the model.
        usage: Of the model and the tools together.
        is_usage_whole: False where the provider did not say what an answer used, or the run ended while one
            was on its way.
        is_cost_whole: False where the price of an answer is not known; `usage` has its tokens.
        results: Every tool call, in the order in which they were asked for.
        error: Where `stop` is `FAILED`.
    """

    text: str
    messages: list[Message]
    stop: StopReason
    detail: str
    steps: int
    usage: Usage
    is_usage_whole: bool = True
    is_cost_whole: bool = True
    results: tuple[tuple[ToolCall, ExecutionResult], ...] = field(default=())
    error: ModelError | None = None
