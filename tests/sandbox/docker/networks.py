"""Networks beside our own: an engine's namespace, and a way to an engine that can be disturbed."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

from tests.own_engine import OwnEngine

T = TypeVar("T")
WAIT_S = 10
_CLONE_NEWNET = 0x40000000
_SIOCSIFFLAGS, _SIOCSIFADDR, _SIOCSIFNETMASK = 0x8914, 0x8916, 0x891C
_IFF_UP = 0x1


def in_network_of(engine: OwnEngine | None, work: Callable[[], T]) -> T:
    """What `work` returns when it is done in an engine's network namespace; `None` is our own.

    A socket belongs to the namespace where it was made, wherever it is used.
    """
    if engine is None:
        return work()
    found: list[T] = []
    failed: list[BaseException] = []

    def enter() -> None:
        try:
            with open(f"/proc/{engine.pid}/ns/net") as namespace:
                if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), "setns")
            found.append(work())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=enter)  # only it is there, and it ends with its work
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return found[0]


def have_loopback(*addresses: str) -> None:
    """Bring up the loopback interface of the namespace of this thread, with more addresses."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:

        def ask(request: int, name: str, value: bytes) -> None:
            fcntl.ioctl(control, request, struct.pack("16s16s8x", name.encode(), value))

        ask(_SIOCSIFFLAGS, "lo", struct.pack("h", _IFF_UP))
        for number, address in enumerate(addresses):
            for request, value in ((_SIOCSIFADDR, address), (_SIOCSIFNETMASK, "255.255.255.255")):
                packed = struct.pack("=HH4s", socket.AF_INET, 0, socket.inet_aton(value))
                ask(request, f"lo:{number}", packed)


class Forwarder:
    """A port of our loopback that leads to an engine, until the way is cut or held up.

    Args:
        connect: Makes a connection to the engine.
    """

    def __init__(self, connect: Callable[[], socket.socket]) -> None:
        self._connect = connect
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._flows = threading.Event()
        self._flows.set()
        self._lock = threading.Lock()
        self.sockets: set[socket.socket] = set()  # both ends
        self._pumps: set[threading.Thread] = set()
        self._accepts = threading.Thread(target=self._accept)
        self._accepts.start()

    @property
    def address(self) -> str:
        """For DOCKER_HOST."""
        return f"tcp://127.0.0.1:{self.port}"

    def cut(self) -> None:
        """End all connections of now; new ones are taken."""
        with self._lock:
            for each in self.sockets:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    @contextlib.contextmanager
    def held_up(self) -> Iterator[None]:
        """Nothing gets through meanwhile, and nobody is told."""
        self._flows.clear()
        try:
            yield
        finally:
            self._flows.set()

    def close(self) -> None:
        self._flows.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._accepts.join(WAIT_S)
        self._listener.close()
        self.cut()
        for each in tuple(self._pumps):
            each.join(WAIT_S)
        assert not self.sockets

    def __enter__(self) -> Forwarder:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                near = self._listener.accept()[0]
            except OSError:
                return
            try:
                far = self._connect()
            except OSError:
                near.close()
                continue
            left = [near, far]
            with self._lock:
                self.sockets |= {near, far}
                for source, target in ((near, far), (far, near)):
                    pump = threading.Thread(target=self._pump, args=(source, target, left))
                    self._pumps.add(pump)
                    pump.start()

    def _pump(self, source: socket.socket, target: socket.socket, left: list[socket.socket]) -> None:
        try:
            while data := source.recv(65536):
                self._flows.wait()
                target.sendall(data)
            self._flows.wait()
            target.shutdown(socket.SHUT_WR)
        except OSError:
            for each in (source, target):
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
        with self._lock:
            left.remove(source)
            if not left:
                for each in (source, target):
                    each.close()
                    self.sockets.discard(each)
            self._pumps.discard(threading.current_thread())


def unix_connection(path: str | os.PathLike[str]) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(os.fspath(path))
    except BaseException:
        connection.close()
        raise
    return connection
