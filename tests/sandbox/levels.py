"""The same tests at every level, as root and as an ordinary user.

A place is a level and a user. Where this process and its interpreter will do, the sandbox is made here;
otherwise in a process of that user, by an interpreter that everyone can read, which is told what to run.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

import pytest

from sandbox import IsolationLevel, PythonSandbox, SandboxConfig, SandboxError, SandboxResult
from tests.sandbox.places import PATH, STRANGER, Elsewhere, interpreter_for_all

SMALL: Mapping[str, Any] = {"pool_size": 1, "max_concurrent_calls": 2, "max_sessions": 2}
_END_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a sandbox is made. `user`: as an ordinary user, even if the tests run as root."""

    level: IsolationLevel
    user: bool = False

    def __str__(self) -> str:
        return f"{self.level} as user" if self.user else str(self.level)

    @property
    def can_fork(self) -> bool:
        return self.level > IsolationLevel.L2

    @property
    def has_mounts(self) -> bool:
        """Whether each call has mounts of its own: a sized `/tmp`, and metadata of its files can change."""
        return self.level >= IsolationLevel.L4


L4_PLUS = Place(level=IsolationLevel.L4_PLUS)
L4 = Place(level=IsolationLevel.L4)
L3 = Place(level=IsolationLevel.L3)
L2 = Place(level=IsolationLevel.L2)
L4_USER, L3_USER, L2_USER = (Place(level=place.level, user=True) for place in (L4, L3, L2))
PLACES = (L4_PLUS, L4, L3, L2)
WITH_FORK = (L4_PLUS, L4, L3)
WITH_MOUNTS = (L4_PLUS, L4)
USERS = (L4_USER, L3_USER, L2_USER)


def at(*places: Place) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("place", places, ids=str)


class Box(Protocol):
    """A sandbox, wherever it is."""

    def execute_sync(
        self,
        code: str,
        *,
        session: str | None = None,
        files: Mapping[str, bytes | str] | None = None,
        timeout_seconds: float | None = None,
        tenant: str = "",
    ) -> SandboxResult: ...

    def end_session(self, session: str, *, tenant: str = "") -> bool: ...

    def close(self) -> None: ...


class Refused(SandboxError):
    """What a sandbox in another process raised: the name of its class and its text."""


_SERVE = """
import pickle, sys
from sandbox import PythonSandbox
boxes = {}
while True:
    try:
        what, key, arguments = pickle.load(sys.stdin.buffer)
    except EOFError:
        break
    try:
        if what == "open":
            boxes[key], answer = PythonSandbox(arguments), None
        else:
            answer = getattr(boxes[key], what)(**arguments)
    except Exception as error:
        answer = f"{type(error).__name__}: {error}"
    pickle.dump(answer, sys.stdout.buffer)
    sys.stdout.buffer.flush()
"""


class Host:
    """A process that makes sandboxes for us."""

    def __init__(self, elsewhere: Elsewhere, *, user: bool) -> None:
        stranger: Mapping[str, Any] = {"user": STRANGER, "group": STRANGER, "extra_groups": []}
        self._process = subprocess.Popen(
            [interpreter_for_all(), "-c", _SERVE],
            cwd="/",
            env={"PATH": PATH, "PYTHONPATH": str(elsewhere.folder), "PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            **(stranger if user and os.geteuid() == 0 else {}),
        )
        self._keys = 0

    def open(self, config: SandboxConfig) -> Box:
        self._keys += 1
        self.ask("open", self._keys, config)
        return There(self, self._keys)

    def ask(self, what: str, key: int, arguments: object) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(pickle.dumps((what, key, arguments)))
        self._process.stdin.flush()
        answer = pickle.load(self._process.stdout)
        if isinstance(answer, str):
            raise Refused(answer)
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait(_END_S)
        self._process.stdout.close()


class There:
    """A sandbox in another process."""

    def __init__(self, host: Host, key: int) -> None:
        self._host = host
        self._key = key

    def execute_sync(self, code: str, **arguments: Any) -> SandboxResult:
        result = self._host.ask("execute_sync", self._key, {"code": code, **arguments})
        assert isinstance(result, SandboxResult)
        return result

    def end_session(self, session: str, *, tenant: str = "") -> bool:
        return bool(self._host.ask("end_session", self._key, {"session": session, "tenant": tenant}))

    def close(self) -> None:
        self._host.ask("close", self._key, {})


class Boxes:
    """Makes sandboxes, each configuration once, and ends all of them."""

    def __init__(self, elsewhere: Elsewhere) -> None:
        self._elsewhere = elsewhere
        self._hosts: dict[bool, Host] = {}
        self._made: dict[str, Box] = {}

    def here(self, **fields: Any) -> PythonSandbox:
        """In this process, at the best level that there is."""
        key = f"here {sorted(fields.items())}"
        if key not in self._made:
            self._made[key] = PythonSandbox(SandboxConfig(**{**SMALL, **fields}))
        box = self._made[key]
        assert isinstance(box, PythonSandbox)
        return box

    def at(self, place: Place, **fields: Any) -> Box:
        """At exactly that level; the test is skipped on a machine that does not give it."""
        key = f"{place} {sorted(fields.items())}"
        if key not in self._made:
            if place.user and os.geteuid() != 0:
                place = Place(level=place.level)  # we are one
            config = SandboxConfig(
                **{**SMALL, "minimum_level": place.level, "maximum_level": place.level, **fields}
            )
            if place.has_mounts and not place.user:
                self._made[key] = PythonSandbox(config)
            else:
                self._made[key] = self._host(user=place.user).open(config)
        try:
            self._made[key].execute_sync("")
        except SandboxError as reason:
            if "SandboxUnavailable" in f"{type(reason).__name__} {reason}":
                pytest.skip(f"needs a machine that gives {place.level}: {reason}")
            raise
        return self._made[key]

    def _host(self, *, user: bool) -> Host:
        if user not in self._hosts:
            self._hosts[user] = Host(self._elsewhere, user=user)
        return self._hosts[user]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for box in self._made.values():
            box.close()
        for host in self._hosts.values():
            host.close()
