"""CI's `--no-skips`: a run in which something was skipped for a reason nobody listed has failed."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ALLOWED = tomllib.loads((ROOT / "tests/allowed_skips.toml").read_text())["skip"]


def run_tests(folder: Path, source: str, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_it.py").write_text(f"import pytest\n{source}\ndef test_good(): pass\n")
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "-p", "no:cacheprovider", *options]
    return subprocess.run(
        [*argv, "--rootdir", str(folder), "-c", "/dev/null", str(folder / "test_it.py")],
        cwd=ROOT,
        env={"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


SKIPS = {
    "inside": "def test_it(): pytest.skip('needs the moon')",
    "by mark": "@pytest.mark.skipif(True, reason='needs the moon')\ndef test_it(): pass",
    "module": "pytest.skip('needs the moon', allow_module_level=True)",
}


@pytest.mark.parametrize("source", SKIPS.values(), ids=SKIPS)
def test_a_skip_that_is_not_listed_fails_the_run_and_is_named(source: str, tmp_path: Path) -> None:
    assert run_tests(tmp_path, source).returncode in (0, 5)  # without the option it goes through
    done = run_tests(tmp_path, source, "--no-skips")
    assert done.returncode == 1
    assert "needs the moon" in done.stdout
    assert "--no-skips forbids it" in done.stdout


def test_a_listed_skip_and_a_run_without_skips_pass(tmp_path: Path) -> None:
    reason = next(entry["reason"] for entry in ALLOWED if not any(key.startswith("unless") for key in entry))
    assert run_tests(tmp_path, f"def test_it(): pytest.skip({reason!r})", "--no-skips").returncode == 0
    assert run_tests(tmp_path, "", "--no-skips").returncode == 0


def test_every_listed_skip_says_why_and_is_one_that_a_test_gives() -> None:
    sources = [
        path.read_text() for path in (ROOT / "tests").rglob("*.py") if "node_modules" not in path.parts
    ]
    for entry in ALLOWED:
        assert entry["why"]
        assert any(entry["reason"] in source for source in sources), f"no test skips with {entry['reason']!r}"
