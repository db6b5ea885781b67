"""`python -m sandbox.selfcheck [--level L4] [--json] [words]`: every attack, on this machine."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict

from sandbox import IsolationLevel, PythonSandbox, SandboxConfig, SandboxError
from sandbox.selfcheck import ATTACKS, Finding, Verdict, run_all


def _described(finding: Finding) -> dict[str, object]:
    return {**asdict(finding), "level": str(finding.level), "verdict": finding.verdict}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m sandbox.selfcheck", description=__doc__)
    parser.add_argument("words", nargs="*", help="only attacks whose name or family has one of these")
    parser.add_argument("--level", default="L4+", help="at most this level: L4+, L4, L3 or L2")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    options = parser.parse_args()
    chosen = [
        attack
        for attack in ATTACKS
        if not options.words or any(word in f"{attack.family} {attack.name}" for word in options.words)
    ]
    try:
        config = SandboxConfig(maximum_level=IsolationLevel.parse(options.level))
        findings = run_all(PythonSandbox, config, attacks=chosen)
    except (SandboxError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    for finding in findings:
        print(json.dumps(_described(finding)) if options.json else finding)
    return 1 if any(finding.verdict is Verdict.BREACHED for finding in findings) else 0


if __name__ == "__main__":
    sys.exit(main())
