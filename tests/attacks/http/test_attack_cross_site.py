"""A page in the user's browser tries to call our tools: DNS rebinding and cross-site requests.

Each attack is first shown to work on the SDK's own app as its examples serve it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mcp.server import transport_security

from mcp_tools.server.http import requests as checks
from tests.server.http.http_peer import ask, make_server, modern, plain_uvicorn, serving


def attack(port: int, made: Path, **headers: str | None) -> bytes:
    return modern("tools/call", {"name": "mark", "arguments": {"path": str(made)}}, port=port, **headers)


REBOUND = [
    pytest.param(
        {"host": "0.0.0.0"},
        {"Host": "evil.example:8000", "Origin": "http://evil.example:8000"},
        id="rebound name",
    ),
    pytest.param({}, {"Host": "localhost:evil.example"}, id="port that is a name"),
    pytest.param(
        {}, {"Origin": "http://localhost:8000.evil.example"}, id="origin that only starts like ours"
    ),
]


@pytest.mark.parametrize(("options", "headers"), REBOUND)
async def test_a_rebound_name_calls_no_tool(
    options: dict[str, Any], headers: dict[str, str], tmp_path: Path
) -> None:
    works, fails = tmp_path / "works", tmp_path / "fails"
    async with plain_uvicorn(make_server().streamable_http_app(**options)) as port:
        ours = {"Host": f"localhost:{port}"} | headers
        assert (await ask(port, attack(port, works, **ours))).status == 200
    async with serving() as served:
        ours = {"Host": f"localhost:{served.port}"} | headers
        assert (await ask(served.port, attack(served.port, fails, **ours))).status in (421, 403)
    assert (works.exists(), fails.exists()) == (True, False)


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"]
)
async def test_what_a_form_can_send_calls_no_tool(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C-03. Browsers send these types to other sites without asking them first."""
    works, fails = tmp_path / "works", tmp_path / "fails"
    async with serving() as served:
        assert (await ask(served.port, attack(served.port, fails, Content_Type=kind))).status == 415
        # Without our check, and the SDK's own, the same bytes are a call.
        monkeypatch.setattr(checks, "media_refusal", lambda headers, limits: None)
        sdk = transport_security.TransportSecurityMiddleware
        monkeypatch.setattr(sdk, "_validate_content_type", lambda self, kind: True)
        assert (await ask(served.port, attack(served.port, works, Content_Type=kind))).status == 200
    assert (works.exists(), fails.exists()) == (True, False)


async def test_a_type_that_only_starts_like_json_calls_no_tool(tmp_path: Path) -> None:
    works, fails = tmp_path / "works", tmp_path / "fails"
    async with plain_uvicorn(make_server().streamable_http_app()) as port:
        assert (await ask(port, attack(port, works, Content_Type="application/jsonp; x"))).status == 200
    async with serving() as served:
        assert (
            await ask(served.port, attack(served.port, fails, Content_Type="application/jsonp; x"))
        ).status == 415
    assert (works.exists(), fails.exists()) == (True, False)
