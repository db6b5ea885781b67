"""`PythonSandbox`: the embedded backend as a caller sees it."""

from __future__ import annotations

import json
import os
import select
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from sandbox.errors import SandboxBusy, SandboxClosed, SandboxConfigError, SandboxDied
from sandbox.linux import wire
from sandbox.linux.call import Call
from sandbox.linux.handle import ZygoteProcess
from sandbox.linux.spec import plan
from sandbox.linux.tenants import Tenant, Tenants
from sandbox.types import EndedBy, IsolationLevel, SandboxConfig, SandboxResult
from sandbox.validate import seconds

_NOT_ENFORCED = {
    IsolationLevel.L3: ("max_disk_mb", "max_files"),
    IsolationLevel.L2: ("max_disk_mb", "max_files", "max_processes"),
}
_CANCEL_S = 3.0
_WAIT_S = 1.0  # between two looks at whether the sandbox was closed


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

    @property
    def level(self) -> IsolationLevel | None:
        """The level that calls run at; `None` before the first one."""
        return self._tenants.level

    def execute_sync(
        self,
        code: str,
        *,
        session: str | None = None,
        files: Mapping[str, bytes | str] | None = None,
        timeout_seconds: float | None = None,
        tenant: str = "",
    ) -> SandboxResult:
        request, wall_s = self._request(code, files, timeout_seconds)
        home = self._tenants.of(tenant)
        call = None
        give_up_s = time.monotonic() + self.config.queue_seconds
        while call is None:
            call = self._begin(home, request, wall_s)
            if call is None:
                self._check_patience(give_up_s)
                with select.epoll() as epoll:
                    home.register(epoll)
                    epoll.poll(min(_WAIT_S, max(0.0, give_up_s - time.monotonic())))
        try:
            with select.epoll() as epoll:
                epoll.register(call.fileno(), select.EPOLLIN)
                while not call.done:
                    epoll.poll(call.patience_s())
                    call.advance()
            return self._result(home, call)
        finally:
            call.close()
            home.finished(call)

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

        request, wall_s = self._request(code, files, timeout_seconds)
        home = self._tenants.of(tenant)
        if not home.is_started:
            await anyio.to_thread.run_sync(home.start)
        call = None
        give_up_s = time.monotonic() + self.config.queue_seconds
        while call is None:
            call = self._begin(home, request, wall_s)
            if call is None:
                self._check_patience(give_up_s)
                with select.epoll() as epoll, anyio.move_on_after(min(_WAIT_S, give_up_s - time.monotonic())):
                    home.register(epoll)
                    await anyio.wait_readable(epoll.fileno())
        try:
            try:
                while not call.done:
                    with anyio.move_on_after(call.patience_s()):
                        await anyio.wait_readable(call.fileno())
                    call.advance()
            except anyio.get_cancelled_exc_class():
                call.kill(EndedBy.CANCELLED)
                with anyio.move_on_after(_CANCEL_S, shield=True):
                    while not call.done:
                        await anyio.wait_readable(call.fileno())
                        call.advance()
                raise
            return self._result(home, call)
        finally:
            call.close()
            home.finished(call)

    def end_session(self, session: str, *, tenant: str = "") -> bool:
        return False

    def close(self) -> None:
        """End everything this sandbox started, within two seconds. Can be called again."""
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

    def _begin(self, home: Tenant, request: bytes, wall_s: float) -> Call | None:
        zygote, taken = home.take()
        if taken is None:
            return None
        call = Call(taken, request, wall_s=wall_s, config=self.config)
        call.zygote = zygote
        zygote.started(taken, wall_s)
        return call

    def _check_patience(self, give_up_s: float) -> None:
        if self._tenants.closed:
            raise SandboxClosed("the sandbox was closed")
        if time.monotonic() >= give_up_s:
            raise SandboxBusy(f"no turn for this call within {self.config.queue_seconds:g} s; try again later")

    def _result(self, home: Tenant, call: Call) -> SandboxResult:
        level = call.zygote.level
        return call.result(level, _NOT_ENFORCED.get(level, ()))
