"""What does a run's outcome come to in plain English? Sentences made from results.json, never stronger than its tests.

A change is called a rise or a fall only where McNemar's p is below 0.05; all else is "no more than chance may explain".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

Json = dict[str, Any]
ALPHA = 0.05
NARROW = "\u202f"  # no-break space of a unit
MINUS = "\u2212"
BASELINES = {"chance": "guessing", "majority": "commonest answer", "blank_image": "blank image"}


@dataclass(frozen=True, slots=True)
class Step:
    """A stage against the one before it; `test` is its row of "tests", or None where it was not tested."""

    before: Json
    after: Json
    test: Json | None

    @property
    def points(self) -> float:
        """Change of Acc@1 in percentage points."""
        return 100 * (self.after["acc_at_1"] - self.before["acc_at_1"])

    @property
    def significant(self) -> bool:
        """Whether chance alone would seldom give this (two-sided, not corrected for several tests)."""
        return self.test is not None and self.test["p"] < ALPHA


def percent(fraction: float) -> str:
    """0.7188 as "71.9 %"."""
    return f"{100 * fraction:.1f}{NARROW}%"


def interval(low: float, high: float) -> str:
    """An interval of fractions: "67.7 to 75.8 %"."""
    return f"{bounds(low, high)}{NARROW}%"


def bounds(low: float, high: float) -> str:
    """An interval of fractions in percent, for a column that says so: "67.7 to 75.8"."""
    return f"{100 * low:.1f} to {100 * high:.1f}"


def signed(points: float) -> str:
    """Percentage points with a real minus sign: "+3.1", "−1.2"."""
    return f"{points:+.1f}".replace("-", MINUS)


def p_value(p: float) -> str:
    """"p < 0.001" or "p = 0.021"; near 0.05 with a digit more, so that it never rounds across."""
    if p < 0.001:
        return "p < 0.001"
    return f"p = {p:.4f}" if 0.045 < p < 0.055 else f"p = {p:.3f}"


def duration(seconds: float) -> str:
    """"8.4 s", "83 s", "12 min 5 s" or "3 h 20 min"."""
    if seconds < 120:
        return f"{seconds:.1f}{NARROW}s" if seconds < 10 else f"{seconds:.0f}{NARROW}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 120:
        return f"{minutes}{NARROW}min {rest}{NARROW}s"
    return f"{minutes // 60}{NARROW}h {minutes % 60}{NARROW}min"


def label(name: str) -> str:
    """A stage's name as a reader sees it: "base" is Base, "sft-2" is SFT 2."""
    return "Base" if name == "base" else name.replace("-", " ").upper()


def words(key: str) -> str:
    """A key of the data as words: "organ_present" is "organ present"."""
    return key.replace("_", " ")


def rows_on_test(results: Json) -> list[Json]:
    """The stages as measured on the test split, in order."""
    return [row for row in results["stages"] if row["split"] == "test"]


def steps(results: Json) -> list[Step]:
    """Every stage against the one before it, on the test split."""
    tests = results.get("tests") or {}
    return [
        Step(before, after, tests.get(f"{after['name']}_vs_{before['name']}"))
        for before, after in pairwise(rows_on_test(results))
    ]


def verdict(results: Json) -> str:
    """The outcome in one sentence."""
    rows, changes = rows_on_test(results), steps(results)
    if not changes:
        return f"Nothing was trained: the base model answers {percent(rows[0]['acc_at_1'])} of the test questions correctly."
    return "; ".join([_first(changes[0]), *(_further(step) for step in changes[1:])]) + "."


def _first(step: Step) -> str:
    old, new, name = percent(step.before["acc_at_1"]), percent(step.after["acc_at_1"]), label(step.after["name"])
    span = f"the share of test questions answered correctly from {old} to {new}"
    if step.points == 0:
        return f"{name} left the share of test questions answered correctly at {old}"
    if step.test is None:
        return f"{name} moved {span} (not tested)"
    if not step.significant:
        return f"{name} moved {span}, no more than chance may explain"
    return f"{name} {'raised' if step.points > 0 else 'lowered'} {span}"


def _further(step: Step) -> str:
    new, name = percent(step.after["acc_at_1"]), label(step.after["name"])
    if step.points == 0:
        return f"{name} then left it there"
    if step.test is None:
        return f"{name} then moved it to {new} (not tested)"
    if not step.significant:
        return f"{name} then moved it to {new} ({signed(step.points)} points), no more than chance may explain"
    return f"{name} then {'raised' if step.points > 0 else 'lowered'} it to {new}"


def paragraph(results: Json) -> str:
    """What was run, what each step changed and what to doubt."""
    parts = [_what(results), _start(results), *map(_change, steps(results)), _all(results), _reach(results)]
    parts += [*_without_image(results), "This is one run with one seed; another seed would give somewhat other numbers."]
    return " ".join(part for part in parts if part)


def _what(results: Json) -> str:
    rows = rows_on_test(results)
    ways = {"base": "as it came", "sft": "after supervised fine-tuning on written answers (SFT)",
            "grpo": "after reinforcement learning on its own answers (GRPO)"}  # fmt: skip
    told = list(dict.fromkeys(ways[row["stage"]] for row in rows))
    when = _listed(told)
    same = f"the same {rows[0]['n']}" if len(rows) > 1 else f"{rows[0]['n']}"
    return f"The model \u201c{results['model']['name']}\u201d was measured {when}, on {same} questions of the test split."


def _start(results: Json) -> str:
    row, chance = rows_on_test(results)[0], (results.get("baselines") or {}).get("chance")
    low, high = row["acc_at_1_ci95"]
    told = f"As it came, it answered {percent(row['acc_at_1'])} correctly (95{NARROW}% interval {interval(low, high)}"
    if not chance:
        return f"{told})."
    doubt = ", so it may have been guessing" if low <= chance["acc"] else ""
    return f"{told}); guessing gets {percent(chance['acc'])}{doubt}."


def _change(step: Step) -> str:
    new, old = label(step.after["name"]), label(step.before["name"])
    if step.test is None:
        return f"{new} against {old}: {signed(step.points)} points, not tested."
    worse = "" if step.points >= 0 else "it got worse: "
    sure = "significant" if step.significant else "not significant"
    return (
        f"{new} against {old}: {worse}{step.test['c']} questions became right and {step.test['b']} became wrong, "
        f"{signed(step.points)} points (McNemar {p_value(step.test['p'])}, {sure})."
    )


def _all(results: Json) -> str:
    rows = rows_on_test(results)
    test = (results.get("tests") or {}).get(f"{rows[-1]['name']}_vs_{rows[0]['name']}")
    if test is None or len(rows) < 3 or all(step.significant for step in steps(results)):
        return ""
    return f"All training together: {signed(100 * test['difference'])} points ({p_value(test['p'])})."


def _reach(results: Json) -> str:
    rows = rows_on_test(results)
    k = str(rows[-1]["rule_k"])
    if any(k not in row["pass_at_k"] for row in rows) or k == "1":
        return ""
    path = _listed([percent(row["pass_at_k"][k]) for row in rows], ", then ", ", then ")
    told = f"At least one of {k} sampled answers was right for {path} of the questions (Pass@{k})."
    last = steps(results)[-1:]
    narrower = last and last[0].after["pass_at_k"][k] < last[0].before["pass_at_k"][k]
    if last and last[0].after["stage"] == "grpo" and last[0].significant and last[0].points > 0 and narrower:
        told += " GRPO made the first answer better without bringing more answers within reach."
    return told


def _without_image(results: Json) -> list[str]:
    baselines, row = results.get("baselines") or {}, rows_on_test(results)[-1]
    blank, majority = baselines.get("blank_image"), baselines.get("majority")
    told = []
    if blank:
        of = label(blank.get("stage", row["name"]))
        told.append(f"With a blank image in place of the real one, {of} still gets {percent(blank['acc'])}.")
        if blank["acc"] >= row["acc_at_1_ci95"][0]:
            told.append("So there is no clear sign that it uses the image.")
    if majority and majority["acc"] >= row["acc_at_1_ci95"][0]:
        told.append(
            f"Always giving the commonest answer gets {percent(majority['acc'])}: the model is not clearly better."
        )
    return told


def _listed(parts: Sequence[str], between: str = ", ", last: str = " and ") -> str:
    return last.join([between.join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]
