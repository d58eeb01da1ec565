"""How far above or below guessing is a stage? Its support on an axis that holds 0, 1 and the lowest value.

All gauges of a page share one axis. 0 is guessing: support below it is drawn to the left, in full length.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from lite_medrl.tools.report.markup import Html, join, tag
from lite_medrl.tools.report.svg import Scale, style_of
from lite_medrl.tools.report.words import NARROW, minus


def axis(values: Sequence[float]) -> Scale:
    """From 0, or from the half below the lowest value, to 1; places in percent of the width."""
    lowest = min([0.0, *values])
    return Scale(math.floor(2 * lowest) / 2, 1.0, 0.0, 100.0)


def gauge(
    name: str, support: float, ci95: Sequence[float] | None, x: Scale, threshold: float | None = None
) -> Html:
    """A bar from guessing to the support, its interval, and the threshold where one was asked for."""
    words = told(support, ci95)
    asked = f"; threshold {threshold:.2f}" if threshold is not None else ""
    said = f"{words}; 0 is guessing{asked}; axis from {minus(f'{x.low:g}')} to 1"
    parts = [
        span("fill", x, (min(support, 0.0), max(support, 0.0)), f"c-{style_of(name)}"),
        span("ci", x, ci95) if ci95 else None,
        at("zero", x, 0.0),
        at("mark", x, threshold) if threshold is not None else None,
    ]
    above = label(x, threshold, f"threshold {threshold:.2f}", "over") if threshold is not None else None
    inside = [above, tag("div", *parts, class_="track"), *names(x)]
    drawn = tag("div", *inside, class_="gauge", role="img", aria_label=said)
    return join([drawn, tag("p", words, class_="aside")])


def told(support: float, ci95: Sequence[float] | None) -> str:
    """The value in words: "support -0.79 (95 % interval -0.85 to -0.72), below guessing"."""
    interval = f" (95{NARROW}% interval {ci95[0]:.2f} to {ci95[1]:.2f})" if ci95 else ""
    shown = round(support, 2) or 0.0  # no minus before 0.00
    return minus(f"support {shown:.2f}{interval}") + (", below guessing" if shown < 0 else "")


def names(x: Scale) -> list[Html]:
    """Guessing, and the ends of the axis, below the track."""
    ends = [x.low, 1.0] if x.low < 0 else [1.0]
    return [label(x, 0.0, "guessing"), *(label(x, end, minus(f"{end:g}")) for end in ends)]


def label(x: Scale, value: float, text: str, kind: str = "under") -> Html:
    """A word at a value; near an end of the axis it stands inside."""
    place = x.at(value)
    inside = " first" if place < 20 else " last" if place > 76 else ""
    return tag("span", text, class_=f"{kind}{inside}", style=f"left:{place:.1f}%")


def at(kind: str, x: Scale, value: float) -> Html:
    """A line at a value."""
    return tag("i", class_=kind, style=f"left:{x.at(value):.1f}%")


def span(kind: str, x: Scale, ends: Sequence[float], style: str = "") -> Html:
    """A bar between two values."""
    start, end = (min(100.0, max(0.0, x.at(value))) for value in ends)
    return tag("i", class_=f"{kind} {style}".strip(), style=f"left:{start:.1f}%;width:{end - start:.1f}%")
