"""`PythonSandbox`: the embedded backend as a caller sees it."""

from __future__ import annotations

import math
import os
import select
import time
import warnings
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from types import TracebackType
from typing import Self, TypeVar, cast

from sandbox.errors import Missing, SandboxBusy, SandboxClosed, SandboxDied, SandboxError
from sandbox.linux import wire
from sandbox.linux.call import Call
from sandbox.linux.handle import NO_MORE_FILES, TOO_MANY_FILES
from sandbox.linux.session_call import SessionCall
from sandbox.linux.sessions import Sessions
from sandbox.linux.spec import plan
from sandbox.linux.tenants import Tenant, Tenants
from sandbox.linux.waiting import Bell, Wait
from sandbox.request import Request, checked
from sandbox.types import EndedBy, IsolationLevel, SandboxConfig, SandboxResult

_NOT_ENFORCED = {
    IsolationLevel.L3: ("max_disk_mb", "max_files"),
    IsolationLevel.L2: ("max_disk_mb", "max_files", "max_processes"),
}
_CANCEL_S = 3.0
_LOOK_AGAIN_S = 1.0  # at whether the zygote is well, while a call waits for it

Work = Generator[Wait, None, SandboxResult]
_T = TypeVar("_T")


class PythonSandbox:
    """Full CPython, freshly isolated for every call, on Linux; see `sandbox.Sandbox` for its methods.

    Making one starts nothing; the first call does. Safe to use from several threads and event loops at once.

    Args:
        config: `None` for the defaults.

    Raises:
        SandboxConfigError: A folder of the configuration does not exist.
        ImportError: This is not Linux on x86_64 or aarch64.
    """

    def __init__(self, config: SandboxConfig | None = None) -> None:
        self.config = config or SandboxConfig()
        self._plan = plan(self.config)
        self._begin()
        _sandboxes.add(self)

    def _begin(self) -> None:
        self._bell = Bell()
        self._tenants = Tenants(self._plan, self._bell)
        self._sessions = Sessions(self.config.max_sessions, self.config.session_idle_seconds)

    @property
    def level(self) -> IsolationLevel | None:
        """The level that calls run at; `None` before the first one."""
        return self._tenants.level

    @property
    def missing(self) -> tuple[Missing, ...]:
        """Why the level is not higher; empty at L4+, and before the first call."""
        return self._tenants.missing

    @property
    def walls_seconds(self) -> float:
        """How long it took to try the levels and lock the first child down; 0 before the first call."""
        return self._tenants.walls_s

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
        work = self._work(asked, session, tenant)
        try:
            while True:
                _wait(next(work))
        except StopIteration as done:
            return cast("SandboxResult", done.value)
        except SandboxError:
            raise
        except BaseException:  # KeyboardInterrupt, or what another signal handler raises
            _cancel(work)
            raise
        finally:
            work.close()

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
        if not self._tenants.is_started(tenant):
            await anyio.to_thread.run_sync(self._tenants.start, tenant)  # an exec takes milliseconds
        work = self._work(asked, session, tenant)
        try:
            wait = next(work)
            while True:
                try:
                    with anyio.move_on_after(wait.seconds):
                        await anyio.wait_readable(wait.fd)
                except anyio.get_cancelled_exc_class():
                    with anyio.CancelScope(shield=True):
                        await self._cancel(work)
                    raise
                wait = next(work)
        except StopIteration as done:
            return cast("SandboxResult", done.value)
        finally:
            work.close()

    async def _cancel(self, work: Work) -> None:
        """Have the call's processes ended, and wait until they are."""
        import anyio

        try:
            wait = work.throw(_Cancelled())
            while True:
                with anyio.move_on_after(wait.seconds):
                    await anyio.wait_readable(wait.fd)
                wait = next(work)
        except (StopIteration, _Cancelled, SandboxError):
            return

    def end_session(self, session: str, *, tenant: str = "") -> bool:
        return self._sessions.end(tenant, session)

    def warm(self, *, tenant: str = "") -> None:
        """Start what the tenant's first call needs, in the background; returns within milliseconds.

        What goes wrong then is said to the next call, which tries again.

        Raises:
            SandboxUnavailable: The interpreter cannot be executed.
            SandboxClosed: The sandbox is closed.
        """
        self._tenants.start(tenant)

    def close(self) -> None:
        """End everything this sandbox started, within two seconds. Can be called again, also by a signal
        handler: calls in flight raise `SandboxClosed`.
        """
        self._close(wait=True)

    def _close(self, *, wait: bool) -> None:
        self._sessions.close()
        if self._tenants.close(wait=wait):
            for folder in self._plan.folders:
                os.close(folder.fd)

    def __del__(self) -> None:
        if (tenants := getattr(self, "_tenants", None)) is None or tenants.closed:
            return
        if tenants.is_used:
            warnings.warn(f"{self!r} was not closed", ResourceWarning, source=self, stacklevel=1)
        self._close(wait=False)

    def _leave_to_parent(self) -> None:
        """In a fork of the server: what was started is the server's, and this process begins anew."""
        if not self._tenants.closed:
            self._sessions.forget()
            self._tenants.forget()
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

    def _work(self, asked: Request, session: str | None, tenant: str) -> Work:
        """Everything that one call is, without the waiting: yields what to wait for, and returns the result.

        So threads and event loops, which wait differently, share the rest. `_Cancelled` may be thrown in.
        """
        request, wall_s = wire.frame(asked.header, asked.blobs), asked.wall_s
        self._sessions.sweep()
        turn = _Turn(self, time.monotonic())
        try:
            home = yield from turn.wait(lambda: self._tenants.enter(tenant), lambda epoll: None)
            try:
                if session is None:
                    return (yield from self._fresh(turn, home, request, wall_s))
                return (yield from self._in_session(turn, home, tenant, session, request, wall_s))
            finally:
                self._tenants.leave(home)
        except (SandboxError, OSError, ValueError) as error:
            if self._tenants.closed:  # whatever step that met first
                raise SandboxClosed("the sandbox was closed; the code was ended") from error
            if isinstance(error, OSError) and error.errno in NO_MORE_FILES:
                raise SandboxError(TOO_MANY_FILES) from error
            raise

    def _fresh(self, turn: _Turn, home: Tenant, request: bytes, wall_s: float) -> Work:
        try:
            taken = yield from turn.wait(
                lambda: home.take(turn, turn.since_s),
                lambda epoll: home.register(epoll, turn),
                home.look_after,
            )
        finally:
            home.leave_line(turn)
        with closing(Call(taken, request, wall_s=wall_s, config=self.config)) as call:
            taken.zygote.started(taken, wall_s)
            yield from self._drive(call)
            return self._result(call)

    def _in_session(
        self, turn: _Turn, home: Tenant, tenant: str, name: str, request: bytes, wall_s: float
    ) -> Work:
        session, is_new = self._sessions.find(tenant, name), False
        if session is None:
            zygote = yield from turn.wait(lambda: home.ready(turn.since_s), home.register, home.look_after)
            session, is_new = self._sessions.begin(tenant, name, zygote)
        try:
            yield from turn.wait(lambda: session.is_ready() or None, session.register)
            try:
                yield from turn.wait(lambda: session.take_turn(turn) or None, session.register_turn)
                yield from turn.wait(session.caller, session.register)
                if session.lost:
                    raise SandboxError(f"session {name!r} ended while this call waited for its turn")
                with closing(SessionCall(session, request, wall_s=wall_s, config=self.config)) as call:
                    yield from self._drive(call)
                    result = self._result(call)
            finally:
                session.pass_turn(turn)
            return replace(result, session=name, session_lost=session.lost, session_started=is_new)
        finally:
            self._sessions.leave(session)

    def _drive(self, call: Call) -> Iterator[Wait]:
        try:
            while not call.done:
                yield Wait(call.fileno(), call.patience_s())
                call.advance()
        except _Cancelled:
            call.kill(EndedBy.CANCELLED)
            give_up_s = time.monotonic() + _CANCEL_S
            while not call.done and time.monotonic() < give_up_s:
                yield Wait(call.fileno(), min(call.patience_s(), _CANCEL_S))
                call.advance()
            raise
        except SandboxDied:
            self._tenants.distrust(call.taken.zygote)
            raise
        if call.unheard:
            self._tenants.distrust(call.taken.zygote)

    def _result(self, call: Call) -> SandboxResult:
        level = call.taken.zygote.level or IsolationLevel.NONE
        return call.result(level, _NOT_ENFORCED.get(level, ()))


class _Turn:
    """The waiting of one call until its code can run, `queue_seconds` at most for all of it."""

    def __init__(self, sandbox: PythonSandbox, since_s: float) -> None:
        self.since_s = since_s
        self._sandbox = sandbox

    def wait(
        self,
        attempt: Callable[[], _T | None],
        register: Callable[[select.epoll], None],
        look_after: Callable[[], None] = lambda: None,
    ) -> Generator[Wait, None, _T]:
        """Wait until `attempt` returns something; `look_after` is called about every second until then.

        Raises:
            SandboxClosed: The sandbox was closed.
            SandboxBusy: It took too long.
        """
        queue_s = self._sandbox.config.queue_seconds
        looked_s = time.monotonic()

        def patience_s() -> float:
            nonlocal looked_s
            if self._sandbox._tenants.closed:
                raise SandboxClosed("the sandbox was closed")
            now = time.monotonic()
            left_s = self.since_s + queue_s - now
            if left_s <= 0:
                raise SandboxBusy(f"no turn for this call within {queue_s:g} s; try again later")
            if now >= looked_s + _LOOK_AGAIN_S:
                looked_s = now
                look_after()
            return min(_LOOK_AGAIN_S, left_s)

        return (yield from self._sandbox._bell.until(attempt, register, patience_s, self))


class _Cancelled(BaseException):
    """Thrown into `_work` by a driver whose task was cancelled."""


def _wait(wait: Wait) -> None:
    poll = select.poll()
    poll.register(wait.fd, select.POLLIN)
    poll.poll(math.ceil(wait.seconds * 1000))


def _cancel(work: Work) -> None:
    """Have the call's processes ended, and wait until they are."""
    try:
        wait = work.throw(_Cancelled())
        while True:
            _wait(wait)
            wait = next(work)
    except (StopIteration, _Cancelled, SandboxError):
        return


_sandboxes: weakref.WeakSet[PythonSandbox] = weakref.WeakSet()


def _after_fork() -> None:
    for each in _sandboxes:
        each._leave_to_parent()


os.register_at_fork(after_in_child=_after_fork)
