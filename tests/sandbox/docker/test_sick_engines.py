"""Engines that never come to an end, drop limits, remove nothing or answer nothing: nobody waits for them."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sandbox import DockerSandbox, SandboxConfig, SandboxDied, SandboxUnavailable
from sandbox.docker import pool, reaper
from sandbox.docker.engine import Engine as Connection
from sandbox.docker.engine import dropped_limits
from sandbox.docker.reaper import OWNER, OWNER_START, labels
from tests.cli.conftest import ROOT, command
from tests.cli.wire import Wire
from tests.docker_engine import Engine
from tests.sandbox.docker.faulty import HANG, Faulty, answer
from tests.sandbox.docker.test_engine_answers import DOCKER, INFO
from tests.sandbox.docker.test_engine_faults import collected, fake_engine
from tests.sandbox.docker.test_life import foreign, names, until

__all__ = ["collected"]  # a fixture for every test here
QUICK = SandboxConfig(timeout_seconds=1, pool_size=1)
GONE_WITHIN_S = 15.0
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
Serve = Callable[[socket.socket], None]


def endless(head: bytes, piece: bytes, pause_s: float) -> Serve:
    """Something comes all the time, and never all of it."""

    def serve(connection: socket.socket) -> None:
        if not connection.recv(65536):
            return
        connection.sendall(head)
        while True:
            connection.sendall(piece)
            time.sleep(pause_s)

    return serve


@contextlib.contextmanager
def on_tcp(serve: Serve) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection = listener.accept()[0]
                    with connection, contextlib.suppress(OSError):
                        serve(connection)

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(5)


@pytest.mark.parametrize("place", [fake_engine, on_tcp])
@pytest.mark.parametrize(
    "serve",
    [
        endless(b"HTTP/1.1 200 OK\r\nX: ", b"x", 0.05),
        endless(HEAD + b"Content-Length: 100000\r\n\r\n", b" ", 0.05),
        endless(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n", 0.05),
        endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.05),
    ],
    ids=["head", "body", "chunks", "continue"],
)
def test_an_answer_that_trickles_is_cut_in_time(serve: Serve, place: Any) -> None:
    began_s = time.monotonic()
    with place(serve) as address, pytest.raises(SandboxUnavailable, match=r"not complete within 0\.5 s"):
        Connection(address, answer_s=0.5)
    assert time.monotonic() - began_s < 3


@pytest.mark.parametrize("status", [b"200 OK", b"500 Internal Server Error"])
def test_an_answer_without_end_is_cut_when_it_is_too_large(status: bytes) -> None:
    sent = 0
    piece = b" " * 65536

    def flood(connection: socket.socket) -> None:
        nonlocal sent
        if not connection.recv(65536):
            return
        connection.sendall(b"HTTP/1.1 %b\r\nContent-Type: application/json\r\n\r\n" % status)
        while True:
            connection.sendall(piece)
            sent += len(piece)

    with fake_engine(flood) as address, pytest.raises(SandboxUnavailable, match="larger than 16 MiB"):
        Connection(address, answer_s=20)
    assert 16 * 1024**2 <= sent < 24 * 1024**2


def scripted(fault: Callable[[str, str], bytes | None]) -> Faulty:
    """An engine that says what it is, and then `fault`."""
    import json

    image = {"Id": "sha256:1", "Os": "linux", "Architecture": "amd64", "Config": {}}
    known = {"/version": DOCKER, "/info": INFO, "/images/any/json": image, "/containers/json": []}

    def answers(method: str, path: str) -> bytes | None:
        if (said := fault(method, path)) is not None:
            return said
        found = next((value for end, value in known.items() if path.endswith(end)), "OK")
        return answer("200 OK", json.dumps(found))

    return Faulty("", answers)


@pytest.mark.parametrize("where", ["/info", "/images/any/json", "/containers/json", "/_ping"])
def test_an_engine_that_trickles_holds_nothing_of_the_sandbox(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "_ANSWER_S", 0.5)
    monkeypatch.setattr(pool, "_PING_S", (0.5, 0.5))
    monkeypatch.setattr(reaper, "_LIST_S", 0.5)

    class Trickling(Faulty):
        def _until_it_goes(self, connection: socket.socket) -> None:
            connection.sendall(HEAD + b"Content-Length: 100000\r\n\r\n")
            while not self._ends.wait(0.05):
                connection.sendall(b" ")

    def fault(method: str, path: str) -> bytes | None:
        if path.endswith("/create"):
            return answer("500 Internal Server Error")
        return HANG if path.endswith(where) else None

    engine = Trickling("", scripted(fault).fault)
    with engine.listening() as address, DockerSandbox("any", QUICK, engine=address) as sandbox:
        began_s = time.monotonic()
        with pytest.raises(SandboxUnavailable):
            sandbox.execute_sync("1")
        assert time.monotonic() - began_s < 4
        assert sandbox._supply._connecting.acquire(timeout=3)
        sandbox._supply._connecting.release()


def test_a_limit_that_the_engine_warns_of_is_not_enforced_and_is_logged_once(
    docker_engine: Engine,
    docker_image: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts = [
        "Your kernel does not support swap limit capabilities or the cgroup is not mounted. "
        "Memory limited without swap.",
        "Your kernel does not support PIDs limit capabilities or the cgroup is not mounted. "
        "PIDs limit discarded.",
        "Your kernel does not support CPU cfs quota.\nQuota discarded.",
    ]
    ask = Connection.ask

    def and_warn(self: Connection, method: str, *arguments: Any, **options: Any) -> Any:
        said = ask(self, method, *arguments, **options)
        return {**said, "Warnings": texts} if method == "create_container" else said

    monkeypatch.setattr(Connection, "ask", and_warn)
    with (
        caplog.at_level(logging.WARNING, "sandbox"),
        DockerSandbox(docker_image, QUICK, engine=docker_engine.address) as sandbox,
    ):
        for _ in range(2):
            result = sandbox.execute_sync("1")
            assert result.not_enforced == ("max_memory_mb", "max_processes")
    logged = [each.getMessage() for each in caplog.records if "engine warns" in each.getMessage()]
    # Containers are made side by side, so the order is theirs.
    assert sorted(logged) == sorted(f"the container engine warns: {' '.join(text.split())}" for text in texts)


@pytest.mark.parametrize("said", [None, [], ["Published ports are discarded when using host network mode"]])
def test_warnings_of_other_things_drop_no_limit(said: list[str] | None) -> None:
    assert dropped_limits(said or []) == set()


@pytest.mark.parametrize(
    "sick",
    [
        answer("409 Conflict", '{"message": "removal of container x is already in progress"}'),
        answer("500 Internal Server Error", '{"message": "driver failed to remove root filesystem"}'),
        HANG,
    ],
    ids=["in progress", "fails", "hangs"],
)
def test_a_container_that_is_not_removed_is_named_and_tried_again(
    sick: bytes,
    docker_engine: Engine,
    docker_image: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """E-07. The call that runs meanwhile hears nothing of it."""
    monkeypatch.setattr(reaper, "_OVERDUE_S", 1.0)
    monkeypatch.setattr(pool, "_REAP_S", 0.5)
    ended = subprocess.Popen(["true"])
    ended.wait()
    marks = {**labels("another"), OWNER: str(ended.pid), OWNER_START: "1"}
    engine = Faulty(docker_engine.address, lambda method, _: sick if method == "DELETE" else None)
    client = docker_engine.client()
    try:
        with (
            caplog.at_level(logging.INFO, "sandbox"),
            foreign(client, docker_image, **marks) as orphan,
            engine.listening() as address,
            DockerSandbox(docker_image, QUICK, engine=address) as sandbox,
        ):
            assert sandbox.execute_sync("1 + 1").value == "2"
            text = f"the container {orphan} could not be removed; it is tried again"
            assert until(lambda: text in caplog.messages, GONE_WITHIN_S)
            tries = len(engine.asked)
            assert until(lambda: any("DELETE" in each for each in engine.asked[tries:]), GONE_WITHIN_S)
            assert caplog.messages.count(text) == 1
            assert sandbox.execute_sync("2 + 2").value == "4"
            engine.fault = lambda *_: None
            assert until(lambda: orphan not in names(client), GONE_WITHIN_S)
    finally:
        client.close()


def test_a_container_that_takes_no_kill_keeps_no_call_and_is_removed_later(
    docker_engine: Engine,
    docker_image: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """E-07: paused, so that its agent ends nothing; and the engine ends nothing either."""
    monkeypatch.setattr(pool, "_REAP_S", 0.5)
    monkeypatch.setattr(pool, "_LEAVING_S", 0.5)

    def fault(method: str, path: str) -> bytes | None:
        return HANG if path.endswith(("/kill", "/stop")) or method == "DELETE" else None

    engine = Faulty(docker_engine.address, fault)
    client = docker_engine.client()
    with (
        caplog.at_level(logging.WARNING, "sandbox"),
        engine.listening() as address,
        DockerSandbox(docker_image, QUICK, engine=address) as sandbox,
    ):
        assert sandbox.execute_sync("x = 1", session="s").success
        session = sandbox._sessions._sessions["", "s"]
        assert session.container is not None
        name = session.container.name
        client.api.pause(name)
        try:
            began_s = time.monotonic()
            with pytest.raises(SandboxDied):
                sandbox.execute_sync("x", session="s")
            assert time.monotonic() - began_s < 1 + 3.5
            assert until(
                lambda: any(name in each and "could not be removed" in each for each in caplog.messages),
                GONE_WITHIN_S,
            )
            engine.fault = lambda *_: None
            assert until(lambda: name not in names(client), GONE_WITHIN_S)
        finally:
            with contextlib.suppress(Exception):
                client.api.remove_container(name, force=True)
            client.close()


@pytest.mark.parametrize("where", ["/containers/create", "/info"])
def test_a_server_whose_engine_never_answers_fails_calls_in_time_and_serves_others(
    where: str, tmp_path: Any
) -> None:
    """E-12."""
    (tmp_path / "note.txt").write_text("hello")
    engine = scripted(lambda _, path: HANG if path.endswith(where) else None)
    with engine.listening() as address:
        environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
        environ["XDG_STATE_HOME"] = str(tmp_path.parent / "state")
        options = {
            "MCP_TOOLS_PYTHON_BACKEND": "docker",
            "MCP_TOOLS_PYTHON_ENGINE": address,
            "MCP_TOOLS_PYTHON_IMAGE": "any",
            "MCP_TOOLS_PYTHON_TIMEOUT_S": "2",
        }
        argv = command("serve", "--stdio", "--root", str(tmp_path))
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(argv, bufsize=0, env=environ | options, cwd=ROOT, **pipes)  # type: ignore[call-overload]
        try:
            wire = Wire(process)
            wire.start()
            began_s = time.monotonic()
            for number in range(3):
                arguments = {"name": "execute_python", "arguments": {"code": "1"}}
                wire.send(
                    {"jsonrpc": "2.0", "id": f"slow {number}", "method": "tools/call", "params": arguments}
                )
            assert until(lambda: any(each.endswith(where) for each in engine.asked), 10)
            for _ in range(3):
                assert wire.call("read_file", path="note.txt") == (False, "hello")
            assert time.monotonic() - began_s < 4
            for _ in range(3):
                said = wire.read()
                assert str(said["id"]).startswith("slow")
                assert said["result"]["isError"]
            assert time.monotonic() - began_s < 2 + 5 + 2
            assert wire.end()[0] == 0
        finally:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                stream.close()
