"""`python -m mcp_tools`: the same as the command `mcp-tools`."""

import os
import sys

try:
    here = os.getcwd()
except OSError:  # deleted under us
    here = ""
if not sys.flags.safe_path and sys.path[0] in ("", here):
    # Python put the current folder in front of everything. A project there must not be able to stand
    # in for a package that we import, so it goes to the end.
    sys.path.append(sys.path.pop(0))

from mcp_tools.cli.main import main

sys.exit(main())
