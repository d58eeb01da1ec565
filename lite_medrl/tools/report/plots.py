"""Three figures of what was measured: accuracy, Pass@K over K, and accuracy by kind or modality."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lite_medrl.measure.statistics import wilson_ci
from lite_medrl.tools.report.markup import Html, tag
from lite_medrl.tools.report.svg import (
    Point,
    Scale,
    end_labels,
    figure,
    level_grid,
    marker,
    path,
    style_of,
    text,
    text_room,
    tick,
    upright_grid,
    whisker,
)
from lite_medrl.tools.report.words import interval, label, percent, words

Json = dict[str, Any]
WIDTH, MOST_GROUPS, LANE = 400, 40, 6.0


# --- accuracy ---------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Bar:
    """A row of the accuracy figure; `style` is a stage's class or "reference"."""

    name: str
    style: str
    value: float
    ci95: Sequence[float] | None


def accuracy(bars: Sequence[Bar]) -> Html:
    """Acc@1 on 0 to 100 %, one row a stage or reference."""
    x, bottom = Scale(0, 1, text_room(bar.name for bar in bars), 342), 12 + 28 * len(bars)
    told = "; ".join(f"{bar.name} {percent(bar.value)}" for bar in bars)
    parts = [
        upright_grid(x, 12, bottom, step=0.2),
        *(accuracy_row(bar, x, 26 + 28 * i) for i, bar in enumerate(bars)),
        text(x.at(0.5), bottom + 34, "Acc@1", "middle"),
    ]
    return figure("accuracy", (WIDTH, bottom + 38), "Accuracy on the test split", told, parts)


def accuracy_row(bar: Bar, x: Scale, y: float) -> Html:
    """Name, interval, marker, value."""
    told = f"{bar.name}: {percent(bar.value)}" + (f" (95 % CI {interval(*bar.ci95)})" if bar.ci95 else "")
    return tag(
        "g",
        text(x.start - 10, y + 4, bar.name, "end", "soft" if bar.style == "reference" else None),
        whisker(x, bar.ci95, y, bar.style) if bar.ci95 else None,
        marker(bar.style, x.at(bar.value), y, 5.5, told),
        text(WIDTH - 2, y + 4, percent(bar.value), "end", "strong"),
    )


# --- Pass@K -----------------------------------------------------------------------------------------------
def pass_at_k(stages: Sequence[Json]) -> Html:
    """Pass@K over K (log2): a line and a 95 % band a stage, the dashed chance line, the K of the rule."""
    ks = sorted(map(int, stages[0]["pass_at_k"]))
    chance = [stages[0]["chance_pass_at_k"][str(k)] for k in ks]
    lows = [low for stage in stages for low, _ in stage["pass_at_k_ci95"].values()]
    levels = pass_levels(min([*chance, *lows]))
    x, y = Scale(math.log2(ks[0]), math.log2(ks[-1]), 46, 316), Scale(levels[0], 1, 262, 14)
    at = [x.at(math.log2(k)) for k in ks]
    guessing = list(zip(at, map(y.at, chance), strict=True))
    reached = [stage["pass_at_k"][str(ks[-1])] for stage in stages]
    ends = [(label(s["name"]), style_of(s["name"]), y.at(v)) for s, v in zip(stages, reached, strict=True)]
    parts = [
        level_grid(y, x, levels, [f"{100 * v:.0f} %" for v in levels]),
        *(tick(place, y.start, str(k)) for place, k in zip(at, ks, strict=True)),
        text((x.start + x.end) / 2, 300, "K (answers drawn for each question)", "middle"),
        rule_guide(stages[0]["rule_k"], dict(zip(ks, at, strict=True)), y),
        tag("path", class_="line dashed c-reference", d=path(guessing)),
        *(pass_line(stage, ks, at, y) for stage in stages),
        end_labels([("guessing", "reference", guessing[-1][1]), *ends], x.end + 10),
    ]
    return figure("pass-at-k", (WIDTH, 304), "Pass@K", pass_told(stages, ks), parts)


def pass_levels(lowest: float) -> list[float]:
    """Levels from a fifth (or, near 100 %, a tenth) below the lowest value up to 1."""
    step = 0.2 if lowest < 0.8 else 0.1
    first = max(0, math.floor((lowest - 0.02) / step + 1e-9))
    return [step * i for i in range(first, round(1 / step) + 1)]


def pass_told(stages: Sequence[Json], ks: Sequence[int]) -> str:
    """The figure in words."""
    rows = [[f"K {k}: {percent(stage['pass_at_k'][str(k)])}" for k in ks] for stage in stages]
    return "; ".join(f"{label(s['name'])} {', '.join(row)}" for s, row in zip(stages, rows, strict=True))


def pass_line(stage: Json, ks: Sequence[int], at: Sequence[float], y: Scale) -> Html:
    """One stage: band, line, and markers that say their value when pointed at."""
    style, name = style_of(stage["name"]), label(stage["name"])
    values = [stage["pass_at_k"][str(k)] for k in ks]
    bounds = [stage["pass_at_k_ci95"][str(k)] for k in ks]
    upper: list[Point] = [(place, y.at(high)) for place, (_, high) in zip(at, bounds, strict=True)]
    lower: list[Point] = [(place, y.at(low)) for place, (low, _) in zip(at, bounds, strict=True)]
    line = list(zip(at, map(y.at, values), strict=True))
    rows = zip(ks, values, bounds, strict=True)
    told = [f"{name}, Pass@{k}: {percent(value)} (95 % CI {interval(*ci95)})" for k, value, ci95 in rows]
    return tag(
        "g",
        tag("path", class_=f"band c-{style}", d=path([*upper, *lower[::-1]]) + "Z"),
        tag("path", class_=f"line c-{style}", d=path(line)),
        *(marker(style, *point, 4.2, said) for point, said in zip(line, told, strict=True)),
    )


def rule_guide(k: int, places: Mapping[int, float], y: Scale) -> Html | None:
    """A dotted line at the K at which support is read."""
    if k not in places or len(places) < 2:
        return None
    at, anchor, shift = (places[k], "start", 5) if k < max(places) else (places[k], "end", -5)
    words = text(at + shift, y.start - 7, f"support is read at K = {k}", anchor, "soft")
    return tag("g", tag("path", class_="guide", d=f"M{at:.1f} {y.end:.1f}V{y.start:.1f}"), words)


# --- accuracy by group ------------------------------------------------------------------------------------
def by_group(stages: Sequence[Json], key: str, chance: Mapping[str, float]) -> Html:
    """Acc@1 of each kind or modality: a dot a stage, the last with its interval, a tick where guessing lies.

    The MOST_GROUPS largest groups are shown, the best answered first.
    """
    rows = [stage[f"by_{key}"] for stage in stages]
    last = rows[-1]
    shown = sorted(last, key=lambda name: (-last[name]["n"], name))[:MOST_GROUPS]
    shown.sort(key=lambda name: (-last[name]["acc_at_1"], -last[name]["n"], name))
    height = 14 + LANE * len(stages)
    x = Scale(0, 1, text_room(f"{short(name)} 0000" for name in shown), WIDTH - 20)
    bottom = 10 + height * len(shown)
    parts = [upright_grid(x, 10, bottom, step=0.25)]
    for i, name in enumerate(shown):
        dots = {stage["name"]: row[name] for stage, row in zip(stages, rows, strict=True) if name in row}
        parts.append(group_row(name, dots, chance.get(name), x, (10 + height * i, height)))
    told = "; ".join(
        f"{words(name)} {percent(last[name]['acc_at_1'])} of {last[name]['n']}" for name in shown
    )
    told = f"{label(stages[-1]['name'])}: {told}"
    return figure(f"by-{key}", (WIDTH, bottom + 22), f"Accuracy by {key}", told, parts)


def group_row(name: str, dots: Mapping[str, Json], chance: float | None, x: Scale, span: Point) -> Html:
    """One group, `span` = (top, height); each stage has its own lane, so that no dot hides another."""
    (top, height), last = span, list(dots)[-1]
    middle, floor = top + height / 2, top + height
    count = tag("tspan", f"  {dots[last]['n']}", class_="soft")
    parts: list[Html] = [
        tag("path", class_="rule", d=f"M4 {floor:.1f}H{WIDTH - 2}"),
        tag("text", short(name), count, x=x.start - 12, y=middle + 4, text_anchor="end"),
    ]
    if chance is not None:
        parts.append(tag("path", class_="chance", d=f"M{x.at(chance):.1f} {top + 3:.1f}V{floor - 3:.1f}"))
    for i, (stage, dot) in enumerate(dots.items()):
        y, told = middle + LANE * (i - (len(dots) - 1) / 2), f"{label(stage)}, {words(name)}: "
        told += f"{percent(dot['acc_at_1'])} of {dot['n']} questions"
        if stage == last:
            ci95 = wilson_ci(round(dot["acc_at_1"] * dot["n"]), dot["n"])
            parts.append(whisker(x, ci95, y, style_of(stage)))
            told += f" (95 % CI {interval(*ci95)})"
        parts.append(marker(style_of(stage), x.at(dot["acc_at_1"]), y, 3.8, told))
    return tag("g", *parts)


def short(name: str, most: int = 20) -> str:
    """A group's name as words, cut where it is too long for its place."""
    told = words(name)
    return told if len(told) <= most else f"{told[: most - 1]}\u2026"
