"""What was measured, and what is made of it: figures, ratios to REF, the issue's aims beside them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from benchmarks.sandbox.catalogue import (
    COLD_PANDAS,
    DOCKER,
    DOCKER_SESSION,
    ENTRIES,
    PANDAS,
    REF,
    SESSION,
    level_name,
)
from benchmarks.table import markdown
from sandbox import IsolationLevel

PANDAS_ROWS = (COLD_PANDAS, PANDAS)
LEVELS = tuple(level_name(level) for level in sorted(IsolationLevel, reverse=True) if level)


@dataclass(slots=True, kw_only=True)
class Measured:
    """All rounds of one subject.

    Args:
        ms: Times of single calls, all rounds together.
        cpu_ms: CPU time of a call with everything it causes, one value a round.
        calls_per_s: With several callers, one value a round.
        more: Figures that only some subjects have.
        unavailable: Why there are none.
    """

    ms: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    calls_per_s: list[float] = field(default_factory=list)
    more: dict[str, list[float]] = field(default_factory=dict)
    unavailable: str = ""

    @property
    def p50_ms(self) -> float:
        return statistics.median(self.ms)

    @property
    def p95_ms(self) -> float:
        return statistics.quantiles(self.ms, n=20)[-1]

    @property
    def rate(self) -> float:
        return statistics.median(self.calls_per_s)

    @property
    def cpu(self) -> float | None:
        return statistics.median(self.cpu_ms) if self.cpu_ms else None


Results = Mapping[str, Measured]


def table(results: Results) -> str:
    """Every subject that ran the small snippet; in brackets its ratio to REF."""
    ref = results[REF]
    rows = []
    for entry in ENTRIES:
        found = results.get(entry.name)
        if found is None or entry.name in PANDAS_ROWS:
            continue
        cells = [f"**{entry.name}**" if entry.ours else entry.name, entry.walls, entry.each_call]
        if found.unavailable:
            rows.append([*cells, f"not available: {found.unavailable}", "", "", ""])
            continue
        cells += [_with_ratio(value, ref.p50_ms) for value in (found.p50_ms, found.p95_ms)]
        cells.append(f"{found.rate:,.0f} ({found.rate / ref.rate:.2f})")
        cells.append(_with_ratio(found.cpu, ref.cpu) if found.cpu and ref.cpu else "not counted")
        rows.append(cells)
    head = ["", "walls", "each call gets", "p50 ms", "p95 ms", "calls/s, 8 callers", "CPU ms per call"]
    return markdown(head, rows)


def _with_ratio(value: float, ref: float) -> str:
    return f"{value:,.2f} ({value / ref:.2g})" if value < ref else f"{value:,.1f} ({value / ref:.1f})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    """What we aim at; `least` where more is better."""

    what: str
    limit: float
    unit: str
    measured: Callable[[Results], float | None]
    least: bool = False

    def row(self, results: Results) -> list[str]:
        sign = "≥" if self.least else "≤"
        try:
            value = self.measured(results)
        except (KeyError, statistics.StatisticsError):
            value = None
        cells = [self.what, f"{sign} {self.limit:g} {self.unit}"]
        if value is None:
            return [*cells, "not measured", ""]
        held = value >= self.limit if self.least else value <= self.limit
        return [*cells, f"{value:.3g} {self.unit}", "yes" if held else "**no**"]


def _best(results: Results) -> Measured:
    """Ours at the strongest level that this machine gave."""
    return next(results[name] for name in LEVELS if results[name].ms)


def _more(name: str) -> Callable[[Results], float]:
    return lambda results: statistics.median(_best(results).more[name])


def _cpu_ratio(results: Results) -> float | None:
    ours, ref = _best(results).cpu, results[REF].cpu
    return ours / ref if ours and ref else None


AIMS = (
    Aim(what="warm call, p50", limit=0.08, unit="REF", measured=lambda r: _best(r).p50_ms / r[REF].p50_ms),
    Aim(what="warm call, p95", limit=0.25, unit="REF", measured=lambda r: _best(r).p95_ms / r[REF].p50_ms),
    Aim(
        what="calls/s at 8 callers",
        limit=2.2,
        unit="REF",
        measured=lambda r: _best(r).rate / r[REF].rate,
        least=True,
    ),
    Aim(what="CPU per call", limit=0.5, unit="REF", measured=_cpu_ratio),
    Aim(
        what="call in a session, p50",
        limit=0.05,
        unit="REF",
        measured=lambda r: r[SESSION].p50_ms / r[REF].p50_ms,
    ),
    Aim(
        what="pandas preloaded against its cold run, p50",
        limit=0.05,
        unit="",
        measured=lambda r: r[PANDAS].p50_ms / r[COLD_PANDAS].p50_ms,
    ),
    Aim(what="idle child", limit=4, unit="MiB PSS", measured=_more("idle child PSS MiB")),
    Aim(what="start to 4 warm children", limit=150, unit="ms", measured=_more("start to full pool ms")),
    Aim(what="finding the level", limit=10, unit="ms", measured=_more("level detection ms")),
    Aim(what="timeout overrun, limit 500 ms", limit=20, unit="ms", measured=_more("timeout overrun ms")),
    Aim(
        what="Docker: warm call from a full pool",
        limit=1.0,
        unit="REF",
        measured=lambda r: statistics.median(r[DOCKER].more["call, pool full, ms"]) / r[REF].p50_ms,
    ),
    Aim(
        what="Docker: call in a session, p50",
        limit=0.5,
        unit="REF",
        measured=lambda r: r[DOCKER_SESSION].p50_ms / r[REF].p50_ms,
    ),
    Aim(
        what="Docker: idle container",
        limit=20,
        unit="MiB PSS",
        measured=lambda r: statistics.median(r[DOCKER].more["idle container PSS MiB"]),
    ),
)


def aims(results: Results) -> str:
    return markdown(["aim", "asked", "measured", "held"], [aim.row(results) for aim in AIMS])


def pandas_table(results: Results) -> str:
    rows = []
    for name in PANDAS_ROWS:
        found = results.get(name)
        if found is not None and found.ms:
            rows.append([name, f"{found.p50_ms:,.1f}", f"{found.p95_ms:,.1f}", f"{found.rate:,.1f}"])
        elif found is not None:
            rows.append([name, f"not available: {found.unavailable}", "", ""])
    return markdown(["a frame, grouped and summed", "p50 ms", "p95 ms", "calls/s, 8 callers"], rows)


def levels_table(results: Results) -> str:
    """What only our own subjects have, medians over the rounds."""
    names = [name for name in (*LEVELS, PANDAS) if name in results and results[name].more]
    figures = dict.fromkeys(figure for name in names for figure in results[name].more)
    rows = [
        [
            name,
            *(
                f"{statistics.median(results[name].more.get(figure, [float('nan')])):.2f}"
                for figure in figures
            ),
        ]
        for name in names
    ]
    return markdown(["", *figures], rows)
