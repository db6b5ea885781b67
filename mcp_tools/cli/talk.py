"""A conversation with a model at the terminal: what was said, what it cost, and what a person sees of it.

Imported with the command line, so the rest is imported when a prompt is answered.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from mcp_tools.cli import terminal
from mcp_tools.types import new_call_id

if TYPE_CHECKING:
    import anyio
    from anyio.abc import TaskStatus

    from mcp_tools.agent.types import AgentLimits, AgentRun, Message
    from mcp_tools.app import App
    from mcp_tools.types import Confirmation, ExecutionResult, ToolCall

_LONGEST_WAIT_S: Final = 365 * 86_400.0
_ARGUMENTS_CHARS: Final = 160


def say(text: str) -> None:
    """Show a line of ours; stdout is for what the model says."""
    print(text, file=sys.stderr, flush=True)


@dataclass(kw_only=True)
class Talk:
    """What was said so far, and how to go on."""

    app: App
    provider: str
    base_url: str | None
    model: str
    system: str | None
    max_tokens: int
    limits: AgentLimits
    is_streamed: bool
    messages: list[Message] = field(default_factory=list)
    session_id: str = field(default_factory=new_call_id)
    """In the audit log, the same for all calls of this chat."""
    dollars: float = 0.0
    tokens: int = 0
    unpriced_tokens: int = 0
    cut_off: int = 0
    _before: list[list[Message]] = field(default_factory=list)
    _is_in_line: bool = False
    _held: list[str] | None = None

    def answer(self, prompt: str) -> AgentRun:
        """Have one prompt answered; `messages` then hold it, and what was done until Ctrl-C."""
        import anyio

        given = [*self.messages, {"role": "user", "content": prompt}]
        run: AgentRun = anyio.run(self._run_until_interrupted, given)
        # What a provider never took, such as a prompt that is too long, would be refused for ever; and what a
        # limit refused was never asked.
        if run.steps or run.stop not in ("failed", "cost"):
            self._before.append(self.messages)
            self.messages = run.messages
        self.cut_off += not run.is_usage_whole
        tokens = run.usage.input_tokens + run.usage.output_tokens
        self.dollars += run.usage.cost_usd
        self.tokens += tokens
        self.unpriced_tokens += 0 if run.is_cost_whole else tokens
        return run

    def undo(self) -> bool:
        """Forget the last prompt and all that came of it; False where there is none."""
        if not self._before:
            return False
        self.messages = self._before.pop()
        return True

    def clear(self) -> None:
        """Forget everything that was said."""
        self.messages, self._before = [], []

    def cost(self) -> str:
        """Say what was used."""
        dollars = f"{self.dollars:.4f} USD"
        if self.unpriced_tokens:
            dollars += f" without {self.unpriced_tokens:,} of them, whose price is not known"
        more = f", and what {self.cut_off} cut off used, which is not known" if self.cut_off else ""
        return f"{self.tokens:,} tokens, {dollars}{more}"

    async def _run_until_interrupted(self, messages: list[Message]) -> AgentRun:
        import signal

        import anyio

        self._running = running = anyio.CancelScope()

        # Python's own handler does not wake a loop that is just about to wait, and the signal would be lost.
        async def cancel_at_signal(*, task_status: TaskStatus[None]) -> None:
            with anyio.open_signal_receiver(signal.SIGINT) as signals:
                task_status.started()
                async for _ in signals:
                    break
            # The next Ctrl-C is Python's own again, and ends what does not let itself be withdrawn.
            running.cancel()

        async with anyio.create_task_group() as group:
            await group.start(cancel_at_signal)
            run = await self._run(messages, running)
            group.cancel_scope.cancel()
        return run

    async def _run(self, messages: list[Message], running: anyio.CancelScope) -> AgentRun:
        from mcp_tools.agent.loop import run_agent
        from mcp_tools.batch import AsyncToolExecutor
        from mcp_tools.confirmation.terminal import can_ask
        from mcp_tools.types import CallContext

        async with self._client() as client:
            run = await run_agent(
                messages,
                _Tools(self.app.executor, AsyncToolExecutor(self.app.executor)),
                client=client,
                model=self.model,
                max_tokens=self.max_tokens,
                system=self.system,
                limits=self.limits,
                confirm=self._confirm if can_ask() else None,
                on_text=self._show if self.is_streamed else None,
                on_call=self._show_call,
                on_result=self._show_result,
                on_progress=self._show_progress if sys.stderr.isatty() else None,
                context=CallContext(session_id=self.session_id),
                scope=running,
            )
        self._end_line()
        return run

    def _client(self) -> Any:
        how: dict[str, Any] = {} if self.base_url is None else {"base_url": self.base_url}
        # A redirect would carry the prompt to another host.
        http: dict[str, Any] = {"follow_redirects": False, "event_hooks": {"response": [self._show_trouble]}}
        if self.provider == "anthropic":
            from anthropic import AsyncAnthropic, DefaultAsyncHttpxClient

            return AsyncAnthropic(http_client=DefaultAsyncHttpxClient(**http), **how)
        from contextlib import asynccontextmanager

        from openai import AsyncOpenAI
        from openai import DefaultAsyncHttpxClient as OpenAIHttpxClient

        from mcp_tools.agent.openai import model_for

        @asynccontextmanager
        async def opened() -> Any:
            async with AsyncOpenAI(http_client=OpenAIHttpxClient(**http), **how) as client:
                yield model_for(client, "openai-chat" if self.provider == "openai-chat" else None)

        return opened()

    async def _show_trouble(self, response: Any) -> None:
        """Say what the SDK waits for; it repeats requests by itself, after as long as it is told to."""
        from mcp_tools.retry_after import retry_after_s

        if response.status_code == 429 or response.status_code >= 500:
            wait_s = retry_after_s(response.headers, most_s=_LONGEST_WAIT_S)
            after = "" if wait_s is None else f", and asks to wait for {wait_s:,.0f} s"
            self._tell(f"the provider answers {response.status_code}{after}")

    async def _confirm(self, question: Confirmation) -> bool:
        from mcp_tools.confirmation.terminal import confirm_at_terminal

        self._end_line()
        self._held = []
        try:
            return await confirm_at_terminal(question, asked_by="mcp-tools chat")
        finally:
            held, self._held = self._held, None
            for line in held:
                say(line)

    # What a model or a tool says never controls the terminal: no piece of it holds an escape character.

    def _show(self, piece: str) -> None:
        try:
            print(terminal.for_display(piece), end="", flush=True)
        except OSError:
            self._running.cancel()  # nobody reads on: the model need not be paid to its end
            raise
        self._is_in_line = not piece.endswith("\n")

    def _show_call(self, call: ToolCall) -> None:
        self._tell(f"{one_line(call.name)}({_shortened(call.arguments)})")

    def _show_result(self, call: ToolCall, result: ExecutionResult) -> None:
        error = "" if result.error is None else f": {one_line(result.error)}"
        took = f" in {result.duration_ms:.0f} ms" if result.duration_ms else ""
        self._tell(f"{one_line(call.name)} {result.status}{took}{error}")

    def _show_progress(
        self, call: ToolCall, progress: float, total: float | None, message: str | None
    ) -> None:
        self._tell(f"{one_line(call.name)} {terminal.progress(progress, total, message)}")

    def _tell(self, line: str) -> None:
        if self._held is not None:
            self._held.append(f"  {line}")  # a question is open: nothing may push it out of sight
            return
        self._end_line()
        say(f"  {line}")

    def _end_line(self) -> None:
        if self._is_in_line:
            print(flush=True)
            self._is_in_line = False


@dataclass(frozen=True, slots=True)
class _Tools:
    """What the loop needs of a tool system."""

    executor: Any
    async_executor: Any


def _shortened(arguments: Mapping[str, Any]) -> str:
    return one_line(json.dumps(arguments, ensure_ascii=False, default=str)[1:-1])


def one_line(text: str) -> str:
    """Return `text` so that it stays on one line, whatever it holds, and its end is in sight."""
    text = " ".join(text.split())
    return terminal.for_display(text if len(text) <= _ARGUMENTS_CHARS else f"{text[:_ARGUMENTS_CHARS]}…")
