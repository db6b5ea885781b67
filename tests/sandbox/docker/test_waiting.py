"""Calls that wait for containers, and what is left of that when they do not wait any more."""

from __future__ import annotations

import threading
import time

import anyio
import pytest

from sandbox import DockerSandbox, SandboxBusy, SandboxConfig
from tests.docker_engine import Engine
from tests.sandbox.docker.test_life import until


async def test_what_was_started_for_cancelled_calls_is_let_go(
    docker_engine: Engine, docker_image: str
) -> None:
    config = SandboxConfig(pool_size=1, max_concurrent_calls=6)
    async with DockerSandbox(docker_image, config, engine=docker_engine.address) as sandbox:
        assert (await sandbox.execute("1")).success
        supply = sandbox._supply
        async with anyio.create_task_group() as tasks:
            for _ in range(6):
                tasks.start_soon(sandbox.execute, "import time; time.sleep(60)")
            assert await anyio.to_thread.run_sync(lambda: until(lambda: supply._waiting >= 4, 10))
            tasks.cancel_scope.cancel()

        def is_settled() -> bool:
            with supply.changed:
                return not supply._starting and not supply._waiting

        def settled_idle() -> int:
            assert until(is_settled, 30)
            return len(supply._idle)

        assert await anyio.to_thread.run_sync(settled_idle) == 1
        assert await anyio.to_thread.run_sync(
            lambda: until(lambda: sum(each.link.is_open() for each in tuple(supply._links.values())) <= 1, 5)
        )
        assert (await sandbox.execute("1")).success


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Agents that are there say nothing of the process for the next call, from when this is set."""
    from sandbox.docker.container import Link

    is_quiet = threading.Event()
    there: set[Link] = set()
    receive = Link.receive

    def hear_nothing(self: Link, until_s: float) -> object:
        frame = receive(self, until_s)
        if not is_quiet.is_set():
            there.add(self)
        elif self in there and frame is not None and "ready" in frame[0]:
            time.sleep(max(0.0, until_s - time.monotonic()))
            return None
        return frame

    monkeypatch.setattr(Link, "receive", hear_nothing)
    return is_quiet


async def test_a_call_that_waits_for_its_session_can_be_cancelled(
    docker_engine: Engine, docker_image: str, quiet: threading.Event
) -> None:
    async with DockerSandbox(
        docker_image, SandboxConfig(pool_size=1), engine=docker_engine.address
    ) as sandbox:
        assert (await sandbox.execute("x = 1", session="s")).success
        quiet.set()
        began_s = time.monotonic()
        with anyio.move_on_after(0.3) as scope:
            await sandbox.execute("x", session="s")
        assert scope.cancelled_caught
        assert time.monotonic() - began_s < 1.5


def test_a_call_waits_for_its_session_no_longer_than_in_the_queue(
    docker_engine: Engine, docker_image: str, quiet: threading.Event
) -> None:
    config = SandboxConfig(pool_size=1, queue_seconds=5)
    with DockerSandbox(docker_image, config, engine=docker_engine.address) as sandbox:
        assert sandbox.execute_sync("x = 41", session="s").success
        session = sandbox._sessions._sessions["", "s"]
        quiet.set()
        object.__setattr__(sandbox.config, "queue_seconds", 0.5)
        began_s = time.monotonic()
        with pytest.raises(SandboxBusy, match="is not ready"):
            sandbox.execute_sync("x", session="s")
        assert time.monotonic() - began_s < 2
        assert not session.is_over


def test_a_session_that_stays_silent_is_made_anew(
    docker_engine: Engine, docker_image: str, quiet: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sandbox.docker import sessions

    monkeypatch.setattr(sessions, "_READY_S", 0.3)
    with DockerSandbox(docker_image, SandboxConfig(pool_size=1), engine=docker_engine.address) as sandbox:
        assert sandbox.execute_sync("x = 1", session="s").session_started
        quiet.set()
        assert sandbox.execute_sync("1", session="s").session_started
