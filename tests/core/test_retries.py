"""Only a tool that asks for it is called again by us, and only where that can do no harm."""

from __future__ import annotations

import pytest

from mcp_tools import CallContext, ErrorCode, ToolError, ToolExecutor, ToolRegistry
from mcp_tools.errors import RegistrationError
from mcp_tools.types import ToolAnnotations

READS = ToolAnnotations(read_only_hint=True)


class Flaky:
    """A tool that fails some times, and counts how often it was called."""

    def __init__(self, failures: int, *, is_passing: bool = True, retry_after_s: float | None = 0.0) -> None:
        self.left, self.calls = failures, 0
        self._is_passing, self._retry_after_s = is_passing, retry_after_s

    def __call__(self) -> str:
        self.calls += 1
        if self.left:
            self.left -= 1
            raise ToolError("busy", is_passing=self._is_passing, retry_after_s=self._retry_after_s)
        return "done"


async def run(flaky: Flaky, *, retries: int = 3, timeout: float = 10.0) -> tuple[object, ErrorCode | None]:
    registry = ToolRegistry()
    registry.register("flaky", timeout=timeout, retries=retries, annotations=READS)(flaky)
    result = await ToolExecutor(registry).execute("flaky", {}, CallContext())
    return result.result, result.error_code


async def test_a_passing_failure_is_tried_again() -> None:
    flaky = Flaky(3)
    assert await run(flaky) == ("done", None)
    assert flaky.calls == 4


async def test_it_is_tried_as_often_as_the_tool_asked_for_and_no_more() -> None:
    flaky = Flaky(5)
    assert await run(flaky, retries=2) == (None, ErrorCode.TOOL_ERROR)
    assert flaky.calls == 3


async def test_another_failure_is_not_tried_again() -> None:
    flaky = Flaky(1, is_passing=False)
    assert await run(flaky) == (None, ErrorCode.TOOL_ERROR)
    assert flaky.calls == 1


async def test_a_tool_that_did_not_ask_is_not_tried_again() -> None:
    flaky = Flaky(1)
    assert await run(flaky, retries=0) == (None, ErrorCode.TOOL_ERROR)
    assert flaky.calls == 1


async def test_the_deadline_is_that_of_all_attempts_together() -> None:
    flaky = Flaky(1, retry_after_s=60)
    assert await run(flaky, timeout=0.3) == (None, ErrorCode.TIMED_OUT)
    assert flaky.calls == 1


async def test_how_long_to_wait_reaches_the_caller() -> None:
    registry = ToolRegistry()
    registry.register("flaky")(Flaky(1, retry_after_s=7.5))
    assert (await ToolExecutor(registry).execute("flaky")).retry_after_s == 7.5


def test_a_tool_that_may_change_something_cannot_have_retries() -> None:
    registry = ToolRegistry()
    with pytest.raises(RegistrationError, match="do twice what was asked for once"):
        registry.register("flaky", retries=1)(Flaky(0))
    idempotent = ToolAnnotations(idempotent_hint=True)
    registry.register("flaky", retries=1, annotations=idempotent)(Flaky(0))


@pytest.mark.parametrize("wrong", [-1, 11, True, 1.5, "1"])
def test_a_number_of_retries_that_makes_no_sense_is_refused(wrong: object) -> None:
    with pytest.raises(RegistrationError, match="retries"):
        ToolRegistry().register("flaky", retries=wrong, annotations=READS)(Flaky(0))  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [-0.1, float("nan"), float("inf"), True, "1"])
def test_a_price_that_makes_no_sense_is_refused(wrong: object) -> None:
    with pytest.raises(RegistrationError, match="price_usd"):
        ToolRegistry().register("flaky", price_usd=wrong)(Flaky(0))  # type: ignore[arg-type]
