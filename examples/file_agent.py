"""A governed file agent: one folder, rules, a question before each change, limits, and a record.

Run it: ANTHROPIC_API_KEY=... python examples/file_agent.py FOLDER "Sort these notes by topic."

The record is kept in FOLDER/../agent-audit/; `mcp-tools audit verify FILE` says whether it is whole.
"""

import asyncio
import sys
from pathlib import Path

from mcp_tools import AgentLimits, ToolSystem, confirm_at_terminal, run_agent
from mcp_tools.limits import build_limiter
from mcp_tools.observe.audit import AuditLog
from mcp_tools.policy import RulePolicy

RULES = RulePolicy.parse(
    deny=["delete_file", "read_file(**/*.secret)"],  # nothing is deleted, and some files are not read
    ask=["write_file", "edit_file", "move_file"],
    allow=["create_directory"],
)
LIMITS = ["*: 100 calls / minute", "write_file: 20 calls / hour"]


async def work(folder: Path, task: str) -> str:
    """Have a task done in a folder."""
    audit = folder.parent / "agent-audit" / "audit.jsonl"
    with (
        AuditLog(audit, roots=[folder]) as log,
        ToolSystem.with_builtins(
            [folder],
            python=False,
            web=False,
            policy=RULES,
            auditor=log,
            limiter=build_limiter(LIMITS),
            confirm=confirm_at_terminal,
        ) as tools,
    ):
        run = await run_agent(task, tools, limits=AgentLimits(steps=30, seconds=600))
    for call, result in run.results:
        print(f"{call.name}: {result.status}", file=sys.stderr)
    return f"{run.text}\n({run.detail})"


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit("usage: file_agent.py FOLDER TASK")
    print(asyncio.run(work(Path(sys.argv[1]).resolve(), sys.argv[2])))


if __name__ == "__main__":
    main()
