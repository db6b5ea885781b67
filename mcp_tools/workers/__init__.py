"""Functions whose deadline ends them: in worker processes, or in a sandbox.

`isolated` is the door: it returns something that is called as any function of a tool is.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from mcp_tools.errors import RegistrationError
from mcp_tools.types import Isolation

if TYPE_CHECKING:
    from mcp_tools.calling import Raised, Returned
    from mcp_tools.types import CallContext
    from mcp_tools.workers.pool import Workers
    from sandbox import SandboxConfig

__all__ = ["IsolatedCallee", "isolated"]


class IsolatedCallee(Protocol):
    """A function that runs apart from the server. Nothing is started before `warm` or the first call."""

    @property
    def function(self) -> Callable[..., Any]: ...

    @property
    def is_async(self) -> bool:
        """True: its deadline really ends it."""
        ...

    @property
    def context_parameter(self) -> str | None: ...

    async def call(self, arguments: Mapping[str, Any], context: CallContext) -> Returned | Raised:
        """Call it. Cancelling ends everything of it before the cancellation goes on."""
        ...

    def warm(self) -> None:
        """Start what the first call needs, in the background."""
        ...

    def close(self) -> None:
        """End all of it, within 5 s. Calls in flight end with an error. Can be called again."""
        ...


def isolated(
    function: Callable[..., Any],
    *,
    isolation: Isolation,
    context_parameter: str | None,
    name: str,
    workers: Workers | None = None,
    sandbox_config: SandboxConfig | None = None,
) -> IsolatedCallee:
    """Prepare `function` to run apart from the server. Starts nothing.

    Args:
        function: Importable by module and name. A synchronous or an async one.
        isolation: `process`: in a worker process with a state of its own, that is used again. `sandbox`:
            in a fresh sandbox each time.
        context_parameter: Which parameter gets a `CallContext`, or None. A sandbox has none to give.
        name: The tool's, for messages and the log.
        workers: Of `process`: whose limits hold. None: those of all tools of this server.
        sandbox_config: Of `sandbox`: what the code may use. None: the defaults.
    Raises:
        RegistrationError: It cannot run there, and why.
    """
    if isolation == "process":
        if sys.platform == "win32":
            raise RegistrationError(f"tool {name!r}: isolation='process' needs Linux or macOS; use WSL2")
        if not sys.executable:
            raise RegistrationError(
                f"tool {name!r}: isolation='process' needs an interpreter, and sys.executable is empty"
            )
        from mcp_tools.workers.process import ProcessCallee

        return ProcessCallee(
            function, context_parameter=context_parameter, name=name, workers=workers or _shared_workers()
        )
    if isolation == "sandbox":
        from mcp_tools.workers.walled import SandboxCallee

        return SandboxCallee(function, context_parameter=context_parameter, name=name, config=sandbox_config)
    raise RegistrationError(f"tool {name!r}: isolation is {isolation!r}; use 'process', 'sandbox' or None")


_lock = threading.Lock()
_shared: list[Workers] = []


def _shared_workers() -> Workers:
    from mcp_tools.workers.pool import Workers

    with _lock:
        if not _shared:
            _shared.append(Workers())
        return _shared[0]
