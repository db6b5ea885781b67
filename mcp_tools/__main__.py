"""`python -m mcp_tools`: the same as the command `mcp-tools`."""

import os
import sys

try:
    here = os.getcwd()
except OSError:  # deleted under us
    here = ""
if not sys.flags.safe_path and sys.path[0] in ("", here):
    # Python put the current folder in front of everything. A project there must neither stand in for a
    # package that we import nor pass for an installed one with entry points, so it goes; `--tools` adds
    # it again at the end. What shadows the standard library has been imported before we run: the
    # command `mcp-tools` and `python -P -m mcp_tools` are safe from that too.
    sys.path.pop(0)

from mcp_tools.cli.main import run_process

run_process()
