"""The parts of a report between the table and the gallery: decisions, reach, training, accuracy by group."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from lite_medrl.tools.report import plots
from lite_medrl.tools.report.curves import Curve, curves
from lite_medrl.tools.report.gauge import axis, gauge
from lite_medrl.tools.report.markup import Html, join, tag
from lite_medrl.tools.report.run import Run
from lite_medrl.tools.report.svg import Point, Scale, sign, style_of
from lite_medrl.tools.report.tables import votes_table
from lite_medrl.tools.report.words import NARROW, decided, label, percent

Json = dict[str, Any]


# --- decisions --------------------------------------------------------------------------------------------
def decisions_section(run: Run) -> Html | None:
    """What was measured, what the rule said, what was done; None where nothing was decided."""
    rows = run.results.get("decisions") or []
    if not rows:
        return None
    told = (
        "Decided on the validation split; the test split is only reported. Support below the threshold asks "
        "for SFT, which brings answers within reach; at or above it GRPO sharpens what is there. The recipe "
        "limits the rounds of SFT and may leave GRPO out, so the run cannot always do what the rule asks."
    )
    found = on_validation(run)
    x = axis([low for row in found.values() for low in (row["support"], row["support_ci95"][0])])
    boxes = [decision(row, found.get(row["after"]), x) for row in rows]
    flow = tag("ol", *boxes, ending(run, found, x), class_="flow")
    bars = f"Bars: support from guessing (0) on; thin lines: 95{NARROW}% intervals; dashed: the threshold."
    heading = tag("h2", "What was decided, and why")
    return join([heading, tag("p", told), tag("p", bars, class_="aside"), flow])


def on_validation(run: Run) -> dict[str, Json]:
    """Every stage's name with its measurement on the validation split."""
    return {row["name"]: row for row in run.results["stages"] if row["split"] == "validation"}


def decision(row: Json, stage: Json | None, x: Scale) -> Html:
    """One box: whose support was measured, and what followed."""
    ci95 = stage["support_ci95"] if stage else None
    return tag(
        "li",
        measured(row["after"]),
        gauge(row["after"], row["support"], ci95, x, row["threshold"]),
        tag("p", tag("b", f"Decision: {decided(row)}")),
        tag("p", row["why"]),
    )


def ending(run: Run, found: dict[str, Json], x: Scale) -> Html | None:
    """The last box: the measurement after GRPO; None where the last decision says that the run ends."""
    last = run.test[-1]
    if last["stage"] != "grpo":
        return None
    same = found.get(last["name"])
    return tag(
        "li",
        measured(last["name"]),
        gauge(last["name"], same["support"], same["support_ci95"], x) if same else None,
        tag("p", tag("b", "End of the run")),
        tag("p", f"Measured once more after GRPO. On the test split Acc@1 is {percent(last['acc_at_1'])}."),
    )


def measured(name: str) -> Html:
    """Whose measurement a box is about."""
    return tag("p", "measured: ", sign(name), tag("b", label(name)), class_="about")


# --- reach ------------------------------------------------------------------------------------------------
def reach_section(run: Run) -> Html:
    """Pass@K against K, and at which K support is read."""
    told = (
        f"How often at least one of K sampled answers is right, with 95{NARROW}% bands. Above the dashed "
        "line of guessing a model knows something. A line that starts higher answers better at once; one "
        "that stays higher has more within reach. Sharpening by GRPO usually lifts the left end most."
    )
    words = tag("div", tag("p", told), tag("p", about_rule(run)))
    drawn = tag("figure", plots.pass_at_k(run.test))
    beside = tag("div", words, drawn, class_="beside")
    return join([tag("h2", "Pass@K: what is within reach"), beside, *votes_part(run)])


def votes_part(run: Run) -> list[Html]:
    """mean@K and maj@K beside Pass@K, with what guessing would get; nothing where they were not counted."""
    row = run.test[0]
    chance = run.baselines.get("chance", {}).get("acc", row["chance_pass_at_k"].get("1"))
    made = votes_table(run.test, chance)
    told = (
        "mean@K is the share of sampled answers that are right; maj@K the share of questions whose commonest "
        "answer among K is right, a tie counting in part. Guessing gets the same in both at every K; only "
        "its Pass@K rises. K = 1 is left out: with one answer the three are the same but for luck."
    )
    return [tag("p", told), made] if made else []


def about_rule(run: Run) -> str:
    """Why support is read at its K."""
    k, limit = run.test[0]["rule_k"], f"{100 * run.recipe.diagnose.max_chance:.0f}{NARROW}%"
    if run.test[0]["chance_pass_at_k"][str(k)] >= run.recipe.diagnose.max_chance:
        return (
            f"Support is read at K = {k}, the smallest: guessing reaches {limit} at every K, so it is noisy."
        )
    largest = f"Support is read at K = {k}, the largest K at which guessing stays under {limit}"
    return f"{largest}; beyond it luck has too large a share."


# --- training ---------------------------------------------------------------------------------------------
def training_section(run: Run) -> Html | None:
    """Curves of every training stage; None where nothing was trained."""
    figures = [panel for panel in [sft_panel(run.metrics), *grpo_panels(run)] if panel]
    if not figures:
        return None
    told = "Strong line: local average over about a fifth of the steps. Faint line: the logged steps."
    return join([tag("h2", "Training"), tag("p", told), tag("div", *figures, class_="panels")])


def sft_panel(metrics: Sequence[Json]) -> Html | None:
    """Loss over steps, a line a round."""
    rounds: dict[int, list[Json]] = defaultdict(list)
    for row in metrics:
        if row.get("stage") == "sft":
            rounds[row.get("round", 1)].append(row)
    names = {number: "sft" if number == 1 else f"sft-{number}" for number in rounds}
    lines = [
        Curve(label(names[number]), style_of(names[number]), series(rows, "loss"))
        for number, rows in rounds.items()
    ]
    return panel(
        "sft-loss", "SFT: loss", "Cross-entropy of the written answers; lower is better learned.", lines
    )


def grpo_panels(run: Run) -> list[Html | None]:
    """Reward and its parts, groups without a signal, entropy, length."""
    rows, grpo = [row for row in run.metrics if row.get("stage") == "grpo"], run.recipe.grpo
    total = " + ".join(f"{reward.weight:g} \u00b7 {reward.name}" for reward in grpo.rewards)
    silent = f"Groups whose {grpo.num_generations} answers all earned the same: nothing is learned from them."

    def line(key: str, name: str = "GRPO", style: str = "grpo", *, dashed: bool = False) -> Curve:
        return Curve(name, style, series(rows, key), dashed)

    right, form = (
        line("rewards/accuracy", "accuracy"),
        line("rewards/format", "format", "reference", dashed=True),
    )
    parts = "Share of sampled answers that are right, and that keep the form."
    alike = "Nats a token; falling means that the answers become more alike."
    return [
        panel("grpo-reward", "GRPO: reward", f"Mean of {total}.", [line("reward")]),
        panel("grpo-parts", "GRPO: accuracy and format", parts, [right, form], share=True),
        panel("grpo-silent", "GRPO: silent groups", silent, [line("frac_reward_zero_std")], share=True),
        panel("grpo-entropy", "GRPO: entropy", alike, [line("entropy")]),
        panel("grpo-length", "GRPO: length", "Mean tokens of an answer.", [line("completions/mean_length")]),
    ]


def series(rows: Sequence[Json], key: str) -> list[Point]:
    """(step, value) of the rows that have the key."""
    return [(float(row["step"]), float(row[key])) for row in rows if isinstance(row.get(key), int | float)]


def panel(key: str, title: str, told: str, lines: Sequence[Curve], *, share: bool = False) -> Html | None:
    """A training figure with its heading; None without values."""
    drawn = curves(key, title, lines, share=share)
    return drawn and tag("figure", tag("figcaption", tag("b", title), told), drawn)


# --- groups -----------------------------------------------------------------------------------------------
def groups_section(run: Run) -> Html:
    """Accuracy by kind and by modality."""
    last = label(run.test[-1]["name"])
    told = (
        "Acc@1 on the test split; the number after a name is how many questions it has. The whisker is the "
        f"95{NARROW}% interval (Wilson) of {last}, the dashed tick is guessing. Small groups say little."
    )
    signs = [tag("span", sign(row["name"]), label(row["name"])) for row in run.test]
    drawn = [
        tag("figure", tag("figcaption", tag("b", title)), plots.by_group(run.test, key, chances(run, key)))
        for key, title in (("kind", "By kind of question"), ("modality", "By modality"))
    ]
    return join(
        [
            tag("h2", "Accuracy by kind and modality"),
            tag("p", told),
            tag("p", *signs, class_="legend"),
            tag("div", *drawn, class_="pair"),
        ]
    )


def chances(run: Run, key: str) -> dict[str, float]:
    """Accuracy of guessing in each group, from the options in completions.jsonl."""
    found: dict[str, list[float]] = defaultdict(list)
    for row in run.completions:
        if row.get("split") == "test" and row.get("name") == run.test[0]["name"] and row["options"]:
            found[row[key]].append(1 / len(row["options"]))
    return {name: sum(values) / len(values) for name, values in found.items()}
