"""What a model's answer costs; None for what nobody knows."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys

import pytest

from mcp_tools.observe import cost
from mcp_tools.observe.cost import cost_of


@pytest.fixture(autouse=True)
def _forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "_unknown", set())


def test_a_known_model_has_its_list_price() -> None:
    # 3 and 15 dollars a million.
    assert cost_of("claude-sonnet-4-5", 1_000, 1_000) == pytest.approx(0.018)


def test_what_was_read_from_a_cache_costs_less() -> None:
    whole, cached = cost_of("claude-sonnet-4-5", 1_000, 0), cost_of("claude-sonnet-4-5", 1_000, 0, 1_000)
    assert whole == pytest.approx(0.003)
    assert cached == pytest.approx(0.0003)


@pytest.mark.parametrize("name", ["anthropic/claude-sonnet-4-5", "anthropic:claude-sonnet-4-5"])
def test_a_provider_in_front_of_the_name_is_understood(name: str) -> None:
    assert cost_of(name, 1_000, 1_000) == cost_of("claude-sonnet-4-5", 1_000, 1_000)


@pytest.mark.parametrize("name", ["no-such-model", "", "openai/", "/", "x" * 300, "no\nsuch", "local/llama"])
def test_an_unknown_model_costs_none_and_is_said_once(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="mcp_tools"):
        assert [cost_of(name, 10, 10) for _ in range(3)] == [None, None, None]
    (line,) = caplog.messages
    assert "\n" not in line
    assert len(line) < 400


def test_unknown_models_are_remembered_within_bounds(caplog: pytest.LogCaptureFixture) -> None:
    for number in range(cost.MAX_REMEMBERED + 50):
        assert cost_of(f"unheard-{number}", 1, 1) is None
    assert len(cost._unknown) == len(caplog.messages) == cost.MAX_REMEMBERED


@pytest.mark.parametrize("tokens", [(-1, 0, 0), (0, -1, 0), (5, 0, -1), (5, 0, 6)])
def test_impossible_numbers_are_refused(tokens: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="token"):
        cost_of("claude-sonnet-4-5", *tokens)


def test_no_tokens_cost_nothing_which_is_not_none() -> None:
    assert cost_of("claude-sonnet-4-5", 0, 0) == 0.0


def test_prices_need_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert cost_of("gpt-5", 1_000, 100) is not None


def test_the_price_table_is_loaded_on_first_use_only() -> None:
    code = "import sys, mcp_tools.observe.cost; print('genai_prices' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout == "False\n"
