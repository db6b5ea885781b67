"""`mcp-tools chat`: a model at the terminal, with the tools, rules and questions of the server.

Every command imports this for its arguments, so the rest is imported when it runs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from mcp_tools.cli import exits, terminal
from mcp_tools.cli.flags import add_settings
from mcp_tools.errors import ConfigError

if TYPE_CHECKING:
    import anyio
    from anyio.abc import TaskStatus

    from mcp_tools.agent.types import AgentLimits, AgentRun, Message
    from mcp_tools.app import App
    from mcp_tools.types import Confirmation, ExecutionResult, ToolCall

PROVIDERS: Final = ("anthropic", "openai", "openai-chat")
_KEYS: Final = {"anthropic": "ANTHROPIC_API_KEY", "openai": "OPENAI_API_KEY"}
_MODELS: Final = {"openai": "gpt-5", "openai-chat": "gpt-5"}
_EXIT_CODES: Final = {"finished": exits.OK, "interrupted": exits.INTERRUPTED}
_ARGUMENTS_CHARS: Final = 160
HELP: Final = """\
/tools       what the model can use
/cost        what this chat has used
/clear       forget what was said
/save FILE   write the history as JSON
/quit        end (also Ctrl-D)
Ctrl-C       withdraw what is running"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    chat_ = commands.add_parser(
        "chat",
        help="talk to a model that has the tools",
        description="Talk to a model that has the tools, under the same rules and questions. Keys come from "
        "ANTHROPIC_API_KEY or OPENAI_API_KEY. With a PROMPT, or one on stdin, it answers once and prints "
        "only the answer to stdout. Exit codes: 0 it finished, 1 it did not, 2 usage, 130 Ctrl-C.",
        allow_abbrev=False,
    )
    chat_.add_argument("prompt", nargs="?", metavar="PROMPT", help="answer this once; - reads it from stdin")
    chat_.add_argument("--provider", choices=PROVIDERS, default="anthropic", help="default anthropic")
    chat_.add_argument("--model", metavar="NAME", help="as the provider names it")
    chat_.add_argument("--base-url", metavar="URL", help="of an API that speaks the provider's language")
    chat_.add_argument("--system", metavar="TEXT", help="instructions before everything else")
    chat_.add_argument("--max-tokens", type=_number(int), default=4096, metavar="N", help="of one answer")
    chat_.add_argument(
        "--max-steps", type=_number(int), default=50, metavar="N", help="turns for one prompt; default 50"
    )
    chat_.add_argument("--max-cost", type=_number(float), metavar="USD", help="for one prompt")
    add_settings(chat_)


def chat(arguments: argparse.Namespace) -> int:
    """Talk until the person ends it, or answer one prompt.

    Raises:
        ConfigError: An extra or a key is missing.
    """
    from mcp_tools.agent.types import DEFAULT_MODEL, AgentLimits
    from mcp_tools.cli.prepare import prepared, read_settings

    prompt = arguments.prompt
    if prompt == "-" or (prompt is None and not (sys.stdin is not None and sys.stdin.isatty())):
        prompt = _read_stdin()
    if prompt is not None and not prompt.strip():
        raise ConfigError("there is no prompt: give one, or put it on stdin")
    _check_client(arguments.provider, has_url=arguments.base_url is not None)
    # Calls are shown as they come: a log line for each would only be in the way.
    settings = read_settings(arguments)
    with prepared(settings, log_level=None if arguments.log_level else "error") as app:
        talk = _Talk(
            app=app,
            provider=arguments.provider,
            base_url=arguments.base_url,
            model=arguments.model or _MODELS.get(arguments.provider, DEFAULT_MODEL),
            system=arguments.system,
            max_tokens=arguments.max_tokens,
            limits=AgentLimits(steps=arguments.max_steps, cost_usd=arguments.max_cost),
            is_streamed=prompt is None,
        )
        if prompt is None:
            return _converse(talk)
        run = talk.answer(prompt)
        if run.text:
            print(terminal.for_display(run.text) if sys.stdout.isatty() else run.text)
        _say(f"({terminal.for_display(run.detail)}; {talk.cost()})")
        return _EXIT_CODES.get(run.stop, exits.FAILED)


def _read_stdin() -> str:
    try:
        text = sys.stdin.read() if sys.stdin is not None else ""
        text.encode()  # some locales let bytes through that are no text
    except UnicodeError:
        raise ConfigError("what is on stdin is no UTF-8 text, so it can be no prompt") from None
    return text


def _number(kind: type[float]) -> Any:
    def parse(text: str) -> float:
        try:
            number = kind(text)
        except ValueError:
            number = kind(0)
        if not number > 0:
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{what} over 0, not {text!r}")
        return number

    return parse


def _check_client(provider: str, *, has_url: bool) -> None:
    from importlib.util import find_spec

    from mcp_tools.config.process import environment

    library = provider.partition("-")[0]
    if find_spec(library) is None:
        raise ConfigError(
            f"the SDK of {library} is not installed; run: pip install 'mcp-tools-server[{library},prices]'"
        )
    if not environment().get(_KEYS[library]):
        local = "; a server of your own may take any" if has_url else ""
        raise ConfigError(f"there is no key: set {_KEYS[library]} in the environment{local}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@dataclass(kw_only=True)
class _Talk:
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
    dollars: float = 0.0
    tokens: int = 0
    unpriced_tokens: int = 0
    cut_off: int = 0
    _is_in_line: bool = False
    _held: list[str] | None = None

    def answer(self, prompt: str) -> AgentRun:
        """Have one prompt answered; `messages` then hold it, and what was done until Ctrl-C."""
        import anyio

        given = [*self.messages, {"role": "user", "content": prompt}]
        run: AgentRun = anyio.run(self._run_until_interrupted, given)
        self.messages = run.messages
        self.cut_off += not run.is_usage_whole
        tokens = run.usage.input_tokens + run.usage.output_tokens
        self.dollars += run.usage.cost_usd
        self.tokens += tokens
        self.unpriced_tokens += tokens if run.usage.cost_usd == 0 else 0
        return run

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

        running = anyio.CancelScope()

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
                context=CallContext(transport="cli"),
                scope=running,
            )
        self._end_line()
        return run

    def _client(self) -> Any:
        where: dict[str, Any] = {} if self.base_url is None else {"base_url": self.base_url}
        if self.provider == "anthropic":
            from anthropic import AsyncAnthropic

            return AsyncAnthropic(**where)
        from contextlib import asynccontextmanager

        from openai import AsyncOpenAI

        from mcp_tools.agent.openai import model_for

        @asynccontextmanager
        async def opened() -> Any:
            async with AsyncOpenAI(**where) as client:
                yield model_for(client, "openai-chat" if self.provider == "openai-chat" else None)

        return opened()

    async def _confirm(self, question: Confirmation) -> bool:
        from mcp_tools.confirmation.terminal import confirm_at_terminal

        self._end_line()
        self._held = []
        try:
            return await confirm_at_terminal(question, asked_by="mcp-tools chat")
        finally:
            held, self._held = self._held, None
            for line in held:
                _say(line)

    # What a model or a tool says never controls the terminal: no piece of it holds an escape character.

    def _show(self, piece: str) -> None:
        print(terminal.for_display(piece), end="", flush=True)
        self._is_in_line = not piece.endswith("\n")

    def _show_call(self, call: ToolCall) -> None:
        self._tell(f"{_one_line(call.name)}({_shortened(call.arguments)})")

    def _show_result(self, call: ToolCall, result: ExecutionResult) -> None:
        error = "" if result.error is None else f": {_one_line(result.error)}"
        self._tell(f"{_one_line(call.name)} {result.status} in {result.duration_ms:.0f} ms{error}")

    def _show_progress(
        self, call: ToolCall, progress: float, total: float | None, message: str | None
    ) -> None:
        self._tell(f"{_one_line(call.name)} {terminal.progress(progress, total, message)}")

    def _tell(self, line: str) -> None:
        if self._held is not None:
            self._held.append(f"  {line}")  # a question is open: nothing may push it out of sight
            return
        self._end_line()
        _say(f"  {line}")

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
    return _one_line(json.dumps(arguments, ensure_ascii=False, default=str)[1:-1])


def _one_line(text: str) -> str:
    """Return `text` so that it stays on one line, whatever it holds, and its end is in sight."""
    text = " ".join(text.split())
    return terminal.for_display(text if len(text) <= _ARGUMENTS_CHARS else f"{text[:_ARGUMENTS_CHARS]}…")


def _converse(talk: _Talk) -> int:
    _say(f"{talk.model}, with {len(talk.app.executor.visible_tools())} tools; /help says more")
    while True:
        try:
            line = terminal.read_pasted("\n> ").strip()
        except EOFError:
            break
        except KeyboardInterrupt:
            break
        if line in ("/quit", "/exit"):
            break
        if line.startswith("/") and "\n" not in line:
            _command(talk, line)
        elif line:
            _turn(talk, line)
    _say(f"\n{talk.cost()}")
    return exits.OK


def _turn(talk: _Talk, prompt: str) -> None:
    try:
        run = talk.answer(prompt)
    except KeyboardInterrupt:  # the second one: nobody waited for the end
        talk.cut_off += 1
        _say("\nwithdrawn; the chat is as it was before, but what tools have already done stays done")
        return
    if run.stop == "interrupted":
        _say("\nwithdrawn; what tools have already done stays done, and the model is told of it")
    elif run.stop != "finished":
        _say(f"({terminal.for_display(run.detail)})")


def _command(talk: _Talk, line: str) -> None:
    name, _, rest = line.partition(" ")
    match name:
        case "/tools":
            for tool in talk.app.executor.visible_tools():
                _say(f"  {tool.name}: {_one_line(tool.description)}")
        case "/cost":
            _say(talk.cost())
        case "/clear":
            talk.messages = []
            _say("forgotten")
        case "/save" if rest.strip():
            try:
                with open(rest.strip(), "x", encoding="utf-8") as file:
                    json.dump(talk.messages, file, indent=2, ensure_ascii=False, default=str)
            except OSError as error:
                _say(f"not saved: {error.strerror}")
            else:
                _say(f"saved to {rest.strip()}")
        case _:
            _say(HELP)
