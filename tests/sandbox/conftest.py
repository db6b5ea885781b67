from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sandbox.places import Elsewhere, copied_to


@pytest.fixture(scope="session")
def elsewhere() -> Iterator[Elsewhere]:
    """The package where every user can read it; not in pytest's folder, which is closed to others."""
    folder = Path(tempfile.mkdtemp(prefix="selfcheck-package-"))
    yield copied_to(folder)
    shutil.rmtree(folder)
