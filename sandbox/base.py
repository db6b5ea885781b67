"""What every sandbox does, whichever way it isolates."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Protocol, Self

from sandbox.types import SandboxConfig, SandboxResult


class Sandbox(Protocol):
    """Runs Python code in isolation. Async context manager; closing it ends everything it started."""

    @property
    def config(self) -> SandboxConfig: ...

    async def execute(
        self,
        code: str,
        *,
        session: str | None = None,
        files: Mapping[str, bytes | str] | None = None,
        timeout_seconds: float | None = None,
        tenant: str = "",
    ) -> SandboxResult:
        """Run `code` as a module named `__main__` and wait for its end.

        Args:
            code: Python source, at most 1 MiB as UTF-8. A syntax error is a result, not an error.
            session: Name of a session whose variables, imports and files the code continues; begun if there
                is none. `None`: a fresh interpreter that is thrown away afterwards. Calls of one session run
                one after another.
            files: Put into the working folder before the code runs; relative names, `/` between folders,
                4,096 of them, 16 MiB together.
            timeout_seconds: Less than `config.timeout_seconds`; more is cut to it.
            tenant: Calls of different tenants never share a process that they were forked from; a session
                belongs to its tenant.

        Returns:
            What came of it, also when the code failed or was ended.

        Raises:
            SandboxConfigError: An argument makes no sense. Nothing was started.
            SandboxUnavailable: This host cannot enforce the configuration. Nothing was started.
            SandboxBusy: No turn within `config.queue_seconds`. Nothing was started.
            SandboxDied: What watches over the call ended; the call was ended with it.
            SandboxClosed: The sandbox is closed.

        Cancelling ends all processes of the call before the cancellation continues.
        """
        ...

    def execute_sync(
        self,
        code: str,
        *,
        session: str | None = None,
        files: Mapping[str, bytes | str] | None = None,
        timeout_seconds: float | None = None,
        tenant: str = "",
    ) -> SandboxResult:
        """`execute` for programs without an event loop; blocks the calling thread."""
        ...

    def end_session(self, session: str, *, tenant: str = "") -> bool:
        """End a session and everything in it; False if there is none of that name."""
        ...

    def close(self) -> None:
        """End everything this sandbox started. Calls in flight raise `SandboxClosed`. Can be called again."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...
