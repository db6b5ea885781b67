"""A model analyses a CSV file with plots, in a sandbox that can read the file's folder and nothing else.

Run it: ANTHROPIC_API_KEY=... python examples/data_analysis.py sales.csv "Which month was the best?" plots/

numpy, pandas and matplotlib are taken from the environment that runs this; what is missing there, the model
does without. Pictures are written to the third argument's folder.
"""

import asyncio
import sys
import sysconfig
from pathlib import Path

from mcp_tools import (
    AgentLimits,
    ExecutionResult,
    MediaContent,
    StopReason,
    ToolCall,
    ToolOutput,
    ToolSystem,
    run_agent,
)
from sandbox import Mount, SandboxConfig

SYSTEM = "Work with execute_python. The data is in /data/{name}. Show what you find as plots with matplotlib."


class Plots:
    """Writes the pictures of results to a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count = 0

    def keep(self, _call: ToolCall, result: ExecutionResult) -> None:
        """Write every picture of a result."""
        if not isinstance(result.result, ToolOutput):
            return
        for piece in result.result.content:
            if isinstance(piece, MediaContent) and piece.media_type == "image/png":
                self.count += 1
                self.folder.mkdir(parents=True, exist_ok=True)
                (self.folder / f"plot-{self.count}.png").write_bytes(piece.data)


async def analyse(data: Path, question: str, plots: Plots) -> str:
    """Have a question about a file answered."""
    config = SandboxConfig(
        mounts=(Mount(source=str(data.parent), target="/data"),),
        packages=sysconfig.get_path("purelib"),
        max_memory_mb=1024,
    )
    with ToolSystem.with_builtins(python=config, web=False) as tools:
        run = await run_agent(
            question,
            tools,
            system=SYSTEM.format(name=data.name),
            limits=AgentLimits(steps=20, seconds=300),
            # The code can read what is in /data; that is what it is for.
            confirm=lambda question: question.tool_name == "execute_python",
            on_result=plots.keep,
        )
    if run.stop is not StopReason.FINISHED:
        sys.exit(f"not done: {run.detail}")
    return run.text


def main() -> None:
    if len(sys.argv) != 4:
        sys.exit("usage: data_analysis.py FILE.csv QUESTION FOLDER")
    plots = Plots(Path(sys.argv[3]))
    print(asyncio.run(analyse(Path(sys.argv[1]).resolve(), sys.argv[2], plots)))
    print(f"{plots.count} plots in {plots.folder}", file=sys.stderr)


if __name__ == "__main__":
    main()
