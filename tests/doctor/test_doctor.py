"""The command as people and programs run it: what it prints, how it exits, what it never shows."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doctor.conftest import ROOT, Doctor

STATES = {"ok", "warning", "problem", "unknown"}
CHECKS = {
    "isolation": {"backend", "embedded", "kernel", "bubblewrap"},
    "docker": {"docker"},
    "settings": {"settings"},
    "folders": {"roots"},
    "clients": {"clients"},
    "http": {"listener"},
    "audit": {"audit"},
    "limits": {"limits"},
    "web": {"search"},
    "versions": {"python", "dependencies"},
}


def test_the_json_has_this_shape(doctor: Doctor, tmp_path: Path) -> None:
    """Programs read it: whoever changes this raises `schema`."""
    said = doctor("--root", str(tmp_path))
    assert said.err == ""
    data = said.data
    assert list(data) == ["schema", "version", "platform", "holds", "minimum_level", "counts", "findings"]
    assert data["schema"] == 1
    assert data["minimum_level"] == "L2"
    assert set(data["counts"]) == STATES
    assert sum(data["counts"].values()) == len(data["findings"])
    for finding in data["findings"]:
        assert list(finding) == ["topic", "check", "name", "state", "found", "remedy", "required"]
        assert finding["state"] in STATES
        assert finding["found"]
        assert all(isinstance(finding[key], str) for key in ("name", "found", "remedy"))
    checks: dict[str, set[str]] = {}
    for finding in data["findings"]:
        checks.setdefault(finding["topic"], set()).add(finding["check"])
    assert checks == CHECKS
    assert said.code == (0 if data["holds"] else 1)


def test_it_says_what_execute_python_would_run_in(doctor: Doctor) -> None:
    said = doctor("--python-backend", "linux")
    finding = said.one("backend")
    assert finding["state"] == "ok", finding
    assert "the embedded sandbox at L" in finding["found"]
    assert said.code == 0
    assert "ms for its walls" in said.one("embedded", "embedded sandbox")["found"]


def test_people_get_topics_and_remedies(no_python: Doctor) -> None:
    said = no_python(as_json=False)
    assert said.code == 0
    lines = said.out.splitlines()
    for title in ("Isolation", "Docker", "Settings", "Folders", "Clients", "HTTP", "Audit", "Versions"):
        assert title in lines
    assert "        -> Allow one with --root DIR (repeatable), MCP_TOOLS_ROOTS, or roots = [...]." in lines
    assert "What is configured holds here." in lines[-1]
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize(
    "arguments",
    [
        ("--port", "eighty"),
        ("--no-such-flag",),
        ("--config", "missing.toml"),
        ("--python-minimum-level", "L9"),
    ],
)
def test_a_wrong_flag_is_a_mistake_in_asking(arguments: tuple[str, ...], doctor: Doctor) -> None:
    said = doctor(*arguments)
    assert said.code == 2
    assert said.out == ""
    assert arguments[0] in said.err


def test_no_secret_is_shown(doctor: Doctor, environ: dict[str, str], tmp_path: Path) -> None:
    secret = "hunter2hunter2hunter2"
    (tmp_path / "tokens").write_text(f"alice:{secret}-file\n")
    (tmp_path / "tokens").chmod(0o600)
    settings = Path(environ["HOME"]) / ".config/mcp_tools/mcp_tools.toml"
    settings.parent.mkdir(parents=True)
    settings.write_text(f'token_file = "{tmp_path}/tokens"\ntokn = "{secret}-misspelt"\n')
    client = Path(environ["HOME"]) / ".config/Claude/claude_desktop_config.json"
    client.parent.mkdir(parents=True)
    client.write_text(
        '{"mcpServers": {"mcp-tools": {"command": "/nowhere/mcp-tools", "args": ["serve", "--token", '
        f'"{secret}-args"], "env": {{"API_KEY": "{secret}-env"}}}}, '
        f'"b": {{"url": "https://user:{secret}@host/?key={secret}"}}}}}}'
    )
    for as_json in (True, False):
        said = doctor(
            "--no-python",
            "--transport",
            "http",
            "--port",
            "0",
            as_json=as_json,
            env={"MCP_TOOLS_TOKEN": f"{secret}-variable", "DOCKER_HOST": f"tcp://user:{secret}@127.0.0.1:9"},
        )
        assert "tokn" in said.out
        assert "hunter2" not in said.out + said.err


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that everybody can read; `tmp_path` lies in one that each starting pytest closes to others."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


def test_an_ordinary_user_gets_an_answer(environ: dict[str, str], public: Path) -> None:
    """With the system's Python, since others cannot read one that lies in root's home."""
    python = "/usr/bin/python3.11"
    is_same = sys.version_info[:2] == (3, 11)  # what is copied was built for this one
    if os.geteuid() != 0 or not is_same or not os.path.exists(python) or not shutil.which("setpriv"):
        pytest.skip("needs root, setpriv and a system Python 3.11")
    home = public / "home"
    for name in ("mcp_tools", "sandbox"):
        shutil.copytree(ROOT / name, public / "lib" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in _libraries():
        source = Path(name)
        target = public / "lib" / source.name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    notes = home / "notes"
    notes.mkdir(parents=True)
    for folder in (home, notes):
        os.chown(folder, 65534, 65534)
    argv = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "--inh-caps=-all",
        "--bounding-set=-all",
    ]
    done = subprocess.run(
        [*argv, python, "-m", "mcp_tools", "doctor", "--root", str(notes)],
        env=environ | {"HOME": str(home), "PYTHONPATH": str(public / "lib")},
        cwd=home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "runs in the embedded sandbox at L" in done.stdout
    assert "cannot be looked at" not in done.stdout
    assert done.stderr == ""


def _libraries() -> list[str]:
    """What the command loads from site-packages."""
    probe = (
        "import sys, os\n"
        "from mcp_tools.cli.main import main\n"
        "main(['doctor', '--json'])\n"
        "import docker.context, docker.utils\n"
        "names = {name.partition('.')[0] for name in sys.modules}\n"
        "found = {getattr(sys.modules.get(name), '__file__', None) for name in names}\n"
        "sys.stderr.write('\\n'.join(sorted(f for f in found if f and 'site-packages' in f)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, timeout=60, check=True, cwd=ROOT
    )
    paths = done.stderr.splitlines()
    return [os.path.dirname(path) if path.endswith("__init__.py") else path for path in paths]


def test_serving_loads_nothing_of_it(environ: dict[str, str]) -> None:
    """The start of `serve` is measured in milliseconds, and none of them is the doctor's."""
    probe = (
        "import sys\n"
        "from mcp_tools.cli import main, serve\n"
        "from mcp_tools.server.entry import load\n"
        "load('stdio')\n"
        "print([name for name in sys.modules if 'doctor' in name or name == 'mcp_tools.config.sources'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        cwd=ROOT,
        env=environ,
    )
    assert done.stdout.strip() == "[]"


def test_without_a_home_and_in_a_folder_that_is_gone_it_answers(environ: dict[str, str]) -> None:
    argv = ["sh", "-c", 'cd "$(mktemp -d)" && rmdir "$PWD" && exec "$@"', "sh"]
    done = subprocess.run(
        [*argv, sys.executable, "-m", "mcp_tools", "doctor", "--no-python"],
        env={"PATH": environ["PATH"], "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "holds here" in done.stdout
