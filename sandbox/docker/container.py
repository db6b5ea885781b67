"""One container: made, attached to and started; then frames go in and come out. All of it blocks."""

from __future__ import annotations

import contextlib
import itertools
import json
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sandbox.docker import bundle, frames
from sandbox.docker.engine import Engine, EngineFault, Facts, unavailable
from sandbox.docker.plan import Plan, container_options, setup
from sandbox.errors import SandboxConfigError
from sandbox.outcome import report_limit_bytes

if TYPE_CHECKING:
    from sandbox.types import SandboxConfig

START_S = 30.0  # from the start of the process until a child waits; `preload` is part of it
_READ_BYTES = 256 * 1024
_STREAM_HEADER = struct.Struct(">BxxxL")  # before each piece: which stream, and how many bytes of it
_STDOUT, _STDERR = 1, 2
_LAST_LOOK_S = 0.05
_MAX_HEADER_BYTES = 64 * 1024
_MAX_WORD_BYTES = 64 * 1024  # a piece of output; reports are bounded by the configuration
_SAID_BYTES = 2000  # of stderr, where an interpreter that cannot run says why
_numbers = itertools.count(1)


class ContainerGone(Exception):
    """The connection to the container ended, or makes no sense any more; the text says how."""


class NoInitHere(ContainerGone):
    """Its kernel has no Landlock: code could speak in the agent's place, through what docker's init holds."""


class Link:
    """The attached streams of a container."""

    def __init__(self, attached: Any, config: SandboxConfig) -> None:
        self._attached = attached  # keeps the response, and so the connection, from being collected
        self._socket = getattr(attached, "_sock", attached)
        self._frames = frames.Reader(
            max_header_bytes=_MAX_HEADER_BYTES,
            max_blob_bytes=max(report_limit_bytes(config), _MAX_WORD_BYTES),
        )
        self._head = bytearray()
        self._stream, self._left = 0, 0
        self._said = bytearray()
        self._found: list[tuple[frames.Header, list[bytes]]] = []
        self._sending = threading.Lock()
        self._open = True
        self._gone: ContainerGone | None = None

    @property
    def said(self) -> str:
        """The last that came on stderr, which an agent that runs never uses."""
        return " ".join(self._said.decode("utf-8", "replace").split())[-300:]

    def send(self, data: bytes | memoryview, until_s: float) -> None:
        """Send all of it.

        Raises:
            ContainerGone: Nobody takes it.
        """
        with self._sending:
            rest = memoryview(data)
            while rest:
                left_s = until_s - time.monotonic()
                if left_s <= 0:
                    raise ContainerGone("it takes nothing more")
                try:
                    self._socket.settimeout(left_s)
                    rest = rest[self._socket.send(rest[:_READ_BYTES]) :]
                except TimeoutError:
                    continue
                except Exception as error:  # a socket, TLS, a Windows pipe or ssh: each has errors of its own
                    raise ContainerGone(f"the connection to it ended: {error}") from error

    def receive(self, until_s: float) -> tuple[frames.Header, list[bytes]] | None:
        """The next frame; `None` if there was none until then.

        Raises:
            ContainerGone: The stream ended, or what came is no frame.
        """
        is_last_look = False
        while not self._found:
            if self._gone is not None:
                raise self._gone
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                # What came in time counts, also where this process was stopped and looks only now.
                if is_last_look or self.is_quiet():
                    return None
                is_last_look, left_s = True, _LAST_LOOK_S
            try:
                self._socket.settimeout(left_s)
                data = self._socket.recv(_READ_BYTES)
            except TimeoutError:
                continue  # perhaps that of another thread, which sends
            except Exception as error:
                raise ContainerGone(f"the connection to it ended: {error}") from error
            if not data:
                raise ContainerGone("it ended")
            try:
                self._take(memoryview(data))
            except ContainerGone as gone:
                if not self._found:
                    raise
                self._gone = gone  # said once what came before it was heard
        return self._found.pop(0)

    def _take(self, data: memoryview) -> None:
        """Sort pieces by their stream: Docker mixes both in one connection."""
        while data:
            if not self._left:
                missing = _STREAM_HEADER.size - len(self._head)
                self._head += data[:missing]
                data = data[missing:]
                if len(self._head) < _STREAM_HEADER.size:
                    return
                self._stream, self._left = _STREAM_HEADER.unpack(self._head)
                self._head.clear()
                if self._stream not in {_STDOUT, _STDERR}:
                    raise ContainerGone("what comes from it is no stream of a container")
                continue
            piece, data = data[: self._left], data[self._left :]
            self._left -= len(piece)
            if self._stream == _STDERR:
                self._said = (self._said + piece)[-_SAID_BYTES:]
                continue
            try:
                self._found += self._frames.feed(piece)
            except frames.BrokenFrame as error:
                raise ContainerGone(f"what comes from it makes no sense: {error}") from error

    def is_free(self, within_s: float) -> bool:
        """Whether nothing is being sent, or was sent within that time."""
        if not self._sending.acquire(timeout=within_s):
            return False
        self._sending.release()
        return True

    def is_quiet(self) -> bool:
        """Whether it is open and nothing waits to be read, as it is while a child waits for its call."""
        if not self._open or self._found:
            return False
        try:
            if hasattr(select, "poll"):
                poll = select.poll()
                poll.register(self._socket.fileno(), select.POLLIN)
                return not poll.poll(0)
            return not select.select([self._socket], [], [], 0)[0]
        except Exception:  # a pipe of Windows cannot be asked; the call will hear it
            return self._open

    def is_open(self) -> bool:
        """Whether the other end is still there, as far as that can be seen without reading."""
        try:
            poll = select.poll()
            poll.register(self._socket.fileno(), select.POLLRDHUP)
            return self._open and not poll.poll(0)
        except Exception:  # not on Linux, or no socket
            return self._open

    def close(self) -> None:
        """End the connection, which ends the container; from any thread."""
        self._open = False
        with contextlib.suppress(Exception):  # it is closed already, or its kind has no such method
            self._socket.shutdown(socket.SHUT_RDWR)
        for each in (getattr(self._attached, "_response", None), self._attached, self._socket):
            with contextlib.suppress(Exception):
                each.close()  # type: ignore[union-attr]


class Container:
    """A container whose agent has a child that waits for a call."""

    def __init__(self, name: str, engine: Engine, facts: Facts, link: Link) -> None:
        self.name = name
        self.engine = engine
        self.facts = facts
        self.link = link
        self.next_call = 0
        self.hello: Mapping[str, Any] = {}

    def is_well(self) -> bool:
        """Whether it waits, as far as that can be seen without asking."""
        return self.link.is_quiet()

    def await_ready(self, until_s: float) -> None:
        """Wait for a child that waits for the next call.

        Raises:
            ContainerGone: It ended, or there was none in time.
        """
        self.look_for_ready(until_s)
        if not self.next_call:
            raise ContainerGone("its agent is not ready in time")

    def look_for_ready(self, until_s: float) -> None:
        """Take what comes until then, or until a child waits for the next call.

        Raises:
            ContainerGone: It ended.
        """
        while not self.next_call and (frame := self.link.receive(until_s)) is not None:
            said = frame[0]
            if isinstance(said.get("ready"), int):
                self.next_call = said["ready"]
            if "failed" in said:
                problem = f"its agent cannot go on: {str(said['failed'])[:300]}"
                raise NoInitHere(problem) if said.get("needs") == "no init" else ContainerGone(problem)
            if isinstance(said.get("hello"), dict):
                self.hello = said["hello"]


def start(
    engine: Engine,
    facts: Facts,
    plan: Plan,
    *,
    name: str,
    labels: Mapping[str, str],
    runtime: str | None,
    session: bool,
    ping_s: float,
    stopped: Callable[[], bool],
    init: bool,
) -> Container:
    """Make a container and wait until its agent is ready; takes a few hundred milliseconds.

    Args:
        runtime: `None` for the engine's default.
        ping_s: How long the engine may take to show that it is there.
        stopped: Whether it is not wanted any more.
        init: Whether docker's own init is its first process, or our agent.

    Raises:
        NoInitHere: It cannot be had with `init`, but without. Nothing is left of it.
        SandboxUnavailable: It cannot be had. Nothing is left of it, as far as the engine answers.
        SandboxConfigError: A folder is not the one any more that it was.
    """
    if plan.folders and not engine.is_local:
        raise unavailable(
            "mounts",
            f"the engine at {engine.address} may be on another machine, which has other folders",
            "Leave `mounts` and `working_dir` out, or use an engine on this machine.",
        )
    options, host = container_options(
        plan, labels=labels, volumes=facts.volumes, session=session, init=init, is_podman=facts.is_podman
    )
    link: Link | None = None
    try:
        engine.ask("ping", within_s=ping_s)
        _go_on_unless(stopped)
        dropped = engine.create(facts.image_id, name=name, runtime=runtime, host=host, **options)
        facts = replace(facts, not_enforced=tuple(dict.fromkeys((*facts.not_enforced, *sorted(dropped)))))
        _go_on_unless(stopped)
        streams = {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1}
        link = Link(engine.ask("attach_socket", name, params=streams), plan.config)
        engine.ask("start", name)
        _look_again(plan)
        until_s = time.monotonic() + START_S
        link.send(bundle.payload() + frames.encode(setup(plan, session=session)), until_s)
        container = Container(name, engine, facts, link)
        container.await_ready(until_s)
        _check(container, plan)
    except BaseException as error:
        if link is not None:
            link.close()
        engine.remove(name)
        if isinstance(error, NoInitHere) and init:
            raise
        if isinstance(error, EngineFault):
            raise unavailable(
                "start a container",
                str(error),
                "See the engine's own log. The image needs python3, 3.11 or newer, in its PATH.",
            ) from error
        if isinstance(error, ContainerGone):
            said = f": {link.said}" if link is not None and link.said else ""
            raise unavailable(
                "start Python in a container",
                f"{error}{said}",
                "Take an image with python3, 3.11 or newer, in its PATH.",
            ) from error
        raise
    return container


def _go_on_unless(stopped: Callable[[], bool]) -> None:
    if stopped():
        raise ContainerGone("the sandbox was closed")


def _look_again(plan: Plan) -> None:
    """At the folders, now that the engine has followed their paths; the agent compares what it got."""
    for folder in plan.folders:
        if not folder.is_as_it_was():
            raise SandboxConfigError("mounts", f"{folder.source!r} is not the folder any more that it was")


def _check(container: Container, plan: Plan) -> None:
    """Refuse a container whose walls are not those that we asked for, by what it sees of itself."""
    hello = container.hello
    expected = {"cap_eff": 0, "no_new_privs": 1, "uid": plan.user_id}
    if not container.facts.has_own_kernel:  # runtimes that have one leave the engine's filter out
        expected["seccomp"] = True
    for key, value in expected.items():
        if key not in hello or hello[key] != value:
            raise unavailable(
                "walls of the container",
                f"{key} is {json.dumps(hello.get(key))[:50]} inside, not {json.dumps(value)}",
                "Use an engine that applies what it is asked for.",
            )


def new_name(instance: str) -> str:
    return f"mcp-tools-{instance}-{next(_numbers)}"
