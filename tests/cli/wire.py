"""A raw stdio client: sends lines, reads lines, knows nothing else. For what happens around the protocol."""

from __future__ import annotations

import json
import select
import subprocess
import time
from typing import Any

WAIT_S = 30

INITIALIZE = {
    "protocolVersion": "2025-11-25",
    "capabilities": {},
    "clientInfo": {"name": "test", "version": "1"},
}


class Wire:
    """Speaks to a server that was started with pipes for stdin and stdout."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self._next_id = 0

    def request(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a request and return the answer; the next line must be it."""
        self._next_id += 1
        self.send({"jsonrpc": "2.0", "id": self._next_id, "method": method, "params": params})
        answer = self.read()
        assert answer["id"] == self._next_id
        return answer

    def start(self) -> dict[str, Any]:
        """Shake hands and return what the server said of itself."""
        answer = self.request("initialize", **INITIALIZE)
        self.send({"jsonrpc": "2.0", "method": "notifications/initialized"})
        result: dict[str, Any] = answer["result"]
        return result

    def call(self, tool: str, **arguments: Any) -> tuple[bool, str]:
        """Call a tool; return whether it is an error, and its text."""
        result = self.request("tools/call", name=tool, arguments=arguments)["result"]
        return result.get("isError", False), result["content"][0]["text"]

    def send(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message).encode() + b"\n")
        self.process.stdin.flush()

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = b""
        deadline = time.monotonic() + WAIT_S
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([self.process.stdout], [], [], max(0, deadline - time.monotonic()))
            assert ready, "no answer"
            piece = self.process.stdout.readline()
            assert piece, f"the server ended: {self.process.wait(WAIT_S)}"
            line += piece
        message: dict[str, Any] = json.loads(line)
        return message

    def end(self) -> tuple[int, bytes]:
        """Close stdin, wait for the end; return the exit code and what stdout still held."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        rest = self.process.stdout.read()
        return self.process.wait(WAIT_S), rest
