"""The CSV rows of a device as bars: one figure an op, one panel for each thing measured, fastest on top.

Drawn as SVG text, which needs nothing installed: the same rows give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from medrl_bench.rows import GREEN, Row, latest

OURS, PEERS, INK = "#1f6fb4", "#9aa5b1", "#444444"
OUR_NAMES = ("triton", "reference")
WIDTH, LABELS, VALUES = 720, 150, 130  # of the figure, of the names at its left, of the numbers at its right
BAR, TITLE, GAP = 20, 24, 12  # heights: of a bar with its room, of a panel's title, below a panel


def draw(rows: Sequence[Row], folder: Path, stem: str) -> list[Path]:
    """Write one SVG for each op that has at least two green times side by side."""
    written = []
    for op in dict.fromkeys(row.op for row in rows):
        panels = comparisons([row for row in latest(rows) if row.op == op])
        if panels:
            path = folder / f"{stem}-{op.replace('+', '-and-')}.svg"
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text(svg(panels), encoding="utf-8")
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


def svg(panels: dict[str, list[Row]]) -> str:
    """The panels under one another, and below them where they were measured."""
    height = sum(TITLE + BAR * len(panel) + GAP for panel in panels.values()) + TITLE
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
        f'font-size="12" fill="{INK}">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
    ]
    top = 0
    for title, panel in panels.items():
        parts += [text(8, top + 16, title, bold=True), *bars(panel, top + TITLE)]
        top += TITLE + BAR * len(panel) + GAP
    row = next(iter(panels.values()))[0]
    told = f"median, and p20 to p80; {row.device}; {row.versions}"
    parts += [text(8, top + 14, told, size=8), "</svg>"]
    return "\n".join(parts) + "\n"


def bars(panel: Sequence[Row], top: float) -> Iterator[str]:
    """One panel: medians as bars, p20 to p80 as whiskers, the median and the memory in words behind them."""
    longest = max(max(row.p50_ms or 0.0, row.p80_ms or 0.0) for row in panel)
    unit = (WIDTH - LABELS - VALUES) / longest
    for place, row in enumerate(panel):
        middle, median = top + BAR * (place + 0.5), row.p50_ms or 0.0
        low, high = row.p20_ms or median, row.p80_ms or median
        color = OURS if row.impl.startswith(OUR_NAMES) else PEERS
        yield text(LABELS - 8, middle + 4, row.impl, anchor="end")
        size = f'width="{unit * median:.1f}" height="14"'
        yield f'<rect x="{LABELS}" y="{middle - 7:g}" {size} fill="{color}"/>'
        left, right = LABELS + unit * low, LABELS + unit * high
        yield f'<path d="M{left:.1f} {middle:g}H{right:.1f}" stroke="{INK}" stroke-width="1.5"/>'
        memory = "" if row.peak_mib is None else f", {row.peak_mib:,.0f} MiB"
        yield text(max(right, LABELS + unit * median) + 6, middle + 4, f"{median:.3g} ms{memory}")


def text(
    x: float, y: float, words: str, *, anchor: str = "start", bold: bool = False, size: int | None = None
) -> str:
    """Words at a place."""
    more = f' text-anchor="{anchor}"' * (anchor != "start") + ' font-weight="bold"' * bold
    more += f' font-size="{size}"' if size else ""
    return f'<text x="{x:.1f}" y="{y:g}"{more}>{escape(words)}</text>'
