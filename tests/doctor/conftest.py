"""Running `mcp-tools doctor` as its own process, in surroundings that a test makes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from socket import AF_UNIX, SO_LINGER, SOCK_STREAM, SOL_SOCKET, socket
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
Finding = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What the doctor said, as data."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out)
        return found

    def findings(self, check: str) -> list[Finding]:
        return [finding for finding in self.data["findings"] if finding["check"] == check]

    def one(self, check: str, name: str = "") -> Finding:
        found = [finding for finding in self.findings(check) if name in finding["name"]]
        assert len(found) == 1, found
        return found[0]


Doctor = Callable[..., Said]


@pytest.fixture
def environ(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A user who has nothing: no settings, no clients, no engine."""
    home = tmp_path_factory.mktemp("home")
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "PYTHONPATH": str(ROOT),
        "XDG_RUNTIME_DIR": str(home / "run"),
    }


@pytest.fixture
def doctor(environ: dict[str, str], tmp_path: Path) -> Doctor:
    """Run it; `through` is a command put before it, `env` what is added to the variables."""

    def run(
        *arguments: str,
        through: tuple[str, ...] = (),
        env: dict[str, str] | None = None,
        cwd: Path = tmp_path,
        as_json: bool = True,
        python: str = sys.executable,
        timeout_s: float = 90,
        web: bool = False,
    ) -> Said:
        flags = [*(("--json",) if as_json else ()), *(() if web else ("--no-web",))]  # nobody asks the world
        argv = [*through, python, "-m", "mcp_tools", "doctor", *flags, *arguments]
        done = subprocess.run(
            argv,
            cwd=cwd,
            env=environ | (env or {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        return Said(code=done.returncode, out=done.stdout, err=done.stderr)

    return run


@pytest.fixture
def no_python(doctor: Doctor) -> Doctor:
    """As `doctor`, without starting a sandbox: for tests of everything else."""

    def run(*arguments: str, **options: Any) -> Said:
        return doctor("--no-python", *arguments, **options)

    return run


Serve = Callable[[Callable[[socket], None]], str]


@pytest.fixture
def unix_server(tmp_path: Path) -> Iterator[Serve]:
    """Listens at a Unix socket and hands each connection to a function; returns the address."""
    with socket(AF_UNIX, SOCK_STREAM) as listener:
        path = tmp_path / "engine.sock"
        listener.bind(str(path))
        listener.listen(16)

        def serve(answer: Callable[[socket], None]) -> str:
            def accept() -> None:
                while True:
                    try:
                        connection, _ = listener.accept()
                    except OSError:
                        return
                    threading.Thread(target=answer, args=(connection,), daemon=True).start()

            threading.Thread(target=accept, daemon=True).start()
            return f"unix://{path}"

        yield serve
        listener.shutdown(2)


def reset(connection: socket) -> None:
    """End a connection as a crash does."""
    connection.setsockopt(SOL_SOCKET, SO_LINGER, b"\1\0\0\0\0\0\0\0")
    connection.close()


def engine_answers(answers: dict[str, Any]) -> Callable[[socket], None]:
    """What speaks as a Docker engine does: by path without the version, JSON; what is not there is a 404."""

    def answer(connection: socket) -> None:
        with connection, connection.makefile("rwb") as stream:
            while request := stream.readline():
                while stream.readline().strip():
                    pass
                path = request.split()[1].decode().partition("?")[0]
                parts = path.split("/", 2)
                if parts[1].startswith("v1."):
                    path = "/" + parts[2]
                found = answers.get(path)
                status = b"200 OK" if found is not None else b"404 Not Found"
                body = json.dumps(found if found is not None else {"message": "no such thing"}).encode()
                stream.write(b"HTTP/1.1 %s\r\nContent-Type: application/json\r\n" % status)
                stream.write(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
                stream.flush()

    return answer


def an_engine(
    *,
    runc: str = "1.3.3",
    commit: str = "v1.3.3-0-gd842d771",
    platform: str = "Docker Engine - Community",
    security: tuple[str, ...] = ("name=seccomp,profile=builtin", "name=cgroupns"),
    image: dict[str, Any] | None = None,
    podman: str = "",
    **info: Any,
) -> dict[str, Any]:
    """What a Docker engine says of itself, as far as anybody asks."""
    version: dict[str, Any] = {
        "Platform": {"Name": platform},
        "Version": "29.1.0",
        "ApiVersion": "1.47",
        "MinAPIVersion": "1.24",
        "Components": [
            {"Name": "Engine", "Version": "29.1.0", "Details": {"ApiVersion": "1.47"}},
            {"Name": "runc", "Version": runc, "Details": {"GitCommit": commit}},
        ],
    }
    if podman:
        details = {"Package": podman, "Path": "/usr/bin/runc"}
        version["Components"] = [
            {"Name": "Podman Engine", "Version": "5.4.0", "Details": {}},
            {
                "Name": "OCI Runtime (runc)",
                "Version": f"runc version {runc}\nspec: 1.2.0",
                "Details": details,
            },
        ]
    about = {
        "OperatingSystem": "Debian GNU/Linux 12",
        "OSType": "linux",
        "Architecture": "x86_64",
        "SecurityOptions": list(security),
        "Runtimes": {"runc": {"path": "runc"}, "io.containerd.runc.v2": {"path": "runc"}},
        "DefaultRuntime": "runc",
        "CgroupVersion": "2",
        "CgroupDriver": "systemd",
        "MemoryLimit": True,
        "PidsLimit": True,
    }
    answers: dict[str, Any] = {"/version": version, "/info": about | info, "/_ping": "OK"}
    if image is not None:
        answers["/images/python:3.11-slim/json"] = image
    return answers


def without_user_namespaces() -> tuple[str, ...]:
    """What to put before a command so that it runs where no further namespace can be made."""
    enter = ("unshare", "--user", "--map-root-user", "sh", "-c")
    script = "echo 0 > /proc/sys/user/max_user_namespaces"
    if not shutil.which("unshare") or subprocess.run([*enter, script], check=False, timeout=10).returncode:
        pytest.skip("needs a machine that gives one user namespace, to close others in it")
    return (*enter, f'{script} && exec "$@"', "sh")
