"""A process that the code forked and that comes to the code's end is not taken for the call itself."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sandbox import PythonSandbox, SandboxUnavailable

TIMES = 5  # which of the two processes is first is a matter of luck


@pytest.fixture(scope="module")
def sandbox() -> Iterator[PythonSandbox]:
    with PythonSandbox() as made:
        try:
            made.execute_sync("")
        except SandboxUnavailable as reason:
            pytest.skip(f"needs a sandbox whose code may fork: {reason}")
        yield made


@pytest.mark.parametrize("session", [None, "a session"])
@pytest.mark.parametrize(
    "ending", ["raise ValueError('of the copy')", "raise SystemExit(7)", "'value of the copy'", "os._exit(9)"]
)
def test_report_is_that_of_the_first_process(
    sandbox: PythonSandbox, session: str | None, ending: str
) -> None:
    code = f"import os\nif (copy := os.fork()) == 0:\n    {ending}\nelse:\n    os.waitpid(copy, 0)\ncopy > 0"
    for _ in range(TIMES):
        result = sandbox.execute_sync(code, session=session)
        assert (result.return_code, result.value, result.exception) == (0, "True", None)
        assert sandbox.execute_sync("print(1)", session=session).stdout == "1\n"


def test_copy_leaves_as_an_interpreter_does(sandbox: PythonSandbox) -> None:
    code = (
        "import atexit, os\nif (copy := os.fork()) == 0:\n    atexit.register(print, 'copy gone')\n"
        "    raise SystemExit(7)\nstatus = os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1])\nprint(status)"
    )
    result = sandbox.execute_sync(code)
    assert result.stdout == "copy gone\n7\n"
