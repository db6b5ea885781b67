"""What a client on loopback is made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mcp_tools.web.client import WebClient
from mcp_tools.web.pace import Pace
from mcp_tools.web.types import Reach

MakeClient = Callable[..., WebClient]


@pytest.fixture
def client() -> MakeClient:
    def make(*hosts: str, resolver: Any = None, ssl_context: Any = None, **reach: Any) -> WebClient:
        return WebClient(
            Reach(hosts=frozenset(hosts), **reach),
            user_agent="mcp-tools/test",
            resolver=resolver,
            ssl_context=ssl_context,
            pace=Pace(distance_s=0),
        )

    return make
