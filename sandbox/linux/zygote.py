"""The zygote: one small, single-threaded process that everything else is forked from.

It keeps children ready, hands each to the server as a set of descriptors, ends those that pass a limit, and
says how each one ended. It never reads what a child writes, except for one byte that says "ready". It needs
no event loop of the server, so limits hold while the server is busy or stopped.
"""

from __future__ import annotations

import importlib
import os
import select
import signal
import socket
import sys
import time

from sandbox.linux import child, libc, memory, runner, tree, walls, wire

TYPE_CHECKING = False  # typing itself is not loaded: it would cost milliseconds and pages
if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.linux.cgroups import Slot
    from sandbox.linux.wire import Message

_REFILL_DELAY_S = 0.004  # a short call is over by then, and its end is reported before the next fork
_GUARD_S = 0.01  # between two looks at the memory and CPU time of running calls
_SESSION_GUARD_S = 0.05
_CROWDED_LOOKS = 3
_OOM_GUARD_S = 0.05  # between two looks at whether the kernel ended a process of a running call
_RETRY_S = 0.1
_MAX_FAILURES = 3  # in a row; then the walls do not hold here, and trying on would only burn the CPU


class Child:
    """One child as the zygote sees it."""

    __slots__ = (
        *("pid", "pidfd", "channel", "status", "streams", "slot", "state", "deadline", "cpu_base_ns"),
        *(
            "why",
            "reply",
            "since",
            "crowd",
            "crowded_looks",
            "mounts_fd",
            "ooms",
            "refused_forks",
            "seen_cpu_ns",
            "tally",
        ),
    )

    def __init__(
        self, pid: int, channel: socket.socket, status: socket.socket, streams: tuple[int, ...]
    ) -> None:
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self.channel = channel  # the server's end, until it is handed over
        self.status = status
        self.streams = streams  # the ends that the server reads, until they are handed over
        self.slot: Slot | None = None
        self.state = "starting"
        self.deadline = float("inf")
        self.since = 0.0
        self.cpu_base_ns = 0
        self.mounts_fd = -1
        self.ooms = 0  # processes of a session that were ended here for their memory
        self.seen_cpu_ns = 0  # of all processes; the kernel forgets those that were ended with the first
        self.tally = memory.Tally()
        self.crowd = self.crowded_looks = 0  # a session's processes at the last look, if they were too many
        self.refused_forks = 0  # how often all of them were, for their number
        self.why: str | None = None
        self.reply: socket.socket | None = None  # of a session: who asked for it

    def cpu_ns(self) -> int:
        """CPU time of this process alone, without those that it forked."""
        process_clock = (~self.pid << 3) | 2  # what clock_getcpuclockid(3) computes
        return time.clock_gettime_ns(process_clock)


class Zygote:
    """Owns the children. `run` returns when the server is gone or asks for the end."""

    def __init__(
        self,
        spec: Message,
        control: socket.socket,
        slots: list[Slot],
        level: int,
        succeeded: Callable[[], None],
        undertaker: socket.socket,
    ) -> None:
        self.succeeded = succeeded
        self.undertaker = undertaker
        self.spec = spec
        self.limits: dict[str, int] = spec["limits"]
        self.control = control
        self.level = level
        self.free_slots = slots
        self.uses_cgroup = bool(slots)
        self.children: dict[int, Child] = {}
        self.ready: list[Child] = []
        self.poll = select.epoll()
        self.by_fd: dict[int, Child] = {}
        self.refill_at: float | None = 0.0
        self.failures = 0
        self.said_hello = False
        self.outer_walls_s = self.first_spawn_s = 0.0
        self.own_pids = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC) if level == 4 else -1
        self.guards = not self.uses_cgroup or bool(self.limits["cpu_ns"])
        self.base_rss = 0
        self.next_look = 0.0
        self.keeps_state = child.can_keep_state(level)  # asked here: a child may not ask any more

    def run(self) -> None:
        self.outer_walls_s = time.monotonic() - self.spec["began_s"]
        settle(self.spec, self.level)
        self.program = child.seccomp_program(self.spec, self.level)
        self.base_rss = memory.anonymous_bytes(os.getpid())
        self.control.setblocking(False)
        self.poll.register(self.control, select.EPOLLIN)
        while True:
            now = time.monotonic()
            self._refill(now)
            self._end_late(now)
            for fd, _ in self.poll.poll(self._patience(now)):
                if fd == self.control.fileno():
                    if not self._obey():
                        return
                elif (found := self.by_fd.get(fd)) is not None:
                    if fd == found.pidfd:
                        self._bury(found)
                    elif found.state == "starting":
                        self._hear(found)
                    else:
                        self._measure(found)
            self._offer()

    # children -----------------------------------------------------------------------------------------------

    def _refill(self, now: float) -> None:
        if self.refill_at is None or now < self.refill_at:
            return
        self.refill_at = None
        fresh = [each for each in self.children.values() if each.reply is None]
        waiting = sum(1 for each in fresh if each.state in {"starting", "ready", "offered"})
        alive = len(fresh)
        missing = min(self.spec["pool"] - waiting, self.spec["running"] + self.spec["pool"] - alive)
        if missing <= 0:
            return
        self.first_spawn_s = self.first_spawn_s or now
        try:
            self._spawn(None)
        except OSError as error:
            print(f"sandbox: a child could not be started: {error}", file=sys.stderr)
            self.refill_at = now + _RETRY_S
            return
        if missing > 1:
            self.refill_at = now

    def _spawn(self, reply: socket.socket | None) -> None:
        """Fork a child for one call, or for a session that `reply` asked for."""
        if self.uses_cgroup and not self.free_slots:
            raise OSError(f"all cgroup slots are in use, {len(self.children)} children are alive")
        kind = socket.SOCK_STREAM if reply is None else socket.SOCK_SEQPACKET
        channel, inner = socket.socketpair(socket.AF_UNIX, kind)
        status, report = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        out, out_end = os.pipe2(os.O_CLOEXEC) if reply is None else _calls()
        err, err_end = os.pipe2(os.O_CLOEXEC)
        slot = self.free_slots.pop() if self.uses_cgroup else None
        # When nobody else is ready a call probably waits, and rehearsing costs more than it saves one call.
        rehearses = reply is not None or any(
            each.state in {"ready", "offered"} for each in self.children.values()
        )
        try:
            if self.own_pids >= 0:
                # A second unshare is refused unless the process is back in its own namespace first.
                libc.setns(self.own_pids, libc.CLONE_NEWPID, "CLONE_NEWPID")
                libc.unshare(libc.CLONE_NEWPID, "CLONE_NEWPID")
            pid = os.fork()
        except OSError:
            for sock in (channel, inner, status, report):
                sock.close()
            for fd in (out, out_end, err, err_end):
                os.close(fd)
            if slot is not None:
                self.free_slots.append(slot)
            raise
        if pid == 0:
            child.live(
                self.spec,
                self.level,
                self.program,
                inner,
                (out_end, err_end),
                slot,
                session=reply is not None,
                keeps_state=self.keeps_state,
                rehearses=rehearses,
            )
        inner.close()
        os.close(out_end)
        os.close(err_end)
        new = Child(pid, channel, report, (out, err))
        # The server gets `status`; `report` stays here.
        new.streams = (out, err, status.detach())
        new.slot = slot
        new.reply = reply
        self.children[pid] = new
        for fd in (new.pidfd, channel.fileno()):
            self.by_fd[fd] = new
            self.poll.register(fd, select.EPOLLIN)

    def _hear(self, found: Child) -> None:
        """A child says that it is ready, or why it is not."""
        said = found.channel.recv(4096, socket.MSG_DONTWAIT)
        self._forget_fd(found.channel.fileno())
        if said[:1] != child.READY:
            self._failed(found, said[1:].decode("utf-8", "replace") or "it ended before it was ready")
            return
        self.failures = 0
        if self.level == 4:
            # Taking a mount namespace apart waits for every CPU. Holding it lets the child end without that
            # wait.
            found.mounts_fd = os.open(f"/proc/{found.pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        found.state = "ready"
        self.ready.append(found)

    def _failed(self, found: Child, reason: str) -> None:
        found.state = "failed"
        self.failures += 1
        print(f"sandbox: a child could not be locked down: {reason}", file=sys.stderr)
        if self.failures >= _MAX_FAILURES or not self.said_hello:
            raise RuntimeError(reason)

    def _offer(self) -> None:
        """Hand ready children to the server, as many as may run at once."""
        running = sum(1 for each in self.children.values() if each.state in {"offered", "running"})
        for found in [each for each in self.ready if each.reply] + [
            each for each in self.ready if not each.reply
        ]:
            if not found.reply and running >= self.spec["running"]:
                break
            self.ready.remove(found)
            if not found.reply and not self.spec["pool"]:
                self._end(found, "cancelled")  # nobody takes it any more
                continue
            if not self.said_hello:
                self.succeeded()
                wire.send(
                    self.control,
                    {
                        "hello": self.level,
                        "cgroup": self.uses_cgroup,
                        "keeps_state": self.keeps_state,
                        "walls_s": self.outer_walls_s + time.monotonic() - self.first_spawn_s,
                    },
                )
                self.said_hello = True
            found.cpu_base_ns = found.cpu_ns()
            if found.slot is not None:
                found.slot.reset()
            out, err, status = found.streams
            message = {"child": found.pid, "cpu_ns": found.cpu_base_ns}
            fds: tuple[int, ...] = (found.channel.fileno(), status, found.pidfd, out, err)
            if found.slot is not None:
                message["counted_ns"] = found.slot.cpu_base_ns
                fds = (*fds, found.slot.cpu_fd)
            to = self.control if found.reply is None else found.reply
            try:
                wire.send(to, message, fds)
            except OSError:
                self._end(found, "cancelled")  # who asked for the session is gone
            found.channel.close()
            for fd in found.streams:
                os.close(fd)
            found.state = "offered" if found.reply is None else "session"
            if found.reply is None:
                running += 1
            else:
                found.reply.close()
                self.by_fd[found.status.fileno()] = found
                self.poll.register(found.status, select.EPOLLIN)

    def _bury(self, found: Child) -> None:
        """A child ended: say how, once all of its processes are gone."""
        if self.level == 3:
            memory.kill_session(found.pid)
        _, status, usage = os.wait4(found.pid, 0)
        cpu_ns = int((usage.ru_utime + usage.ru_stime) * 1e9) - found.cpu_base_ns
        peak, ooms, refused = usage.ru_maxrss * 1024, 0, 0
        if found.slot is not None:
            slot_peak, ooms, refused, found.seen_cpu_ns = found.slot.read()
            peak = slot_peak or peak
        cpu_ns = max(cpu_ns, found.seen_cpu_ns)
        if found.state in {"offered", "running", "session"}:
            message = {
                "status": status,
                "cpu_ns": max(cpu_ns, 0),
                "peak_bytes": peak,
                "why": found.why,
                "ooms": ooms,
                "refused_forks": refused,
            }
            try:
                wire.send(found.status, message)
            except OSError:
                pass  # the server does not want to know any more
        elif found.state == "starting":
            self._hear(found)
        if found.state == "session":
            self._forget_fd(found.status.fileno())
        if found.mounts_fd >= 0:
            wire.send(self.undertaker, {}, (found.mounts_fd,))
            os.close(found.mounts_fd)
        self._forget_fd(found.pidfd)
        os.close(found.pidfd)
        found.status.close()
        if found.state in {"ready", "failed"}:
            if found.reply is not None:
                found.reply.close()
            found.channel.close()
            for fd in found.streams:
                os.close(fd)
        if found in self.ready:
            self.ready.remove(found)
        del self.children[found.pid]
        if found.slot is not None:
            self.free_slots.append(found.slot)
        child.clean(self.spec, self.level, found.pid)
        self.refill_at = 0.0

    def _forget_fd(self, fd: int) -> None:
        if self.by_fd.pop(fd, None) is not None:
            self.poll.unregister(fd)

    # the server ---------------------------------------------------------------------------------------------

    def _obey(self) -> bool:
        """Carry out one message of the server; false when it is gone or wants the end."""
        try:
            message, fds = wire.receive(self.control)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if message is None or "end" in message:
            return False
        if "retire" in message:
            self.spec["pool"] = 0  # what lives here goes on, but nobody takes children from here any more
            for each in list(self.children.values()):
                if each.state == "offered" and each.pid not in message["retire"]:
                    self._end(each, "cancelled")
        if (found := self.children.get(message.get("taken", 0))) is not None and found.state == "offered":
            now = time.monotonic()
            found.state = "running"
            found.since = now
            found.deadline = now + message["wall_s"]
            spare = any(each.state in {"ready", "offered"} for each in self.children.values())
            self.refill_at = now + (_REFILL_DELAY_S if spare else 0.0)
        if "session" in message and fds:
            reply = socket.socket(fileno=fds.pop())
            try:
                self._spawn(reply)
            except OSError as error:
                wire.send(reply, {"failed": str(error)})
                reply.close()
        for fd in fds:
            os.close(fd)
        return True

    def _measure(self, found: Child) -> None:
        """A session's server asks what the cgroup counted since it last asked, or lets go of the session."""
        try:
            message, _ = wire.receive(found.status)
            if message is not None:
                peak, ooms, refused, cpu_ns = found.slot.read() if found.slot is not None else (0, 0, 0, 0)
                if found.slot is not None:
                    found.slot.reset()
                ooms, found.ooms = ooms + found.ooms, 0
                refused, found.refused_forks = refused + found.refused_forks, 0
                measured = {"peak_bytes": peak, "ooms": ooms, "refused_forks": refused, "cpu_ns": cpu_ns}
                wire.send(found.status, measured)
                return
        except OSError:
            pass
        self._forget_fd(found.status.fileno())
        self._end(found, "cancelled")

    # limits -------------------------------------------------------------------------------------------------

    def _patience(self, now: float) -> float:
        """Seconds until something is due; -1 for never."""
        due = [each.deadline for each in self.children.values() if each.state == "running"]
        if self.guards and due:
            due.append(now + _GUARD_S)
        if self.uses_cgroup and due:
            due.append(self.next_look)
        if not self.uses_cgroup and any(each.state == "session" for each in self.children.values()):
            due.append(now + _SESSION_GUARD_S)
        if self.refill_at is not None:
            due.append(self.refill_at)
        soonest = min(due, default=float("inf"))
        return -1 if soonest == float("inf") else max(0.0, soonest - now)

    def _end_late(self, now: float) -> None:
        running = [each for each in self.children.values() if each.state == "running" and each.why is None]
        for each in running:
            if now >= each.deadline:
                self._end(each, "time")
        if self.uses_cgroup and now >= self.next_look:
            # One process without memory ends the whole call, as without a cgroup: others may wait for it.
            self.next_look = now + _OOM_GUARD_S
            for each in running:
                if each.slot is not None and now - each.since >= _OOM_GUARD_S and each.slot.read()[1]:
                    self._end(each, "memory")
        if self.guards:
            old = {each.pid: each for each in running if now - each.since >= _GUARD_S}
            if old:
                self._guard(old)
            sessions = {each.pid: each for each in self.children.values() if each.state == "session"}
            if sessions and not self.uses_cgroup:
                self._guard_sessions(sessions)

    def _guard(self, running: dict[int, Child]) -> None:
        """Look at what rlimits cannot see: many processes together."""
        trees = memory.trees(set(running), by_session=self.level == 3)
        for pid, found in running.items():
            members = trees[pid]
            if not self.uses_cgroup:
                used_ns = max(memory.cpu_ns(members), found.tally.look(members)) - found.cpu_base_ns
                found.seen_cpu_ns = max(used_ns, found.seen_cpu_ns)
                if self._is_too_large(members):
                    self._end(found, "memory")
                    continue
                if self.level == 3 and memory.tasks(members) > self.limits["processes"]:
                    self._end(found, "processes")
                    continue
            if self.limits["cpu_ns"]:
                used_ns = found.slot.read()[3] if found.slot is not None else found.seen_cpu_ns
                if used_ns > self.limits["cpu_ns"]:
                    self._end(found, "cpu")

    def _guard_sessions(self, sessions: dict[int, Child]) -> None:
        """End the call of a session that is too large; its init goes back to the state before."""
        trees = memory.trees(set(sessions), by_session=self.level == 3)
        for pid, found in sessions.items():
            members = [each for each in trees[pid] if each != pid]
            tasks = memory.tasks(members) if self.level == 3 else 0
            if tasks > self.limits["processes"] + 1:
                # For some looks in a row, and not ever fewer: they may be what a call that is over left
                # behind, and its init is ending them.
                found.crowded_looks = 1 if tasks < found.crowd else found.crowded_looks + 1
                found.crowd = tasks
                if found.crowded_looks > _CROWDED_LOOKS:
                    found.refused_forks += 1
                    self._kill_all_that_runs(members)
                continue
            found.crowd = found.crowded_looks = 0
            if self._is_too_large(members):
                found.ooms += 1
                self._kill_all_that_runs(members)

    def _is_too_large(self, members: list[int]) -> bool:
        """Whether processes have too much memory together; pages that forks share count once."""
        limit = self.limits["memory_bytes"] + self.base_rss
        if sum(map(memory.anonymous_bytes, members)) <= limit:
            return False  # known for less
        return sum(map(memory.share_bytes, members)) > limit

    def _kill_all_that_runs(self, members: list[int]) -> None:
        """End the processes of a session's call. Its template does not run, and is left."""
        for each in members:
            if (fields := memory.stat(each)) is not None and fields[0] != b"T":
                memory.kill(each)

    def _end(self, found: Child, why: str) -> None:
        if found.why is None:
            found.why = why
        try:
            signal.pidfd_send_signal(found.pidfd, signal.SIGKILL)
            if self.level == 3:
                memory.kill_session(found.pid)
        except ProcessLookupError:
            pass  # it ended by itself a moment ago


def _calls() -> tuple[int, int]:
    """A socket for the calls of a session, in the place of its stdout: each call brings streams of its own.

    The server's end tells the pid of whoever speaks, as the kernel knows it.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    return ours.detach(), theirs.detach()


def settle(spec: Message, level: int) -> None:
    """Import what calls get for nothing, and set what children share."""
    inside = tree.inside if level > 2 else str
    sys.path[:] = [inside(path) for path in (*sys.path, *spec["packages"])]
    sys.executable = inside(os.path.realpath(sys.executable))
    os.environ["MPLCONFIGDIR"] = spec["cache"]
    if spec["packages"]:  # for interpreters that the code starts; this one takes no notice
        os.environ.setdefault("PYTHONPATH", os.pathsep.join(map(inside, spec["packages"])))
    for name in spec["preload"]:
        try:
            importlib.import_module(name)
        except BaseException as error:
            reason = f"preload: the module {name} cannot be imported: {type(error).__name__}: {error}"
            raise ImportError(reason) from error
    if level == 4:
        child.name_folders(walls.TMP)  # the same for all
        tree.seal()
    runner.prepare()
