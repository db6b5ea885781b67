"""`fetch_url` as a client of `mcp-tools serve` has it."""

from __future__ import annotations

import os
from pathlib import Path

import anyio
import mcp_types as types
import pytest
from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters

from tests.builtin.web.test_fetch_url import Site, site
from tests.cli.conftest import ROOT, command

__all__ = ["site"]  # the fixture
WAIT_S = 60.0
PAGES = {
    "/lines": "".join(f"line {number} of a long text\n" for number in range(4_000)),
    "/quotes": '"' * 70_000,
    "/chinese": "\u6c49\u5b57" * 30_000,
}


@pytest.fixture
def server(site: Site, tmp_path: Path) -> StdioServerParameters:
    place = site.url.removeprefix("http://")
    program, *rest = command("serve", "--no-python", "--web-host", place, "--ignore-robots")
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    return StdioServerParameters(command=program, args=rest, env=environ)


async def test_parts_of_the_largest_size_join_to_the_whole(site: Site, server: StdioServerParameters) -> None:
    for path, text in PAGES.items():
        site.pages[path] = (200, {"Content-Type": "text/plain; charset=utf-8"}, text.encode())
    with anyio.fail_after(WAIT_S):
        async with Client(server) as client:
            for path, text in PAGES.items():
                data, shown = "", ""
                start: int | None = 0
                while start is not None:
                    arguments = {"url": site.url + path, "max_length": 50_000, "start_index": start}
                    result = await client.call_tool("fetch_url", arguments)
                    assert not result.is_error
                    assert result.structured_content is not None
                    block, where = result.content
                    assert isinstance(block, types.TextContent) and isinstance(where, types.TextContent)
                    data += result.structured_content["content"]
                    shown += block.text.partition("\n")[2].rpartition("\n")[0]
                    start = result.structured_content["next_index"]
                    assert start is None or f"go on with start_index={start}" in where.text
                assert data == text
                assert shown == text
            too_long = {"url": site.url + "/lines", "max_length": 50_001}
            assert (await client.call_tool("fetch_url", too_long)).is_error
    assert [site.asked.count(path) for path in PAGES] == [1, 1, 1]
