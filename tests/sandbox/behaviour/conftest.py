from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from sandbox import PythonSandbox, SandboxResult
from tests.sandbox.levels import Boxes
from tests.sandbox.places import Elsewhere

Run = Callable[..., SandboxResult]


@pytest.fixture(scope="module")
def boxes(elsewhere: Elsewhere) -> Iterator[Boxes]:
    """Sandboxes by configuration and place; starting one takes a tenth of a second, so a module shares."""
    with Boxes(elsewhere) as made:
        yield made


@pytest.fixture(scope="module")
def box(boxes: Boxes) -> PythonSandbox:
    return boxes.here(timeout_seconds=10.0)


@pytest.fixture(scope="module")
def run(box: PythonSandbox) -> Run:
    """Run code in a fresh interpreter, at the best level of this machine."""
    return box.execute_sync
