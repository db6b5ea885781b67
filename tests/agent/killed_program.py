"""A program that is killed: an agent with a durable log, in a process of its own.

python killed_program.py URL LOG — says on stdout which of its tools have begun, one in a line.
"""

from __future__ import annotations

import asyncio
import sys

from anthropic import AsyncAnthropic

from mcp_tools import ToolSystem
from mcp_tools.agent.loop import run_agent
from mcp_tools.observe.audit import AuditLog
from tests.agent.anthropic_server import KEY, MODEL


async def main(url: str, log: str) -> None:
    with AuditLog(log) as auditor, ToolSystem(auditor=auditor) as tools:

        @tools.register
        async def quick(what: str) -> str:
            """Note something."""
            print(f"quick {what}", flush=True)
            return what

        @tools.register
        async def endless(what: str) -> str:
            """Never end."""
            print(f"endless {what}", flush=True)
            await asyncio.sleep(60)
            return what

        async with AsyncAnthropic(api_key=KEY, base_url=url, max_retries=0) as client:
            await run_agent("Go.", tools, client=client, model=MODEL)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
