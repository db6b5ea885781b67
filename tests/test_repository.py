"""What is committed: nothing of the machine it was written on, no address to fetch from, no secret."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Put together here, so that this file does not match itself.
FORBIDDEN = {
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE" + r" KEY-----($|\\n[A-Za-z0-9+/]{20})",
    "an AWS key": r"\bAKI" + r"A[0-9A-Z]{16}\b",
    "a GitHub token": r"\bgh" + r"[pousr]_[A-Za-z0-9]{36}\b",
    "an Anthropic key": r"\bsk-" + r"ant-[A-Za-z0-9_-]{20,}",
    "an OpenAI key": r"\bsk-(proj-)?" + r"[A-Za-z0-9]{40,}\b",
    "a Slack token": r"\bxox" + r"[abprs]-[0-9A-Za-z-]{20,}",
    "a registry's host": r"pypi" + r"\.org|files\.pythonhosted|registry\.npm" + r"js",
    "a path of the machine it was written on": r"/work/" + r"(main|shared)\b|/root/" + r"\.[a-z]",
}

# What the tests of masking are made of; nobody ever had a key like these.
MADE_UP = ("abcdefghijklmnop", "IOSFODNN7" + "EXAMPLE")


def committed_files() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip("this is not a git checkout, so there is no list of what is committed")
    return [ROOT / name for name in done.stdout.split("\0") if name]


@pytest.mark.parametrize("what", FORBIDDEN)
def test_nothing_committed_holds(what: str) -> None:
    """S-09, and addresses: whoever installs us decides where packages come from."""
    pattern = re.compile(FORBIDDEN[what])
    found = []
    for path in committed_files():
        if not path.is_file():
            continue
        for number, line in enumerate(path.read_bytes().decode(errors="replace").splitlines(), start=1):
            if pattern.search(line) and not any(piece in line for piece in MADE_UP):
                found.append(f"{path.relative_to(ROOT)}:{number}")
    assert found == []


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("a private key", "-----BEGIN RSA PRIVATE" + " KEY-----"),
        ("an AWS key", "AKI" + "AIOSFODNN7EXAMPLE"),
        ("a GitHub token", "gh" + "p_" + "a1" * 18),
        ("an Anthropic key", "sk-" + "ant-api03-" + "x" * 30),
        ("an OpenAI key", "sk-" + "a" * 48),
        ("a Slack token", "xox" + "b-1234567890-abcdefghijkl"),
        ("a registry's host", "https://pypi" + ".org/simple"),
        ("a path of the machine it was written on", "cd /work/" + "main"),
    ],
)
def test_what_is_looked_for_would_be_found(what: str, line: str) -> None:
    assert re.search(FORBIDDEN[what], line)


def test_no_committed_file_is_large_or_made_by_a_machine() -> None:
    for path in committed_files():
        assert path.suffix not in (".pyc", ".whl", ".so", ".log"), path
        assert not path.is_file() or path.stat().st_size < 1024**2, path
