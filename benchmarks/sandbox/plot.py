"""The picture: p50 and p95 of each subject on a logarithmic scale."""

from __future__ import annotations

from pathlib import Path

from benchmarks.sandbox.catalogue import ENTRIES, REF
from benchmarks.sandbox.results import PANDAS_ROWS, Results

OURS_COLOUR, PEER_COLOUR, REF_COLOUR = "#2b7a4b", "#8a94a0", "#c0392b"


def draw(results: Results, path: Path) -> None:
    """Write an SVG; the same results give the same file."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    shown = [
        (entry, results[entry.name])
        for entry in ENTRIES
        if entry.name in results and results[entry.name].ms and entry.name not in PANDAS_ROWS
    ]
    shown.sort(key=lambda pair: -pair[1].p50_ms)
    ref_ms = results[REF].p50_ms
    with mpl.rc_context({"svg.hashsalt": "bench", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure, axes = pyplot.subplots(figsize=(9, 0.36 * len(shown) + 1.2), layout="constrained")
        for row, (entry, found) in enumerate(shown):
            colour = REF_COLOUR if entry.name == REF else OURS_COLOUR if entry.ours else PEER_COLOUR
            axes.barh(row, found.p50_ms, color=colour, height=0.62)
            axes.plot([found.p50_ms, found.p95_ms], [row, row], color="#222222", linewidth=1.2)
            axes.plot(found.p95_ms, row, "|", color="#222222")
            label = f"  {found.p50_ms:.3g} ms · {found.p50_ms / ref_ms:.2g} REF"
            axes.text(max(found.p95_ms, found.p50_ms), row, label, va="center", fontsize=8)
        axes.set_xscale("log")
        axes.set_yticks(range(len(shown)), [entry.name for entry, _ in shown], fontsize=9)
        axes.axvline(ref_ms, color=REF_COLOUR, linewidth=0.8, linestyle=":")
        axes.set_xlim(right=max(found.p95_ms for _, found in shown) * 8)
        axes.set_xlabel("one call, ms: bar p50, line p95 (log); REF: python3 -c")
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, format="svg", metadata={"Date": None})
        pyplot.close(figure)
    # Lines that end in blanks are nothing that git should have to show.
    path.write_text("".join(f"{line.rstrip()}\n" for line in path.read_text().splitlines()))
