"""One call in a container, from the server's side: sends it, keeps what comes, decides how it ended."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from sandbox.docker.container import Container, ContainerGone
from sandbox.docker.engine import EngineFault
from sandbox.docker.frames import encode
from sandbox.docker.withdrawal import Withdrawal, bounded
from sandbox.errors import SandboxDied
from sandbox.outcome import Ending, Kept, conclude, flood_bytes, report_limit_bytes
from sandbox.types import EndedBy, SandboxConfig, SandboxResult

if TYPE_CHECKING:
    from sandbox.docker.frames import Header

_BACKSTOP_S = 0.8  # after which we end a call that the agent should have ended
_WORD_S = 0.4  # for the agent's word on a call that was ended; then we end the container
_ENGINE_S = 0.8  # for the engine's word on a container that we ended, or that ended by itself
_LOOK_S = 0.5
_CANCEL_S = 3.0
_TELL_S = 0.1
_MAX_NUMBER = 2**63
_KILLED = 9  # as a status of Linux


class NotSent(Exception):
    """The container was gone before it had all of the call, so none of it ran."""


class Call:
    """A request on its way through a container that is the caller's alone while it runs."""

    def __init__(self, container: Container, request: bytes, *, wall_s: float, config: SandboxConfig) -> None:
        self.container = container
        self.config = config
        self.number = container.next_call
        self.is_lost = False  # the container's state is
        self._request = request
        self._wall_s = wall_s
        self._out, self._err = Kept(config.max_output_bytes), Kept(config.max_output_bytes)
        self._report = bytearray()
        self._report_limit = report_limit_bytes(config)
        self._flood = flood_bytes(config)
        self._killed: EndedBy | None = None
        self._ending: Ending | None = None
        self._act_at_s = 0.0

    def run(
        self, withdrawal: Withdrawal, *, on_loss: Callable[[], EndedBy | None] = lambda: None
    ) -> SandboxResult:
        """Run it to its end.

        Args:
            withdrawal: Ends it early.
            on_loss: Asked when the container went: why, if somebody ended it on purpose.

        Raises:
            NotSent: None of it ran.
            Cancelled: It was withdrawn; its processes are gone.
            SandboxDied: The container or the engine ended; the code was ended with it, as far as we can.
        """
        withdrawal.check()
        began_s = time.monotonic()
        self._act_at_s = began_s + self._wall_s + _BACKSTOP_S
        try:
            self.container.next_call = 0
            withdrawal.tell(self._withdraw)
            try:
                self.container.link.send(self._request, self._act_at_s)
            except ContainerGone as gone:
                withdrawal.check()
                if time.monotonic() >= self._act_at_s:
                    raise SandboxDied(f"the container took no call: {gone}; nothing was run") from gone
                raise NotSent(str(gone)) from gone
            if self._killed is not None:
                self._send_kill()  # it was withdrawn before it was there
            self._listen(on_loss)
        except (NotSent, SandboxDied):
            self.is_lost = True
            withdrawal.check()
            raise
        except BaseException:  # KeyboardInterrupt, or what another signal handler raises
            self._abandon()
            raise
        ended_s = time.monotonic()
        withdrawal.check()
        assert self._ending is not None
        facts = self.container.facts
        return conclude(
            self._report,
            self._ending,
            killed=self._killed,
            config=self.config,
            wall_s=self._wall_s,
            out=self._out,
            err=self._err,
            duration_ms=(ended_s - began_s) * 1000,
            isolation=facts.level,
            backend="docker",
            runtime=facts.runtime,
            not_enforced=facts.not_enforced,
        )

    def _listen(self, on_loss: Callable[[], EndedBy | None]) -> None:
        while self._ending is None:
            now = time.monotonic()
            try:
                frame = self.container.link.receive(min(self._act_at_s, now + _LOOK_S))
            except ContainerGone as gone:
                self._lose(gone, on_loss())
                return
            if frame is not None:
                self._take(*frame)
            elif time.monotonic() >= self._act_at_s:
                self._overdue()

    def _take(self, said: Header, blobs: list[bytes]) -> None:
        if said.get("out") in (1, 2):
            kept = self._out if said["out"] == 1 else self._err
            for blob in blobs:
                kept.add(blob)
            if kept.dropped_bytes > self._flood and self._killed is None:
                self._kill(EndedBy.OUTPUT)
        elif said.get("report") == self.number:
            for blob in blobs:
                if len(self._report) <= self._report_limit:
                    self._report += blob
        elif said.get("ended") == self.number:
            self._conclude(said)
        elif "failed" in said:
            self.is_lost = True
            raise SandboxDied(f"the container's agent cannot go on: {str(said['failed'])[:300]}")

    def _conclude(self, said: Mapping[str, Any]) -> None:
        code, number, why = said.get("exit"), said.get("signal"), said.get("why")
        status: int | None = None
        if isinstance(number, int) and 0 < number < 0x7F:
            status = number
        elif isinstance(code, int):
            status = (code & 0xFF) << 8
        dropped = said.get("dropped")
        if isinstance(dropped, list) and len(dropped) == 2:
            self._out.dropped_bytes += _number(dropped[0])
            self._err.dropped_bytes += _number(dropped[1])
        self.is_lost = said.get("state") == "lost"
        self._ending = Ending(
            status=status,
            cpu_ns=_number(said.get("cpu_ns")),
            peak_bytes=_number(said.get("peak_bytes")),
            why=why if isinstance(why, str) and why in set(EndedBy) else None,
            ooms=_number(said.get("ooms")),
            refused_forks=_number(said.get("refused_forks")),
        )

    def _kill(self, why: EndedBy) -> None:
        """Have the agent end the call; from any thread."""
        if self._killed is not None:
            return
        self._killed = why
        self._act_at_s = time.monotonic() + _WORD_S
        self._send_kill()

    def _send_kill(self) -> None:
        with contextlib.suppress(ContainerGone):  # `_listen` hears of it
            self.container.link.send(encode({"kill": self.number}), time.monotonic() + _TELL_S)

    def _withdraw(self) -> None:
        """End the call for its caller; from another thread, perhaps while it is still being sent."""
        if self.container.link.is_free(_TELL_S):
            self._kill(EndedBy.CANCELLED)
        else:
            self.container.link.close()  # nobody takes it, so it is not whole, and none of it runs

    def _overdue(self) -> None:
        """The agent should have ended the call by now, or should have said that it is over."""
        if self._killed is None:
            self._kill(EndedBy.TIME)
            return
        self.is_lost = True
        engine, name = self.container.engine, self.container.name
        self.container.link.close()
        if bounded(lambda: engine.kill(name, within_s=_ENGINE_S), _ENGINE_S):
            self._ending = _ended_by_us()
            return
        raise SandboxDied("neither the container nor its engine answers; its end cannot be seen")

    def _lose(self, gone: ContainerGone, on_purpose: EndedBy | None) -> None:
        """The container ended, or its engine did."""
        self.is_lost = True
        self._killed = self._killed or on_purpose
        if self._killed is not None:
            self._ending = _ended_by_us()
            return
        engine, name = self.container.engine, self.container.name

        def was_out_of_memory() -> bool:
            try:
                state = engine.ask("inspect_container", name, within_s=_ENGINE_S).get("State") or {}
            except EngineFault:
                return False
            return bool(state.get("OOMKilled"))

        if not bounded(was_out_of_memory, _ENGINE_S):
            raise SandboxDied(f"the container went during the call: {gone}; the code was ended with it")
        self._killed = EndedBy.MEMORY
        self._ending = _ended_by_us()

    def _abandon(self) -> None:
        """Have the call ended, and wait until it is, for an exception that is on its way."""
        try:
            self._kill(EndedBy.CANCELLED)
            until_s = time.monotonic() + _CANCEL_S
            while self._ending is None and time.monotonic() < until_s:
                frame = self.container.link.receive(until_s)
                if frame is not None and frame[0].get("ended") == self.number:
                    self._conclude(frame[0])
        except ContainerGone:
            pass
        self.is_lost = self.is_lost or self._ending is None


def _ended_by_us() -> Ending:
    return Ending(status=_KILLED, cpu_ns=0, peak_bytes=0, why=None, ooms=0, refused_forks=0)


def _number(said: object) -> int:
    return said if isinstance(said, int) and 0 <= said < _MAX_NUMBER else 0
