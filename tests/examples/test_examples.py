"""The examples run: each as a person would start it, against a model's server on loopback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from mcp_tools.observe.audit import verify
from tests.agent.anthropic_server import KEY, AnthropicServer, asks, says, use
from tests.terminal import at_a_terminal

ROOT = Path(__file__).resolve().parents[2]


def environ(server: AnthropicServer, folder: Path) -> dict[str, str]:
    home = folder / "home"
    home.mkdir(exist_ok=True)
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "PYTHONPATH": str(ROOT),
        "ANTHROPIC_BASE_URL": server.url,
        "ANTHROPIC_API_KEY": KEY,
    }


def command(name: str, *arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "examples" / name), *arguments]


def run(
    name: str, server: AnthropicServer, folder: Path, *arguments: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(name, *arguments),
        stdin=subprocess.DEVNULL,
        env=environ(server, folder),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_own_tools(tmp_path: Path) -> None:
    items = [use(f"c{number}", "price_eur", {"item": item}) for number, item in enumerate(("train", "night"))]
    script = [asks(*items), asks(use("sum", "add", {"numbers": [99, 240, 12]})), says("351 euros.")]
    with AnthropicServer(script) as server:
        done = run("own_tools.py", server, tmp_path)
    assert done.stdout == "351 euros.\n", done.stderr
    sent = server.requests[1]["messages"][-1]["content"]
    assert [block["content"] for block in sent] == ["49.5", "80.0"]
    assert server.requests[2]["messages"][-1]["content"][0]["content"] == "351.0"
    lines = (ROOT / "examples/own_tools.py").read_text().splitlines()
    assert len([line for line in lines if line.strip()]) <= 20


def test_what_went_wrong_is_said(tmp_path: Path) -> None:
    (tmp_path / "sales.csv").write_text("month,sold\n")
    with AnthropicServer([]) as server:
        for name, *arguments in (
            ("own_tools.py",),
            ("data_analysis.py", str(tmp_path / "sales.csv"), "Which?", str(tmp_path / "plots")),
            ("file_agent.py", str(tmp_path), "Sort."),
        ):
            done = run(name, server, tmp_path, *arguments)
            assert "the script is over" in done.stdout + done.stderr
            assert "Traceback" not in done.stderr


def test_data_analysis_keeps_the_plots(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "sales.csv").write_text("month,sold\nMay,3\nJune,5\n")
    code = (
        "import csv\nimport matplotlib.pyplot as plt\n"
        "rows = list(csv.DictReader(open('/data/sales.csv')))\n"
        "plt.bar([r['month'] for r in rows], [int(r['sold']) for r in rows])\n"
        "max(rows, key=lambda r: int(r['sold']))['month']"
    )
    script = [asks(use("c1", "execute_python", {"code": code})), says("June.")]
    with AnthropicServer(script) as server:
        arguments = (str(tmp_path / "data" / "sales.csv"), "Which month?", str(tmp_path / "plots"))
        done = run("data_analysis.py", server, tmp_path, *arguments)
    assert done.stdout == "June.\n", done.stderr
    assert "June" in str(server.requests[1]["messages"][-1])
    (plot,) = (tmp_path / "plots").iterdir()
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_the_file_agent_asks_obeys_its_rules_and_records(tmp_path: Path) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "a.txt").write_text("about ants")
    (folder / "b.secret").write_text("not for models")
    script = [
        asks(
            use("c1", "read_file", {"path": "a.txt"}),
            use("c2", "read_file", {"path": "b.secret"}),
            use("c5", "read_text_file", {"path": "b.secret"}),
            use("c6", "read_multiple_files", {"paths": ["a.txt", "b.secret"]}),
            use("c7", "grep_files", {"pattern": "models"}),
        ),
        asks(
            use("c3", "write_file", {"path": "index.txt", "content": "a: ants"}),
            use("c4", "write_file", {"path": "extra.txt", "content": "x"}),
        ),
        says("Sorted."),
    ]
    with AnthropicServer(script) as server:
        argv = command("file_agent.py", str(folder), "Sort.")
        with at_a_terminal(argv, env=environ(server, tmp_path)) as terminal:
            assert "index.txt" in terminal.read_until("Do it? [y/N] ")
            terminal.type("y\n")
            assert "extra.txt" in terminal.read_until("Do it? [y/N] ")
            terminal.type("n\n")
            assert "Sorted." in terminal.read_rest()
    assert terminal.process.returncode == 0
    read, denied, *others = server.requests[1]["messages"][-1]["content"]
    assert (read["content"], denied["is_error"]) == ("about ants", True)
    assert "not for models" not in str(others)
    assert sorted(path.name for path in folder.iterdir()) == ["a.txt", "b.secret", "index.txt"]
    assert verify(tmp_path / "agent-audit" / "audit.jsonl").is_whole
