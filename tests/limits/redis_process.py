"""A Redis server of the tests' own, on a free loopback port, in a private folder."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from pathlib import Path


class RedisProcess:
    def __init__(self, folder: Path, *options: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._folder = folder
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        program = shutil.which("redis-server")
        assert program is not None
        where = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder)]
        quiet = ["--save", "", "--appendonly", "no", "--loglevel", "warning"]
        self._process = subprocess.Popen(
            [program, *where, *quiet, *self._options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", self._answering_port()), timeout=1).close()
                return
            except OSError:
                assert time.monotonic() < deadline, "redis-server does not answer"
                assert self._process.poll() is None, "redis-server ended"
                time.sleep(0.02)

    def _answering_port(self) -> int:
        if "--tls-port" in self._options:
            return int(self._options[self._options.index("--tls-port") + 1])
        return self.port

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(20)
            self._process = None
