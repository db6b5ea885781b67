"""`execute_python`: code that a model wrote, run in a sandbox. Loads `sandbox` at the first call only."""

from mcp_tools.builtin.python.options import PythonOptions
from mcp_tools.builtin.python.register import register_python_tool
from mcp_tools.builtin.python.tool import PythonTool

__all__ = ["PythonOptions", "PythonTool", "register_python_tool"]
