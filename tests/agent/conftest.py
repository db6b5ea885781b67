"""What holds for every test of the agent: no key, header or proxy of the machine it runs on."""

from __future__ import annotations

import os

import pytest

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def nothing_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDKs read keys, addresses and headers from the environment, also where a key is given."""
    for name in list(os.environ):
        if name.startswith(("ANTHROPIC_", "OPENAI_")) or name.lower() in PROXIES:
            monkeypatch.delenv(name)
