"""From an exec'd interpreter to a zygote behind the strongest outer wall that this host allows.

The launcher stays outside, in the host's namespaces: it maps users, owns the cgroup, and cleans up after the
last process. Below it, at L4:

    launcher ─► reaper (pid 1 of the outer namespaces) ─► zygote (pid 2) ─► children

The walls are in outer.py, what happens behind them in reaper.py.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time

from sandbox.linux import libc, memory, outer, removal, walls, wire

TYPE_CHECKING = False  # typing itself is not loaded: it would cost milliseconds and pages
if TYPE_CHECKING:
    from typing import NoReturn

    from sandbox.linux.cgroups import Home, Slot
    from sandbox.linux.wire import Message

CGROUP_PREFIX = "mcp-sandbox-"
_END_ROUNDS = 1000
_LEVELS = {4: outer.namespaces, 3: outer.bubblewrap, 2: outer.bare}


def main(control_fd: int, lifeline_fd: int, server_pid: int) -> NoReturn:
    """Serve the sandbox until the server is gone. Never returns.

    Args:
        control_fd: `SOCK_SEQPACKET` to the server; the first packet is the specification (spec.py).
        lifeline_fd: Read end of a pipe that the server keeps open as long as it wants us.
        server_pid: The server's own pid, to notice when it is gone before we look.
    """
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # not what the server's thread held back: code may need it
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the server's end is our end, not a key that somebody pressed
    control = socket.socket(fileno=control_fd)
    spec, _ = wire.receive(control)
    if spec is None:
        os._exit(0)
    server = os.pidfd_open(server_pid)
    if os.getppid() != server_pid:
        os._exit(0)
    libc.prctl(libc.PR_SET_CHILD_SUBREAPER, 1)
    tried: list[Message] = []
    spec["began_s"] = time.monotonic()
    home, name, slots = _cgroup(spec, tried)
    status = 1
    try:
        pid = None
        for level in (4, 3, 2):
            if (
                not spec["minimum_level"] <= level + (level == 4 and bool(slots))
                or level > spec["maximum_level"]
            ):
                continue
            start = outer.Start(spec, control, lifeline_fd, server, slots if level == 4 else [])
            pid = _attempt(level, start, tried)
            if pid is None:
                wire.send(
                    control, {"tried": tried}
                )  # before the next level comes up, so that it is known then
            if pid is not None or tried[-1].get("everywhere"):
                break
        if pid is None:
            wire.send(control, {"refused": tried})
        else:
            control.close()
            _wait_for(pid)
            status = 0
    except OSError as error:
        print(f"sandbox: {error}", file=sys.stderr)
    finally:
        removal.remove(spec["scratch"])
        if home is not None:
            home.remove(name)
    os._exit(status)


def _cgroup(spec: Message, tried: list[Message]) -> tuple[Home | None, str, list[Slot]]:
    if spec["maximum_level"] < 5:
        return None, "", []
    from sandbox.linux import cgroups

    count = spec["pool"] + spec["running"] + spec["sessions"] + 2
    limits = spec["limits"]
    try:
        home = cgroups.find()
        home.sweep(prefix=CGROUP_PREFIX)
        name = cgroups.owner_name(CGROUP_PREFIX)
        slots = home.make(name, count, memory_bytes=limits["memory_bytes"], processes=limits["processes"])
    except cgroups.NoCgroup as missing:
        tried.append(
            {"level": "L4+", "failed": "cgroup", "errno": 0, "text": missing.reason, "remedy": missing.remedy}
        )
        return None, "", []
    except OSError as error:
        tried.append({"level": "L4+", "failed": "cgroup", "errno": error.errno, "text": str(error)})
        return None, "", []
    return home, name, slots


def _attempt(level: int, start: outer.Start, tried: list[Message]) -> int | None:
    """Try one level in a process of its own; return the pid to wait for, `None` if it cannot be had."""
    ours, start.launcher = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    first = os.fork()
    if first == 0:
        ours.close()
        try:
            _LEVELS[level](start)
        except BaseException as error:
            start.failed(error)
        os._exit(1)
    start.launcher.close()
    while True:
        said, _ = wire.receive(ours)
        if said is None:
            said = {"failed": "bwrap" if level == 3 else "start", "errno": 0, "text": _last_line_of_stderr()}
        if "ok" in said:
            return first
        if "map" in said:
            try:
                _map_users(first, int(said["map"]))
                answer: Message = {"ok": True}
            except OSError as error:
                answer = {"failed": str(error)}
            wire.send(ours, answer)
            continue
        if "spec" in said:
            wire.send(ours, start.spec)
            continue
        tried.append({"level": f"L{level}", **said})
        ours.close()
        _end_descendants()
        return None


def _map_users(pid: int, unused_id: int) -> None:
    """Give the namespace of `pid`, which root made, the one user that owns nothing outside."""
    for name in ("uid_map", "gid_map"):
        with open(f"/proc/{pid}/{name}", "w", encoding="ascii") as file:
            file.write(f"{walls.INNER_ID} {unused_id} 1")


def _last_line_of_stderr() -> str:
    """What a program that we executed said before it ended; our stderr is a file."""
    try:
        text = os.pread(2, 4000, max(0, os.fstat(2).st_size - 4000)).decode("utf-8", "replace").strip()
    except OSError:
        text = ""
    return text.rpartition("\n")[2] or "it ended without a word"


def _wait_for(pid: int) -> None:
    while True:
        try:
            if os.waitpid(pid, 0)[0] == pid:
                break
        except ChildProcessError:
            break
    try:
        while True:
            os.waitpid(-1, 0)  # whatever the subreaper inherited
    except ChildProcessError:
        pass


def _end_descendants() -> None:
    """End a failed attempt and everything it started; what it forked comes to us, the subreaper."""
    for _ in range(_END_ROUNDS):
        for pid in _children():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _children() -> list[int]:
    own = os.getpid()
    found = []
    for name in os.listdir("/proc"):
        fields = memory.stat(int(name)) if name.isdigit() else None
        if fields is not None and int(fields[1]) == own:
            found.append(int(name))
    return found
