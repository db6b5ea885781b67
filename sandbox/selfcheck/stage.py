"""What is planted on this machine for attacks to find, and what tells from outside whether they did."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

VARIABLE = "SELFCHECK_SECRET"
# Some uids that nobody has, for controls that root must not make as root.
NOBODY = 54322
CANARY = "unchanged"
_IPC_PRIVATE, _IPC_RMID = 0, 0
_PATIENCE_S = 5.0
_MOMENT_S = 0.3  # for what ends the processes of a call
_WATCH_S = 0.5
_WATCHES = 4  # where others take the processor, it takes longer until what goes on used enough to be ended
_IDLE_TICKS = 4  # of a hundredth of a second; a session ends for more, and getting ready takes one or two

_VICTIM = """
import ctypes, json, os, signal, sys
libc = ctypes.CDLL(None)
libc.prctl(0x59616D61, ctypes.c_ulong(2**64 - 1), 0, 0, 0)  # where only parents may trace: anyone may
secret = os.environ["SELFCHECK_SECRET"].encode()
uid, folder = int(sys.argv[2]), sys.argv[3]
memory = ctypes.create_string_buffer(secret)
file = os.open(os.path.join(folder, f"victim-{os.getpid()}"), os.O_RDWR | os.O_CREAT, 0o644)
os.write(file, secret)
os.unlink(os.path.join(folder, f"victim-{os.getpid()}"))
def note(number, frame):
    os.write(1, b"signal %d\\n" % number)
for number in (signal.SIGURG, signal.SIGIO, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT, signal.SIGTERM):
    signal.signal(number, note)
if uid:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    libc.prctl(4, 1, 0, 0, 0)  # a change of uid had made it untraceable
os.write(1, json.dumps({"address": ctypes.addressof(memory), "fd": file}).encode() + b"\\n")
sys.stdin.read()
"""


class Victim:
    """A process that holds the secret in its environment, arguments, memory and an open file."""

    def __init__(self, stage: Stage, uid: int) -> None:
        argv = [sys.executable, "-I", "-S", "-c", _VICTIM, stage.secret, str(uid), str(stage.shared)]
        self.process = subprocess.Popen(  # noqa: S603 - our own program
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        assert self.process.stdout is not None
        self._out = self.process.stdout
        described = json.loads(self._line())
        self.pid = self.process.pid
        self.address: int = described["address"]
        self.fd: int = described["fd"]

    def _line(self) -> bytes:
        if not select.select([self._out], [], [], _PATIENCE_S)[0]:
            self.process.kill()
            raise TimeoutError("the victim did not start")
        return self._out.readline()

    def close(self) -> str:
        """End it, and say what became of it before: `""` if nobody touched it."""
        gone: int | str | None = self.process.poll()
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(timeout=_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            gone = "stopped"
        with self._out:
            noted = self._out.read().decode().split("\n")
        signals = ", ".join(dict.fromkeys(line for line in noted if line))
        return f"the victim ended ({gone})" if gone is not None else signals and f"the victim noted {signals}"


class Listener:
    """A socket of the server's process that waits for whoever gets through."""

    def __init__(self, sock: socket.socket, address: Any) -> None:
        self._sock = sock
        sock.bind(address)
        if sock.type == socket.SOCK_STREAM:
            sock.listen(8)
        self.address = sock.getsockname()

    def heard(self) -> str:
        """What arrived; `""` if nothing did. The kernel keeps it for us, so there is nothing to wait for."""
        self._sock.setblocking(False)
        try:
            if self._sock.type != socket.SOCK_STREAM:
                return f"the listener received {self._sock.recv(200)!r}"
            connection, peer = self._sock.accept()
        except BlockingIOError:
            return ""
        connection.close()
        return f"the listener saw a connection from {peer!r}"

    def close(self) -> None:
        self._sock.close()


class Stage:
    """Plants secrets and listeners on entering, and takes everything away on leaving.

    Files are readable and folders writable for everyone, so that no ordinary permission is mistaken for a
    wall of the sandbox. One stage at a time in a process: it sets an environment variable.
    """

    def __init__(self) -> None:
        self.secret = f"SELFCHECK-{secrets.token_hex(16)}"
        self.mark = secrets.token_hex(4)
        self._undo = contextlib.ExitStack()
        self._count = 0
        self._lock = threading.Lock()
        self._cached: dict[str, Any] = {}

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as undo:
            # Not in /tmp, which every sandbox replaces anyway.
            home = "/var/tmp" if os.access("/var/tmp", os.W_OK) else tempfile.gettempdir()  # noqa: S108
            self.folder = Path(tempfile.mkdtemp(prefix="selfcheck-", dir=home))
            undo.callback(shutil.rmtree, self.folder, ignore_errors=True)
            self.folder.chmod(0o755)
            self.shared = self._folder("shared")
            self.read_only = self._folder("read-only")
            self.workspace = self._folder("workspace")
            self.plant(self.read_only / "canary")
            self.secret_files = [self._file(self.folder / "secret", self.secret)]
            for place in (tempfile.gettempdir(), "/dev/shm"):  # noqa: S108 - where others' files are
                if os.access(place, os.W_OK):
                    path = self._file(Path(place) / f"selfcheck-{self.mark}", self.secret)
                    undo.callback(path.unlink, missing_ok=True)
                    self.secret_files.append(path)
            os.environ[VARIABLE] = self.secret
            undo.callback(os.environ.pop, VARIABLE, None)
            self.memory = ctypes.create_string_buffer(self.secret.encode())
            self.inheritable = os.open(self.secret_files[0], os.O_RDONLY)
            os.set_inheritable(self.inheritable, True)
            undo.callback(os.close, self.inheritable)
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._undo.close()

    def _folder(self, name: str) -> Path:
        path = self.folder / name
        path.mkdir()
        path.chmod(0o777)
        return path

    @staticmethod
    def _file(path: Path, text: str) -> Path:
        path.write_text(text)
        path.chmod(0o644)
        return path

    def name(self) -> str:
        """A name that was not used yet, short enough for a process."""
        with self._lock:
            self._count += 1
            return f"sc{self.mark}{self._count}"

    def once(self, key: str, make: Callable[[], Any]) -> Any:
        """`make()`, made at the first call only."""
        with self._lock:
            if key not in self._cached:
                self._cached[key] = make()
            return self._cached[key]

    @staticmethod
    def plant(canary: Path) -> None:
        """A file that everyone may write; whoever does so is seen."""
        canary.write_text(CANARY)
        canary.chmod(0o666)

    @contextlib.contextmanager
    def playground(self) -> Iterator[Path]:
        """A folder that everyone may write, with one file that everyone may write; yields the file."""
        folder = self._folder(self.name())
        canary = folder / "canary"
        self.plant(canary)
        yield canary
        shutil.rmtree(folder)

    @contextlib.contextmanager
    def victim(self, uid: int = 0) -> Iterator[Victim]:
        """Start a victim; with `uid`, one of that user."""
        victim = Victim(self, uid)
        try:
            yield victim
        finally:
            if not victim.process.stdin or not victim.process.stdin.closed:
                victim.close()

    @contextlib.contextmanager
    def listen(self, family: int, kind: int, address: Any) -> Iterator[Listener]:
        listener = Listener(socket.socket(family, kind), address)
        try:
            yield listener
        finally:
            listener.close()

    def shared_segment(self) -> int:
        """Id of a System V shared memory segment of this process, open to everyone, with the secret in it."""

        def make() -> int:
            libc = ctypes.CDLL(None, use_errno=True)
            libc.shmat.restype = ctypes.c_void_p
            number: int = libc.shmget(_IPC_PRIVATE, 4096, 0o1666)
            if number < 0:
                raise OSError(ctypes.get_errno(), "shmget")
            self._undo.callback(libc.shmctl, number, _IPC_RMID, None)
            address = libc.shmat(number, None, 0)
            ctypes.memmove(address, self.secret.encode(), len(self.secret))
            libc.shmdt(ctypes.c_void_p(address))
            return number

        result: int = self.once("segment", make)
        return result

    def handle(self) -> tuple[int, bytes]:
        """Type and bytes of the kernel's handle of the secret file; `(0, b"")` where there are none."""

        class Handle(ctypes.Structure):
            _fields_ = (("size", ctypes.c_uint), ("kind", ctypes.c_int), ("data", ctypes.c_char * 128))

        handle, mount = Handle(size=128), ctypes.c_int()
        libc = ctypes.CDLL(None, use_errno=True)
        path = os.fsencode(self.secret_files[0])
        if libc.name_to_handle_at(-100, path, ctypes.byref(handle), ctypes.byref(mount), 0) != 0:
            return 0, b""
        start = Handle.data.offset
        return handle.kind, bytes(handle)[start : start + handle.size]


def processes_named(name: str) -> list[int]:
    """Every process of this machine that calls itself `name`, but those that ended and nobody asked about."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                text = Path(f"/proc/{entry}/stat").read_text()
                comm, _, rest = text.partition("(")[2].rpartition(") ")
                if comm == name[:15] and rest[0] not in "ZX":
                    found.append(int(entry))
    return found


def burns(name: str, *, in_the_open: bool = False) -> str:
    """Whether processes of that name go on using the processor after their call ended; ends them.

    Args:
        in_the_open: Nobody ends them there, so one look that sees it is enough.
    """
    time.sleep(_MOMENT_S)
    for _ in range(_WATCHES):
        before = _ticks(name)
        time.sleep(_WATCH_S)
        used = _ticks(name) - before
        if (used > _IDLE_TICKS) is in_the_open:
            break
    for pid in processes_named(name) if used else ():
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    return f"used {used} hundredths of a second of CPU after its end" if used > _IDLE_TICKS else ""


def _ticks(name: str) -> int:
    """CPU time of all processes of that name, in ticks."""
    total = 0
    for pid in processes_named(name):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
    return total


def wait_until(condition: Callable[[], Any], seconds: float) -> bool:
    """Look at `condition` until it is true; False if it was not within `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True
