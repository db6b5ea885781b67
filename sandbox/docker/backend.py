"""`DockerSandbox`: the backend that runs code in containers, as a caller sees it."""

from __future__ import annotations

import functools
import os
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Self

from sandbox.docker import frames
from sandbox.docker.call import Call, NotSent
from sandbox.docker.plan import close, plan
from sandbox.docker.pool import Supply
from sandbox.docker.sessions import Session, Sessions
from sandbox.docker.withdrawal import Cancelled, Withdrawal
from sandbox.errors import Missing, SandboxClosed, SandboxConfigError, SandboxDied, SandboxError
from sandbox.request import Request, checked
from sandbox.types import EndedBy, IsolationLevel, SandboxConfig, SandboxResult

if TYPE_CHECKING:
    from sandbox.docker.container import Container

_PULL = ("never", "missing")
_TRIES = 3  # with containers that turn out to be gone


class DockerSandbox:
    """Full CPython in containers of Docker or Podman, a fresh one for every call; see `sandbox.Sandbox`.

    Making one starts nothing; the first call does. Safe to use from several threads and event loops at once.
    Its containers end with this process, however that ends.

    Args:
        image: With `python3`, 3.11 or newer, in its PATH. A name with a digest is that image and no other.
        config: `None` for the defaults. Its `packages` come with the image instead.
        runtime: What containers run under, such as `"runsc"`; `None` for the engine's default.
        engine: A URL as in DOCKER_HOST, or the name of a docker context. `None`: DOCKER_HOST, else the
            current context, else the usual sockets of Docker and Podman.
        pull: `"never"`, or `"missing"` to let the first call pull an image that the engine does not have.
        on_progress: Called with a line for each step of a pull, from another thread.

    Raises:
        SandboxConfigError: It names packages, a folder that does not exist, or no way to pull.
    """

    def __init__(
        self,
        image: str = "python:3.11-slim",
        config: SandboxConfig | None = None,
        *,
        runtime: str | None = None,
        engine: str | None = None,
        pull: str = "never",
        on_progress: Callable[[str], None] | None = None,
    ) -> None:
        if pull not in _PULL:
            raise SandboxConfigError("pull", f"must be never or missing, not {pull!r}")
        if not isinstance(image, str) or not image:
            raise SandboxConfigError("image", f"must be the name of an image, not {image!r}")
        self.image = image
        self.config = config or SandboxConfig()
        self._runtime = runtime
        self._plan = plan(self.config)
        self._make_supply = functools.partial(Supply, self._plan, image, runtime, engine, pull, on_progress)
        self._begin()
        _sandboxes.add(self)

    def _begin(self) -> None:
        self._supply = supply = self._make_supply()
        self._sessions = Sessions(supply, self.config.max_sessions, self.config.session_idle_seconds)
        supply.each_second = self._sessions.sweep
        self._running: dict[str, int] = {}  # calls of each tenant, guarded by the supply's lock

    @property
    def runtime(self) -> str | None:
        """What containers run under: what was asked for, or the engine's default once that is known."""
        return self._supply.facts.runtime if self._supply.facts is not None else self._runtime

    @property
    def level(self) -> IsolationLevel | None:
        """The level that calls run at; `None` before the first one."""
        return self._supply.facts.level if self._supply.facts is not None else None

    @property
    def missing(self) -> tuple[Missing, ...]:
        """Why the level is not higher; empty before the first call."""
        return self._supply.facts.missing if self._supply.facts is not None else ()

    def execute_sync(
        self,
        code: str,
        *,
        session: str | None = None,
        files: Mapping[str, bytes | str] | None = None,
        timeout_seconds: float | None = None,
        tenant: str = "",
    ) -> SandboxResult:
        asked = checked(self.config, code, session, files, timeout_seconds, tenant)
        return self._work(Withdrawal(), asked, session, tenant)

    async def execute(
        self,
        code: str,
        *,
        session: str | None = None,
        files: Mapping[str, bytes | str] | None = None,
        timeout_seconds: float | None = None,
        tenant: str = "",
    ) -> SandboxResult:
        import anyio

        asked = checked(self.config, code, session, files, timeout_seconds, tenant)
        withdrawal, done = Withdrawal(), anyio.Event()
        results: list[SandboxResult] = []
        failures: list[SandboxError] = []

        def work() -> None:
            try:
                results.append(self._work(withdrawal, asked, session, tenant))
            except SandboxError as error:
                failures.append(error)
            except Cancelled:
                pass  # the cancellation itself goes on in the caller

        async def in_thread() -> None:
            # Not one of the shared threads, which many waiting calls would use up.
            await anyio.to_thread.run_sync(work, limiter=anyio.CapacityLimiter(1))
            done.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(in_thread)
            try:
                await done.wait()
            except anyio.get_cancelled_exc_class():
                withdrawal.ask()
                self._supply.ring()
                raise
        if failures:
            raise failures[0]
        return results[0]

    def end_session(self, session: str, *, tenant: str = "") -> bool:
        return self._sessions.end(tenant, session)

    def warm(self, *, tenant: str = "") -> None:
        """Start containers in the background; a call tries again what went wrong then.

        Raises:
            SandboxClosed: The sandbox is closed.
        """
        self._supply.warm()

    def close(self) -> None:
        """End everything this sandbox started and wait until it is gone, for eight seconds at most. Can be
        called again, also by a signal handler: calls in flight raise `SandboxClosed`.
        """
        self._close(wait=True)

    def _close(self, *, wait: bool) -> None:
        if self._supply.close(wait=wait):
            close(self._plan.folders)

    def __del__(self) -> None:
        if (supply := getattr(self, "_supply", None)) is None or supply.closed:
            return
        if supply.is_used:
            warnings.warn(f"{self!r} was not closed", ResourceWarning, source=self, stacklevel=1)
        self._close(wait=False)

    def _leave_to_parent(self) -> None:
        """In a fork of the server: what was started is the server's, and this process begins anew."""
        if not self._supply.closed:
            self._supply.forget()
            self._begin()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        import anyio

        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self.close)

    def _work(
        self,
        withdrawal: Withdrawal,
        asked: Request,
        session: str | None,
        tenant: str,
    ) -> SandboxResult:
        since_s = time.monotonic()
        try:
            with self._turn(tenant, since_s, withdrawal):
                if session is None:
                    return self._fresh(withdrawal, asked, since_s)
                return self._in_session(withdrawal, asked, since_s, tenant, session)
        except (SandboxError, OSError) as error:
            if self._supply.closed:  # whatever step that met first
                raise SandboxClosed("the sandbox was closed; the code was ended") from error
            raise

    @contextmanager
    def _turn(self, tenant: str, since_s: float, withdrawal: Withdrawal) -> Iterator[None]:
        """One of the calls of this tenant that may run at once."""
        config, running = self.config, self._running

        def attempt() -> bool | None:
            there = running.get(tenant, 0)
            if there >= config.max_concurrent_calls or (not there and len(running) >= config.max_tenants):
                return None
            running[tenant] = there + 1
            return True

        self._supply.wait(attempt, since_s, withdrawal)
        try:
            yield
        finally:
            with self._supply.changed:
                running[tenant] -= 1
                if not running[tenant]:
                    del running[tenant]
            self._supply.ring()

    def _fresh(self, withdrawal: Withdrawal, asked: Request, since_s: float) -> SandboxResult:
        for _ in range(_TRIES):
            container = self._supply.take(since_s, withdrawal)
            try:
                return self._call(container, asked).run(withdrawal)
            except NotSent:
                continue
            finally:
                self._supply.discard(container)
        raise SandboxDied("containers end before they take a call; nothing was run")

    def _call(self, container: Container, asked: Request) -> Call:
        header = {"call": container.next_call, "wall_s": asked.wall_s, **asked.header}
        request = frames.encode(header, asked.blobs)
        return Call(container, request, wall_s=asked.wall_s, config=self.config)

    def _in_session(
        self,
        withdrawal: Withdrawal,
        asked: Request,
        since_s: float,
        tenant: str,
        name: str,
    ) -> SandboxResult:
        session, turn = self._sessions.enter(tenant, name), object()
        try:
            self._supply.wait(lambda: self._sessions.take_turn(session, turn), since_s, withdrawal)
            try:
                return self._with_turn(session, withdrawal, asked, since_s)
            finally:
                self._sessions.pass_turn(session)
        finally:
            self._sessions.leave(session)

    def _with_turn(
        self,
        session: Session,
        withdrawal: Withdrawal,
        asked: Request,
        since_s: float,
    ) -> SandboxResult:
        name, is_new = session.key[1], False
        if session.is_over:
            raise SandboxError(f"session {name!r} ended while this call waited for its turn")
        if not session.is_ready(since_s + self.config.queue_seconds, withdrawal):
            is_new = True
            self._sessions.replace(session, None)
            self._sessions.replace(session, self._supply.begin_session(since_s, withdrawal))
        assert session.container is not None
        call = self._call(session.container, asked)
        try:
            result = call.run(
                withdrawal, on_loss=lambda: EndedBy.CANCELLED if session.ended_by_owner else None
            )
        except NotSent as gone:
            raise SandboxDied(f"the session ended before it took the call: {gone}; nothing was run") from gone
        finally:
            if call.is_lost:
                session.is_over = True
        return replace(result, session=name, session_lost=session.is_over, session_started=is_new)


_sandboxes: weakref.WeakSet[DockerSandbox] = weakref.WeakSet()


def _after_fork() -> None:
    for each in _sandboxes:
        each._leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
