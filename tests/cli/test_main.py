"""Arguments that are wrong, and none at all."""

from __future__ import annotations

import pytest

from mcp_tools import __version__
from tests.cli.conftest import Run


def test_without_a_command_it_says_what_there_is(run: Run) -> None:
    done = run()
    assert (done.code, done.out) == (2, "")
    assert all(name in done.err for name in ("serve", "call", "list"))


def test_it_says_which_version_it_is(run: Run, run_apart: Run) -> None:
    assert run("--version").out == f"mcp-tools {__version__}\n"
    assert run_apart("--version").out == f"mcp-tools {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serve", "--rot", "x"], "--rot x is not known here; did you mean --root?"),
        (["list", "--fromat=json"], "--fromat=json is not known here; did you mean --format?"),
        (["call", "read_file", "path"], "path is not known here"),
        (["--verzion"], "--verzion is not known here; did you mean --version?"),
        (["sevre"], "invalid choice: 'sevre'"),
        (["call"], "required: TOOL"),
        (["serve", "--stdio", "--transport", "http"], "not allowed with argument"),
        (["serve", "--ro", "x"], "--ro x is not known here"),  # no abbreviations: they change meaning later
    ],
)
def test_a_wrong_argument_is_named_with_the_usage_of_its_command(
    arguments: list[str], message: str, run: Run
) -> None:
    done = run(*arguments)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert done.err.startswith("usage: mcp-tools")
