"""Chooses among the candidates: even answers within a kind, a quota per kind, gold letters in turn."""

from __future__ import annotations

from collections import Counter, defaultdict
from random import Random
from typing import Any

from .pack import Ask

# fmt: off
SHARES: dict[str, float] = {
    "modality": 0.045, "plane": 0.035, "window": 0.035, "body_level": 0.075, "body_depth": 0.02,
    "body_side": 0.02, "brain_level": 0.015, "brain_depth": 0.015, "organ_present": 0.085,
    "which_organ": 0.09, "largest_organ": 0.025, "marked_organ": 0.18, "marked_side": 0.05, "lung_lobe": 0.03,
    "organ_position": 0.08, "mass_present": 0.02, "mass_position": 0.02, "view": 0.02,
    "opacity_present": 0.03, "opacity_side": 0.02, "opacity_zone": 0.055, "opacity_height": 0.04,
    "tissue": 0.04, "brain_region": 0.04, "ventricles": 0.02, "stain": 0.02, "brown_area": 0.02,
    "nuclei_count": 0.04, "optic_disc": 0.01, "disc_position": 0.02, "body_part": 0.03,
}
# fmt: on


def choose(asks: list[Ask], *, totals: dict[str, int]) -> list[Ask]:
    """At most `totals[split]` questions; in each (split, kind) the answers take turns, none dominates."""
    by_cell: dict[tuple[str, str], list[Ask]] = defaultdict(list)
    for one in asks:
        by_cell[one.split, one.kind].append(one)
    out: list[Ask] = []
    for (split, kind), cell in sorted(by_cell.items()):
        if len({one.key for one in cell}) < 2:
            continue
        if kind == "which_organ":
            cell = [one for one in cell if often_absent(one.answer, cell)]
        picked = even(cell, round(totals[split] * SHARES[kind]), Random(f"choose {split} {kind}"))
        out.extend(level_distractors(picked) if kind == "which_organ" else picked)
    return out


def often_absent(name: str, cell: list[Ask]) -> bool:
    """An organ that is nearly never a wrong option would be the answer whenever it is offered."""
    return sum(name in one.extra["absent"] for one in cell) >= 0.2 * len(cell)


def level_distractors(picked: list[Ask]) -> list[Ask]:
    """Wrong options redrawn: each organ is offered wrongly in proportion to how often it is the answer."""
    golds = Counter(one.answer for one in picked)
    shown: Counter[str] = Counter()
    random = Random("distractors")
    order = sorted(picked, key=lambda one: (len(one.extra["absent"]), one.image, one.answer))
    for one in order:
        pool = [name for name in one.extra["absent"] if golds[name]]
        random.shuffle(pool)
        pool.sort(key=lambda name: (shown[name] + 1) / golds[name])
        rest = [name for name in one.options if name != one.answer and name not in pool]
        wrong = (pool + rest)[: len(one.options) - 1]
        shown.update(wrong)
        one.options = [one.answer, *wrong]
    return picked


def even(cell: list[Ask], quota: int, random: Random) -> list[Ask]:
    """Up to `quota` questions, the same number of each key up to what there is (at most twice the median)."""
    by_key: dict[str, list[Ask]] = defaultdict(list)
    for one in cell:
        by_key[one.key].append(one)
    for group in by_key.values():
        random.shuffle(group)
    limit = cap(by_key, cell[0].kind)
    out: list[Ask] = []
    for turn in range(max(len(g) for g in by_key.values())):
        for key in sorted(by_key):
            if turn < min(limit(key), len(by_key[key])) and len(out) < quota:
                out.append(by_key[key][turn])
    random.shuffle(out)
    return out


def cap(by_key: dict[str, list[Ask]], kind: str) -> Any:
    """How many questions of each key may be taken."""
    if kind == "organ_present":
        return lambda key: min(len(by_key.get(f"{key.rsplit(' ', 1)[0]} {w}", [])) for w in ("yes", "no"))
    sizes = sorted(len(g) for g in by_key.values())
    if len(sizes) == 2:
        return lambda key: sizes[0] * 3 // 2 if kind in ("mass_present", "optic_disc") else sizes[0]
    total = sum(sizes)
    most = next((m for m in range(max(sizes), 0, -1) if m <= 0.42 * sum(min(m, s) for s in sizes)), total)
    return lambda key: most


def letters(asks: list[Ask]) -> list[dict[str, Any]]:
    """Rows of questions.jsonl: options shuffled, the gold position in turn per option count and split.

    The rounds run through one kind after the other, so that letters are even within a kind too.
    """
    turns: dict[tuple[str, int], int] = defaultdict(int)
    order = sorted(asks, key=lambda one: one.kind)
    spots: dict[int, int] = {}
    for one in order:
        cell = (one.split, len(one.options))
        spots[id(one)] = turns[cell] % len(one.options)
        turns[cell] += 1
    rows = []
    for number, one in enumerate(asks):
        others = [o for o in one.options if o != one.answer]
        Random(f"options {number}").shuffle(others)
        others.insert(spots[id(one)], one.answer)
        rows.append(
            {
                "id": f"q{number:05d}",
                "image": one.image,
                "split": one.split,
                "question": one.question,
                "options": others,
                "answer": one.answer,
                "kind": one.kind,
                "reasoning": one.reasoning,
            }
        )
    return rows
