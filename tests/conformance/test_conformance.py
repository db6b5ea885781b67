"""The official conformance suite against a server of ours that holds the tools it calls by name.

It needs the packages of the lock beside it, a Node among them:
`npm ci --prefix tests/conformance --ignore-scripts`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
BIN = HERE / "node_modules" / ".bin"

# What we do not offer, so that the suite's checks of it fail: (the reason, where, which checks).
RESOURCES = ["list", "read-binary", "read-text", "subscribe", "templates-read", "unsubscribe"]
PROMPTS = ["get-embedded-resource", "get-simple", "get-with-args", "get-with-image", "list"]
NOT_OFFERED: dict[str, set[str]] = {
    "we serve tools only": {
        "completion-complete",
        "logging-set-level",
        "tools-call-with-logging",
        "sep-2575-server-no-log-without-loglevel",
        "sep-2549-prompts-list-caching-hints",
        "sep-2549-resources-list-caching-hints",
        "sep-2549-resources-templates-list-caching-hints",
        "sep-2322-non-tool-incomplete",
        *(f"resources-{name}" for name in RESOURCES),
        *(f"prompts-{name}" for name in PROMPTS),
    },
    "we ask one question only, whether a call may run, and nothing but elicitation asks it": {
        "tools-call-sampling",
        "elicitation-sep1034-general",
        "elicitation-sep1330-general",
        "sep-2322-elicitation-incomplete",
        "sep-2322-list-roots-incomplete",
        "sep-2322-sampling-incomplete",
        "sep-2322-multiple-inputs-incomplete",
        "sep-2322-multi-round-r1",
        "sep-2322-respect-client-capabilities",
    },
    "a client that cannot ask gets a tool error, which tells the model and the person what to do": {
        "sep-2575-server-rejects-undeclared-capability",
        "sep-2575-missing-capability-http-400",
    },
}
AT_LEAST_PASSED = {"2025-06-18": 40, "2025-11-25": 55, "2026-07-28": 115}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if not (BIN / "conformance").exists():
        pytest.skip("needs the conformance suite: npm ci --prefix tests/conformance --ignore-scripts")
    where = tmp_path_factory.mktemp("conformance") / "url"
    process = subprocess.Popen([sys.executable, str(HERE / "fixture_server.py"), str(where)])
    try:
        deadline = time.monotonic() + 20
        while not where.exists() or not where.read_text():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield where.read_text()
    finally:
        process.terminate()
        assert process.wait(10) == 0


@pytest.mark.parametrize("version", list(AT_LEAST_PASSED))
def test_every_check_of_what_we_offer_passes(url: str, version: str, tmp_path: Path) -> None:
    command = [str(BIN / "conformance"), "server", "--url", url, "--suite", "all"]
    # Named by its package: an older npm makes no link to it in .bin.
    nodes = [str(path) for path in sorted((HERE / "node_modules").glob("node-linux-*/bin"))]
    environment = {"PATH": os.pathsep.join([*nodes, os.environ["PATH"]]), "HOME": str(tmp_path)}
    done = subprocess.run(
        [*command, "--spec-version", version, "--output-dir", str(tmp_path)],
        env=environment,
        capture_output=True,
        timeout=120,
        check=False,
    )
    failed: dict[str, str] = {}
    passed = 0
    for results in tmp_path.glob("*/checks.json"):
        for check in json.loads(results.read_text()):
            if check["status"] == "FAILURE":
                failed[check["id"]] = check.get("errorMessage", "")
            passed += check["status"] == "SUCCESS"
    expected = set().union(*NOT_OFFERED.values())
    assert {name: why for name, why in failed.items() if name not in expected} == {}
    assert passed >= AT_LEAST_PASSED[version], (done.stdout + done.stderr).decode()[-3000:]
