"""What a worker cannot import is refused while tools are registered."""

from __future__ import annotations

import functools
import subprocess
import sys
import types
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest

from mcp_tools.errors import RegistrationError
from mcp_tools.types import CallContext
from mcp_tools.workers import isolated
from tests.workers import functions, walled_functions


class Living:
    def method(self) -> None: ...

    @classmethod
    def of_the_class(cls, a: int) -> int:
        return a

    @staticmethod
    def static(a: int) -> int:
        return a

    def __call__(self) -> None: ...


def local() -> Callable[..., Any]:
    def inner() -> None: ...

    return inner


def nowhere() -> Callable[..., Any]:
    module = types.ModuleType("module_that_nobody_finds")
    exec("def made(): pass", module.__dict__)
    sys.modules["module_that_nobody_finds"] = module
    function: Callable[..., Any] = module.__dict__["made"]
    return function


@pytest.mark.parametrize("isolation", ["process", "sandbox"])
@pytest.mark.parametrize(
    ("function", "why"),
    [
        (lambda: None, "a lambda has no name"),
        (local(), "made anew by each call"),
        (Living().method, "bound to an object"),
        (Living(), "this Living is an object"),
        (functools.partial(functions.add, 1), "a partial has no name"),
        (nowhere(), "no module 'module_that_nobody_finds'"),
    ],
    ids=["lambda", "local", "method", "object", "partial", "no module"],
)
def test_what_has_no_name_is_refused(isolation: Any, function: Any, why: str) -> None:
    with pytest.raises(RegistrationError, match=why) as caught:
        isolated(function, isolation=isolation, context_parameter=None, name="it")
    assert "'it'" in str(caught.value)
    assert "at the top of a module" in str(caught.value)


def test_an_unknown_isolation_is_refused() -> None:
    with pytest.raises(RegistrationError, match="use 'process', 'sandbox' or None"):
        isolated(functions.add, isolation="thread", context_parameter=None, name="it")  # type: ignore[arg-type]


@pytest.mark.parametrize("function", [Living.of_the_class, Living.static], ids=lambda f: f.__name__)
def test_functions_of_classes_have_names(function: Any) -> None:
    isolated(function, isolation="process", context_parameter=None, name="it").close()


def test_what_is_typed_into_a_session_is_refused() -> None:
    code = (
        "from mcp_tools.workers import isolated\n"
        "def typed(): pass\n"
        "isolated(typed, isolation='process', context_parameter=None, name='it')\n"
    )
    done = subprocess.run(
        [sys.executable, "-"], input=code, capture_output=True, text=True, timeout=30, check=False
    )
    assert "was typed into an interactive session" in done.stderr


def moment(at: datetime) -> None:
    """Takes what JSON has no value for."""


def test_a_sandbox_takes_json_only() -> None:
    with pytest.raises(RegistrationError, match=r"'at' takes 'datetime', and only JSON data"):
        isolated(moment, isolation="sandbox", context_parameter=None, name="it")


def sees(context: CallContext) -> None:
    """Wants what a sandbox has not."""


def test_a_sandbox_has_no_context() -> None:
    with pytest.raises(RegistrationError, match="'context' wants a CallContext"):
        isolated(sees, isolation="sandbox", context_parameter="context", name="it")


def test_a_sandbox_has_the_standard_library_only() -> None:
    """This module imports pytest, so its functions cannot go there."""
    with pytest.raises(RegistrationError, match="imports 'pytest', and the sandbox has the standard library"):
        isolated(Living.static, isolation="sandbox", context_parameter=None, name="it")


def test_a_sandbox_needs_sources() -> None:
    import zlib

    with pytest.raises(RegistrationError, match="zlib has no source"):
        isolated(zlib.crc32, isolation="sandbox", context_parameter=None, name="it")


def test_what_can_go_to_a_sandbox_is_taken() -> None:
    isolated(walled_functions.greet, isolation="sandbox", context_parameter=None, name="it").close()
