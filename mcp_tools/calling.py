"""Calling a function whatever its form, and catching whatever comes out of it.

An async callable is awaited on the loop; a synchronous one runs in a worker thread with the
caller's context variables. Nothing a tool raises escapes, `SystemExit` included: only cancellation
that really is ours goes through.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import anyio
import anyio.to_thread
from anyio.lowlevel import RunVar

from mcp_tools.types import CallContext

MAX_WORKER_THREADS: Final = 64
"""Worker threads for synchronous tools, apart from anyio's own 40, which file work needs."""

_threads: RunVar[anyio.CapacityLimiter] = RunVar("mcp_tools_worker_threads")


@dataclass(frozen=True, slots=True)
class Returned:
    """The function came to its end."""

    value: Any


@dataclass(frozen=True, slots=True)
class Raised:
    """The function raised this, of its own accord."""

    error: BaseException


@dataclass(frozen=True, slots=True)
class Callee:
    """A function ready to be called with validated arguments.

    `context_parameter` names the parameter that receives the `CallContext`, or is None.
    """

    function: Callable[..., Any]
    is_async: bool
    context_parameter: str | None

    @classmethod
    def of(cls, function: Callable[..., Any], context_parameter: str | None) -> Callee:
        """Find out how `function` is to be called."""
        return cls(function, is_async_callable(function), context_parameter)

    async def call(self, arguments: Mapping[str, Any], context: CallContext) -> Returned | Raised:
        """Call the function and wait for it.

        Cancelling abandons a function that runs in a thread: it cannot be interrupted, and
        `context.cancelled` tells it. An async one receives the cancellation.
        """
        keywords = dict(arguments)
        if self.context_parameter is not None:
            keywords[self.context_parameter] = context
        if not self.is_async:
            outcome = await anyio.to_thread.run_sync(
                _call_in_thread, self.function, keywords, abandon_on_cancel=True, limiter=_thread_limiter()
            )
            if isinstance(outcome, Returned) and inspect.isawaitable(outcome.value):
                # A plain function may still hand back a coroutine (a lambda, a wrapper).
                return await _await(outcome.value)
            return outcome
        try:
            awaitable = self.function(**keywords)
        except BaseException as error:  # before its first await a function cannot be cancelled
            return Raised(error)
        return await _await(awaitable)


def is_async_callable(function: Callable[..., Any]) -> bool:
    """Whether calling `function` gives something to await, as far as its form tells."""
    while isinstance(function, functools.partial):
        function = function.func
    if inspect.iscoroutinefunction(function):
        return True
    if inspect.isfunction(function) or inspect.ismethod(function) or isinstance(function, type):
        return False
    return inspect.iscoroutinefunction(getattr(type(function), "__call__", None))  # noqa: B004


async def _await(awaitable: Awaitable[Any]) -> Returned | Raised:
    try:
        return Returned(await awaitable)
    except anyio.get_cancelled_exc_class() as error:
        if is_cancelled_for_real():
            raise
        return Raised(error)
    except BaseException as error:
        return Raised(error)


def is_cancelled_for_real() -> bool:
    """Whether somebody cancelled us, rather than a tool raising the cancellation exception itself."""
    if anyio.current_effective_deadline() == -math.inf:
        return True
    try:
        task = asyncio.current_task()
    except RuntimeError:
        return True  # trio: its Cancelled cannot be made by hand
    return task is not None and task.cancelling() > 0


def _call_in_thread(function: Callable[..., Any], keywords: dict[str, Any]) -> Returned | Raised:
    try:
        return Returned(function(**keywords))
    except BaseException as error:
        return Raised(error)


def _thread_limiter() -> anyio.CapacityLimiter:
    try:
        return _threads.get()
    except LookupError:
        limiter = anyio.CapacityLimiter(MAX_WORKER_THREADS)
        _threads.set(limiter)
        return limiter


async def maybe_await(value: object) -> Any:
    """Return `value`, awaited if it is awaitable."""
    return await value if inspect.isawaitable(value) else value
