"""Calling a function whatever its form, and catching whatever comes out of it.

An async callable is awaited on the loop; a synchronous one runs in a worker thread with the
caller's context variables. Nothing a tool raises escapes, `SystemExit` included: only cancellation
that really is ours goes through.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
import logging
import math
import random
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import anyio
import anyio.lowlevel
import anyio.to_thread
from anyio.lowlevel import RunVar

from mcp_tools.errors import ToolError
from mcp_tools.types import CallContext

logger = logging.getLogger(__name__)

MAX_WORKER_THREADS: Final = 64
"""Worker threads for synchronous tools, apart from anyio's own 40, which file work needs."""

MAX_ABANDONED_THREADS: Final = 32
"""Of functions that run on after their deadline; then no synchronous tool is started any more."""

MAX_BACK_OFF_S: Final = 5.0
_FIRST_BACK_OFF_S: Final = 0.1
_IMMUTABLE: Final = frozenset({str, int, float, bool, bytes})

_threads: RunVar[anyio.CapacityLimiter] = RunVar("mcp_tools_worker_threads")


@dataclass(frozen=True, slots=True)
class Returned:
    """The function came to its end."""

    value: Any


@dataclass(frozen=True, slots=True)
class Raised:
    """The function raised this, of its own accord."""

    error: BaseException


class Runnable(Protocol):
    """A function ready to be called with validated arguments, wherever it runs."""

    @property
    def is_async(self) -> bool:
        """Whether cancelling ends it."""
        ...

    async def call(self, arguments: Mapping[str, Any], context: CallContext) -> Returned | Raised:
        """Call it and wait for it; see `Callee.call`."""
        ...


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

        It gets its own copies of lists and dicts: what it does to them must not change the record.
        Cancelling abandons a function that runs in a thread: it cannot be interrupted, and
        `context.cancelled` tells it. An async one receives the cancellation.
        """
        watch = CancelWatch()
        keywords = {name: detached(value) for name, value in arguments.items()}
        if self.context_parameter is not None:
            keywords[self.context_parameter] = context
        if not self.is_async:
            outcome = await _run_in_thread(self.function, keywords)
            if isinstance(outcome, Returned) and inspect.isawaitable(outcome.value):
                # A plain function may still hand back a coroutine (a lambda, a wrapper).
                return await _await(outcome.value, watch)
            return outcome
        try:
            awaitable = self.function(**keywords)
        except BaseException as error:  # before its first await a function cannot be cancelled
            return Raised(error)
        return await _await(awaitable, watch)


async def attempts(
    function: Runnable, arguments: Mapping[str, Any], context: CallContext, retries: int
) -> Returned | Raised:
    """Call the function, and up to `retries` times again while it says that it may succeed later.

    Pauses grow from 0.1 to 5 s, or are as long as the tool's error asks for; the deadline is the caller's.
    """
    for attempt in range(retries):
        outcome = await function.call(arguments, context)
        error = outcome.error if isinstance(outcome, Raised) else None
        if not isinstance(error, ToolError) or not error.is_passing:
            return outcome
        pause_s = min(_FIRST_BACK_OFF_S * 2**attempt, MAX_BACK_OFF_S) * random.uniform(0.5, 1)  # noqa: S311
        await anyio.sleep(max(pause_s, error.retry_after_s or 0))
    return await function.call(arguments, context)


class CancelWatch:
    """Tells whether somebody cancelled us since it was made.

    A tool can raise the cancellation exception by itself, and can turn a real cancellation into
    another exception; neither may be taken for the other.
    """

    __slots__ = ("_before", "_task")

    def __init__(self) -> None:
        try:
            self._task = asyncio.current_task()
        except RuntimeError:  # trio
            self._task = None
        self._before = self._task.cancelling() if self._task is not None else 0

    def is_cancelled(self) -> bool:
        """Whether a scope around us, or our task itself, was cancelled."""
        if anyio.current_effective_deadline() == -math.inf:
            return True
        return self._task is not None and self._task.cancelling() > self._before

    async def reraise(self) -> None:
        """Let a cancellation that a tool swallowed or turned into something else go on."""
        if self.is_cancelled():
            await anyio.lowlevel.checkpoint_if_cancelled()
            if self._task is not None:
                raise asyncio.CancelledError


def detached(value: Any) -> Any:
    """Return `value`, or a copy of it where it is or holds something that can be changed."""
    if value is None or type(value) in _IMMUTABLE:
        return value
    try:
        return copy.deepcopy(value)
    except Exception:
        return value  # a handle of some kind, which an embedding program passed in


def is_async_callable(function: Callable[..., Any]) -> bool:
    """Whether calling `function` gives something to await, as far as its form tells."""
    while isinstance(function, functools.partial):
        function = function.func
    if inspect.iscoroutinefunction(function):
        return True
    if inspect.isfunction(function) or inspect.ismethod(function) or isinstance(function, type):
        return False
    return inspect.iscoroutinefunction(getattr(type(function), "__call__", None))  # noqa: B004


async def _await(awaitable: Awaitable[Any], watch: CancelWatch) -> Returned | Raised:
    try:
        return Returned(await awaitable)
    except anyio.get_cancelled_exc_class() as error:
        if watch.is_cancelled():
            raise
        return Raised(error)
    except BaseException as error:
        return Raised(error)


class TooManyAbandoned(ToolError):
    """Functions that outlived their deadlines still hold worker threads. Nothing was started."""

    def __init__(self) -> None:
        super().__init__(
            f"nothing was started: {MAX_ABANDONED_THREADS} functions that were given up are still running, "
            "and no more threads are spent on them. Retry later; the server's owner can restart it"
        )


class _Abandoned:
    """Counts the threads whose function goes on although nobody waits for it any more."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.count = 0

    def change(self, by: int) -> None:
        with self._lock:
            self.count += by


_abandoned = _Abandoned()


def abandoned_threads() -> int:
    """Return how many threads run functions that nobody waits for any more."""
    return _abandoned.count


async def _run_in_thread(function: Callable[..., Any], keywords: dict[str, Any]) -> Returned | Raised:
    # anyio gives the place under its limit back when a thread is abandoned, so we count those ourselves.
    if _abandoned.count >= MAX_ABANDONED_THREADS:
        return Raised(TooManyAbandoned())
    lock, begun, ended, given_up = threading.Lock(), False, False, False

    def run() -> Returned | Raised:
        nonlocal begun, ended
        with lock:
            if given_up:
                return Raised(TimeoutError("withdrawn before it began"))  # nobody waits for it
            begun = True
        try:
            return Returned(function(**keywords))
        except BaseException as error:
            return Raised(error)
        finally:
            with lock:
                ended = True
                if given_up:
                    _abandoned.change(-1)

    try:
        return await anyio.to_thread.run_sync(run, abandon_on_cancel=True, limiter=_thread_limiter())
    except BaseException:
        with lock:
            given_up = True
            if begun and not ended:
                _abandoned.change(1)
        raise


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


async def tell(callback: Callable[..., Any] | None, *arguments: Any, unaffected: str) -> None:
    """Call what an embedding program gave us, sync or async; what it raises is logged and changes nothing.

    Args:
        unaffected: What goes on all the same, for the log.
    """
    if callback is None:
        return
    watch = CancelWatch()
    try:
        await maybe_await(callback(*arguments))
    except BaseException:
        if watch.is_cancelled():
            raise
        logger.exception("callback %r failed; %s goes on", callback, unaffected)
