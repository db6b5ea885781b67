"""A server with the test tools, as a process of its own; started by `http_peer.server_process`."""

from __future__ import annotations

import sys

from mcp_tools.executor import ToolExecutor
from mcp_tools.server import run
from tests.server.http.http_peer import make_registry, tokens


def main() -> int:
    for argument in sys.argv:
        if argument.startswith("--descriptors="):
            import resource

            count = int(argument.partition("=")[2])
            resource.setrlimit(resource.RLIMIT_NOFILE, (count, count))
    known = tokens() if "--tokens" in sys.argv else None
    return run(ToolExecutor(make_registry()), "http", port=0, tokens=known)


if __name__ == "__main__":
    sys.exit(main())
