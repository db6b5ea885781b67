"""A function in a worker process, called as the executor calls any function."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Mapping
from typing import Any, Final

from mcp_tools.calling import Raised, Returned
from mcp_tools.errors import ToolError
from mcp_tools.types import CallContext, Decision
from mcp_tools.workers.frames import MessageTooLarge, framed
from mcp_tools.workers.pool import Pool, Workers
from mcp_tools.workers.results import WorkerFailed, WorkersClosed, outcome_of
from mcp_tools.workers.target import target_of
from mcp_tools.workers.view import carried, relay

logger = logging.getLogger(__name__)


class ProcessCallee:
    """A function that runs in worker processes of its own and can really be ended.

    Args:
        function: Importable by module and name.
        context_parameter: Which parameter gets a `CallContext`, or None.
        name: The tool's.
        workers: Whose limits hold.
    Raises:
        RegistrationError: A worker could not import the function.
    """

    is_async: Final = True

    def __init__(
        self, function: Callable[..., Any], *, context_parameter: str | None, name: str, workers: Workers
    ) -> None:
        self.function = function
        self.context_parameter = context_parameter
        self._pool = Pool(target_of(function, name), name, workers)

    async def call(self, arguments: Mapping[str, Any], context: CallContext) -> Returned | Raised:
        """Call the function in a worker and wait for it.

        Returns:
            Its result as plain data, or a `ToolOutput`; or what it raised. `WorkerFailed` says that it came
            to no end of its own, `TypeError` that its arguments are nothing that can be sent.
        Cancelling kills the worker with everything it started, and goes on when nothing of that is left.
        """
        try:
            request = framed(self._pickled(arguments, context))
        except MessageTooLarge as error:
            return Raised(ToolError(f"the arguments are too large: {error}"))
        except Exception as error:  # whatever the objects among them raise
            text = f"the arguments cannot be sent to a worker: {type(error).__name__}: {error}"
            return Raised(TypeError(text))

        async def answer(message: dict[str, Any]) -> dict[str, Any] | None:
            try:
                return await relay(message, context)
            except Exception:
                logger.exception("call %s: what its function asked for failed", context.call_id)
                return {"decision": int(Decision.DENY)} if message.get("kind") == "screen" else None

        try:
            async with self._pool.worker() as worker:
                message = await worker.call(request, answer)
        except (WorkerFailed, WorkersClosed) as error:
            return Raised(error)
        return outcome_of(message)

    def warm(self) -> None:
        """Have a worker waiting, in the background; returns at once."""
        self._pool.warm()

    def close(self) -> None:
        """End all workers, within 5 s. Calls in flight end with an error. Can be called again."""
        self._pool.close()

    def _pickled(self, arguments: Mapping[str, Any], context: CallContext) -> bytes:
        request = {
            "arguments": dict(arguments),
            "context_parameter": self.context_parameter,
            "context": carried(context) if self.context_parameter is not None else None,
        }
        return pickle.dumps(request, pickle.HIGHEST_PROTOCOL)
