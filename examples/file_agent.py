"""A governed file agent: one folder, rules, a question before each change, limits, and a record.

Run it: ANTHROPIC_API_KEY=... python examples/file_agent.py FOLDER "Sort these notes by topic."

The record is kept in FOLDER/../agent-audit/; `mcp-tools audit verify FILE` says whether it is whole.
"""

import asyncio
import sys
from pathlib import Path

from mcp_tools import AgentLimits, StopReason, ToolSystem, confirm_at_terminal, run_agent
from mcp_tools.limits import build_limiter
from mcp_tools.observe.audit import AuditLog
from mcp_tools.policy import RulePolicy

# Each tool that could show or take a file along is named: a rule is about one tool.
READERS = ("read_file", "read_text_file", "read_media_file", "read_multiple_files", "grep_files", "move_file")
RULES = RulePolicy.parse(
    # Nothing is deleted, and some files are not read.
    deny=["delete_file", *(f"{tool}(**/*.secret)" for tool in READERS)],
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
    if run.stop is not StopReason.FINISHED:
        sys.exit(f"not done: {run.detail}")
    return run.text


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit("usage: file_agent.py FOLDER TASK")
    print(asyncio.run(work(Path(sys.argv[1]).resolve(), sys.argv[2])))


if __name__ == "__main__":
    main()
