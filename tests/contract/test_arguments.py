"""Arguments that make no sense: refused by name, before anything is started."""

from __future__ import annotations

from typing import Any

import pytest

from sandbox import SandboxConfigError
from tests.contract.backends import AnySandbox

NO_SENSE: list[tuple[str, dict[str, Any]]] = [
    ("code", {"code": b"1"}),
    ("code", {"code": "#" * (1024 * 1024 + 1)}),
    ("tenant", {"tenant": 5}),
    ("tenant", {"tenant": ["a"]}),
    ("tenant", {"tenant": None}),
    ("session", {"session": 5}),
    ("session", {"session": {"a": 1}}),
    ("files", {"files": ["a.txt"]}),
    ("files", {"files": {5: b""}}),
    ("files", {"files": {"a": 5}}),
    ("files", {"files": {"../a": b""}}),
    ("files", {"files": {"large": bytes(16 * 1024 * 1024 + 1)}}),
    ("files", {"files": {str(number): b"" for number in range(4097)}}),
    ("timeout_seconds", {"timeout_seconds": 0}),
    ("timeout_seconds", {"timeout_seconds": float("nan")}),
    ("timeout_seconds", {"timeout_seconds": "5"}),
]


@pytest.mark.parametrize(
    ("field", "arguments"), NO_SENSE, ids=[f"{n} {f}" for n, (f, _) in enumerate(NO_SENSE)]
)
async def test_an_argument_that_makes_no_sense_is_named(
    box: AnySandbox, field: str, arguments: dict[str, Any]
) -> None:
    given = {"code": "1", **arguments}
    with pytest.raises(SandboxConfigError) as refused:
        box.execute_sync(**given)
    assert refused.value.field == field
    with pytest.raises(SandboxConfigError) as refused:
        await box.execute(**given)
    assert refused.value.field == field
