"""The vocabulary: what a tool is, what a call is, what became of it. Standard library only.

Everything else in the package is written in these words, so this file is the one to read first.
"""

from __future__ import annotations

import copy
import math
import secrets
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Any, Final, Literal, Protocol

# --- What a tool is ---------------------------------------------------------------------------

DEFAULT_TIMEOUT_S: Final = 30.0
SEARCH_PROVIDERS: Final = ("ddgs", "searxng", "brave", "tavily", "exa", "kagi")
"""Who `search_web` can ask, by name."""
DEFAULT_CONFIRM_TIMEOUT_S: Final = 120.0
"""How long a person has to answer a question."""
REACHES_LOOPBACK: Final = "reaches-loopback"
"""A tag. What such a tool runs can connect to this machine's own ports, so `serve` opens no HTTP listener
without tokens beside it: that code could call every tool."""
Provider = Literal["anthropic", "openai"]
Isolation = Literal["process", "sandbox"]
"""Where a tool's function runs so that it can be ended: a worker process of ours, or a sandbox."""
Subject = str | tuple[str, ...]
"""One thing a call is about, as policy patterns see it; a tuple holds several spellings of one thing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolAnnotations:
    """What a tool does to the world, as clients are told. Our own policy never trusts a remote server's.

    All four are always published: clients choose their prompts by them, and MCP's defaults for an
    omitted hint are the alarming ones (`open_world_hint` is true when omitted).
    Source: MCP 2026-07-28, server/tools, tool annotations.
    """

    read_only_hint: bool = False
    destructive_hint: bool = True
    idempotent_hint: bool = False
    open_world_hint: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """What a call would do, for the person who is asked.

    `text` is shown (a diff, a path and a size). `state` names the state of the world it was made
    from, or is None where the tool has none: an approval holds only while the state is the same.
    `left_out` says what of the change `text` does not show ("3 of 9 added lines"); the question says
    so at its top. `shows` names arguments whose whole effect `text` shows, so that the question need
    not show them again. Without `is_needed` a person is asked only where an owner's rule demands it:
    nothing changes, and nothing leaves the machine.
    """

    text: str
    state: str | None = None
    left_out: str = ""
    shows: frozenset[str] = frozenset()
    is_needed: bool = True


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool: its name, what it takes, the function that does it, and what a call needs first.

    Args:
        name: 1 to 64 of `A-Z a-z 0-9 _ -`, unique in its registry also when case is ignored.
        description: Written for the model; says what the tool cannot do.
        parameters: JSON Schema of `type: object`; goes out as MCP's `inputSchema`.
        function: Any callable, sync or async. A parameter annotated `CallContext` receives the context.
        requires_confirmation: A person must say yes to each call, unless a policy allows it.
        timeout_seconds: Deadline of one call; `math.inf` means none.
        tags: For `ToolRegistry.list_tools(tag=...)`.
        title: For people, in client menus. None: clients show the name.
        output_schema: JSON Schema of `type: object` for structured results. None: not promised.
        annotations: What clients are told about effects.
        preview: Given the validated arguments (and the context, if annotated), says what would happen,
            or None if this call changes nothing (a dry run): then only an owner's rule still asks.
        must_ask: Given the validated arguments, returns why a person must be asked even where a
            policy allows the call, or None. It can only raise the bar.
        subjects: Given the validated arguments, what the call is about: policy patterns are matched
            against it (for file tools: real paths). None: every string among the arguments, however deep.
        source: Where it was registered, for error messages.
        isolation: None: an async function on the loop, any other in a thread, which a deadline can only
            abandon. `process`: in a worker process with a state of its own, which is ended with
            everything in it. `sandbox`: in a sandbox without any state.
        price_usd: What each call costs that ran, on top of what the tool reports itself.
        retries: How often we call it again after a `ToolError` with `retry=True`; only where its
            annotations say read-only or idempotent.
    """

    name: str
    description: str
    parameters: dict[str, Any]
    function: Callable[..., Any]
    requires_confirmation: bool = False
    timeout_seconds: float = DEFAULT_TIMEOUT_S
    tags: list[str] = field(default_factory=list)
    title: str | None = None
    output_schema: dict[str, Any] | None = None
    annotations: ToolAnnotations = field(default_factory=ToolAnnotations)
    preview: Callable[..., Preview | Awaitable[Preview | None] | None] | None = None
    must_ask: Callable[..., str | Awaitable[str | None] | None] | None = None
    subjects: Callable[..., Sequence[Subject] | Awaitable[Sequence[Subject]]] | None = None
    source: str = ""
    isolation: Isolation | None = None
    price_usd: float = 0.0
    retries: int = 0

    def to_api_format(self, provider: Provider | str = "anthropic") -> dict[str, Any]:
        """Describe the tool as a provider's API wants it.

        Returns:
            `anthropic`: an entry of `tools` in the Messages API. `openai`: one in Chat Completions.
        Raises:
            ValueError: The provider is unknown.
        """
        # A copy: what the caller does to it must not change what is published and enforced.
        schema = copy.deepcopy(self.parameters)
        if provider == "anthropic":
            return {"name": self.name, "description": self.description, "input_schema": schema}
        if provider == "openai":
            function = {"name": self.name, "description": self.description, "parameters": schema}
            return {"type": "function", "function": function}
        raise ValueError(f"unknown provider {provider!r}; use 'anthropic' or 'openai'")


# --- What a call is ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One request to run a tool; `id` is the caller's and comes back with the result."""

    id: str
    name: str
    arguments: dict[str, Any]


class ProgressFunction(Protocol):
    """Where a tool's progress goes: `progress` counts up, to `total` if that is known."""

    async def __call__(
        self, progress: float, total: float | None = None, message: str | None = None
    ) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    """A person's yes to one `Confirmation`, named by its id. Works once, for exactly what was shown."""

    confirmation_id: str
    channel: str = "library"


def new_call_id() -> str:
    """Return an id for one call: 16 hex digits, random."""
    return secrets.token_hex(8)


MAX_USAGE: Final = 10**15


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a call used, or several together.

    Args:
        calls: How many.
        cost_usd: What they cost, in US dollars.
        sandbox_cpu_s: Seconds of processor time inside sandboxes.
        input_tokens, output_tokens: Of language models: what was sent to one, or what comes back to it.
    Raises:
        ValueError: A number is negative, infinite or none at all, or more than 10^15: nobody could be
            charged for that.
    """

    calls: int = 0
    cost_usd: float = 0.0
    sandbox_cpu_s: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0

    def __post_init__(self) -> None:
        for name in ("calls", "cost_usd", "sandbox_cpu_s", "input_tokens", "output_tokens"):
            value = getattr(self, name)
            if not 0 <= value <= MAX_USAGE:  # false also for NaN
                raise ValueError(f"{name} is {str(value)[:40]}; it must be from 0 to 10^15")

    @classmethod
    def bounded(
        cls,
        calls: object,
        cost_usd: object,
        sandbox_cpu_s: object,
        input_tokens: object,
        output_tokens: object,
    ) -> Usage:
        """Make one of what was stored or sent: no number counts as 0, and one too large as the most."""
        return cls(
            calls=int(_bounded(calls)),
            cost_usd=_bounded(cost_usd),
            sandbox_cpu_s=_bounded(sandbox_cpu_s),
            input_tokens=int(_bounded(input_tokens)),
            output_tokens=int(_bounded(output_tokens)),
        )

    def __add__(self, other: Usage) -> Usage:
        return Usage.bounded(
            self.calls + other.calls,
            self.cost_usd + other.cost_usd,
            self.sandbox_cpu_s + other.sandbox_cpu_s,
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
        )


def _bounded(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or math.isnan(value):
        return 0
    return min(max(value, 0), MAX_USAGE)


class Meter:
    """Adds up what one call uses while it runs; from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._total = Usage()

    def add(self, usage: Usage) -> None:
        """Count what was used besides."""
        with self._lock:
            self._total += usage

    @property
    def total(self) -> Usage:
        """What was added so far."""
        with self._lock:
            return self._total


@dataclass(frozen=True, slots=True, kw_only=True)
class CallContext:
    """Who calls, and what the call may use. A tool asks for it with a parameter of this type.

    Args:
        principal: Who is responsible for the call: a token's name, or `local`.
        session_id: The connection it came over; None where there are no sessions.
        client: Name and version the client gave of itself; not verified.
        transport: `stdio`, `sse`, `http`, `cli`, `agent` or `library`.
        call_id: Ours, unique; what a person finds in the log.
        approval: The yes to an earlier `ExecutionResult.confirmation`.
        confirmed: The embedding program vouches for a yes it obtained itself. Never set from what
            a client or a model sends.
        on_progress: Where progress goes; None drops it.
        asked: Set by the executor: a person said yes to this very call.
        approved_state: Set by the executor: the `Preview.state` the yes was given for. A tool that
            changes something compares it once more at the last moment.
        extra: Whatever else the embedding program passes along; we do not look at it.
        screen: Set by the executor: what the rules say of a thing the call comes across; see `permits`.
        cancelled: Set when the call was withdrawn or its deadline passed. Functions that run in a
            thread cannot be interrupted and should look at it.
        meter: Where a tool reports what the call used: `context.meter.add(Usage(cost_usd=0.002))`.
        idempotency_key: The caller's name for this effect: the same call with the same key joins one
            that runs or just finished, instead of repeating it. None: nothing is joined.
    """

    principal: str = "local"
    session_id: str | None = None
    client: str | None = None
    transport: str = "library"
    call_id: str = field(default_factory=new_call_id)
    approval: Approval | None = None
    confirmed: bool = False
    on_progress: ProgressFunction | None = None
    asked: bool = False
    approved_state: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    screen: Callable[[Subject], Decision] | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)
    meter: Meter = field(default_factory=Meter)
    idempotency_key: str | None = None

    def permits(self, subject: Subject) -> bool:
        """Say whether the rules let this call touch this very thing.

        For what only shows while the call runs: a file below a folder, a page behind a link, and the
        place that an argument really led to, once it is open. What a rule denies is not permitted, and
        what needs a yes only where a person was asked.
        """
        if self.screen is None:
            return True
        decision = self.screen(subject)
        return decision is Decision.ALLOW or (decision is Decision.ASK and self.asked)

    async def report_progress(
        self, progress: float, total: float | None = None, message: str | None = None
    ) -> None:
        """Tell the caller how far the work is. Does nothing where nobody listens."""
        if self.on_progress is not None:
            await self.on_progress(progress, total, message)

    def report_progress_from_thread(
        self, progress: float, total: float | None = None, message: str | None = None
    ) -> None:
        """`report_progress` for a synchronous tool, which runs in a worker thread."""
        if self.on_progress is not None:
            # Imported on use: this module promises to need the standard library only.
            from anyio import from_thread

            from_thread.run(self.on_progress, progress, total, message)


# --- Whether it may run -----------------------------------------------------------------------


class Decision(IntEnum):
    """What a policy says of a call; a larger one is stricter."""

    ALLOW = 0
    ASK = 1
    DENY = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruling:
    """A decision with its reason: the rule that matched, or why there was none."""

    decision: Decision
    reason: str


def default_ruling(tool: Tool) -> Ruling:
    """Return what holds where no rule speaks: the tool's own `requires_confirmation`."""
    if tool.requires_confirmation:
        return Ruling(decision=Decision.ASK, reason=f"{tool.name} requires confirmation")
    return Ruling(decision=Decision.ALLOW, reason="no rule forbids it")


class Policy(Protocol):
    """Decides from data; does no I/O and never sees a call that failed validation."""

    def decide(self, tool: Tool, subjects: Sequence[Subject], context: CallContext) -> Ruling: ...

    def screen(self, tool: Tool) -> Callable[[Subject], Decision] | None:
        """Return what holds for one more thing that a call of this tool comes across, as if it were the
        call's only subject. None where no rule tells things apart.
        """
        ...

    def hides(self, tool: Tool) -> bool:
        """Whether no call of this tool can ever run, so that it is not even listed."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirmation:
    """A question a person must answer before the call runs. The executor asks nobody itself.

    Answer it by calling `execute` again with the same tool and arguments and
    `CallContext(approval=Approval(confirmation_id=confirmation.id), ...)`, by the same principal.
    `expires_in_s` counts from when it was made; a late, second or altered answer is refused.
    """

    id: str
    tool_name: str
    title: str
    parameters: Mapping[str, Any]
    preview: str
    reason: str
    principal: str
    expires_in_s: float
    can_be_allowed: bool = True
    """Whether an owner's allow rule could answer such questions beforehand: not where a rule asks or
    the tool insists."""
    left_out: str = ""
    """What the preview leaves out, and the arguments it shows in full; see `Preview`."""
    shows: frozenset[str] = frozenset()


# --- What became of it ------------------------------------------------------------------------


class ExecutionStatus(StrEnum):
    """How a call ended; every call ends in exactly one of these."""

    SUCCESS = "success"
    ERROR = "error"
    TIMEOUT = "timeout"
    VALIDATION_ERROR = "validation_error"
    PERMISSION_DENIED = "permission_denied"
    CANCELLED = "cancelled"
    RATE_LIMITED = "rate_limited"


class ErrorCode(StrEnum):
    """Why a call did not succeed, finer than its status and stable for programs."""

    UNKNOWN_TOOL = "unknown_tool"
    INVALID_ARGUMENTS = "invalid_arguments"
    DENIED = "denied"  # by a rule: retrying will not help
    DECLINED = "declined"  # by a person
    CONFIRMATION_REQUIRED = "confirmation_required"
    CONFIRMATION_INVALID = "confirmation_invalid"  # late, used, altered, or not ours
    TIMED_OUT = "timed_out"
    TOOL_ERROR = "tool_error"  # the tool says so, in words for the model
    TOOL_EXCEPTION = "tool_exception"  # the tool broke
    INTERNAL_ERROR = "internal_error"  # we broke; the log has it under the call id
    CANCELLED = "cancelled"
    RATE_LIMITED = "rate_limited"
    UNAVAILABLE = "unavailable"  # what must record or limit the call cannot; the text says which


@dataclass(frozen=True, slots=True)
class ExecutionResult:
    """What became of one call; also the record that hooks receive.

    Args:
        status: How it ended.
        result: What the tool returned; None unless `status` is success.
        structured: The result as JSON data that fits the tool's output schema; None where it has none.
        error: For the model: what failed and what to do next; None on success.
        duration_ms: Milliseconds on a monotonic clock, from `execute` to its end.
        tool_name: As asked for, also when no such tool exists; at most 200 characters.
        parameters: The validated arguments; what the caller sent where validation failed.
        call_id: From the context.
        error_code: The reason in one word; None on success.
        confirmation: The question to put to a person, when that is all that is missing.
        retry_after_s: Seconds to wait before the same call may succeed; None if waiting is no help.
        ruling: What the policy said; None where the call did not get that far.
        principal, session_id, client, transport: From the context.
        channel: How the yes came in; None where none was needed or given.
        confirmation_id: The question that the call asked or answered; None where there was none.
        usage: What it used; None where nothing ran.
        limits_left: What its limits leave, by their names, as numbers of their units.
        output_id: Under which the whole result is kept, where this holds only a part of it.
        joined: It is the result of an earlier call with the same idempotency key.
    """

    status: ExecutionStatus
    result: Any = None
    error: str | None = None
    duration_ms: float = 0.0
    tool_name: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    call_id: str = ""
    error_code: ErrorCode | None = None
    confirmation: Confirmation | None = None
    retry_after_s: float | None = None
    ruling: Ruling | None = None
    principal: str = "local"
    session_id: str | None = None
    client: str | None = None
    transport: str = "library"
    channel: str | None = None
    structured: Any = None
    confirmation_id: str | None = None
    usage: Usage | None = None
    limits_left: Mapping[str, float] = field(default_factory=dict)
    output_id: str | None = None
    joined: bool = False

    @property
    def is_success(self) -> bool:
        """Whether the tool ran to its end and returned."""
        return self.status is ExecutionStatus.SUCCESS

    def to_observation(self) -> str:
        """Render for a model: a string as it is, anything else as indented JSON, a failure as
        `Error (status): message`. Always encodable as UTF-8 and, where JSON, always valid JSON.
        """
        from mcp_tools.output.plain import encodable, to_json

        if not self.is_success:
            return encodable(f"Error ({self.status.value}): {self.error}")
        value = self.result
        if isinstance(value, ToolOutput):
            value = value.observed()
        return encodable(value) if isinstance(value, str) else to_json(value, indent=2)


# --- Content: what a tool can return beyond strings and data ----------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class TextContent:
    """Text for the model."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaContent:
    """A picture or sound: raw bytes and their media type (`image/png`, `audio/wav`)."""

    data: bytes
    media_type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceLink:
    """A pointer to something the client can read later."""

    uri: str
    name: str
    description: str | None = None
    media_type: str | None = None
    size_bytes: int | None = None


Content = TextContent | MediaContent | ResourceLink


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolOutput:
    """A result made of several pieces. `structured` must fit the tool's output schema, if it has one."""

    content: Sequence[Content] = ()
    structured: Mapping[str, Any] | None = None

    def observed(self) -> Any:
        """What a text-only reader gets: the texts, and a line for each piece that is not text.

        Where the pieces hold no text at all, the structured part stands in for it.
        """
        lines: list[str] = []
        for piece in self.content:
            match piece:
                case TextContent():
                    lines.append(piece.text)
                case MediaContent():
                    lines.append(f"[{piece.media_type}, {len(piece.data)} bytes]")
                case ResourceLink():
                    lines.append(f"[{piece.name}: {piece.uri}]")
        if self.structured is not None and not any(isinstance(piece, TextContent) for piece in self.content):
            return dict(self.structured) if not lines else [*lines, dict(self.structured)]
        return "\n".join(lines)


# --- Who is told ------------------------------------------------------------------------------

Hook = Callable[[ExecutionResult], Any]
"""A function told of each finished call, sync or async. It cannot change the result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallStarted:
    """A call that is about to run: everything that could refuse it has let it pass.

    Args:
        time_unix_ns, monotonic_ns: When, on two clocks.
        tool: What is called.
        parameters: The validated arguments.
        ruling: What the policy said.
        confirmation_id, channel: The question that was answered with yes, and how the answer came.
        call_id, principal, session_id, client, transport: From the context.
    """

    time_unix_ns: int
    monotonic_ns: int
    call_id: str
    tool: Tool
    parameters: Mapping[str, Any]
    ruling: Ruling | None
    principal: str
    session_id: str | None
    client: str | None
    transport: str
    confirmation_id: str | None = None
    channel: str | None = None


class Observer(Protocol):
    """Told when calls begin and end. Quick, on the event loop; whatever it raises changes nothing."""

    def call_started(self, started: CallStarted) -> None: ...

    def call_finished(self, result: ExecutionResult) -> None:
        """Also for a call that never started."""
        ...


# --- What a call must pass besides policy -----------------------------------------------------


class AuditUnavailable(Exception):
    """Something cannot be recorded; the text says why and what to do. No record was acknowledged."""


class Auditor(Protocol):
    """Keeps records that survive whatever happens next."""

    async def begin(self, started: CallStarted) -> None:
        """Record that a call is about to run; returns once that is durable.

        Raises:
            AuditUnavailable: It is not.
        """
        ...

    async def end(self, result: ExecutionResult) -> None:
        """Record how a call ended, or that it was refused; returns once that is durable.

        Raises:
            AuditUnavailable: It is not.
        """
        ...


class LimitsUnavailable(Exception):
    """Limits cannot be looked up or kept; the text says why and what to do. Nothing was reserved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitRefusal:
    """Why a call may not run now.

    Args:
        message: For the model: which limit, what is left, when to try again.
        retry_after_s: Seconds until the same call may pass; None where waiting is no help.
        left: What the limits leave, by their names.
    """

    message: str
    retry_after_s: float | None
    left: Mapping[str, float]


class Lease(Protocol):
    """What a call reserved of its budgets. Exactly one of `settle` and `cancel` is called, once."""

    @property
    def left(self) -> Mapping[str, float]:
        """What the limits leave after this call, by their names."""
        ...

    async def settle(self, usage: Usage) -> None:
        """The call ran: replace what was reserved by what it used."""
        ...

    async def cancel(self) -> None:
        """The call never ran: give back what was reserved of budgets. A rate's token stays spent."""
        ...


class Limiter(Protocol):
    """Rates, concurrency and budgets. One for all executors of a process."""

    async def admit(self, tool: Tool | None, context: CallContext, *, again: bool) -> Lease | LimitRefusal:
        """Take a token of each rate, and reserve of each budget.

        Args:
            tool: None where there is none of that name: such calls count for principal, session and all.
            again: The call was admitted before and comes again with a person's answer: it takes no token.
        Raises:
            LimitsUnavailable: That cannot be told.
        """
        ...

    def slot(self, tool: Tool, context: CallContext) -> AbstractAsyncContextManager[None]:
        """A place among the calls that run at once; waits for it, fairly between principals.

        A call that a tool makes enters inside the tool's own: it must not wait for what that one holds.
        """
        ...


class ResultFitter(Protocol):
    """Makes a result fit what its reader can take."""

    async def fit(self, result: ExecutionResult, tool: Tool, context: CallContext) -> ExecutionResult:
        """Return `result`, or a part of it with the whole kept under `output_id`."""
        ...
