"""`mcp-tools chat`: with a real model's wire on loopback, in a pipe and at a real terminal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.agent.anthropic_server import KEY, AnthropicServer, Failure, asks, says, use
from tests.terminal import at_a_terminal

ROOT = Path(__file__).resolve().parents[2]
EVIL = "fine\x1b[2J\x1b]0;owned\x07"


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "mcp_tools", "chat", "--no-python", "--no-web", "--no-audit", *arguments]


def environ(home: Path, **more: str) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "PYTHONPATH": str(ROOT),
        "MCP_TOOLS_LIMITS_STORE": "memory://",
        **more,
    }


def run(home: Path, *arguments: str, stdin: str = "", **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        input=stdin,
        env=environ(home, **more),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_one_prompt_is_answered_on_stdout_and_everything_else_is_said_on_stderr(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("42")
    script = [asks(use("c1", "read_file", {"path": "note.txt"}), said="I look."), says("It says 42.")]
    with AnthropicServer(script) as server:
        flags = ("--root", str(tmp_path), "--base-url", server.url)
        done = run(tmp_path, *flags, stdin="What does the note say?", ANTHROPIC_API_KEY=KEY)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "It says 42.\n"
    assert "read_file" in done.stderr
    assert "tokens" in done.stderr
    result = server.requests[1]["messages"][-1]["content"][0]
    assert (result["type"], result["content"]) == ("tool_result", "42")
    assert server.refused == []


def test_without_a_terminal_nothing_changes_and_the_model_is_told_why(tmp_path: Path) -> None:
    script = [asks(use("c1", "write_file", {"path": "new.txt", "content": "x"})), says("I could not.")]
    with AnthropicServer(script) as server:
        flags = ("--root", str(tmp_path), "--base-url", server.url, "Write it.")
        done = run(tmp_path, *flags, ANTHROPIC_API_KEY=KEY)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "new.txt").exists()
    assert server.requests[1]["messages"][-1]["content"][0]["is_error"]


def test_limits_end_it_with_a_reason(tmp_path: Path) -> None:
    script = [asks(use("c1", "list_allowed_directories"))]
    with AnthropicServer(script) as server:
        flags = ("--base-url", server.url, "--max-steps", "1", "Go on.")
        done = run(tmp_path, *flags, ANTHROPIC_API_KEY=KEY)
    assert done.returncode == 1
    assert "the run was stopped after 1 turn, the limit of its steps" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(("provider", "key"), [("anthropic", "ANTHROPIC"), ("openai", "OPENAI")])
def test_a_missing_key_is_said_by_its_name(tmp_path: Path, provider: str, key: str) -> None:
    done = run(tmp_path, "--provider", provider, "Hello")
    assert done.returncode == 2
    assert f"set {key}_API_KEY" in done.stderr


def test_a_person_is_asked_sees_what_happens_and_no_text_controls_the_terminal(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    script = [
        asks(use("c1", "write_file", {"path": "yes.txt", "content": "x"}), said=EVIL),
        says("Written."),
        asks(use("c2", "write_file", {"path": "no.txt", "content": "x"})),
        says("Then not."),
    ]
    with AnthropicServer(script) as server:
        argv = command("--root", str(folder), "--base-url", server.url)
        with at_a_terminal(argv, env=environ(tmp_path, ANTHROPIC_API_KEY=KEY), cwd=ROOT) as terminal:
            terminal.read_until("\n> ")
            terminal.type("Write yes.\n")
            shown = terminal.read_until("Do it? [y/N] ")
            assert "\x1b" not in shown
            assert "fine" in shown
            terminal.type("y\n")
            assert "Written." in terminal.read_until("\n> ")
            terminal.type("Write no.\n")
            terminal.read_until("Do it? [y/N] ")
            terminal.type("n\n")
            assert "Then not." in terminal.read_until("\n> ")
            terminal.type(f"/save {tmp_path}/history.json\n")
            assert "saved" in terminal.read_until("\n> ")
            terminal.type("/tools\n")
            assert "write_file" in terminal.read_until("\n> ")
            terminal.type("/quit\n")
            assert "tokens" in terminal.read_rest()
    assert [path.name for path in folder.iterdir()] == ["yes.txt"]
    assert len(json.loads((tmp_path / "history.json").read_text())) == 8
    assert terminal.process.returncode == 0


def test_ctrl_c_withdraws_what_runs_and_the_chat_goes_on(tmp_path: Path) -> None:
    script = [
        asks(use("c1", "write_file", {"path": "never.txt", "content": "x"})),
        says("Hello again."),
    ]
    with AnthropicServer(script) as server:
        argv = command("--root", str(tmp_path), "--base-url", server.url)
        with at_a_terminal(argv, env=environ(tmp_path, ANTHROPIC_API_KEY=KEY), cwd=ROOT) as terminal:
            terminal.read_until("\n> ")
            terminal.type("Write it.\n")
            terminal.read_until("Do it? [y/N] ")
            terminal.process.send_signal(2)
            assert "withdrawn" in terminal.read_until("\n> ")
            terminal.type("Hello?\n")
            assert "Hello again." in terminal.read_until("\n> ")
            terminal.type("\x04")
            terminal.read_rest()
    assert not (tmp_path / "never.txt").exists()
    assert server.refused == []
    *_, asked, answered, again = server.requests[-1]["messages"]
    assert asked["content"][0]["type"] == "tool_use"
    # The model is told, or it would go on as if it had never asked.
    assert "interrupted" in answered["content"][0]["content"]
    assert answered["content"][0]["is_error"]
    assert again["content"] == "Hello?"


def test_after_ctrl_c_at_a_question_every_line_goes_where_it_was_typed(tmp_path: Path) -> None:
    def write(number: int) -> Any:
        return asks(use(f"c{number}", "write_file", {"path": f"{number}.txt", "content": "x"}))

    with AnthropicServer([write(1), says("First."), write(2), says("Second.")]) as server:
        argv = command("--root", str(tmp_path), "--base-url", server.url)
        with at_a_terminal(argv, env=environ(tmp_path, ANTHROPIC_API_KEY=KEY), cwd=ROOT) as terminal:
            terminal.read_until("\n> ")
            terminal.type("Write.\n")
            terminal.read_until("Do it? [y/N] ")
            terminal.process.send_signal(2)
            terminal.read_until("\n> ")
            terminal.type("Hello?\n")
            assert "First." in terminal.read_until("\n> ")
            terminal.type("Write now.\n")
            terminal.read_until("Do it? [y/N] ")
            terminal.type("y\n")
            assert "Second." in terminal.read_until("\n> ")
            terminal.type("/quit\n")
            assert "tokens" in terminal.read_rest()
    assert [path.name for path in tmp_path.glob("*.txt")] == ["2.txt"]


def test_what_a_provider_says_of_an_error_does_not_control_the_terminal(tmp_path: Path) -> None:
    with AnthropicServer([Failure(status=400, kind="invalid_request_error", message=EVIL)]) as server:
        argv = command("--base-url", server.url)
        with at_a_terminal(argv, env=environ(tmp_path, ANTHROPIC_API_KEY=KEY), cwd=ROOT) as terminal:
            terminal.read_until("\n> ")
            terminal.type("Hello\n")
            shown = terminal.read_until("\n> ")
            terminal.type("/quit\n")
            terminal.read_rest()
    assert "fine" in shown
    assert "\x1b" not in shown


def test_nothing_to_answer_is_a_wrong_use(tmp_path: Path) -> None:
    done = run(tmp_path, ANTHROPIC_API_KEY=KEY)
    assert done.returncode == 2
    assert "no prompt" in done.stderr


def test_a_prompt_that_is_no_text_and_a_limit_that_is_no_number_are_wrong_uses(tmp_path: Path) -> None:
    done = subprocess.run(
        command(),
        input=b"\xff\xfe\x00",
        env=environ(tmp_path, ANTHROPIC_API_KEY=KEY, PYTHONUTF8="1"),
        cwd=ROOT,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"no UTF-8 text" in done.stderr
    wrong = run(tmp_path, "--max-steps", "x", "Go on.")
    assert wrong.returncode == 2
    assert "a whole number over 0, not 'x'" in wrong.stderr


def test_a_prompt_that_is_refused_is_forgotten_and_a_failed_one_can_be(tmp_path: Path) -> None:
    too_long = Failure(status=400, kind="invalid_request_error", message="prompt is too long")
    script = [
        too_long,
        says("Short."),
        asks(use("c1", "list_allowed_directories")),
        too_long,
        says("Undone."),
    ]
    with AnthropicServer(script) as server:
        argv = command("--base-url", server.url)
        with at_a_terminal(argv, env=environ(tmp_path, ANTHROPIC_API_KEY=KEY), cwd=ROOT) as terminal:
            terminal.read_until("\n> ")
            for prompt, said in (("long", "too long"), ("short", "Short."), ("tool", "/undo forgets")):
                terminal.type(f"{prompt}\n")
                assert said in terminal.read_until("\n> ")
            terminal.type("/undo\n")
            assert "forgotten" in terminal.read_until("\n> ")
            terminal.send(b"caf\xe9?\n")
            assert "Undone." in terminal.read_until("\n> ")
            terminal.type("/quit\n")
            terminal.read_rest()
    prompts = [
        [message["content"] for message in request["messages"] if message["role"] == "user"]
        for request in server.requests
    ]
    assert prompts[1] == ["short"]
    assert prompts[-1] == ["short", "caf??"]


def test_what_the_sdk_waits_for_is_said(tmp_path: Path) -> None:
    script = [Failure(status=529, kind="overloaded_error", headers={"retry-after": "1"}), says("Here.")]
    with AnthropicServer(script) as server:
        done = run(tmp_path, "--base-url", server.url, "Hello", ANTHROPIC_API_KEY=KEY)
    assert (done.returncode, done.stdout) == (0, "Here.\n")
    assert "the provider answers 529, and asks to wait for 1 s" in done.stderr


@pytest.mark.parametrize("url", ["foo", "file:///etc", "http://[::1", "http://x\ny/", "http://:1"])
@pytest.mark.parametrize("provider", ["anthropic", "openai"])
def test_a_base_url_that_is_none_is_a_wrong_use(tmp_path: Path, url: str, provider: str) -> None:
    keys = {"ANTHROPIC_API_KEY": KEY, "OPENAI_API_KEY": KEY}
    done = run(tmp_path, "--provider", provider, "--base-url", url, "Hello", **keys)
    assert done.returncode == 2
    assert "--base-url must be" in done.stderr


def test_a_pasted_text_is_one_prompt(tmp_path: Path) -> None:
    with AnthropicServer([says("Read."), says("Never.")]) as server:
        argv = command("--base-url", server.url)
        with at_a_terminal(argv, env=environ(tmp_path, ANTHROPIC_API_KEY=KEY), cwd=ROOT) as terminal:
            terminal.read_until("\n> ")
            terminal.type("one\ntwo\n\n/quit\nthree\n")
            assert "Read." in terminal.read_until("\n> ")
            terminal.type("/quit\n")
            terminal.read_rest()
    (request,) = server.requests
    assert request["messages"] == [{"role": "user", "content": "one\ntwo\n\n/quit\nthree"}]


def test_what_a_model_calls_forges_no_line_and_nothing_comes_below_a_question(
    tmp_path: Path,
) -> None:
    forged = "read_file success in 2 ms\n\nmcp-tools chat asks: may it read?\nDo it? [y/N] "
    (tmp_path / "note.txt").write_text("42")
    script = [
        asks(
            use("c1", "write_file", {"path": "new.txt", "content": "x"}),
            use("c2", forged),
            *(use(f"r{number}", "read_file", {"path": "note.txt"}) for number in range(30)),
        ),
        says("Done."),
    ]
    with AnthropicServer(script) as server:
        argv = command("--root", str(tmp_path), "--base-url", server.url)
        with at_a_terminal(argv, env=environ(tmp_path, ANTHROPIC_API_KEY=KEY), cwd=ROOT) as terminal:
            terminal.read_until("\n> ")
            terminal.type("Go.\n")
            shown = terminal.read_until("\nDo it? [y/N] ")
            terminal.type("n\n")
            after = terminal.read_until("Done.")
            terminal.type("/quit\n")
            terminal.read_rest()
    assert shown.replace("\r", "").count("\nDo it? [y/N] ") == 1
    assert (shown + after).count("read_file success in") >= 30
    assert not (tmp_path / "new.txt").exists()
