"""G-14: a long log is verified quickly, in memory that does not grow with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from mcp_tools.observe.audit.line import GENESIS, seal
from mcp_tools.observe.audit.records import Records
from mcp_tools.observe.audit.redact import Redactor
from tests.observe.audit.calls import ended, started
from tests.observe.audit.processes import ROOT

RECORDS = 1_000_000 if os.environ.get("MCP_TOOLS_LONG") == "1" else 20_000
MILLION_S = 60.0
MAX_GROWTH_BYTES = 24 * 1024**2

MEASURE = """
import json, re, sys, time
from mcp_tools.observe.audit import verify
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
before, begin = peak(), time.monotonic()
found = verify(sys.argv[1])
print(json.dumps([found.is_whole, found.records, time.monotonic() - begin, peak() - before]))
"""


def write(path: Path, count: int) -> None:
    made = Records(Redactor(b"salt"), "instance")
    arguments = {"path": "/srv/data/report.md", "content": "x" * 200}
    intent = made.intent(started("", arguments))
    outcome = made.outcome(ended(""), has_intent=True)
    tip = GENESIS
    with path.open("wb") as file:
        for number in range(count // 2):
            for record in (intent, outcome):
                record["call_id"] = f"{number:016x}"
                line, tip = seal(record, tip)
                file.write(line)


def test_a_million_records_are_verified_in_a_minute_and_in_bounded_memory(place: Path) -> None:
    path = place / "audit.jsonl"
    write(path, RECORDS)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)],
        capture_output=True,
        text=True,
        timeout=MILLION_S + 30,
        cwd=ROOT,
        check=True,
    )
    is_whole, records, seconds, growth_bytes = json.loads(done.stdout)
    size_mb = path.stat().st_size / 1e6
    print(f"{records:,} records, {size_mb:.0f} MB: {seconds:.2f} s, {growth_bytes / 1e6:.1f} MB more memory")
    assert (is_whole, records) == (True, RECORDS)
    assert seconds < MILLION_S * RECORDS / 1_000_000
    assert growth_bytes < MAX_GROWTH_BYTES
