"""Which zygote serves whom: one for each tenant, replaced when it is worn, ended when nobody uses it."""

from __future__ import annotations

import copy
import select
import threading
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from sandbox.errors import Missing, SandboxClosed, SandboxDied, SandboxError, SandboxUnavailable
from sandbox.linux.handle import Taken, ZygoteProcess
from sandbox.linux.spec import Plan
from sandbox.linux.waiting import Bell

if TYPE_CHECKING:
    from sandbox.types import IsolationLevel

_DEATHS_IN_A_ROW = 3
_REPLACE_AGAIN_S = 10.0  # after a replacement that could not be had
_END_S = 1.5
_FORCE_S = 0.5
_T = TypeVar("_T")


class Tenant:
    """The zygote of one tenant, and at times its replacement that is still starting."""

    def __init__(self, owner: Tenants) -> None:
        self._owner = owner
        self._lock = threading.RLock()
        self._current: ZygoteProcess | None = None
        self._next: ZygoteProcess | None = None
        self._not_before_s = 0.0  # for the next replacement
        self._deaths = 0
        self._failure: tuple[float, SandboxError] | None = None
        self._line: list[weakref.ref[object]] = []
        self.users = 0  # guarded by the owner's lock, as the next
        self.used_s = time.monotonic()

    @property
    def is_started(self) -> bool:
        return self._current is not None

    def start(self) -> ZygoteProcess:
        """Have a zygote started if there is none; returns at once."""
        with self._lock:
            if self._owner.closed:
                raise SandboxClosed("the sandbox is closed")
            if self._current is not None and self._current.suspect:
                self._retire_current()
            if self._current is None:
                self._current, self._next = self._next or self._owner.launch(), None
            return self._current

    def ready(self, since_s: float) -> ZygoteProcess | None:
        """The zygote in use once it has shown that its walls hold; `None` before. Never blocks for long.

        Raises:
            As `take`.
        """
        with self._lock:
            self._fail_again(since_s)
            current = self.start()
            return current if self._guarded(current, current.is_up) else None

    def take(self, who: object, since_s: float) -> Taken | None:
        """A warm child, or `None` if none is ready or others wait for longer. Never blocks for long.

        Args:
            who: The caller, which is in the line after a `None`, until `leave_line`; the bell rings for it
                when it is the first. Were all woken for each child, they would spend the CPU on asking.
            since_s: When the caller began to wait: a failure after that is the answer to it too.

        Raises:
            SandboxUnavailable: No level that is good enough could be had.
            SandboxDied: Zygotes keep ending before they can serve.
            SandboxClosed: The sandbox is closed.
            SandboxError: This process has too many open files.
        """
        with self._lock:
            self._fail_again(since_s)
            current = self.start()
            if who not in self._in_line():
                self._line.append(weakref.ref(who))
            if self._first() is not who:
                return None
            if self._next is not None and (taken := self._take_from_next(self._next)) is not None:
                return taken
            self._replace_when_worn(current)
            return self._guarded(current, current.take)

    def leave_line(self, who: object) -> None:
        """The caller has its child, or gives up. Can be called again."""
        with self._lock:
            was_first = self._first() is who
            self._line = [weakref.ref(each) for each in self._in_line() if each is not who]
            first = self._first() if was_first else None
        if first is not None:
            self._owner.bell.ring(first)

    def _in_line(self) -> list[object]:
        """Who waits. A caller that a signal handler's exception kept from leaving is not there any more."""
        return [each for each in (ref() for ref in self._line) if each is not None]

    def _first(self) -> object:
        waiting = self._in_line()
        return waiting[0] if waiting else None

    def look_after(self) -> None:
        """A caller waits for long: replace a zygote that does not even listen any more."""
        with self._lock:
            current = self._current
            if current is None or not current.is_stuck():
                return
            self._retire_current()
            if current.level is None:
                died = SandboxDied("the sandbox did not start: it neither answers nor ends")
                self._fail(died)
                raise died
            self._owner.distrust(current)

    def register(self, epoll: select.epoll, who: object = None) -> None:
        """Add to `epoll` what becomes readable when `take` (by `who`) or `ready` should be tried again."""
        with self._lock:
            if who is not None and self._first() not in {None, who}:
                return  # the bell rings
            for zygote in (self._current, self._next):
                try:
                    if zygote is not None:
                        epoll.register(zygote.control.fileno(), select.EPOLLIN)
                except (OSError, ValueError):
                    continue  # the sandbox was closed just now; the bell rings

    def retire(self) -> None:
        """Let go of the zygotes; what lives in them goes on."""
        with self._lock:
            every = [each for each in (self._current, self._next) if each is not None]
            self._current = self._next = None
        for zygote in every:
            zygote.retire()

    def _guarded(self, current: ZygoteProcess, attempt: Callable[[], _T]) -> _T | None:
        """Carry out `attempt`; a zygote that ended is replaced, unless they keep ending."""
        try:
            result = attempt()
        except SandboxDied as died:
            self._retire_current()
            self._count_death(died)
            self.start()
            return None
        except SandboxUnavailable as refusal:
            self._retire_current()
            self._fail(refusal)
            raise
        if result:
            self._deaths = 0
            owner = self._owner
            owner.level, owner.missing, owner.walls_s = current.level, current.missing, current.walls_s
        return result

    def _count_death(self, died: SandboxDied) -> None:
        self._deaths += 1
        if self._deaths >= _DEATHS_IN_A_ROW:
            self._deaths = 0
            self._fail(died)
            raise died

    def _fail(self, error: SandboxError) -> None:
        """Whoever waits gets `error` too, instead of one more start each."""
        self._failure = time.monotonic(), error
        self._owner.bell.ring()

    def _fail_again(self, since_s: float) -> None:
        if self._failure is not None and since_s <= self._failure[0]:
            raise copy.copy(self._failure[1])

    def _retire_current(self) -> None:
        current, self._current = self._current, None
        if current is not None:
            current.retire()

    def _replace_when_worn(self, current: ZygoteProcess) -> None:
        config = self._owner.plan.config
        now = time.monotonic()
        worn = current.calls >= config.recycle_calls or now - current.born_s >= config.recycle_seconds
        if worn and self._next is None and now >= self._not_before_s:
            try:
                self._next = self._owner.launch()
            except SandboxClosed:
                raise
            except SandboxError:
                self._not_before_s = now + _REPLACE_AGAIN_S

    def _take_from_next(self, replacement: ZygoteProcess) -> Taken | None:
        """The replacement takes over with its first child. When it cannot, the worn one goes on."""
        try:
            taken = replacement.take()
        except (SandboxDied, SandboxUnavailable):
            self._next = None
            self._not_before_s = time.monotonic() + _REPLACE_AGAIN_S
            replacement.retire()
            return None
        if taken is not None:
            self._retire_current()
            self._current, self._next = replacement, None
            self._owner.bell.ring()  # others wait for the old one
        return taken


class Tenants:
    """All tenants of a sandbox, and every zygote that was started for them."""

    def __init__(self, plan: Plan, bell: Bell) -> None:
        self.plan = plan
        self.bell = bell
        self.closed = False
        self.level: IsolationLevel | None = None
        self.missing: tuple[Missing, ...] = ()
        self.walls_s = 0.0
        # Locks are taken in this order: a tenant's, this one, a zygote's.
        self._lock = threading.RLock()
        self._tenants: dict[str, Tenant] = {}
        self._zygotes: list[ZygoteProcess] = []
        self._suspects: list[ZygoteProcess] = []

    def enter(self, name: str) -> Tenant | None:
        """The tenant of that name, in use until `leave`. At the limit one that is idle goes.

        Returns:
            `None` while there are as many as there may be, and none is idle.

        Raises:
            SandboxClosed: The sandbox is closed.
        """
        dropped: list[Tenant] = []
        with self._lock:
            if self.closed:
                raise SandboxClosed("the sandbox is closed")
            tenant = self._tenants.get(name)
            if tenant is None:
                while len(self._tenants) >= self.plan.config.max_tenants:
                    idle = [each for each, of in self._tenants.items() if not of.users]
                    if not idle:
                        break
                    oldest = min(idle, key=lambda each: self._tenants[each].used_s)
                    dropped.append(self._tenants.pop(oldest))
                else:
                    tenant = self._tenants[name] = Tenant(self)
            if tenant is not None:
                tenant.users += 1
        for each in dropped:
            each.retire()
        return tenant

    def leave(self, tenant: Tenant) -> None:
        """A call of the tenant is over."""
        with self._lock:
            tenant.users -= 1
            tenant.used_s = time.monotonic()
            became_idle = tenant.users == 0 and len(self._tenants) >= self.plan.config.max_tenants
            for each in self._suspects:
                if each.is_stuck():
                    each.end()  # what lives in it lives without its limits
            self._suspects = [each for each in self._suspects if not each.is_over]
            if any(each.is_over for each in self._zygotes):  # so that none stays a zombie until the next
                self._zygotes = [each for each in self._zygotes if not each.is_gone()]
        if became_idle:
            self.bell.ring()

    def distrust(self, zygote: ZygoteProcess) -> None:
        """The zygote did not do its part of a call: no new one goes there."""
        with self._lock:
            zygote.suspect = True
            if zygote not in self._suspects:
                self._suspects.append(zygote)
        self.bell.ring()

    @property
    def is_used(self) -> bool:
        """Whether anything was started."""
        return bool(self._zygotes)

    def is_started(self, name: str) -> bool:
        with self._lock:
            return name in self._tenants and self._tenants[name].is_started

    def start(self, name: str) -> None:
        """Start the tenant's zygote in the background, if there is room for it."""
        tenant = self.enter(name)
        if tenant is not None:
            try:
                tenant.start()
            finally:
                self.leave(tenant)

    def launch(self) -> ZygoteProcess:
        """Start a zygote.

        Raises:
            SandboxClosed: The sandbox is closed.
            SandboxError: As `ZygoteProcess`.
        """
        if self.closed:
            raise SandboxClosed("the sandbox is closed")
        zygote = ZygoteProcess(self.plan)
        with self._lock:
            self._zygotes = [each for each in self._zygotes if not each.is_gone()]
            self._zygotes.append(zygote)
            closed = self.closed
        if closed:  # meanwhile, by another thread or a signal handler
            zygote.end()
            raise SandboxClosed("the sandbox is closed")
        self.bell.ring()
        return zygote

    def close(self, *, wait: bool) -> bool:
        """End everything, and wait for it for two seconds at most; false if it was closed before."""
        with self._lock:
            if self.closed:
                return False
            self.closed = True
            zygotes = list(self._zygotes)
            self._tenants.clear()
        for zygote in zygotes:
            zygote.end()
        self.bell.ring()
        if wait:
            until_s = time.monotonic() + _END_S
            late = [each for each in zygotes if not each.wait(until_s)]
            for zygote in late:
                zygote.kill()
            for zygote in late:
                zygote.wait(until_s + _FORCE_S)
        return True

    def forget(self) -> None:
        """In a fork of the server: nothing here is ours."""
        for zygote in self._zygotes:
            zygote.forget()
