"""Containers for calls and sessions: started by threads of their own, kept warm, ended and checked upon.

A call never talks to the engine itself: it waits here, with its deadline, for what those threads achieve. So
an engine that hangs, or takes half a minute for each answer, keeps nobody longer than they allow.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import secrets
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from sandbox.docker.client import forget_connections
from sandbox.docker.container import Container, NoInitHere, new_name, start
from sandbox.docker.engine import Engine, EngineFault, Facts, unavailable
from sandbox.docker.reaper import labels, name_of, reap
from sandbox.docker.withdrawal import Withdrawal
from sandbox.errors import (
    SandboxBusy,
    SandboxClosed,
    SandboxConfigError,
    SandboxError,
    SandboxUnavailable,
)

if TYPE_CHECKING:
    from sandbox.docker.engine import Progress
    from sandbox.docker.plan import Plan

logger = logging.getLogger(__name__)

_STARTERS = 4  # threads that start containers; more would only slow each other down
_PING_S = (2.0, 10.0)  # at least, at most
_ANSWER_S = 15.0
_LOOK_S = 1.0
_REAP_S = 4.0
_RETRY_S = 10.0  # after a container that could not be had, when no call asks for one
_LEAVING_S = 3.0  # a container that was let go removes itself within this, or is removed
_CLOSE_S = 8.0
_T = TypeVar("_T")


class Supply:
    """All containers of a sandbox, and the connection to its engine.

    Args:
        where: As `Engine` takes it.
        on_progress: Told each step of a pull.
    """

    def __init__(
        self,
        plan: Plan,
        image: str,
        runtime: str | None,
        where: str | None,
        pull: str,
        on_progress: Progress | None,
    ) -> None:
        self.plan = plan
        self.instance = secrets.token_hex(8)
        self.facts: Facts | None = None
        self.closed = False
        self.changed = threading.Condition(threading.RLock())  # a signal handler may come in here again
        self._image, self._runtime, self._where = image, runtime, where
        self._pull, self._on_progress = pull, on_progress
        self._engine: Engine | None = None
        self._last_engine: Engine | None = None  # after a fault, for the end
        self._connecting = threading.Lock()
        self._idle: collections.deque[Container] = collections.deque()
        self._names: dict[str, float] = {}  # of what exists or will; until when, for what goes
        self._links: dict[str, Container] = {}
        self._tried: dict[str, float] = {}  # as `reap` takes it
        self._starting = 0
        self._has_init = True  # until a kernel turns out to need it otherwise
        self._is_pooled = False  # a sandbox that only has sessions needs none
        self._waiting = 0
        self._failure: tuple[float, SandboxError] | None = None
        self._threads: set[threading.Thread] = set()
        self._keeper: threading.Thread | None = None
        self.each_second: Callable[[], None] = lambda: None

    # --- For calls

    def wait(
        self, attempt: Callable[[], _T | None], since_s: float, withdrawal: Withdrawal, what: str = "turn"
    ) -> _T:
        """Wait until `attempt`, which is called with the lock, returns something; `queue_seconds` at most.

        Raises:
            SandboxBusy: It took too long.
            SandboxClosed: The sandbox was closed.
            Cancelled: The call was withdrawn.
        """
        queue_s = self.plan.config.queue_seconds
        with self.changed:
            while True:
                withdrawal.check()
                if self.closed:
                    raise SandboxClosed("the sandbox is closed")
                if (found := attempt()) is not None:
                    return found
                left_s = since_s + queue_s - time.monotonic()
                if left_s <= 0:
                    raise SandboxBusy(f"no {what} for this call within {queue_s:g} s; try again later")
                self.changed.wait(min(left_s, _LOOK_S))

    def ring(self) -> None:
        """Have everybody who waits look again."""
        with self.changed:
            self.changed.notify_all()

    def take(self, since_s: float, withdrawal: Withdrawal) -> Container:
        """A warm container that no call ever ran in; it is the caller's, who must `discard` it.

        Raises:
            SandboxUnavailable: It cannot be had.
            SandboxError: As `wait`.
        """
        is_waiting = False

        def attempt() -> Container | None:
            nonlocal is_waiting
            while self._idle:
                found = self._idle.popleft()
                if found.is_well():
                    return found
                self.discard(found)
            if self._failure is not None and self._failure[0] >= since_s:
                raise _again(self._failure[1])
            if not is_waiting:
                is_waiting = True
                self._waiting += 1
            self._fill()
            return None

        try:
            return self.wait(attempt, since_s, withdrawal, "container")
        finally:
            with self.changed:
                self._waiting -= is_waiting
                self._let_go_surplus()
                if not self.closed and self._failure is None:
                    with contextlib.suppress(SandboxError):  # the keeper tries again
                        self._fill()

    def begin_session(self, since_s: float, withdrawal: Withdrawal) -> Container:
        """A container of its own for a session.

        Raises:
            As `take`.
        """
        found: list[Container] = []
        failed: list[SandboxError] = []
        gave_up = threading.Event()

        def work() -> None:
            try:
                container = self._start(session=True)
            except SandboxError as error:
                failed.append(error)
            else:
                with self.changed:
                    if not gave_up.is_set() and not self.closed:
                        found.append(container)
                        container = None  # type: ignore[assignment]
                if container is not None:
                    self.discard(container)
            self.ring()

        def attempt() -> Container | None:
            if failed:
                raise _again(failed[0])
            return found[0] if found else None

        with self.changed:
            if self.closed:
                raise SandboxClosed("the sandbox is closed")
            self._run(work)
        try:
            return self.wait(attempt, since_s, withdrawal, "container")
        except BaseException:
            with self.changed:
                gave_up.set()
                left = found[0] if found else None
            if left is not None:
                self.discard(left)
            raise

    def discard(self, container: Container) -> None:
        """Let a container go: it ends and removes itself, and is looked after until it has. Never blocks."""
        container.link.close()
        with self.changed:
            self._links.pop(container.name, None)
            if container.name in self._names:
                self._names[container.name] = time.monotonic() + _LEAVING_S

    def warm(self) -> None:
        """Have the pool filled, in the background."""
        with self.changed:
            if self.closed:
                raise SandboxClosed("the sandbox is closed")
            self._fill()

    @property
    def is_used(self) -> bool:
        return self._keeper is not None

    # --- Threads

    def _run(self, work: Callable[[], None]) -> None:
        """Have a thread do it; the caller has the lock.

        Raises:
            SandboxError: There can be no more threads.
        """

        def all_of_it() -> None:
            try:
                work()
            finally:
                with self.changed:
                    self._threads.discard(threading.current_thread())
                    self.changed.notify_all()

        thread = threading.Thread(target=all_of_it, name="docker-sandbox", daemon=True)
        try:
            if self._keeper is None:
                keeper = threading.Thread(target=self._keep, name="docker-sandbox-keeper", daemon=True)
                keeper.start()
                self._keeper = keeper
            thread.start()
        except RuntimeError as error:
            raise SandboxError(f"this process cannot start another thread: {error}") from error
        self._threads.add(thread)

    def _lacking(self) -> int:
        return self.plan.config.pool_size + self._waiting - len(self._idle) - self._starting

    def _let_go_surplus(self) -> None:
        """End what was started for calls that do not wait any more; the caller has the lock."""
        while len(self._idle) > self.plan.config.pool_size + self._waiting:
            self.discard(self._idle.popleft())

    def _fill(self) -> None:
        """Have threads start what is lacking; the caller has the lock."""
        self._is_pooled = True
        for _ in range(min(self._lacking(), _STARTERS - self._starting)):
            self._run(self._fill_up)  # which needs the lock for its first step
            self._starting += 1

    def _fill_up(self) -> None:
        """Start containers until nothing lacks, or until one cannot be had."""
        while True:
            container, failure = None, None
            try:
                container = self._start(session=False)
            except SandboxError as error:
                failure = error
            finally:
                with self.changed:
                    if container is not None and not self.closed:
                        self._idle.append(container)
                        self._failure = None
                        container = None
                    elif failure is not None:
                        self._failure = (time.monotonic(), failure)
                    self._starting -= 1
                    goes_on = failure is None and not self.closed and self._lacking() > 0
                    self._starting += goes_on
                    self._let_go_surplus()
                    self.changed.notify_all()
                if container is not None:
                    self.discard(container)
            if not goes_on:
                return

    def _start(self, *, session: bool) -> Container:
        """Start one container. Blocks for hundreds of milliseconds, or as long as the engine may take.

        Raises:
            SandboxError: It cannot be had.
        """
        try:
            try:
                return self._start_one(session=session, init=self._has_init)
            except NoInitHere:
                self._has_init = False
                return self._start_one(session=session, init=False)
        except SandboxError:
            raise
        except Exception as error:  # of the SDK, which promises nothing; callers must hear of it
            raise SandboxError(f"a container could not be started: {error!r}") from error

    def _start_one(self, *, session: bool, init: bool) -> Container:
        engine, facts = self._connect()
        name = new_name(self.instance)
        with self.changed:
            self._names[name] = 0.0
        try:
            container = start(
                engine,
                facts,
                self.plan,
                name=name,
                labels=labels(self.instance),  # of the process that starts it: a server may have forked
                runtime=self._runtime,
                session=session,
                ping_s=self._ping_s(),
                stopped=lambda: self.closed,
                init=init,
            )
        except BaseException as error:
            with self.changed:
                self._names[name] = time.monotonic() + _LEAVING_S
            if not isinstance(error, (NoInitHere, SandboxConfigError, SandboxClosed)):
                self._disconnect(engine)
            raise
        with self.changed:
            self._links[name] = container
        return container

    def _ping_s(self) -> float:
        least, most = _PING_S
        return min(max(self.plan.config.timeout_seconds, least), most)

    def _connect(self) -> tuple[Engine, Facts]:
        with self._connecting:
            if self._engine is not None and self.facts is not None:
                return self._engine, self.facts
            if self.closed:
                raise SandboxClosed("the sandbox is closed")
            engine = Engine(self._where, ping_s=self._ping_s(), answer_s=_ANSWER_S)
            try:
                facts = engine.facts(
                    self._image, self._runtime, pull=self._pull, on_progress=self._on_progress
                )
                self._check_level(facts)
            except BaseException:
                engine.close()
                raise
            with contextlib.suppress(EngineFault):  # the keeper tries again
                self._reap(engine)
            self._engine, self.facts = engine, facts
            return engine, facts

    def _check_level(self, facts: Facts) -> None:
        config = self.plan.config
        if facts.level < config.minimum_level:
            raise SandboxUnavailable(
                f"a container is {facts.level} here, and {config.minimum_level} is asked for", facts.missing
            )
        if facts.level > config.maximum_level:
            raise unavailable(
                "maximum_level",
                f"a container is {facts.level} here, above {config.maximum_level}",
                "Raise `maximum_level`.",
                str(config.maximum_level),
            )

    def _disconnect(self, engine: Engine) -> None:
        """After a fault: the next start asks anew what there is."""
        with self._connecting:
            if self._engine is engine:
                # Not closed before the next one is: over ssh, what runs hangs on this connection.
                last, self._last_engine = self._last_engine, engine
                self._engine = None
                if last is not None:
                    last.close()

    def _keep(self) -> None:
        """Look after what lives and what should be gone, until the sandbox is closed."""
        next_reap_s = 0.0
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.closed, _LOOK_S)
                if self.closed:
                    return
            try:
                self._look_after()
                if time.monotonic() >= next_reap_s:
                    next_reap_s = time.monotonic() + _REAP_S
                    if (engine := self._engine or self._last_engine) is not None:
                        self._reap(engine)
            except EngineFault as fault:  # whoever needs a container hears of it
                logger.debug("the container engine does not say what there is: %s", fault)
            except Exception:  # it must go on: nobody else looks after what is there
                logger.exception("looking after containers failed")

    def _look_after(self) -> None:
        with self.changed:
            for each in [each for each in self._idle if not each.is_well()]:
                self._idle.remove(each)
                self.discard(each)
            failed_s = self._failure[0] if self._failure is not None else -_RETRY_S
            if self._is_pooled and time.monotonic() >= failed_s + _RETRY_S:
                self._fill()
        self.each_second()

    def _reap(self, engine: Engine) -> None:
        gone: set[str] = set()

        def known() -> set[str]:
            now = time.monotonic()
            with self.changed:
                in_use = {name for name, until_s in self._names.items() if not until_s or until_s > now}
                gone.update(set(self._names) - in_use)
            return in_use

        reap(engine, self.instance, known, self._tried)
        with self.changed:
            for name in gone:  # this time it was not there, or was removed
                self._names.pop(name, None)

    # --- The end

    def close(self, *, wait: bool) -> bool:
        """End everything; false if it was closed before."""
        with self.changed:
            if self.closed:
                return False
            self.closed = True
            links = list(self._links.values())
            self._idle.clear()
            self.changed.notify_all()
        for container in links:
            self.discard(container)
        if wait:
            self._await_end()
        else:
            self._close_engines()
        return True

    def _close_engines(self) -> None:
        for engine in {each for each in (self._engine, self._last_engine) if each is not None}:
            engine.close()

    def _await_end(self) -> None:
        """Wait until no container is left, with some force, and until no thread is."""
        until_s = time.monotonic() + _CLOSE_S
        for each in (*self._threads, *filter(None, [self._keeper])):  # what they start they let go again
            if each is not threading.current_thread():
                each.join(max(0.0, until_s - time.monotonic()))
        engine = self._engine or self._last_engine
        if engine is not None:
            self._await_containers(engine, until_s)
        self._close_engines()

    def _await_containers(self, engine: Engine, until_s: float) -> None:
        done = threading.Event()
        left: list[dict[str, Any]] = []

        def work() -> None:
            filters = {"label": [f"mcp-tools.sandbox.instance={self.instance}"]}
            forced = False
            while time.monotonic() < until_s and not done.is_set():
                try:
                    left[:] = engine.ask("containers", all=True, filters=filters, within_s=2.0)
                except (EngineFault, TypeError):
                    break  # nobody to ask; what is left goes with its connection
                if not left:
                    break
                if forced or time.monotonic() > until_s - _CLOSE_S + 1.0:
                    forced = True
                    for each in tuple(left):
                        engine.remove(str(each["Id"]), within_s=2.0)
                done.wait(0.05)
            done.set()

        thread = threading.Thread(target=work, name="docker-sandbox-close", daemon=True)
        thread.start()
        thread.join(max(0.0, until_s - time.monotonic()))
        done.set()
        for each in tuple(left):
            logger.warning("the container %s was not removed before the sandbox was closed", name_of(each))

    def forget(self) -> None:
        """In a fork of the server: close our copies of the connections, and end nothing."""
        self.closed = True
        forget_connections()


def _again(error: SandboxError) -> SandboxError:
    """The same error for another caller: a traceback belongs to one."""
    same = type(error).__new__(type(error), *error.args)  # each class has an `__init__` of its own
    same.__dict__.update(error.__dict__)
    return same
