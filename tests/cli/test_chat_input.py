"""What `mcp-tools chat` is given, in a pipe and by flags, and what a chat remembers of a prompt."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterator

import pytest

from mcp_tools import ToolSystem
from mcp_tools.agent.types import AgentLimits
from mcp_tools.cli.chat import MAX_PROMPT_CHARS, add_parser, chat
from mcp_tools.cli.talk import Talk
from mcp_tools.errors import ConfigError
from mcp_tools.types import ExecutionResult
from tests.agent.anthropic_server import KEY, MODEL, Answer, AnthropicServer, Failure, asks, says, text, use


def refusal(
    *arguments: str, stdin: bytes = b"", key: str = KEY, patch: pytest.MonkeyPatch
) -> ConfigError | SystemExit:
    """What a command line ends with before anything is asked."""
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    patch.setenv("ANTHROPIC_API_KEY", key)
    patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
    with pytest.raises((ConfigError, SystemExit)) as caught:
        chat(parser.parse_args(["chat", *arguments]))
    return caught.value


@pytest.mark.parametrize("key", [f"{KEY}\n", "kéy", "two words"])
def test_a_key_that_was_not_copied_whole_is_named(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said = str(refusal("Hello", key=key, patch=monkeypatch))
    assert said == "ANTHROPIC_API_KEY holds characters that no key has; was it copied whole?"


def test_a_key_of_blanks_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "there is no key" in str(refusal("Hello", key=" ", patch=monkeypatch))


@pytest.mark.parametrize(
    ("arguments", "stdin", "why"),
    [
        (["caf\udce9?"], b"", "the prompt is no UTF-8 text"),
        (["--system", "caf\udce9", "Hello"], b"", "--system is no UTF-8 text"),
        ([], b"x" * (MAX_PROMPT_CHARS + 10), "the prompt has more than 4,194,304 characters"),
        (["--max-cost", "inf", "Hello"], b"", "a number over 0, not 'inf'"),
        (["--max-seconds", "nan", "Hello"], b"", "a number over 0, not 'nan'"),
        # The mark before a text is no part of it.
        ([], b"\xef\xbb\xbf \n", "there is no prompt"),
    ],
    ids=["prompt", "system", "much", "infinite", "no number", "mark only"],
)
def test_what_cannot_be_sent_is_a_wrong_use(
    arguments: list[str],
    stdin: bytes,
    why: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ended = refusal(*arguments, stdin=stdin, patch=monkeypatch)
    assert why in f"{ended}{capsys.readouterr().err}"


# --- What is remembered -----------------------------------------------------------------------------


class Chat:
    """A conversation in this process, and what its tools were told."""

    def __init__(self, server: AnthropicServer) -> None:
        self.tools = ToolSystem()
        self.ended: list[ExecutionResult] = []
        self.tools.executor.add_hook(self.ended.append)
        self.url = server.url

        @self.tools.register
        def search() -> str:
            """Search."""
            return "found"

    def talk(self, *, model: str = MODEL, cost_usd: float | None = None) -> Talk:
        return Talk(
            app=self.tools,  # type: ignore[arg-type]
            provider="anthropic",
            base_url=self.url,
            model=model,
            system=None,
            max_tokens=100,
            limits=AgentLimits(cost_usd=cost_usd),
            is_streamed=False,
        )


@pytest.fixture(autouse=True)
def nothing_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    yield


def test_a_prompt_that_a_limit_refuses_is_forgotten() -> None:
    with AnthropicServer([]) as server:
        talk = Chat(server).talk(model="a-model-of-ours", cost_usd=1.0)
        assert talk.answer("Hello").stop == "cost"
    assert (talk.messages, server.requests) == ([], [])
    assert not talk.undo()


def test_a_chat_is_one_session_and_another_chat_another() -> None:
    script = [asks(use(f"c{n}", "search")) if n % 2 == 0 else says("Done.") for n in range(6)]
    with AnthropicServer(script) as server:
        here = Chat(server)
        first, second = here.talk(), here.talk()
        for talk in (first, first, second):
            talk.answer("Search.")
    ids = [result.session_id for result in here.ended]
    assert ids == [first.session_id, first.session_id, second.session_id]
    assert len({*ids}) == 2


def test_what_is_not_priced_is_said_beside_what_tools_cost() -> None:
    script = [
        Answer(blocks=[use("c1", "search_web")], stop="tool_use", model="a-model-of-ours"),
        Answer(blocks=[text("Done.")], model="a-model-of-ours"),
    ]
    with AnthropicServer(script) as server:
        here = Chat(server)

        @here.tools.register(price_usd=0.25)
        def search_web() -> str:
            """Search."""
            return "found"

        talk = here.talk(model="a-model-of-ours")
        talk.answer("Search.")
    assert talk.cost() == "60 tokens, 0.2500 USD without 60 of them, whose price is not known"


def test_a_refusal_is_not_counted_as_cut_off() -> None:
    with AnthropicServer([Failure(status=404, kind="not_found_error")]) as server:
        talk = Chat(server).talk()
        assert talk.answer("Hello").stop == "failed"
    assert talk.cost() == "0 tokens, 0.0000 USD"
