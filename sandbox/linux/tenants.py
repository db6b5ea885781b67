"""Which zygote serves whom: one for each tenant, replaced when it is worn, ended when nobody uses it."""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from sandbox.errors import Missing, SandboxClosed, SandboxDied
from sandbox.linux.handle import Taken, ZygoteProcess
from sandbox.linux.spec import Plan

if TYPE_CHECKING:
    from sandbox.types import IsolationLevel

_DEATHS_IN_A_ROW = 3
_T = TypeVar("_T")


class Tenant:
    """The zygotes of one tenant: the one in use, its replacement, and those that still finish calls."""

    def __init__(self, plan: Plan, owner: Tenants) -> None:
        self._plan = plan
        self._owner = owner
        self._lock = threading.RLock()
        self._current: ZygoteProcess | None = None
        self._next: ZygoteProcess | None = None
        self._retired: list[ZygoteProcess] = []
        self._deaths = 0
        self.used_s = time.monotonic()

    @property
    def is_started(self) -> bool:
        return self._current is not None

    def ready(self) -> ZygoteProcess | None:
        """The zygote in use once it has shown that its walls hold; `None` before. Never blocks for long.

        Raises:
            As `take`.
        """
        with self._lock:
            zygote = self.start()
            if zygote.level is not None:
                return zygote
            return zygote if self._guarded(zygote, zygote.is_up) else None

    def start(self) -> ZygoteProcess:
        """Have a zygote started if there is none; returns at once."""
        with self._lock:
            if self._owner.closed:
                raise SandboxClosed("the sandbox is closed")
            if self._current is None:
                self._current = ZygoteProcess(self._plan)
            return self._current

    def take(self) -> tuple[ZygoteProcess, Taken | None]:
        """A warm child and the zygote it comes from, or no child if none is ready. Never blocks for long.

        Raises:
            SandboxUnavailable: No level that is good enough could be had.
            SandboxDied: Zygotes keep ending before they can serve.
            SandboxClosed: The sandbox is closed.
        """
        with self._lock:
            self.used_s = time.monotonic()
            current = self.start()
            self._replace_when_worn(current)
            if self._next is not None:
                replacement = self._next
                try:
                    taken = replacement.take()
                except SandboxDied:
                    self._next = None
                    self._retire(replacement)
                    taken = None
                if taken is not None:
                    self._retire(current)
                    self._current, self._next = replacement, None
                    return replacement, taken
            return current, self._guarded(current, current.take)

    def _guarded(self, current: ZygoteProcess, attempt: Callable[[], _T]) -> _T | None:
        """Carry out `attempt`; a zygote that ended is replaced, unless they keep ending."""
        try:
            result = attempt()
        except SandboxDied:
            self._current = None
            self._retire(current)
            self._deaths += 1
            if self._deaths >= _DEATHS_IN_A_ROW:
                self._deaths = 0
                raise
            self.start()
            return None
        except BaseException:
            self._current = None
            self._retire(current)
            raise
        if result:
            self._deaths = 0
            self._owner.level, self._owner.missing = current.level, current.missing
        return result

    def register(self, epoll: select.epoll) -> None:
        """Add to `epoll` what becomes readable when `take` should be tried again."""
        with self._lock:
            for zygote in (self._current, self._next):
                if zygote is not None:
                    epoll.register(zygote.control.fileno(), select.EPOLLIN)

    def finished(self, zygote: ZygoteProcess) -> None:
        """A call is over; a retired zygote whose last one it was ends."""
        zygote.finished()
        with self._lock:
            if self._retired:
                self._sweep()

    def close(self) -> list[ZygoteProcess]:
        """Tell all zygotes to end; returns them, to be waited for."""
        with self._lock:
            every = [each for each in (self._current, self._next, *self._retired) if each is not None]
            self._current = self._next = None
            self._retired = []
        for zygote in every:
            zygote.end()
        return every

    def _replace_when_worn(self, current: ZygoteProcess) -> None:
        config = self._plan.config
        worn = current.calls >= config.recycle_calls or (
            time.monotonic() - current.born_s >= config.recycle_seconds
        )
        if worn and self._next is None:
            self._next = ZygoteProcess(self._plan)

    def _retire(self, zygote: ZygoteProcess) -> None:
        self._retired.append(zygote)
        self._sweep()

    def _sweep(self) -> None:
        for zygote in list(self._retired):
            if zygote.in_flight == 0:
                zygote.end()
                if zygote.is_gone():
                    self._retired.remove(zygote)


class Tenants:
    """All tenants of a sandbox."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._lock = threading.Lock()
        self._tenants: dict[str, Tenant] = {}
        self.closed = False
        self.level: IsolationLevel | None = None
        self.missing: tuple[Missing, ...] = ()

    def of(self, name: str) -> Tenant:
        """The tenant of that name; over the limit, the one that was idle for longest ends.

        Raises:
            SandboxClosed: The sandbox is closed.
        """
        dropped: list[Tenant] = []
        with self._lock:
            if self.closed:
                raise SandboxClosed("the sandbox is closed")
            tenant = self._tenants.get(name)
            if tenant is None:
                while len(self._tenants) >= self._plan.config.max_tenants:
                    oldest = min(self._tenants, key=lambda each: self._tenants[each].used_s)
                    dropped.append(self._tenants.pop(oldest))
                tenant = self._tenants[name] = Tenant(self._plan, self)
        for each in dropped:
            for zygote in each.close():
                zygote.destroy()
        return tenant

    def is_started(self, name: str) -> bool:
        with self._lock:
            return name in self._tenants and self._tenants[name].is_started

    def start(self, name: str) -> None:
        self.of(name).start()

    def close(self) -> None:
        """End everything and wait for it, two seconds at most for each."""
        with self._lock:
            if self.closed:
                return
            self.closed = True
            tenants = list(self._tenants.values())
            self._tenants.clear()
        zygotes = [zygote for tenant in tenants for zygote in tenant.close()]
        for zygote in zygotes:
            zygote.destroy()
