"""A run's figures in tables: stages with their baselines, and stage against stage on the same questions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lite_medrl.measure.statistics import too_few
from lite_medrl.tools.report.markup import NONE, Html, join, row_of, table, tag
from lite_medrl.tools.report.run import Run
from lite_medrl.tools.report.svg import sign
from lite_medrl.tools.report.words import (
    ALPHA,
    NARROW,
    baseline_name,
    bounds,
    duration,
    label,
    minus,
    p_value,
    percent,
    signed,
)

Json = dict[str, Any]
MEANINGS = {
    "Acc@1": "share of questions whose single most likely answer is right.",
    "Pass@K": "share of questions for which at least one of K sampled answers is right (unbiased estimate).",
    "Guessing": "the same for blind guesses among each question's own options. For many K it comes near "
    "100 %, so a high Pass@K alone means little.",
    "Commonest answer": "blindly giving the answer that training shows most for that kind of question.",
    "Blank image": "the same model with a grey image in place of the real one: what it gets without looking.",
    "Another image": "the same model with the image of another question (of another subject where that is "
    "known).",
    "Support": "how far Pass@K is above guessing: 0 is guessing, 1 is always within reach. It is read at the "
    "largest K at which guessing stays low enough.",
    "Gap": "Pass@K less Acc@1 at that K: what choosing better among its own answers could still win.",
    "Format failures": "single answers that do not keep the asked form (reasoning, then answer).",
    "Outside the options": "single answers that cannot be read as one of the options, for any reason; they "
    "count as wrong.",
    "Time": "what it took to ask the questions of the split, for the single answers and the sampled ones. "
    "Training is not in it; Provenance has the whole run.",
    "95 % interval": "where the figure may lie for other such questions: Wilson's interval for shares of "
    "right answers (Acc@1, blank and other image, commonest answer), by bootstrap over the questions for the "
    "others.",
    "McNemar": "an exact paired test on the questions where two stages differ; p below 0.05 counts as "
    "significant. The p values are not corrected for several tests.",
    "SFT": "supervised fine-tuning: the model imitates written reasoning and right answers.",
    "GRPO": "reinforcement learning: the model samples several answers to a question, and those better than "
    "their average become more likely.",
}


def results_section(run: Run) -> Html:
    """The stages on the test split with the baselines, the paired tests, the meanings; validation folded."""
    validation = [row for row in run.results["stages"] if row["split"] == "validation"]
    meanings = [join([tag("dt", name), tag("dd", meaning)]) for name, meaning in MEANINGS.items()]
    parts = [
        tag("h2", f"Results on the test split ({run.test[0]['n']} questions)"),
        about_intervals(run.test[0]["n"]),
        stages_table(run.test, run.baselines),
        tests_table(run.results.get("tests") or {}),
        tag("details", tag("summary", "What the columns mean"), tag("dl", *meanings)),
    ]
    if validation:
        told = tag("summary", "The same on the validation split, where the decisions were made")
        about = about_intervals(validation[0]["n"])
        parts.append(tag("details", told, about, stages_table(validation, {})))
    return join(parts)


def about_intervals(n: int) -> Html:
    """What the small figures are, and whether there are too few questions for them to say much."""
    told = [f"Small figures: 95{NARROW}% intervals.", f"{too_few(n)}." if too_few(n) else None]
    return tag("p", join(told, " "), class_="aside")


def stages_table(rows: Sequence[Json], baselines: Json) -> Html:
    """A line a stage, then a line a baseline; guessing has a Pass@K too."""
    ks = sorted(map(int, rows[0]["pass_at_k"]))
    at = f"K{NARROW}={NARROW}{rows[0]['rule_k']}"
    names = ["Stage", "n", "Acc@1", *(f"Pass@{k}" for k in ks)]
    names += [f"Support at {at}", "Gap, points", "Format failures", "Outside the options", "Time"]
    guessed = [rows[0]["chance_pass_at_k"][str(k)] for k in ks]
    chance = {"acc": guessed[0] if ks[0] == 1 else None, "n": rows[0]["n"]} | baselines.get("chance", {})
    chance.pop("ci95", None)
    lines = [stage_line(row, ks) for row in rows]
    lines += [
        baseline_line(key, baselines[key], ks)
        for key in ("blank_image", "shuffled_image", "majority")
        if key in baselines
    ]
    lines.append(baseline_line("chance", chance, ks, guessed))
    return table(names, lines, class_="wide")


def stage_line(row: Json, ks: Sequence[int]) -> Html:
    """A stage's figures."""
    reached = [(row["pass_at_k"][str(k)], row["pass_at_k_ci95"][str(k)]) for k in ks]
    low, high = row["support_ci95"]
    cells = [
        row["n"],
        ranged(percent(row["acc_at_1"]), bounds(*row["acc_at_1_ci95"])),
        *(ranged(percent(value), bounds(*ci95)) for value, ci95 in reached),
        ranged(minus(f"{row['support']:.2f}"), minus(f"{low:.2f} to {high:.2f}")),
        signed(100 * row["gap"]),
        percent(row["format_failure_frac"]),
        share(row.get("scores", {}).get("parse_failure_frac")),
        duration(row["seconds"]),
    ]
    return row_of(join([sign(row["name"]), label(row["name"])]), cells)


def baseline_line(key: str, row: Json, ks: Sequence[int], reached: Sequence[float] = ()) -> Html:
    """What is had without the model, or without the image."""
    name = baseline_name(key, row)
    ci = tag("small", bounds(*row["ci95"])) if "ci95" in row else None
    cells = [
        row["n"],
        join([share(row["acc"]), ci]),
        *(map(percent, reached) if reached else [NONE] * len(ks)),
        *[NONE] * 5,
    ]
    return row_of(name[0].upper() + name[1:], cells, class_="baseline")


def votes_table(rows: Sequence[Json], chance: float | None) -> Html | None:
    """mean@K, and maj@K beside Pass@K, a line a stage and one for guessing; None where no votes were counted.

    `chance` is the accuracy of guessing, which its mean@K and maj@K are too, whatever K is.
    """
    if not all("maj_at_k" in row for row in rows):
        return None
    ks = [k for k in sorted(rows[0]["pass_at_k"], key=int) if k != "1"]
    names = ["Stage", "mean@K", *(f"{what}@{k}" for k in ks for what in ("maj", "Pass"))]
    guessed = {"mean_at_k": chance, "maj_at_k": dict.fromkeys(ks, chance)}
    guessed["pass_at_k"] = rows[0]["chance_pass_at_k"]
    lines = [row_of(join([sign(row["name"]), label(row["name"])]), votes_cells(row, ks)) for row in rows]
    return table(
        names, [*lines, row_of("Guessing", votes_cells(guessed, ks), class_="baseline")], class_="wide"
    )


def votes_cells(row: Json, ks: Sequence[str]) -> list[str]:
    """mean@K, then maj@K and Pass@K for every K."""
    pairs = [row[key][k] for k in ks for key in ("maj_at_k", "pass_at_k")]
    return [share(value) for value in (row["mean_at_k"], *pairs)]


def share(value: float | None) -> str:
    """A share in percent; an empty cell where it is not known."""
    return NONE if value is None else percent(value)


def ranged(value: str, ci95: str) -> Html:
    """A figure with its interval below it."""
    return join([tag("b", value), tag("small", ci95)])


def tests_table(tests: Json) -> Html | None:
    """Stage against stage; None where nothing was compared."""
    names = ["Compared", "Became right", "Became wrong", "Change, points", "McNemar", f"At the {ALPHA} level"]
    lines = [test_line(key, test) for key, test in tests.items()]
    return table(names, lines, class_="wide tests") if lines else None


def test_line(key: str, test: Json) -> Html:
    """One comparison; its key is "AFTER_vs_BEFORE"."""
    after, _, before = key.partition("_vs_")
    sure = "significant" if test["p"] < ALPHA else "not significant"
    cells = [test["c"], test["b"], signed(100 * test["difference"]), p_value(test["p"]), sure]
    return row_of(f"{label(after)} against {label(before)}", cells)
