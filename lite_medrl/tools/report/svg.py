"""The pieces that all figures are drawn from: scales, axes, texts, and each stage's own colour and marker.

Pure: numbers in, markup out. Colours come from plots.css by class; markers differ in shape, so that nothing
rests on colour alone. Figures are 340 to 400 units wide, so that a phone shows them near full size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from lite_medrl.tools.report.markup import Html, join, tag

Point = tuple[float, float]
LETTER_WIDTH = 6.3  # units of a letter at the figures' font size of 12
LINE_HEIGHT = 15.0
SHAPES = {
    "sft": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
    "sft2": [(0, -1.2), (1.15, 0.85), (-1.15, 0.85)],
    "sft3": [(0, 1.2), (1.15, -0.85), (-1.15, -0.85)],
    "grpo": [(0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)],
    "reference": [(-0.3, -1.2), (0.3, -1.2), (0.3, 1.2), (-0.3, 1.2)],
}


class Scale(NamedTuple):
    """A linear map from values low..high to units start..end."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """Place of a value."""
        return self.start + (value - self.low) / ((self.high - self.low) or 1.0) * (self.end - self.start)


def style_of(name: str) -> str:
    """CSS class of a stage: "sft-2" is "sft2"; rounds past the third share its colour."""
    head, _, number = name.partition("-")
    return f"{head}{min(int(number), 3)}" if number.isdigit() else head


def marker(style: str, x: float, y: float, size: float = 4.5, title: str | None = None) -> Html:
    """A stage's sign: circle (base), square and triangles (SFT), diamond (GRPO), bar (a reference)."""
    said = tag("title", title) if title else None
    if style not in SHAPES:
        return tag("circle", said, class_=f"mark c-{style}", cx=float(x), cy=float(y), r=float(size))
    corners = [(x + size * a, y + size * b) for a, b in SHAPES[style]]
    return tag("path", said, class_=f"mark c-{style}", d=path(corners) + "Z")


def sign(name: str) -> Html:
    """A stage's marker by itself, for tables and text."""
    return tag("svg", marker(style_of(name), 7, 7, 5), class_="sign", viewBox="0 0 14 14", aria_hidden="true")


def figure(key: str, size: Point, title: str, told: str, parts: Iterable[object]) -> Html:
    """An SVG with a title and a description for those who do not see it."""
    width, height = f"{size[0]:g}", f"{size[1]:g}"
    return tag(
        "svg",
        tag("title", title, id=f"{key}-t"),
        tag("desc", told, id=f"{key}-d"),
        *parts,
        class_="plot",
        role="img",
        viewBox=f"0 0 {width} {height}",
        width=width,
        height=height,
        aria_labelledby=f"{key}-t {key}-d",
    )


def path(points: Iterable[Point]) -> str:
    """Straight lines from point to point."""
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def text(x: float, y: float, words: str, anchor: str, class_: str | None = None) -> Html:
    """A line of text; anchor: start, middle or end."""
    return tag("text", words, x=float(x), y=float(y), text_anchor=anchor, class_=class_)


def whisker(x: Scale, ci95: Sequence[float], y: float, style: str) -> Html:
    """An interval as a horizontal line."""
    return tag("path", class_=f"whisker c-{style}", d=f"M{x.at(ci95[0]):.1f} {y:.1f}H{x.at(ci95[1]):.1f}")


def tick(x: float, y: float, words: str) -> Html:
    """A tick below a horizontal axis, with its text."""
    return join([tag("path", class_="tick", d=f"M{x:.1f} {y:.1f}v4"), text(x, y + 18, words, "middle")])


def upright_grid(x: Scale, top: float, bottom: float, step: float) -> Html:
    """Lines at every `step` of 0 to 1, in percent."""
    levels = [step * i for i in range(round(1 / step) + 1)]
    lines = [tag("path", class_="grid", d=f"M{x.at(v):.1f} {top:.1f}V{bottom:.1f}") for v in levels]
    names = [f"{100 * v:.0f}" + (" %" if v == levels[-1] else "") for v in levels]
    return join(
        [*lines, *(text(x.at(v), bottom + 16, n, "middle") for v, n in zip(levels, names, strict=True))]
    )


def level_grid(y: Scale, x: Scale, levels: Sequence[float], names: Sequence[str]) -> Html:
    """Horizontal lines with their values on the left."""
    lines = [tag("path", class_="grid", d=f"M{x.start:.1f} {y.at(v):.1f}H{x.end:.1f}") for v in levels]
    return join(
        [*lines, *(text(x.start - 7, y.at(v) + 4, n, "end") for v, n in zip(levels, names, strict=True))]
    )


def end_labels(ends: Sequence[tuple[str, str, float]], x: float) -> Html:
    """(name, style, height) of each line at its right end, pushed apart where they would touch."""
    ordered = [ends[i] for i in sorted(range(len(ends)), key=lambda i: (ends[i][2], -i))]
    places = [height for _, _, height in ordered]
    for _ in range(60):
        for i in range(len(places) - 1):
            short = max(0.0, LINE_HEIGHT - (places[i + 1] - places[i]))
            places[i], places[i + 1] = places[i] - short / 2, places[i + 1] + short / 2
        places = [max(10.0 + LINE_HEIGHT * i, place) for i, place in enumerate(places)]
    parts = []
    for (name, style, _), y in zip(ordered, places, strict=True):
        dash = tag("path", class_="line dashed c-reference", d=f"M{x - 4:.1f} {y:.1f}h14")
        parts.append(dash if style == "reference" else marker(style, x + 4, y, 4))
        parts.append(text(x + 15, y + 4, name, "start", f"ink-{style}"))
    return tag("g", *parts)


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers, evenly spaced, from one at or below `low` to one at or above `high`."""
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = low - 0.5 * (abs(low) or 1.0), high + 0.5 * (abs(high) or 1.0)
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * i for i in range(first, last + 1)]


def text_room(names: Iterable[str]) -> float:
    """Units that the longest of the names needs, with a margin."""
    return 20 + LETTER_WIDTH * max(map(len, names), default=0)
