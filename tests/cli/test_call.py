"""`mcp-tools call`: arguments by schema, questions at the terminal, exit codes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import ROOT, TOOLS, Run, command
from tests.terminal import WAIT_S, Terminal, at_a_terminal


def test_text_stays_text_and_the_rest_is_json_where_the_schema_says_so(run: Run) -> None:
    pairs = {
        "text": "5",
        "count": "3",
        "flag": "true",
        "items": "[1, 2]",
        "point": '{"x": 1, "y": -1}',
        "either": "7",
        "kind": "b",
        "share": "1",
    }
    flags = [part for name, value in pairs.items() for part in ("--arg", f"{name}={value}")]
    done = run("call", "echo", *flags, *TOOLS)
    assert (done.code, done.err) == (0, "")
    assert done.json() == {
        "text": "5",
        "count": 3,
        "flag": True,
        "items": [1, 2],
        "point": [1, -1],
        "either": "7",
        "kind": "b",
        "share": 1,
    }


def test_arguments_come_as_one_object_too_and_single_ones_win(run: Run) -> None:
    done = run("call", "echo", "--json", '{"text": "a", "count": 2}', "--arg", "text=b=c", *TOOLS)
    assert done.json()["text"] == "b=c"
    assert done.json()["count"] == 2


def test_arguments_come_from_stdin(run_apart: Run) -> None:
    done = run_apart("call", "echo", "--json", "-", *TOOLS, input='{"text": "from stdin"}')
    assert done.json()["text"] == "from stdin"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["echo", "--arg", "text"], "not of the form name=value"),
        (["echo", "--arg", "count=many"], "--arg count: 'many' is not JSON; the tool takes integer"),
        (["echo", "--json", "[]"], "--json is not an object"),
        (["echo", "--json", "{"], "--json is not valid JSON"),
        (["echo", "--tools", "nowhere:registry"], "tools entry 'nowhere:registry' cannot be loaded"),
        (["echo", "--tools", "tests.cli.sample_tools:nothing"], "no attribute 'nothing'"),
        (["echo", "--tools", "tests.cli.sample_tools"], "not of the form package.module:object"),
        (["echo", "--tools", "tests.cli.sample_tools:number"], "int holds no tools"),
        (["echo", *TOOLS, *TOOLS], "taken by"),
        (["echo", "--root", "/nowhere/at/all"], "/nowhere/at/all"),
        (["echo", "--deny", "not a rule"], "is not of the form 'tool' or 'tool(pattern)'"),
        (["echo", "--config", "nowhere.toml"], "nowhere.toml"),
        (["echo", "--confirm-timeout", "0"], "--confirm-timeout is '0'; use a number of seconds"),
    ],
)
def test_a_users_mistake_is_explained_in_a_line_without_a_traceback(
    arguments: list[str], message: str, run: Run
) -> None:
    done = run("call", *arguments, *(() if "--tools" in arguments else TOOLS))
    assert done.code == 2
    assert done.out == ""
    assert message in done.err
    assert done.err.startswith("mcp-tools: ")
    assert "Traceback" not in done.err


def test_exit_codes_say_what_happened(run: Run, tmp_path: Path) -> None:
    assert run("call", "fail", "--arg", "text=no luck", *TOOLS).code == 1
    assert run("call", "nothing_like_it", *TOOLS).code == 2
    assert run("call", "echo", *TOOLS).code == 2  # `text` is missing
    assert run("call", "put", "--arg", f"path={tmp_path / 'a'}", "--arg", "content=x", *TOOLS).code == 3
    assert run("call", "echo", "--arg", "text=x", "--deny", "echo(x)", *TOOLS).code == 3


def test_a_failure_is_told_as_the_model_would_hear_it(run: Run) -> None:
    assert run("call", "fail", "--arg", "text=no luck", *TOOLS).out == "Error (error): no luck\n"
    assert "did you mean" in run("call", "ecko", "--arg", "text=x", *TOOLS).out
    assert "txet" in run("call", "echo", "--arg", "txet=x", *TOOLS).out


def test_a_tool_that_a_rule_denies_outright_is_not_there(run: Run) -> None:
    done = run("call", "echo", "--arg", "text=x", "--deny", "echo", *TOOLS)
    assert done.code == 3
    assert "a deny rule of yours forbids every call of echo" in done.err
    assert "echo" not in run("list", "--deny", "echo", *TOOLS).out.split()


def test_json_output_is_the_whole_result(run: Run) -> None:
    found = run("call", "echo", "--arg", "text=x", "--output", "json", *TOOLS).json()
    assert found["status"] == "success"
    assert found["tool_name"] == "echo"
    assert found["parameters"]["text"] == "x"
    assert (found["principal"], found["transport"]) == ("local", "cli")
    assert found["duration_ms"] > 0


# --- Questions --------------------------------------------------------------------------------


def test_without_a_terminal_nothing_is_done_and_the_way_out_is_said(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "file"
    done = run("call", "put", "--arg", f"path={path}", "--arg", "content=x", *TOOLS)
    assert done.code == 3
    assert not path.exists()
    assert "--yes" in done.err
    assert "--allow put" in done.err
    assert done.out.startswith("Error (permission_denied)")


def test_yes_answers_the_question(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "file"
    done = run("call", "put", "--yes", "--arg", f"path={path}", "--arg", "content=x", *TOOLS)
    assert (done.code, done.out) == (0, "written\n")
    assert path.read_text() == "x"


def test_an_allow_rule_makes_the_question_unnecessary(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "file"
    done = run("call", "put", "--allow", "put", "--arg", f"path={path}", "--arg", "content=x", *TOOLS)
    assert done.code == 0


def at_terminal(*arguments: str, environ: dict[str, str]) -> AbstractContextManager[Terminal]:
    """Make a call as a person would, with stdout going into a pipe."""
    argv = command("call", *arguments, *TOOLS)
    return at_a_terminal(argv, stdout=subprocess.PIPE, env=environ, cwd=ROOT)


@pytest.mark.parametrize(
    ("typed", "code", "content"),
    [
        ("y\n", 0, "new"),
        ("YES\n", 0, "new"),
        ("n\n", 3, "old"),
        ("\n", 3, "old"),
        ("yeah sure\n", 3, "old"),
        ("\x04", 3, "old"),  # Ctrl-D
    ],
)
def test_a_person_at_a_terminal_is_asked_with_the_change_in_view(
    typed: str, code: int, content: str, environ: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    call = ("put", "--arg", f"path={path}", "--arg", "content=new")
    with at_terminal(*call, environ=environ) as terminal:
        question = terminal.read_until("[y/N]")
        assert "put" in question
        assert "has old; it would have new" in question
        assert path.read_text() == "old"
        terminal.type(typed)
        out, _ = terminal.process.communicate(timeout=WAIT_S)
        assert terminal.process.returncode == code
    assert path.read_text() == content
    assert out.decode() == ("written\n" if code == 0 else out.decode())
    assert code == 0 or "nothing was done" in out.decode()


def test_ctrl_c_at_the_question_ends_it_with_nothing_done(environ: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "file"
    call = ("put", "--arg", f"path={path}", "--arg", "content=new")
    with at_terminal(*call, environ=environ) as terminal:
        terminal.read_until("[y/N]")
        terminal.interrupt()
        _, _ = terminal.process.communicate(timeout=WAIT_S)
        assert terminal.process.returncode == 130
        assert "Traceback" not in terminal.read_rest()
    assert not path.exists()


def test_a_yes_does_not_hold_when_the_file_changed_meanwhile_and_the_question_comes_again(
    environ: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "file"
    call = ("put", "--arg", f"path={path}", "--arg", "content=new")
    with at_terminal(*call, environ=environ) as terminal:
        terminal.read_until("[y/N]")
        path.write_text("changed meanwhile")
        terminal.type("y\n")
        assert "has changed meanwhile; it would have new" in terminal.read_until("[y/N]")
        assert path.read_text() == "changed meanwhile"
        terminal.type("y\n")
        terminal.process.communicate(timeout=WAIT_S)
        assert terminal.process.returncode == 0
    assert path.read_text() == "new"


def test_a_function_that_hangs_does_not_keep_the_command_from_ending(run_apart: Run) -> None:
    done = run_apart("call", "hang", *TOOLS)
    assert done.code == 1
    assert "may still be running" in done.out


def test_what_was_typed_before_the_question_is_no_answer(environ: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "file"
    call = ("put", "--arg", f"path={path}", "--arg", "content=new", "--confirm-timeout", "0.5")
    with at_terminal(*call, environ=environ) as terminal:
        terminal.type("y\ny\n")
        out, _ = terminal.process.communicate(timeout=WAIT_S)
        assert terminal.process.returncode == 3
        assert "nobody answered" in out.decode()
    assert not path.exists()


def test_nobody_answering_in_time_means_no(environ: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "file"
    call = ("put", "--arg", f"path={path}", "--arg", "content=new", "--confirm-timeout", "0.2")
    with at_terminal(*call, environ=environ) as terminal:
        out, _ = terminal.process.communicate(timeout=WAIT_S)
        assert terminal.process.returncode == 3
        assert "nobody answered within 0.2 s" in out.decode()
    assert not path.exists()


def test_a_long_paste_does_not_answer_the_question(environ: dict[str, str], tmp_path: Path) -> None:
    """A terminal hands it over piece by piece, so what is dropped once is not all of it."""
    path = tmp_path / "file"
    call = ("put", "--arg", f"path={path}", "--arg", "content=new")
    with at_terminal(*call, environ=environ) as terminal:

        def paste() -> None:
            for _ in range(200):
                with suppress(OSError):
                    terminal.type("y\n")
                time.sleep(0.02)

        pasting = threading.Thread(target=paste)
        pasting.start()
        try:
            shown = terminal.read_until("Do it? [y/N] ")
        finally:
            pasting.join(WAIT_S)
        assert "Traceback" not in shown
        terminal.type("n\n")
        terminal.process.communicate(timeout=WAIT_S)
        assert terminal.process.returncode == 3
    assert not path.exists()


def test_a_yes_among_pasted_lines_is_none(environ: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "file"
    call = ("put", "--arg", f"path={path}", "--arg", "content=new")
    with at_terminal(*call, environ=environ) as terminal:
        terminal.read_until("Do it? [y/N] ")
        terminal.type("y\nrm -rf notes\nmore of a pasted text\n")
        out, _ = terminal.process.communicate(timeout=WAIT_S)
        assert terminal.process.returncode == 3
        assert "as if pasted" in out.decode()
    assert not path.exists()


def test_of_two_questions_at_one_terminal_one_waits_for_the_other(tmp_path: Path) -> None:
    """Otherwise whoever reads first has a yes that was meant for the other one."""
    program = """
import anyio
from mcp_tools import ToolCall, ToolSystem, confirm_at_terminal

tools = ToolSystem(confirm=confirm_at_terminal)

@tools.register(requires_confirmation=True)
def act(what: str) -> str:
    "Act."
    print("RAN", what, flush=True)
    return what

async def run(what):
    await tools.execute_calls([ToolCall(id=what, name="act", arguments={"what": what})])

async def main():
    async with anyio.create_task_group() as group:
        group.start_soon(run, "one")
        group.start_soon(run, "two")

anyio.run(main)
print("END", flush=True)
"""
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    with at_a_terminal([sys.executable, "-c", program], env=environ, cwd=tmp_path) as terminal:
        first = terminal.read_until("Do it? [y/N] ")
        asked = [what for what in ("one", "two") if f'"{what}"' in first]
        assert len(asked) == 1, first
        terminal.type("n\n")
        second = terminal.read_until("Do it? [y/N] ")
        terminal.type("y\n")
        after = terminal.read_rest()
    (other,) = {"one", "two"} - set(asked)
    assert f'"{other}"' in second
    assert "RAN" not in first + second
    assert f"RAN {other}" in after
    assert "END" in after


def test_nothing_in_an_argument_can_move_the_cursor_or_hide(environ: dict[str, str], tmp_path: Path) -> None:
    """B-22: the attack works on a terminal that is given the bytes as they are."""
    spoof = "x\x1b[2J\x1b[H\u202egnp.exe\rDo it? [y/N] y"
    call = ("put", "--arg", f"path={tmp_path / 'file'}", "--arg", f"content={spoof}")
    with at_terminal(*call, environ=environ) as terminal:
        question = terminal.read_until("\nDo it? [y/N]")
        terminal.type("n\n")
        terminal.process.communicate(timeout=WAIT_S)
    assert "\\u001b[2J" in question
    assert "\\u202e" in question
    assert "\x1b" not in question
    assert "\u202e" not in question


def test_progress_is_shown_at_a_terminal(environ: dict[str, str]) -> None:
    with at_terminal("count_to", "--arg", "number=2", environ=environ) as terminal:
        out, _ = terminal.process.communicate(timeout=WAIT_S)
        assert out == b"local over cli\n"
        assert "[2/2] counting" in terminal.read_rest()


def test_a_project_in_the_current_folder_cannot_bring_its_own_tools(
    environ: dict[str, str], tmp_path: Path
) -> None:
    """Its metadata would make it an installed package, were the folder on Python's path."""
    (tmp_path / "evil.py").write_text("raise SystemExit('pwned')")
    metadata = tmp_path / "evil-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[mcp_tools.tools]\nevil = evil:tools\n")
    find = "import importlib.metadata as m; print(len(m.entry_points(group='mcp_tools.tools')))"
    options: dict[str, Any] = {"cwd": tmp_path, "env": environ, "capture_output": True, "timeout": WAIT_S}
    found = subprocess.run([sys.executable, "-c", find], **options)
    assert found.stdout == b"1\n"  # the attack works on a Python that looks there
    done = subprocess.run([sys.executable, "-m", "mcp_tools", "list"], **options)
    assert (done.returncode, b"pwned" in done.stderr) == (0, False)
