"""`mcp-tools chat`: a model at the terminal, with the tools, rules and questions of the server.

Every command imports this for its arguments, so the rest is imported when it runs.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from typing import Any, Final
from urllib.parse import urlsplit

from mcp_tools.cli import exits, terminal
from mcp_tools.cli.flags import add_settings
from mcp_tools.cli.talk import Talk, one_line, say
from mcp_tools.errors import ConfigError, key_problem

PROVIDERS: Final = ("anthropic", "openai", "openai-chat")
_KEYS: Final = {"anthropic": "ANTHROPIC_API_KEY", "openai": "OPENAI_API_KEY"}
_MODELS: Final = {"openai": "gpt-5", "openai-chat": "gpt-5"}
MAX_PROMPT_CHARS: Final = 4 * 1024**2
_EXIT_CODES: Final = {"finished": exits.OK, "interrupted": exits.INTERRUPTED}
HELP: Final = """\
/tools       what the model can use
/cost        what this chat has used
/undo        forget the last prompt and what came of it
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
    chat_.add_argument(
        "--max-seconds", type=_number(float), default=900.0, metavar="N", help="for one prompt; default 900"
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
    prompt = _text(prompt, "the prompt")
    if prompt is not None and not prompt.strip():
        raise ConfigError("there is no prompt: give one, or put it on stdin")
    system = _text(arguments.system, "--system")
    _check_client(arguments.provider, arguments.base_url)
    # Calls are shown as they come: a log line for each would only be in the way.
    settings = read_settings(arguments)
    with prepared(settings, log_level=None if arguments.log_level else "error") as app:
        talk = Talk(
            app=app,
            provider=arguments.provider,
            base_url=arguments.base_url,
            model=arguments.model or _MODELS.get(arguments.provider, DEFAULT_MODEL),
            system=system,
            max_tokens=arguments.max_tokens,
            limits=AgentLimits(
                steps=arguments.max_steps, seconds=arguments.max_seconds, cost_usd=arguments.max_cost
            ),
            is_streamed=prompt is None,
        )
        if prompt is None:
            return _converse(talk)
        run = talk.answer(prompt)
        if run.text:
            print(terminal.for_display(run.text) if sys.stdout.isatty() else run.text)
        say(f"({terminal.for_display(run.detail)}; {talk.cost()})")
        return _EXIT_CODES.get(run.stop, exits.FAILED)


def _read_stdin() -> str:
    try:
        return sys.stdin.read(MAX_PROMPT_CHARS + 1) if sys.stdin is not None else ""
    except UnicodeError:
        raise ConfigError("what is on stdin is no UTF-8 text, so it can be no prompt") from None


def _text(given: str | None, what: str) -> str | None:
    """Return a text that can be sent: some locales let bytes through that are none."""
    if given is None:
        return None
    if len(given) > MAX_PROMPT_CHARS:
        raise ConfigError(f"{what} has more than {MAX_PROMPT_CHARS:,} characters, which no model can read")
    try:
        given.encode()
    except UnicodeError:
        raise ConfigError(f"{what} is no UTF-8 text") from None
    return given.removeprefix("\ufeff")


def _number(kind: type[float]) -> Any:
    def parse(text: str) -> float:
        try:
            number = kind(text)
        except ValueError:
            number = kind(0)
        if not 0 < number < math.inf:
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{what} over 0, not {text!r}")
        return number

    return parse


def _check_client(provider: str, base_url: str | None) -> None:
    from importlib.util import find_spec

    from mcp_tools.config.process import environment

    if base_url is not None:
        try:
            parts = urlsplit(base_url)
            is_usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            is_usable = False
        if not is_usable or not base_url.isprintable() or " " in base_url:
            raise ConfigError("--base-url must be an http or https URL, such as http://127.0.0.1:11434/v1")
    library = provider.partition("-")[0]
    if find_spec(library) is None:
        raise ConfigError(
            f"the SDK of {library} is not installed; run: pip install 'mcp-tools-server[{library},prices]'"
        )
    key = environment().get(_KEYS[library], "")
    if not key.strip():
        local = "; a server of your own may take any" if base_url else ""
        raise ConfigError(f"there is no key: set {_KEYS[library]} in the environment{local}")
    if (wrong := key_problem(_KEYS[library], key)) is not None:
        raise ConfigError(wrong)


def _converse(talk: Talk) -> int:
    say(f"{talk.model}, with {len(talk.app.executor.visible_tools())} tools; /help says more")
    while True:
        try:
            # Some locales let bytes through that are no text, which no request could be encoded with.
            line = terminal.read_pasted("\n> ").encode(errors="replace").decode().strip()
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
    say(f"\n{talk.cost()}")
    return exits.OK


def _turn(talk: Talk, prompt: str) -> None:
    try:
        run = talk.answer(prompt)
    except KeyboardInterrupt:  # the second one: nobody waited for the end
        talk.cut_off += 1
        say("\nwithdrawn; the chat is as it was before, but what tools have already done stays done")
        return
    if run.stop == "interrupted":
        say("\nwithdrawn; what tools have already done stays done, and the model is told of it")
    elif run.stop != "finished":
        way_out = "; /undo forgets the prompt" if run.stop == "failed" and run.steps else ""
        say(f"({terminal.for_display(run.detail)}{way_out})")


def _command(talk: Talk, line: str) -> None:
    name, _, rest = line.partition(" ")
    match name:
        case "/tools":
            for tool in talk.app.executor.visible_tools():
                say(f"  {tool.name}: {one_line(tool.description)}")
        case "/cost":
            say(talk.cost())
        case "/clear":
            talk.clear()
            say("forgotten")
        case "/undo":
            say(
                "the last prompt is forgotten; what tools have done stays done"
                if talk.undo()
                else "there is none"
            )
        case "/save" if rest.strip():
            try:
                with open(rest.strip(), "x", encoding="utf-8") as file:
                    json.dump(talk.messages, file, indent=2, ensure_ascii=False, default=str)
            except OSError as error:
                say(f"not saved: {error.strerror}")
            else:
                say(f"saved to {rest.strip()}")
        case _:
            say(HELP)
