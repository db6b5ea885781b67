"""No proxy of the machine's, and a web that may dial loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.builtin.search.loopback import LoopbackWeb


@pytest.fixture(autouse=True)
def no_proxy_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
async def web() -> AsyncIterator[LoopbackWeb]:
    made = LoopbackWeb()
    yield made
    await made.aclose()
