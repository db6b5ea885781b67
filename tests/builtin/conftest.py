"""The file tools over a scratch folder, opened the usual way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.file_tools import FileTools, open_tools


@pytest.fixture
def files(tmp_path: Path) -> Iterator[FileTools]:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    tools = open_tools(root, outside)
    with tools.workspace:
        yield tools
