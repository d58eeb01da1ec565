"""Training curves: values over steps, the local average strong over the faint logged values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lite_medrl.tools.report.markup import Html, tag
from lite_medrl.tools.report.svg import (
    LETTER_WIDTH,
    Point,
    Scale,
    end_labels,
    figure,
    level_grid,
    marker,
    path,
    text,
    tick,
    ticks,
)
from lite_medrl.tools.report.words import minus

BOTTOM, MOST_POINTS = 158, 400


@dataclass(frozen=True, slots=True)
class Curve:
    """One line of a figure; points are (step, value), steps rising."""

    name: str
    style: str
    points: Sequence[Point]
    dashed: bool = False


def curves(key: str, title: str, lines: Sequence[Curve], *, share: bool = False) -> Html | None:
    """One figure; None where nothing is finite. share: the values are fractions, shown as percent."""
    lines = [replace(c, points=thin([p for p in c.points if math.isfinite(p[1])])) for c in lines]
    lines = [line for line in lines if line.points]
    if not lines:
        return None
    x, y, levels, names = scales(lines, share)
    axis = [tick(x.at(step), BOTTOM, f"{step:.0f}") for step in step_ticks(x.low, x.high)]
    ends = [(line.name, line.style, y.at(smooth(line.points)[-1][1])) for line in lines]
    parts = [
        level_grid(y, x, levels, names),
        *axis,
        text((x.start + x.end) / 2, BOTTOM + 36, "step", "middle"),
        *(drawn(line, x, y) for line in lines),
        end_labels(ends, x.end + 4) if len(ends) > 1 else None,
    ]
    return figure(key, (340, BOTTOM + 40), title, told(lines, x), parts)


def scales(lines: Sequence[Curve], share: bool) -> tuple[Scale, Scale, list[float], list[str]]:
    """Both axes, and the levels of the upright one with their texts."""
    steps = [step for line in lines for step, _ in line.points]
    values = [value for line in lines for _, value in line.points]
    levels = ticks(min(values), max(values))
    names = level_names(levels, share)
    left = 14 + LETTER_WIDTH * max(map(len, names))
    right = 324 if len(lines) == 1 else 314 - LETTER_WIDTH * max(len(line.name) for line in lines)
    x = Scale(min(steps), max(max(steps), min(steps) + 1), left, right)
    return x, Scale(levels[0], levels[-1], BOTTOM, 10), levels, names


def level_names(levels: Sequence[float], share: bool) -> list[str]:
    """The levels with as many digits as all of them need to stay exact."""
    factor = 100 if share else 1
    shown, gap = [factor * level for level in levels], factor * (levels[1] - levels[0])
    digits = next((d for d in range(9) if all(abs(round(v, d) - v) < 1e-6 * gap for v in shown)), 9)
    return [minus(f"{v:.{digits}f}") + (" %" if share else "") for v in shown]


def step_ticks(low: float, high: float) -> list[float]:
    """Whole, round steps within the axis."""
    apart = math.ceil(max(1.0, ticks(0, max(high - low, 1))[1]))
    found = [float(apart * i) for i in range(int(high // apart) + 1)]
    return [step for step in found if step >= low] or [low]


def drawn(line: Curve, x: Scale, y: Scale) -> Html:
    """The faint logged values and the strong average; a dot where there is one value only."""
    raw = [(x.at(step), y.at(value)) for step, value in line.points]
    if len(raw) == 1:
        return marker(line.style, *raw[0], 3.5)
    strong = [(x.at(step), y.at(value)) for step, value in smooth(line.points)]
    dash = "line dashed" if line.dashed else "line"
    return tag(
        "g",
        tag("path", class_=f"raw c-{line.style}", d=path(raw)),
        tag("path", class_=f"{dash} c-{line.style}", d=path(strong)),
    )


def told(lines: Sequence[Curve], x: Scale) -> str:
    """The figure in words: where each average begins and ends."""
    averages = [(line.name, smooth(line.points)) for line in lines]
    ends = [f"{name} from {points[0][1]:.3g} to {points[-1][1]:.3g}" for name, points in averages]
    return f"{'; '.join(ends)} over steps {x.low:.0f} to {x.high:.0f}"


def smooth(points: Sequence[Point]) -> list[Point]:
    """Local straight lines through the nearest fifth of the points, near ones counting most: no lag."""
    reach = max(1, round(len(points) / 10))
    starts = [min(max(0, i - reach), max(0, len(points) - 2 * reach - 1)) for i in range(len(points))]
    near = [points[start : start + 2 * reach + 1] for start in starts]
    return [(step, local_value(around, step)) for (step, _), around in zip(points, near, strict=True)]


def local_value(near: Sequence[Point], at: float) -> float:
    """Value at `at` of the line fitted to `near`, with weights that fall to 0 with the distance."""
    far = 1 + max(abs(step - at) for step, _ in near)
    weighted = [(1 - abs(step - at) / far, step - at, value) for step, value in near]
    total = sum(w for w, _, _ in weighted)
    middle = sum(w * step for w, step, _ in weighted) / total
    mean = sum(w * value for w, _, value in weighted) / total
    spread = sum(w * (step - middle) ** 2 for w, step, _ in weighted)
    slope = (
        sum(w * (step - middle) * (value - mean) for w, step, value in weighted) / spread if spread else 0.0
    )
    return mean - slope * middle


def thin(points: Sequence[Point]) -> list[Point]:
    """At most MOST_POINTS points, each the mean of a block, so that a long run stays a small file."""
    size = math.ceil(len(points) / MOST_POINTS) or 1
    blocks = [points[i : i + size] for i in range(0, len(points), size)]
    return [
        (sum(s for s, _ in block) / len(block), sum(v for _, v in block) / len(block)) for block in blocks
    ]
