"""What does a run come to in plain English? Sentences made from results.json, never stronger than its tests.

A change is called a rise or a fall only where McNemar's p is below 0.05; any other is said to be open.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from lite_medrl.measure.statistics import too_few
from lite_medrl.tools.report.run import Run
from lite_medrl.tools.report.words import ALPHA, NARROW, interval, label, p_value, percent, signed

Json = dict[str, Any]
MEASURED = {
    "base": "as it came",
    "sft": "after supervised fine-tuning on written answers (SFT)",
    "grpo": "after reinforcement learning on its own answers (GRPO)",
}
ONE_SEED = "This is one run with one seed; another seed would give somewhat other numbers."


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

    @property
    def verb(self) -> str:
        """What may be said of the change, never more."""
        if not self.significant:
            return "moved"
        return "raised" if self.points > 0 else "lowered"

    @property
    def doubt(self) -> str:
        """What must be added to the verb."""
        if self.test is None:
            return " (not tested)"
        return "" if self.significant else ", no more than chance may explain"


def steps(run: Run) -> list[Step]:
    """Every stage against the one before it, on the test split."""
    tests = run.results.get("tests") or {}
    return [Step(a, b, tests.get(f"{b['name']}_vs_{a['name']}")) for a, b in pairwise(run.test)]


def verdict(run: Run) -> str:
    """The outcome in one sentence; it says where there are too few questions."""
    changes = steps(run)
    if not changes:
        reached = percent(run.test[0]["acc_at_1"])
        told = f"Nothing was trained: the base model answers {reached} of the test questions correctly"
    else:
        told = "; ".join([first(changes[0]), *map(further, changes[1:])])
    few = too_few(run.test[0]["n"])
    return f"{told} ({few})." if few else f"{told}."


def first(step: Step) -> str:
    """The first step, with what is counted."""
    name, counted = label(step.after["name"]), "the share of test questions answered correctly"
    old, new = percent(step.before["acc_at_1"]), percent(step.after["acc_at_1"])
    if step.points == 0:
        return f"{name} left {counted} at {old}"
    return f"{name} {step.verb} {counted} from {old} to {new}{step.doubt}"


def further(step: Step) -> str:
    """A later step."""
    name, new = label(step.after["name"]), percent(step.after["acc_at_1"])
    if step.points == 0:
        return f"{name} then left it there"
    return f"{name} then {step.verb} it to {new}{step.doubt}"


def paragraph(run: Run) -> str:
    """What was run, what each step changed, and what to doubt."""
    told = [what_was_run(run), start(run), *map(change, steps(run)), overall(run), reach(run)]
    return " ".join([*filter(None, told), *without_image(run), ONE_SEED])


def what_was_run(run: Run) -> str:
    """Which model was measured when, and on how many questions."""
    when = listed(list(dict.fromkeys(MEASURED[row["stage"]] for row in run.test)), ", ", " and ")
    same = "the same " if len(run.test) > 1 else ""
    count = f"{same}{run.test[0]['n']} questions of the test split"
    return f"The model \u201c{run.model_name}\u201d was measured {when}, on {count}."


def start(run: Run) -> str:
    """Where the base model stands, against guessing."""
    row, chance = run.test[0], run.baselines.get("chance")
    low, high = row["acc_at_1_ci95"]
    ci95 = f"95{NARROW}% interval {interval(low, high)}"
    told = f"At first it answered {percent(row['acc_at_1'])} correctly ({ci95})"
    if not chance:
        return f"{told}."
    doubt = ", so it may have been guessing" if low <= chance["acc"] else ""
    doubt = ", which is better" if high < chance["acc"] else doubt
    return f"{told}; guessing gets {percent(chance['acc'])}{doubt}."


def change(step: Step) -> str:
    """What a step did to the questions, with its test."""
    compared = f"{label(step.after['name'])} against {label(step.before['name'])}"
    if step.test is None:
        return f"{compared}: {signed(step.points)} points, not tested."
    worse = ("it got worse: " if step.significant else "fewer right: ") if step.points < 0 else ""
    counts = f"{step.test['c']} questions became right and {step.test['b']} became wrong"
    sure = f"McNemar {p_value(step.test['p'])}, {'significant' if step.significant else 'not significant'}"
    return f"{compared}: {worse}{counts}, {signed(step.points)} points ({sure})."


def overall(run: Run) -> str:
    """Last against first, where a single step leaves that open."""
    test = (run.results.get("tests") or {}).get(f"{run.test[-1]['name']}_vs_{run.test[0]['name']}")
    if test is None or len(run.test) < 3 or all(step.significant for step in steps(run)):
        return ""
    return f"All training together: {signed(100 * test['difference'])} points ({p_value(test['p'])})."


def reach(run: Run) -> str:
    """Pass@K at the K of the rule, and whether GRPO sharpened without reaching further."""
    k, last = str(run.test[-1]["rule_k"]), steps(run)[-1:]
    if k == "1" or any(k not in row["pass_at_k"] for row in run.test):
        return ""
    values = listed([percent(row["pass_at_k"][k]) for row in run.test], ", then ", ", then ")
    told = f"At least one of {k} sampled answers was right for {values} of the questions (Pass@{k})."
    if last and last[0].after["stage"] == "grpo" and last[0].verb == "raised":
        before, after = last[0].before["pass_at_k"][k], last[0].after["pass_at_k"][k]
        told += (
            " GRPO bettered the first answer without bringing more within reach." if after <= before else ""
        )
    return told


def without_image(run: Run) -> Iterator[str]:
    """How much of the score needs no image, or no model."""
    row, blank, majority = run.test[-1], run.baselines.get("blank_image"), run.baselines.get("majority")
    low = row["acc_at_1_ci95"][0]
    if blank:
        who, other = label(blank.get("stage", row["name"])), run.baselines.get("shuffled_image")
        also = f", with the image of another question {percent(other['acc'])}" if other else ""
        yield f"With a blank image in place of the real one, {who} still gets {percent(blank['acc'])}{also}."
        if relied := run.results.get("reliance"):
            yield f"{percent(relied['unchanged_frac'])} of its answers do not change, whichever is shown."
        if max(blank["acc"], other["acc"] if other else 0.0) >= low:
            yield "So there is no clear sign that it uses the image."
    if majority and majority["acc"] >= low:
        acc = percent(majority["acc"])
        yield f"Always giving the commonest answer gets {acc}: the model is not clearly better."


def listed(parts: Sequence[str], between: str, last: str) -> str:
    """Parts as a list in a sentence."""
    return last.join([between.join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]
