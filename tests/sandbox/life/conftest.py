from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from sandbox import PythonSandbox, SandboxBusy, SandboxConfig, SandboxResult, SandboxUnavailable
from tests.sandbox.life.family import eventually

Make = Callable[..., PythonSandbox]


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes sandboxes with small pools, and closes them. Nothing is started yet."""
    with ExitStack() as stack:

        def made(**settings: Any) -> PythonSandbox:
            settings = {"pool_size": 2, "max_concurrent_calls": 4, "max_sessions": 4, **settings}
            return stack.enter_context(PythonSandbox(SandboxConfig(**settings)))

        yield made


@pytest.fixture
def calls(make: Make, tmp_path: Path) -> Calls:
    return Calls(make, tmp_path)


@pytest.fixture
def box(make: Make) -> PythonSandbox:
    """A sandbox that runs."""
    return started(make())


def started(sandbox: PythonSandbox) -> PythonSandbox:
    def runs() -> bool:
        try:
            return sandbox.execute_sync("").success
        except SandboxBusy:
            return False  # of a test that does not let calls wait for long
        except SandboxUnavailable as reason:
            pytest.skip(f"needs a sandbox: {reason}")

    assert eventually(runs)
    return sandbox


class Calls:
    """Calls in threads, which say when their code runs by a file in the shared working folder."""

    def __init__(self, make: Make, folder: Path, **settings: Any) -> None:
        folder.chmod(0o777)
        self.folder = folder
        self.box = started(make(working_dir=str(folder), **settings))
        self._count = 0

    def begin(self, code: str = "time.sleep(20)", **more: Any) -> Future[SandboxResult]:
        """Start a call; returns when its code runs."""
        self._count += 1
        sign = f"begun-{self._count}"
        code = f"import time\nprint('begun')\nopen('/work/{sign}', 'w').close()\n{code}"
        future: Future[SandboxResult] = Future()

        def work() -> None:
            try:
                future.set_result(self.box.execute_sync(code, **more))
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=work, daemon=True).start()
        assert eventually(lambda: (self.folder / sign).exists() or future.done())
        return future
