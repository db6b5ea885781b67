"""`PythonSandbox`: the embedded backend as a caller sees it."""

from __future__ import annotations

import math
import os
import select
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from types import TracebackType
from typing import NamedTuple, Self, cast

from sandbox.errors import Missing, SandboxBusy, SandboxClosed, SandboxConfigError, SandboxDied, SandboxError
from sandbox.linux import wire
from sandbox.linux.call import Call
from sandbox.linux.handle import ZygoteProcess
from sandbox.linux.sessions import SessionCall, Sessions
from sandbox.linux.spec import plan
from sandbox.linux.tenants import Tenant, Tenants
from sandbox.types import EndedBy, IsolationLevel, SandboxConfig, SandboxResult
from sandbox.validate import seconds

_NOT_ENFORCED = {
    IsolationLevel.L3: ("max_disk_mb", "max_files"),
    IsolationLevel.L2: ("max_disk_mb", "max_files", "max_processes"),
}
_CANCEL_S = 3.0
_LOOK_AGAIN_S = 1.0  # at whether the sandbox was closed, and for a child that another waiter left


class Wait(NamedTuple):
    """Wait until `fd` is readable, `seconds` at most."""

    fd: int
    seconds: float


Work = Generator[Wait, None, SandboxResult]


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
        self._tenants = Tenants(self._plan)
        self._sessions = Sessions(self.config.max_sessions)

    @property
    def level(self) -> IsolationLevel | None:
        """The level that calls run at; `None` before the first one."""
        return self._tenants.level

    @property
    def missing(self) -> tuple[Missing, ...]:
        """Why the level is not higher; empty at L4+, and before the first call."""
        return self._tenants.missing

    def execute_sync(
        self,
        code: str,
        *,
        session: str | None = None,
        files: Mapping[str, bytes | str] | None = None,
        timeout_seconds: float | None = None,
        tenant: str = "",
    ) -> SandboxResult:
        work = self._work(code, session, files, timeout_seconds, tenant)
        try:
            while True:
                wait = next(work)
                poll = select.poll()
                poll.register(wait.fd, select.POLLIN)
                poll.poll(math.ceil(wait.seconds * 1000))
        except StopIteration as done:
            return cast("SandboxResult", done.value)
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

        if not self._tenants.is_started(tenant):
            await anyio.to_thread.run_sync(self._tenants.start, tenant)  # an exec takes milliseconds
        work = self._work(code, session, files, timeout_seconds, tenant)
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

    def close(self) -> None:
        """End everything this sandbox started, within two seconds. Can be called again."""
        if self._tenants.closed:
            return
        self._sessions.close()
        self._tenants.close()
        for folder in self._plan.folders:
            os.close(folder.fd)

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

    def _request(
        self, code: str, files: Mapping[str, bytes | str] | None, timeout_seconds: float | None
    ) -> tuple[bytes, float]:
        """The frame that carries the call, and how long it may run."""
        wall_s = self.config.timeout_seconds
        if timeout_seconds is not None:
            wall_s = min(wall_s, seconds("timeout_seconds", timeout_seconds))
        if len(code.encode("utf-8", "surrogatepass")) > wire.MAX_CODE_BYTES:
            raise SandboxConfigError("code", f"is larger than {wire.MAX_CODE_BYTES} bytes")
        blobs = [data.encode() if isinstance(data, str) else bytes(data) for data in (files or {}).values()]
        if sum(map(len, blobs)) > wire.MAX_FILES_BYTES:
            raise SandboxConfigError("files", f"are larger than {wire.MAX_FILES_BYTES} bytes together")
        for name in files or {}:
            if not name or name.startswith("/") or "\0" in name or ".." in name.split("/") or len(name) > 255:
                raise SandboxConfigError("files", f"has the name {name!r}; it must be relative, without ..")
        header = {
            "code": code,
            "files": [[name, len(data)] for name, data in zip(files or {}, blobs, strict=True)],
            "max_files": self.config.max_artifacts,
            "max_bytes": self.config.max_artifact_bytes,
        }
        return wire.frame(header, blobs), wall_s

    def _work(
        self,
        code: str,
        session: str | None,
        files: Mapping[str, bytes | str] | None,
        timeout_seconds: float | None,
        tenant: str,
    ) -> Work:
        """Everything that one call is, without the waiting: yields what to wait for, and returns the result.

        So threads and event loops, which wait differently, share the rest. `_Cancelled` may be thrown in.
        """
        request, wall_s = self._request(code, files, timeout_seconds)
        if session is None:
            return (yield from self._fresh(self._tenants.of(tenant), request, wall_s))
        return (yield from self._in_session(self._tenants.of(tenant), tenant, session, request, wall_s))

    def _fresh(self, home: Tenant, request: bytes, wall_s: float) -> Work:
        give_up_s = time.monotonic() + self.config.queue_seconds
        while True:
            zygote, taken = home.take()
            if taken is not None:
                break
            yield from self._wait(home.register, give_up_s)
        try:
            call = Call(taken, request, wall_s=wall_s, config=self.config)
            zygote.started(taken, wall_s)
            with closing(call):
                yield from self._drive(call)
                return self._result(call, zygote)
        finally:
            home.finished(zygote)

    def _in_session(self, home: Tenant, tenant: str, name: str, request: bytes, wall_s: float) -> Work:
        give_up_s = time.monotonic() + self.config.queue_seconds
        while (zygote := home.ready()) is None:
            yield from self._wait(home.register, give_up_s)
        self._sessions.sweep()
        session, is_new = self._sessions.get(tenant, name, zygote)
        try:
            while not session.is_ready():
                yield from self._wait(session.register, give_up_s)
            while not session.take_turn():
                yield from self._wait(lambda epoll: epoll.register(session.turn, select.EPOLLIN), give_up_s)
            try:
                while session.caller() is None:
                    yield from self._wait(session.register, give_up_s)
                if session.lost:
                    raise SandboxError(f"session {name!r} ended while this call waited for its turn")
                with closing(SessionCall(session, request, wall_s=wall_s, config=self.config)) as call:
                    yield from self._drive(call)
                    result = self._result(call, zygote)
            finally:
                session.pass_turn()
            return replace(result, session=name, session_lost=session.lost, session_started=is_new)
        finally:
            self._sessions.leave(session)

    def _wait(self, register: Callable[[select.epoll], None], give_up_s: float) -> Iterator[Wait]:
        """Wait for what `register` names, a second at most.

        Raises:
            SandboxClosed: The sandbox was closed.
            SandboxBusy: It is `give_up_s` already.
        """
        if self._tenants.closed:
            raise SandboxClosed("the sandbox was closed")
        left_s = give_up_s - time.monotonic()
        if left_s <= 0:
            raise SandboxBusy(
                f"no turn for this call within {self.config.queue_seconds:g} s; try again later"
            )
        with select.epoll() as epoll:
            register(epoll)
            yield Wait(epoll.fileno(), min(_LOOK_AGAIN_S, left_s))

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
            if self._tenants.closed:
                raise SandboxClosed("the sandbox was closed; the code was ended") from None
            raise

    def _result(self, call: Call, zygote: ZygoteProcess) -> SandboxResult:
        level = zygote.level or IsolationLevel.NONE
        return call.result(level, _NOT_ENFORCED.get(level, ()))


class _Cancelled(BaseException):
    """Thrown into `_work` by a driver whose task was cancelled."""
