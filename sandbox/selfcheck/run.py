"""Makes every attack twice, in the open and inside a sandbox, and says what that proves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

from sandbox.base import Sandbox
from sandbox.errors import SandboxError
from sandbox.selfcheck.arenas import Bare, Stumbled, Walled
from sandbox.selfcheck.model import Attack, Family, Finding, Observation
from sandbox.selfcheck.stage import Stage
from sandbox.types import SandboxConfig, SandboxResult

MakeSandbox = Callable[[SandboxConfig], Sandbox]
Controls = Mapping[str, Observation]

# Small, so that a control that goes to twice a limit harms nobody.
LIMITS: Mapping[str, Any] = {
    "timeout_seconds": 6.0,
    "max_memory_mb": 64,
    "max_processes": 16,
    "max_open_files": 64,
    "max_disk_mb": 8,
    "max_files": 256,
    "max_output_bytes": 20_000,
}
WORKERS = 4
_T = TypeVar("_T")


def limited(config: SandboxConfig) -> SandboxConfig:
    """`config` with limits so small that reaching them harms nobody."""
    return replace(config, **LIMITS)


def run_controls(
    stage: Stage, attacks: Sequence[Attack], config: SandboxConfig, *, workers: int = WORKERS
) -> dict[str, Observation]:
    """Make every attack in the open.

    Args:
        stage: What they aim at, entered.
        attacks: Which ones.
        config: Its limits say what the bombs have to exceed.
        workers: How many at once.
    Returns:
        What was seen, by the attack's name. A control that is not possible has `trouble` and no `breach`.
    """
    arena = Bare(stage, limited(config))

    def control(attack: Attack) -> Observation:
        missing = [need.value for need in attack.needs if not need.is_met()]
        if missing:
            return Observation(trouble=f"needs {' and '.join(missing)}")
        return _observed(attack, arena, stage)

    seen = dict(zip((attack.name for attack in attacks), _spread(control, attacks, workers), strict=True))
    for attack in attacks:
        # On a busy machine an attack may come too late for the limit that it wants to pass: once more, alone.
        if not seen[attack.name].breach:
            seen[attack.name] = control(attack)
    return seen


def run_all(
    make_sandbox: MakeSandbox,
    config: SandboxConfig | None = None,
    *,
    attacks: Sequence[Attack] | None = None,
    controls: Controls | None = None,
    stage: Stage | None = None,
    workers: int = WORKERS,
) -> list[Finding]:
    """Make every attack in the open and inside sandboxes, and compare.

    Args:
        make_sandbox: Makes a sandbox of a configuration; closed here.
        config: The configuration to check; its limits are replaced by small ones. `None`: the default.
        attacks: `None`: all of them.
        controls: Of an earlier `run_controls` by the same user; `None`: they are made now.
        stage: What `controls` aimed at; `None`: a new one.
        workers: Attacks made at once.
    Returns:
        A finding for each attack, in their order.
    Raises:
        SandboxUnavailable: The sandbox does not start here.
    """
    from sandbox.selfcheck import ATTACKS

    attacks = ATTACKS if attacks is None else attacks
    config = limited(config or SandboxConfig())
    if stage is None:
        with Stage() as own:
            return run_all(
                make_sandbox, config, attacks=attacks, controls=controls, stage=own, workers=workers
            )
    if controls is None:
        controls = run_controls(stage, attacks, config, workers=workers)
    findings: dict[str, Finding] = {}
    for group in _by_sandbox(attacks):
        fields = group[0].settings(stage, config) if group[0].settings else {}
        sandbox = make_sandbox(replace(config, **fields))
        try:
            findings.update(_inside(sandbox, group, controls, stage, config, workers))
        finally:
            sandbox.close()
    return [findings[attack.name] for attack in attacks]


def run_attack(attack: Attack, make_sandbox: MakeSandbox, config: SandboxConfig | None = None) -> Finding:
    """Make one attack in the open and inside a sandbox of its own. As `run_all` for one."""
    return run_all(make_sandbox, config, attacks=[attack], workers=1)[0]


def _inside(
    sandbox: Sandbox,
    attacks: Sequence[Attack],
    controls: Controls,
    stage: Stage,
    config: SandboxConfig,
    workers: int,
) -> dict[str, Finding]:
    arena = Walled(sandbox)
    ready = arena.run("print('ready')").result

    def find(attack: Attack) -> Finding:
        seen = _observed(attack, arena, stage)
        control = controls[attack.name]
        detail = seen.breach or seen.met or f"it was not tried: {seen.trouble}"
        if not control.breach:
            detail += f"; the control did not work: {control.met or control.trouble}"
        return Finding(
            name=attack.name,
            family=attack.family,
            level=ready.isolation,
            backend=ready.backend,
            held=not seen.breach and bool(seen.met),
            tried=bool(seen.breach or seen.met),
            control_worked=bool(control.breach),
            detail=detail,
            not_promised=_not_promised(attack, ready, config),
        )

    return {finding.name: finding for finding in _spread(find, attacks, workers)}


def _not_promised(attack: Attack, ready: SandboxResult, config: SandboxConfig) -> str:
    if attack.family is Family.NETWORK and config.allow_network:
        return "the configuration allows the network"
    if ready.backend != "linux":
        return attack.not_promised_by.get(ready.backend, "")
    return attack.not_promised.get(ready.isolation, "")


def _observed(attack: Attack, arena: Bare | Walled, stage: Stage) -> Observation:
    try:
        return attack.function(arena, stage)
    except Stumbled as error:
        return Observation(breach=f"the server raised {error}")
    except (SandboxError, OSError) as error:
        return Observation(trouble=f"{type(error).__name__}: {error}")


def _by_sandbox(attacks: Iterable[Attack]) -> list[list[Attack]]:
    """Attacks that can share a sandbox, together."""
    groups: dict[Any, list[Attack]] = {}
    for attack in attacks:
        groups.setdefault(attack.settings, []).append(attack)
    return list(groups.values())


def _spread(function: Callable[[Attack], _T], attacks: Sequence[Attack], workers: int) -> list[_T]:
    """`function` of each, several at once; those that must be alone come last, one by one."""
    together = [attack for attack in attacks if not attack.alone]
    with ThreadPoolExecutor(workers, thread_name_prefix="selfcheck") as pool:
        done = dict(zip((attack.name for attack in together), pool.map(function, together), strict=True))
    for attack in attacks:
        if attack.alone:
            done[attack.name] = function(attack)
    return [done[attack.name] for attack in attacks]
