"""A client that speaks to the fixture server in raw bytes, so that it can be as bad as it likes."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.server.peers import FIXTURE_SERVER, environment

WAIT_S = 20.0
END_S = 4.0
"""Two seconds are promised; a busy machine may be slow to notice."""
CALL = {"jsonrpc": "2.0", "method": "tools/call"}
HANDSHAKE: dict[str, Any] = {
    "protocolVersion": "2025-11-25",
    "capabilities": {},
    "clientInfo": {"name": "raw", "version": "1"},
}
ENVELOPE = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientInfo": {"name": "raw", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {"elicitation": {}},
}


class Wire:
    """One server process and both ends of its pipes."""

    def __init__(
        self,
        folder: Path,
        *,
        options: str = "{}",
        program: str = FIXTURE_SERVER,
        environ: dict[str, str] | None = None,
        reads: bool = True,
        **popen: Any,
    ) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, program, "stdio", options],
            **{
                "stdin": subprocess.PIPE,
                "stdout": subprocess.PIPE,
                "stderr": subprocess.DEVNULL,
                "env": environment(folder) | (environ or {}),
            }
            | popen,
        )
        self.raw_lines: list[bytes] = []
        self._messages: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._kept: list[dict[str, Any]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        if reads:
            self._reader.start()

    def start_reading(self) -> None:
        """Begin to take answers, where `reads=False` held that back."""
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.raw_lines.append(line)
            self._messages.put(json.loads(line))
        self._messages.put(None)

    def write(self, data: bytes) -> None:
        """Send bytes as they are."""
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def send(self, message: Any) -> None:
        """Send one message on a line."""
        self.write(json.dumps(message).encode() + b"\n")

    def request(self, request_id: Any, method: str, params: Any = None) -> None:
        """Send a request."""
        message = {"jsonrpc": "2.0", "id": request_id, "method": method}
        self.send(message if params is None else message | {"params": params})

    def call(self, request_id: Any, tool: str, meta: Any = None, **arguments: Any) -> None:
        """Send a tool call."""
        params = {"name": tool, "arguments": arguments}
        self.request(request_id, "tools/call", params if meta is None else params | {"_meta": meta})

    def cancel(self, request_id: Any) -> None:
        """Withdraw a request."""
        params = {"requestId": request_id}
        self.send({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params})

    def initialize(self, **capabilities: Any) -> Self:
        """Open a handshake connection."""
        self.request("init", "initialize", HANDSHAKE | {"capabilities": capabilities})
        assert self.answer("init")["result"]["protocolVersion"] == "2025-11-25"
        self.send({"jsonrpc": "2.0", "method": "notifications/initialized"})
        return self

    def answer(self, request_id: Any, wait_s: float = WAIT_S) -> dict[str, Any]:
        """Wait for the answer to a request; other messages are kept."""
        return self.message(lambda m: "method" not in m and m.get("id") == request_id, wait_s)

    def message(self, wanted: Any, wait_s: float = WAIT_S) -> dict[str, Any]:
        """Wait for a message that `wanted` says yes to."""
        for kept in self._kept:
            if wanted(kept):
                self._kept.remove(kept)
                return kept
        deadline = time.monotonic() + wait_s
        while True:
            message = self._messages.get(timeout=max(deadline - time.monotonic(), 0.001))
            assert message is not None, "the server has ended"
            if wanted(message):
                return message
            self._kept.append(message)

    def drain(self) -> list[dict[str, Any]]:
        """Take everything that has come so far."""
        while True:
            try:
                message = self._messages.get_nowait()
            except queue.Empty:
                kept, self._kept = self._kept, []
                return kept
            if message is not None:
                self._kept.append(message)

    def forget(self) -> None:
        """Drop everything that has come and been written down so far."""
        self.drain()
        self.raw_lines.clear()
        for name in ("effects", "calls"):
            (self.folder / name).unlink(missing_ok=True)

    def ping(self, wait_s: float = WAIT_S) -> None:
        """Check that the server answers."""
        request_id = f"ping-{time.monotonic_ns()}"
        self.request(request_id, "ping")
        assert self.answer(request_id, wait_s)["result"] == {}

    def end(self) -> float:
        """Close stdin; return how long the server took to end."""
        assert self.process.stdin is not None
        begun = time.monotonic()
        self.process.stdin.close()
        assert self.process.wait(WAIT_S) == 0
        return time.monotonic() - begun

    def status(self, field: str) -> int:
        """Read a number from the kernel's view of the process: `VmRSS` and `VmHWM` are in kB."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1])
        raise AssertionError(field)

    def descriptors(self) -> int:
        """Count the open descriptors of the process."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def effects(self) -> list[str]:
        """What tools did to the world."""
        path = self.folder / "effects"
        return path.read_text().splitlines() if path.exists() else []

    def calls(self) -> list[str]:
        """The calls that finished, as hooks are told."""
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def until(self, line: str, where: Any, wait_s: float = WAIT_S) -> None:
        """Wait for a line in `effects` or `calls`."""
        deadline = time.monotonic() + wait_s
        while line not in where():
            assert time.monotonic() < deadline, where()
            time.sleep(0.01)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.wait(WAIT_S)
        if self._reader.is_alive():
            self._reader.join(WAIT_S)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None and not stream.closed:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
