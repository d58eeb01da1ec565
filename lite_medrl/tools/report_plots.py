"""The figures of a report as inline SVG: accuracy, Pass@K, training curves, accuracy by group.

Pure: numbers in, markup out. Colours and strokes come from report_plots.css; a stage always has the same colour and the
same marker, so no figure relies on colour alone. Drawn 300 to 440 units wide, so that a phone shows them near full size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from lite_medrl.measure.statistics import wilson_ci
from lite_medrl.tools.markup import Html, join, tag
from lite_medrl.tools.report_words import MINUS, interval, label, percent, words

Json = dict[str, Any]
Point = tuple[float, float]
LETTER_WIDTH = 6.3  # units of a letter at the figures' font size of 12
MOST_GROUPS = 40


class Scale(NamedTuple):
    """A linear map from values low..high to units start..end."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """Place of a value."""
        return self.start + (value - self.low) / ((self.high - self.low) or 1.0) * (self.end - self.start)


@dataclass(frozen=True, slots=True)
class Bar:
    """A row of the accuracy figure: a fraction with its interval; `style` is a stage's class or "reference"."""

    name: str
    style: str
    value: float
    ci95: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Curve:
    """One line of a training figure."""

    name: str
    style: str
    points: Sequence[Point]
    dashed: bool = False


def style_of(name: str) -> str:
    """CSS class of a stage: "sft-2" is "sft2"; rounds past the third share its colour."""
    head, _, number = name.partition("-")
    return f"{head}{min(int(number), 3)}" if number.isdigit() else head


def marker(style: str, x: float, y: float, size: float = 4.5, title: str | None = None) -> Html:
    """A stage's sign: circle (base), squares (SFT), triangle and cross (its rounds), diamond (GRPO), bar (reference)."""
    corners = {
        "sft": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
        "sft2": [(0, -1.2), (1.15, 0.85), (-1.15, 0.85)],
        "sft3": [(0, 1.2), (1.15, -0.85), (-1.15, -0.85)],
        "grpo": [(0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)],
        "reference": [(-0.3, -1.2), (0.3, -1.2), (0.3, 1.2), (-0.3, 1.2)],
    }.get(style)
    said = tag("title", title) if title else None
    if corners is None:
        return tag("circle", said, class_=f"mark c-{style}", cx=float(x), cy=float(y), r=float(size))
    return tag("path", said, class_=f"mark c-{style}", d=_path([(x + size * a, y + size * b) for a, b in corners]) + "Z")


def sign(name: str) -> Html:
    """A stage's marker by itself, for tables and text."""
    return tag("svg", marker(style_of(name), 7, 7, 5), class_="sign", viewBox="0 0 14 14", aria_hidden="true")


# --- accuracy ---------------------------------------------------------------------------------------------------------
def accuracy(bars: Sequence[Bar]) -> Html:
    """Acc@1 with its interval, one row a stage or reference, on 0 to 100 %."""
    left = _text_room([bar.name for bar in bars])
    x, bottom = Scale(0, 1, left, 380), 12 + 28 * len(bars)
    rows = [_accuracy_row(bar, x, 26 + 28 * i) for i, bar in enumerate(bars)]
    told = "; ".join(f"{bar.name} {percent(bar.value)}" for bar in bars)
    return figure("accuracy", 440, bottom + 38, "Accuracy on the test split", told,
                  [_percent_grid(x, 12, bottom, step=0.2), *rows, _text(x.at(0.5), bottom + 34, "Acc@1", "middle")])  # fmt: skip


def _accuracy_row(bar: Bar, x: Scale, y: float) -> Html:
    told = f"{bar.name}: {percent(bar.value)}" + (f" (95 % CI {interval(*bar.ci95)})" if bar.ci95 else "")
    plain = bar.style == "reference"
    whisker = _whisker(x.at(bar.ci95[0]), x.at(bar.ci95[1]), y, bar.style) if bar.ci95 and not plain else None
    return tag(
        "g", _text(x.start - 10, y + 4, bar.name, "end", "soft" if plain else None), whisker,
        marker(bar.style, x.at(bar.value), y, 5.5, told), _text(438, y + 4, percent(bar.value), "end", "strong"),
    )  # fmt: skip


def _whisker(low: float, high: float, y: float, style: str) -> Html:
    return tag("path", class_=f"whisker c-{style}", d=f"M{low:.1f} {y:.1f}H{high:.1f}")


# --- Pass@K -----------------------------------------------------------------------------------------------------------
def pass_at_k(stages: Sequence[Json]) -> Html:
    """Pass@K over K (log2), a line and band a stage, the dashed chance line, and the K that the rule reads."""
    ks = sorted(map(int, stages[0]["pass_at_k"]))
    chance = [stages[0]["chance_pass_at_k"][str(k)] for k in ks]
    lowest = min([*chance, *(stage["pass_at_k"][str(k)] for stage in stages for k in ks)])
    lowest = min([lowest, *(low for stage in stages for low, _ in stage["pass_at_k_ci95"].values())])
    floor = math.floor(max(0.0, lowest - 0.02) * 5) / 5
    x, y = Scale(math.log2(ks[0]), math.log2(ks[-1]), 46, 352), Scale(floor, 1, 262, 14)
    lines = [_pass_line(stage, ks, x, y) for stage in stages]
    dashed = tag("path", class_="line dashed c-reference", d=_path([(x.at(math.log2(k)), y.at(c)) for k, c in zip(ks, chance, strict=True)]))  # fmt: skip
    ends = [(label(s["name"]), style_of(s["name"]), y.at(s["pass_at_k"][str(ks[-1])])) for s in stages]
    told = "; ".join(
        f"{label(s['name'])} " + ", ".join(f"K {k}: {percent(s['pass_at_k'][str(k)])}" for k in ks) for s in stages
    )
    axis = [_tick(x.at(math.log2(k)), 262, str(k)) for k in ks]
    return figure("pass-at-k", 440, 304, "Pass at K", told, [
        _level_grid(y, 46, 352), *axis, _text(199, 300, "K (answers drawn for each question)", "middle"),
        _rule_mark(stages[0], ks, x, y), dashed, *lines, _end_labels([("guessing", "reference", y.at(chance[-1])), *ends], 362),
    ])  # fmt: skip


def _pass_line(stage: Json, ks: Sequence[int], x: Scale, y: Scale) -> Html:
    style, name = style_of(stage["name"]), label(stage["name"])
    at = [x.at(math.log2(k)) for k in ks]
    values = [stage["pass_at_k"][str(k)] for k in ks]
    bounds = [stage["pass_at_k_ci95"][str(k)] for k in ks]
    upper = [(a, y.at(high)) for a, (_, high) in zip(at, bounds, strict=True)]
    lower = [(a, y.at(low)) for a, (low, _) in zip(at, bounds, strict=True)]
    line = [(a, y.at(value)) for a, value in zip(at, values, strict=True)]
    told = [f"{name}, Pass@{k}: {percent(v)} (95 % CI {interval(*b)})" for k, v, b in zip(ks, values, bounds, strict=True)]
    return tag(
        "g", tag("path", class_=f"band c-{style}", d=_path([*upper, *lower[::-1]]) + "Z"),
        tag("path", class_=f"line c-{style}", d=_path(line)),
        *(marker(style, px, py, 4.2, said) for (px, py), said in zip(line, told, strict=True)),
    )  # fmt: skip


def _rule_mark(stage: Json, ks: Sequence[int], x: Scale, y: Scale) -> Html | None:
    k = stage["rule_k"]
    if k not in ks or len(ks) < 2:
        return None
    at = x.at(math.log2(k))
    side, shift = ("start", 5) if k < ks[-1] else ("end", -5)
    return tag("g", tag("path", class_="guide", d=f"M{at:.1f} {y.end}V{y.start}"),
               _text(at + shift, y.start - 7, f"the rule reads K = {k}", side, "soft"))  # fmt: skip


def _end_labels(ends: Sequence[tuple[str, str, float]], x: float) -> Html:
    """Names at the lines' ends, pushed apart where they would touch."""
    ordered = sorted(ends[::-1], key=lambda end: end[2])
    places = [y for _, _, y in ordered]
    for _ in range(60):
        for i in range(len(places) - 1):
            short = 15 - (places[i + 1] - places[i])
            if short > 0:
                places[i], places[i + 1] = places[i] - short / 2, places[i + 1] + short / 2
        places = [max(10.0 + 15 * i, place) for i, place in enumerate(places)]
    return tag("g", *(
        join([_short_dash(x, at) if style == "reference" else marker(style, x + 4, at, 4), _text(x + 15, at + 4, name, "start", f"ink-{style}")])
        for (name, style, _), at in zip(ordered, places, strict=True)
    ))  # fmt: skip


def _short_dash(x: float, y: float) -> Html:
    return tag("path", class_="line dashed c-reference", d=f"M{x - 4:.1f} {y:.1f}h14")


# --- training curves --------------------------------------------------------------------------------------------------
def curves(key: str, title: str, lines: Sequence[Curve], *, share: bool = False) -> Html | None:
    """Values over steps: the smoothed line over the faint raw one; None where nothing is finite.

    share: the values are fractions, shown as percent.
    """
    lines = [Curve(c.name, c.style, [p for p in c.points if math.isfinite(p[1])], c.dashed) for c in lines]
    lines = [line for line in lines if line.points]
    if not lines:
        return None
    values = [v for line in lines for _, v in line.points]
    steps = [s for line in lines for s, _ in line.points]
    heights = ticks(min(values), max(values))
    left = 16 + LETTER_WIDTH * max(len(_level(h, heights, share)) for h in heights)
    right = 332 if len(lines) == 1 else 332 - LETTER_WIDTH * max(len(line.name) for line in lines)
    x = Scale(min(steps), max(max(steps), min(steps) + 1), left, right)
    y = Scale(heights[0], heights[-1], 158, 10)
    grid = [join([tag("path", class_="grid", d=f"M{left:.1f} {y.at(h):.1f}H{right:.1f}"),
                  _text(left - 6, y.at(h) + 4, _level(h, heights, share), "end")]) for h in heights]  # fmt: skip
    axis = [_tick(x.at(s), 158, str(round(s))) for s in _whole_ticks(x.low, x.high)]
    ends = [(line.name, line.style, y.at(smooth(line.points)[-1][1])) for line in lines]
    told = "; ".join(f"{c.name} from {smooth(c.points)[0][1]:.3g} to {smooth(c.points)[-1][1]:.3g}" for c in lines)
    return figure(key, 340, 198, title, f"{told} over steps {min(steps):.0f} to {max(steps):.0f}", [
        *grid, *axis, _text((left + right) / 2, 194, "step", "middle"), *(_curve(line, x, y) for line in lines),
        _end_labels(ends, right + 4) if len(ends) > 1 else None,
    ])  # fmt: skip


def _curve(line: Curve, x: Scale, y: Scale) -> Html:
    dash = " dashed" if line.dashed else ""
    raw = [(x.at(s), y.at(v)) for s, v in line.points]
    if len(raw) == 1:
        return marker(line.style, *raw[0], 3.5)
    smoothed = [(x.at(s), y.at(v)) for s, v in smooth(line.points)]
    return tag("g", tag("path", class_=f"raw c-{line.style}", d=_path(raw)),
               tag("path", class_=f"line{dash} c-{line.style}", d=_path(smoothed)))  # fmt: skip


def smooth(points: Sequence[Point]) -> list[Point]:
    """Exponential moving average over about a tenth of the steps, without pull towards 0 at the start."""
    weight, total, result = max(0.0, 1 - 10 / len(points)), 0.0, []
    for i, (step, value) in enumerate(points, 1):
        total = weight * total + (1 - weight) * value
        result.append((step, total / (1 - weight**i)))
    return result


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers, evenly spaced, from one at or below `low` to one at or above `high`."""
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = low - 0.5 * (abs(low) or 1.0), high + 0.5 * (abs(high) or 1.0)
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * i for i in range(first, last + 1)]


def _whole_ticks(low: float, high: float) -> list[float]:
    step = max(1.0, ticks(0, max(high - low, 1))[1])
    return [s for s in (math.ceil(step) * i for i in range(int(high // math.ceil(step)) + 1)) if s >= low] or [low]


def _level(value: float, levels: Sequence[float], share: bool) -> str:
    """A tick's number with as many digits as all of `levels` need to stay exact."""
    factor = 100 if share else 1
    gap = (levels[1] - levels[0]) * factor
    digits = next((d for d in range(9) if all(abs(round(v * factor, d) - v * factor) < 1e-6 * gap for v in levels)), 9)
    return f"{value * factor:.{digits}f}{' %' if share else ''}".replace("-", MINUS)


# --- accuracy by group ------------------------------------------------------------------------------------------------
def by_group(stages: Sequence[Json], key: str, chance: Mapping[str, float]) -> Html:
    """Acc@1 of each kind or modality: a dot a stage, whisker (Wilson, 95 %) at the last, a tick where guessing lies."""
    last = stages[-1][f"by_{key}"]
    shown = sorted(last, key=lambda name: (-last[name]["n"], name))[:MOST_GROUPS]
    shown.sort(key=lambda name: (-last[name]["acc_at_1"], -last[name]["n"], name))
    lane = 6.0
    height, names = 14 + lane * len(stages), [_shortened(words(name)) for name in shown]
    left = _text_room([f"{name} 0000" for name in names])
    x, bottom = Scale(0, 1, left, 428), 10 + height * len(shown)
    rows = [
        _group_row(stages, f"by_{key}", name, text, chance.get(name), x, 10 + height * i, height)
        for i, (name, text) in enumerate(zip(shown, names, strict=True))
    ]
    told = "; ".join(f"{words(name)} {percent(last[name]['acc_at_1'])} of {last[name]['n']}" for name in shown)
    return figure(f"by-{key}", 440, bottom + 22, f"Accuracy by {key}", f"{label(stages[-1]['name'])}: {told}",
                  [_percent_grid(x, 10, bottom, step=0.25), *rows])  # fmt: skip


def _group_row(
    stages: Sequence[Json], by: str, name: str, text: str, chance: float | None, x: Scale, top: float, height: float
) -> Html:
    n, middle = stages[-1][by][name]["n"], top + height / 2
    parts = [
        tag("path", class_="rule", d=f"M4 {top + height:.1f}H428"),
        tag("text", text, tag("tspan", f"  {n}", class_="soft"), class_="", x=x.start - 12, y=middle + 4, text_anchor="end"),
        tag("path", class_="chance", d=f"M{x.at(chance):.1f} {top + 3:.1f}V{top + height - 3:.1f}") if chance else None,
    ]  # fmt: skip
    right = round(stages[-1][by][name]["acc_at_1"] * n)
    for i, stage in enumerate(stages):
        group = stage[by].get(name)
        if group is None:
            continue
        y = middle + 6.0 * (i - (len(stages) - 1) / 2)
        told = f"{label(stage['name'])}, {words(name)}: {percent(group['acc_at_1'])} of {group['n']} questions"
        if stage is stages[-1]:
            low, high = wilson_ci(right, n)
            parts.append(_whisker(x.at(low), x.at(high), y, style_of(stage["name"])))
            told += f" (95 % CI {interval(low, high)})"
        parts.append(marker(style_of(stage["name"]), x.at(group["acc_at_1"]), y, 3.8, told))
    return tag("g", *parts)


# --- pieces -----------------------------------------------------------------------------------------------------------
def figure(key: str, width: float, height: float, title: str, told: str, parts: Iterable[object]) -> Html:
    """An SVG with a title and a description for those who do not see it."""
    return tag(
        "svg", tag("title", title, id=f"{key}-t"), tag("desc", told, id=f"{key}-d"), *parts, class_="plot", role="img",
        viewBox=f"0 0 {width:g} {height:g}", width=f"{width:g}", height=f"{height:g}", aria_labelledby=f"{key}-t {key}-d",
    )  # fmt: skip


def _percent_grid(x: Scale, top: float, bottom: float, step: float) -> Html:
    levels = [step * i for i in range(round(1 / step) + 1)]
    return join(
        join([tag("path", class_="grid", d=f"M{x.at(v):.1f} {top:.1f}V{bottom:.1f}"),
              _text(x.at(v), bottom + 16, f"{100 * v:.0f}{' %' if v == levels[-1] else ''}", "middle")])
        for v in levels
    )  # fmt: skip


def _level_grid(y: Scale, left: float, right: float) -> Html:
    levels = [y.low + 0.2 * i for i in range(round((1 - y.low) / 0.2) + 1)] if y.low < 0.75 else [y.low, 0.9, 1.0]
    return join(
        join([tag("path", class_="grid", d=f"M{left} {y.at(v):.1f}H{right}"),
              _text(left - 8, y.at(v) + 4, f"{100 * v:.0f} %", "end")])
        for v in levels
    )  # fmt: skip


def _tick(x: float, y: float, text: str) -> Html:
    return join([tag("path", class_="tick", d=f"M{x:.1f} {y:.1f}v4"), _text(x, y + 18, text, "middle")])


def _text(x: float, y: float, text: str, anchor: str, class_: str | None = None) -> Html:
    return tag("text", text, x=float(x), y=float(y), text_anchor=anchor, class_=class_)


def _path(points: Iterable[Point]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _text_room(names: Iterable[str]) -> float:
    return 20 + LETTER_WIDTH * max(map(len, names), default=0)


def _shortened(text: str, most: int = 20) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}\u2026"
