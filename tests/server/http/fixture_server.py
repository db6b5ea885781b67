"""A server with the test tools, as a process of its own; started by `http_peer.server_process`."""

from __future__ import annotations

import asyncio
import resource
import signal
import sys

import anyio

from mcp_tools.server.http import serve_http
from tests.server.http.http_peer import make_server, tokens


async def main() -> None:
    for argument in sys.argv:
        if argument.startswith("--descriptors="):
            count = int(argument.partition("=")[2])
            resource.setrlimit(resource.RLIMIT_NOFILE, (count, count))
    shutdown = anyio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, shutdown.set)
    await serve_http(
        make_server(), port=0, tokens=tokens() if "--tokens" in sys.argv else None, shutdown=shutdown
    )


if __name__ == "__main__":
    anyio.run(main)
