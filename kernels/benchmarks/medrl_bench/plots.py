"""The CSV rows of a device as bars: one figure an op, one panel for each thing measured, fastest on top."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medrl_bench.rows import GREEN, Row, latest

OURS, PEERS = "#1f6fb4", "#9aa5b1"
OUR_NAMES = ("triton", "reference")
BAR_INCHES, WIDTH_INCHES = 0.27, 7.0


def draw(rows: Sequence[Row], folder: Path, stem: str) -> list[Path]:
    """Write one SVG for each op that has at least two green times side by side; nothing without
    matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        return []
    written = []
    for op in dict.fromkeys(row.op for row in rows):
        panels = comparisons([row for row in latest(rows) if row.op == op])
        if panels:
            path = folder / f"{stem}-{op.replace('+', '-and-')}.svg"
            save(panels, path)
            written.append(path)
    return written


def comparisons(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The green rows of each thing measured that more than one implementation does, fastest first, by
    title."""
    panels: dict[str, list[Row]] = {}
    for row in rows:
        if row.check == GREEN and row.p50_ms is not None:
            title = f"{row.direction}, {row.shape} {row.dtype}, {row.case}"
            panels.setdefault(title, []).append(row)
    return {
        title: sorted(panel, key=lambda row: row.p50_ms or 0.0)
        for title, panel in panels.items()
        if len(panel) > 1
    }


def save(panels: dict[str, list[Row]], path: Path) -> None:
    """Draw the panels under one another."""
    import matplotlib

    matplotlib.use("Agg")
    # The same rows give the same file, with its words as text.
    matplotlib.rcParams.update({"svg.hashsalt": path.stem, "svg.fonttype": "none"})
    from matplotlib import pyplot

    heights = [len(panel) * BAR_INCHES + 0.8 for panel in panels.values()]
    figure, axes = pyplot.subplots(
        len(panels), 1, squeeze=False, figsize=(WIDTH_INCHES, sum(heights)), height_ratios=heights
    )
    for axis, (title, panel) in zip(axes[:, 0], panels.items(), strict=True):
        bars(axis, title, panel)
    figure.text(0.01, 0.002, f"{panel[0].device}, {panel[0].versions}", fontsize=5, color="#666666")
    figure.tight_layout(rect=(0, 0.01, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def bars(axis: Any, title: str, panel: Sequence[Row]) -> None:
    """One panel: medians as bars, p20 to p80 as whiskers, the median and the memory in words behind them."""
    medians = [row.p50_ms or 0.0 for row in panel]
    below = [median - (row.p20_ms or median) for median, row in zip(medians, panel, strict=True)]
    above = [(row.p80_ms or median) - median for median, row in zip(medians, panel, strict=True)]
    colors = [OURS if row.impl.startswith(OUR_NAMES) else PEERS for row in panel]
    places = range(len(panel))
    axis.barh(places, medians, xerr=(below, above), color=colors, height=0.7, error_kw={"linewidth": 0.8})
    for place, row, median, up in zip(places, panel, medians, above, strict=True):
        memory = "" if row.peak_mib is None else f", {row.peak_mib:,.0f} MiB"
        axis.text(median + up, place, f"  {median:.3g} ms{memory}", va="center", fontsize=7)
    axis.set_yticks(list(places), [row.impl for row in panel], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.25 * max(median + up for median, up in zip(medians, above, strict=True)))
    axis.tick_params(axis="x", labelsize=7)
    axis.set_title(title, fontsize=8, loc="left")
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
