"""A folder for logs that passes their checks: the system's own for temporary files belongs to everybody."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.observe.audit.processes import running


@pytest.fixture(autouse=True)
def _no_recorder_is_left() -> Iterator[None]:
    yield
    for recorder in tuple(running):
        recorder.kill()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "kept"
    folder.mkdir(mode=0o700)
    assert not tmp_path.stat().st_mode & 0o022 or os.geteuid() != tmp_path.stat().st_uid, (
        tempfile.gettempdir()
    )
    yield folder


@pytest.fixture
def path(place: Path) -> str:
    return str(place / "audit.jsonl")


@pytest.fixture
def records(path: str) -> Callable[[], list[dict[str, Any]]]:
    """All records of the file that is written."""
    return lambda: [json.loads(line) for line in Path(path).read_bytes().splitlines()]
