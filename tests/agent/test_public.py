"""What a program needs of the agent comes from `mcp_tools`, and naming it loads no SDK."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMES = (
    "AgentLimits", "AgentRun", "AnthropicMessages", "BadCall", "Confirm", "Message", "Model", "ModelError",
    "OnCall", "OnProgress", "OnResult", "OnText", "OpenAIChat", "OpenAIResponses", "StopReason", "Turn",
    "run_agent", "run_agent_step",
)  # fmt: skip


def test_naming_them_loads_no_sdk() -> None:
    probe = f"from mcp_tools import {', '.join(NAMES)}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, timeout=60, check=True, cwd=ROOT
    )
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "mcp_tools" in loaded
    assert loaded & {"anthropic", "openai", "genai_prices", "pydantic", "httpx2", "mcp"} == set()


@pytest.mark.parametrize("name", ["agent.md", "agent-openai.md"])
def test_documents_import_from_there_only(name: str) -> None:
    snippets = "".join(re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / name).read_text(), re.S | re.M))
    homes = re.findall(r"^\s*from (\S+) import", snippets, re.MULTILINE)
    assert "mcp_tools" in homes
    assert set(homes) <= {"mcp_tools", "openai", "anthropic"}
