"""Lets a model use real tools on a real machine, every call validated, confirmed, limited and recorded.

from mcp_tools import ToolSystem

tools = ToolSystem()

@tools.register
def add(a: int, b: int) -> int:
    '''Add two numbers.'''
    return a + b

result = await tools.execute("add", {"a": 1, "b": 2})
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from mcp_tools.agent.anthropic import AnthropicMessages
    from mcp_tools.agent.loop import run_agent
    from mcp_tools.agent.openai import OpenAIResponses
    from mcp_tools.agent.openai_chat import OpenAIChat
    from mcp_tools.agent.step import run_agent_step
    from mcp_tools.agent.types import (
        AgentLimits,
        AgentRun,
        BadCall,
        Confirm,
        Message,
        Model,
        ModelError,
        OnCall,
        OnProgress,
        OnResult,
        OnText,
        StopReason,
        Turn,
    )
    from mcp_tools.batch import AsyncToolExecutor, StreamEvent, StreamingToolExecutor
    from mcp_tools.confirmation.terminal import confirm_at_terminal
    from mcp_tools.errors import (
        ConfigError,
        InvalidArguments,
        McpToolsError,
        RegistrationError,
        ToolError,
    )
    from mcp_tools.executor import ToolExecutor
    from mcp_tools.registry import ToolRegistry
    from mcp_tools.server import serve
    from mcp_tools.system import ToolSystem
    from mcp_tools.types import (
        Approval,
        CallContext,
        Confirmation,
        ErrorCode,
        ExecutionResult,
        ExecutionStatus,
        MediaContent,
        Preview,
        ResourceLink,
        TextContent,
        Tool,
        ToolAnnotations,
        ToolCall,
        ToolOutput,
        Usage,
    )

__version__ = "0.1.0"

# Otherwise Python prints our warnings to the stderr of a program that configured no logging.
logging.getLogger(__name__).addHandler(logging.NullHandler())

__all__ = [
    "AgentLimits",
    "AgentRun",
    "AnthropicMessages",
    "Approval",
    "AsyncToolExecutor",
    "BadCall",
    "CallContext",
    "ConfigError",
    "Confirm",
    "Confirmation",
    "ErrorCode",
    "ExecutionResult",
    "ExecutionStatus",
    "InvalidArguments",
    "McpToolsError",
    "MediaContent",
    "Message",
    "Model",
    "ModelError",
    "OnCall",
    "OnProgress",
    "OnResult",
    "OnText",
    "OpenAIChat",
    "OpenAIResponses",
    "Preview",
    "RegistrationError",
    "ResourceLink",
    "StopReason",
    "StreamEvent",
    "StreamingToolExecutor",
    "TextContent",
    "Tool",
    "ToolAnnotations",
    "ToolCall",
    "ToolError",
    "ToolExecutor",
    "ToolOutput",
    "ToolRegistry",
    "ToolSystem",
    "Turn",
    "Usage",
    "__version__",
    "confirm_at_terminal",
    "run_agent",
    "run_agent_step",
    "serve",
]

# Each public name is imported when it is first used: a command line that only lists tools must not load
# the rest, and the server's start is measured.
_HOMES: Final = {
    "agent.anthropic": ("AnthropicMessages",),
    "agent.loop": ("run_agent",),
    "agent.openai": ("OpenAIResponses",),
    "agent.openai_chat": ("OpenAIChat",),
    "agent.step": ("run_agent_step",),
    "agent.types": (
        "AgentLimits",
        "AgentRun",
        "BadCall",
        "Confirm",
        "Message",
        "Model",
        "ModelError",
        "OnCall",
        "OnProgress",
        "OnResult",
        "OnText",
        "StopReason",
        "Turn",
    ),
    "batch": ("AsyncToolExecutor", "StreamEvent", "StreamingToolExecutor"),
    "confirmation.terminal": ("confirm_at_terminal",),
    "errors": ("ConfigError", "InvalidArguments", "McpToolsError", "RegistrationError", "ToolError"),
    "executor": ("ToolExecutor",),
    "registry": ("ToolRegistry",),
    "server": ("serve",),
    "system": ("ToolSystem",),
}
_HOME_OF: Final = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME_OF.get(name, 'types')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
