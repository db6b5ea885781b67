"""Makes every attack on a sandbox of this machine, and says what that proves."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace

from sandbox import DockerSandbox, IsolationLevel, PythonSandbox, SandboxConfig, SandboxError
from sandbox.selfcheck import ATTACKS, Attack, Finding, MakeSandbox, Stage, Verdict, run_all, run_controls


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m sandbox.selfcheck", description=__doc__)
    parser.add_argument("words", nargs="*", help="only attacks whose name or family has one of these")
    parser.add_argument(
        "--level", action="append", help="exactly this one, L4+, L4, L3 or L2; several: one after another"
    )
    parser.add_argument("--backend", choices=("linux", "docker"), default="linux")
    parser.add_argument("--image", default="python:3.11-slim", help="for docker: one that the engine has")
    parser.add_argument("--runtime", help="for docker: such as runsc; without it, the engine's default")
    parser.add_argument("--engine", help="for docker: as DOCKER_HOST, or the name of a context")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    return parser.parse_args(argv)


def _make_sandbox(options: argparse.Namespace) -> MakeSandbox:
    if options.backend == "linux":
        return PythonSandbox
    return lambda config: DockerSandbox(options.image, config, runtime=options.runtime, engine=options.engine)


def _configs(levels: Sequence[str]) -> list[SandboxConfig]:
    """For each level a configuration that accepts that one only; without any, whatever the host allows."""
    exact = [IsolationLevel.parse(level) for level in levels]
    config = SandboxConfig()
    return [replace(config, minimum_level=level, maximum_level=level) for level in exact] or [config]


def _show(findings: Sequence[Finding], *, as_json: bool) -> None:
    for finding in findings:
        described = {**asdict(finding), "level": str(finding.level), "verdict": finding.verdict}
        print(json.dumps(described) if as_json else finding, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 if nothing was breached, 1 if something was, 2 if a level could not be checked."""
    options = _options(argv)
    wanted: list[Attack] = [
        attack
        for attack in ATTACKS
        if not options.words or any(word in f"{attack.family}: {attack.name}" for word in options.words)
    ]
    make_sandbox = _make_sandbox(options)
    status = 0
    with Stage() as stage:
        configs = _configs(options.level or ())
        controls = run_controls(stage, wanted, configs[0])
        for config in configs:
            try:
                found = run_all(make_sandbox, config, attacks=wanted, controls=controls, stage=stage)
            except SandboxError as error:
                print(error, file=sys.stderr)
                status = 2
                continue
            _show(found, as_json=options.json)
            if not status and any(finding.verdict is Verdict.BREACHED for finding in found):
                status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
