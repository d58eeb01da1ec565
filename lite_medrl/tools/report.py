"""What happened in a run, for a reader with ten minutes: report.html, made from the run's own files.

One file that opens from disk: no script, nothing loaded from anywhere (its own policy forbids it). Words are made in
report_words.py, figures in report_plots.py, the gallery in report_gallery.py; this file reads and puts together.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lite_medrl.data.sources import EMBEDDED
from lite_medrl.recipe import Recipe, load_recipe
from lite_medrl.tools import report_plots as plots
from lite_medrl.tools.markup import Html, join, tag
from lite_medrl.tools.report_gallery import gallery
from lite_medrl.tools.report_words import (
    BASELINES, MINUS, NARROW, bounds, duration, label, p_value, paragraph, percent, rows_on_test, signed, steps, verdict,
)  # fmt: skip
from lite_medrl.types import RecipeError

Json = dict[str, Any]
NONE = "\u2013"  # noqa: RUF001  an empty cell
HERE = Path(__file__).parent
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STAGE_KEYS = {
    "stage", "name", "split", "n", "acc_at_1", "acc_at_1_ci95", "pass_at_k", "pass_at_k_ci95", "chance_pass_at_k", "support",
    "support_ci95", "rule_k", "gap", "format_failure_frac", "by_kind", "by_modality", "seconds",
}  # fmt: skip
MEANINGS = {
    "Acc@1": "share of questions whose single most likely answer is right.",
    "Pass@K": "share of questions for which at least one of K sampled answers is right (unbiased estimate).",
    "Guessing": "the same figures for blind guesses among each question's own options. For many K it comes near 100 %, "
    "so a high Pass@K alone means little.",
    "Support": "Pass@K above guessing, (Pass@K - guessing) / (1 - guessing): 0 is guessing, 1 is always within reach. It is "
    "read at the largest K at which guessing stays low enough.",
    "Gap": "Pass@K - Acc@1 at that K: what better choosing alone (GRPO) could still win.",
    "Format failures": "greedy answers that do not keep the asked form (reasoning, then answer).",
    "95 % CI": "bootstrap over the questions: where the figure would lie for other questions of this kind, same model.",
    "McNemar": "an exact paired test on the questions where two stages differ. p below 0.05 counts as significant here; "
    "p values are not corrected for several tests.",
    "SFT": "supervised fine-tuning: the model imitates written reasoning and right answers.",
    "GRPO": "reinforcement learning: the model samples several answers to a question, and those better than the others' "
    "average become more likely.",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Run:
    """The files of a run's folder, read and checked."""

    results: Json
    metrics: list[Json]
    answers: list[Json]
    recipe: Recipe
    recipe_text: str

    @property
    def names(self) -> list[str]:
        """Stages in the order in which they were measured on the test split."""
        return [row["name"] for row in rows_on_test(self.results)]


def write_report(folder: Path) -> Path:
    """Makes report.html in a run's folder and returns its path.

    Raises RecipeError where the folder holds no finished run, or a file that cannot be read.
    """
    html = page(read_run(folder))
    path = folder / "report.html"
    path.write_text(html, encoding="utf-8")
    return path


# --- reading ----------------------------------------------------------------------------------------------------------
def read_run(folder: Path) -> Run:
    """The run in a folder; metrics.jsonl and completions.jsonl may be absent (nothing trained, nothing kept)."""
    missing = [name for name in ("recipe.yaml", "results.json") if not (folder / name).is_file()]
    if missing:
        raise RecipeError(
            f"{folder}: no {' and no '.join(missing)}; give the output directory of a finished run (an interrupted one "
            "goes on with lite-medrl run ... --resume)"
        )
    resolved = load_recipe(folder / "recipe.yaml")
    return Run(
        checked(read_json(folder / "results.json"), folder / "results.json"),
        read_lines(folder / "metrics.jsonl"), read_lines(folder / "completions.jsonl"),
        resolved.recipe, (folder / "recipe.yaml").read_text(encoding="utf-8"),
    )  # fmt: skip


def read_json(path: Path) -> Any:
    """The value in a JSON file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RecipeError(f"{path}: not JSON ({error}); run again with --overwrite") from None


def read_lines(path: Path) -> list[Json]:
    """One object a line; none where there is no file."""
    rows = []
    lines = path.read_text(encoding="utf-8").split("\n") if path.is_file() else []
    for number, line in enumerate(lines, 1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except ValueError as error:
            raise RecipeError(f"{path}:{number}: not JSON ({error}); run again with --overwrite") from None
    return rows


def checked(results: Any, path: Path) -> Json:
    """The same results; RecipeError where they are not what a run writes."""
    stages = results.get("stages") if isinstance(results, dict) else None
    if not isinstance(stages, list) or not all(isinstance(row, dict) for row in stages):
        raise RecipeError(f'{path}: holds no list "stages"; it is not the results.json of a run')
    for number, row in enumerate(stages, 1):
        lacking = sorted(STAGE_KEYS - set(row))
        if lacking:
            raise RecipeError(f"{path}: stage {number} lacks {', '.join(lacking)}; it was written by another version")
    if not any(row["split"] == "test" for row in stages):
        raise RecipeError(f"{path}: no stage was measured on the test split; finish the run with --resume")
    return results


# --- the page ---------------------------------------------------------------------------------------------------------
def page(run: Run) -> Html:
    """The whole document."""
    title = run.recipe.report.title or f"lite-medrl run: {run.results['model']['name']} model, {data_name(run)} data"
    css = Html("".join((HERE / name).read_text(encoding="utf-8") for name in ("report_plots.css", "report.css")))
    head = tag(
        "head", tag("meta", charset="utf-8"), tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"), tag("title", title), tag("style", css),
    )  # fmt: skip
    sections = {
        "Results": results_section(run), "Decisions": decisions_section(run), "Pass@K": reach_section(run),
        "Training": training_section(run), "By kind": groups_section(run), "Gallery": gallery_section(run),
        "Provenance": provenance_section(run),
    }  # fmt: skip
    links = [tag("a", name, href=f"#{anchor(name)}") for name, body in sections.items() if body]
    body = [tag("section", body, id=anchor(name)) for name, body in sections.items() if body]
    text = tag("body", tag("header", top(run, title)), tag("nav", *links, aria_label="Sections"), tag("main", *body),
               tag("footer", *sources(run)))  # fmt: skip
    return join([Html("<!doctype html>\n"), tag("html", head, text, lang="en"), "\n"])


def anchor(name: str) -> str:
    """Id of a section."""
    return name.lower().replace("@", "-at-").replace(" ", "-")


def data_name(run: Run) -> str:
    """Name of the data source, without the folders of this machine."""
    return Path(run.recipe.data.source).name


def top(run: Run, title: str) -> Html:
    """Heading, the outcome in words, the accuracy figure and what the reader must know first."""
    return join([
        tag("h1", title),
        tag("div", tag("div", tag("p", verdict(run.results), class_="verdict"), tag("p", paragraph(run.results))),
            tag("figure", plots.accuracy(bars(run)), tag("figcaption", f"Test split, with 95{NARROW}% intervals.")), class_="lead"),
        tag("div", *notices(run), class_="notices"),
    ])  # fmt: skip


def notices(run: Run) -> list[Html]:
    """Research only, and same patient where it is so."""
    found = [tag("p", tag("b", "Research only. "), "Not a medical device; nothing here may inform the care of a patient.")]
    if run.recipe.data.source == "embedded":
        found.append(tag("p", tag("b", "Same-patient figures. "), (
            "The embedded data come from a few subjects, most of them from one CT. Test images are other slices, crops or "
            "views than the training images, but of the same patients: the figures show that the method works, not how a "
            "model would do on new patients. Part of the radiographs are semi-synthetic."
        )))  # fmt: skip
    return found


def bars(run: Run) -> list[plots.Bar]:
    """Rows of the accuracy figure: baselines, then stages."""
    baselines = run.results.get("baselines") or {}
    found = [
        plots.Bar(baseline_name(key, baselines[key]), "reference", baselines[key]["acc"], tuple(baselines[key]["ci95"]))
        for key in BASELINES if key in baselines
    ]  # fmt: skip
    rows = rows_on_test(run.results)
    return found + [
        plots.Bar(label(row["name"]), plots.style_of(row["name"]), row["acc_at_1"], tuple(row["acc_at_1_ci95"])) for row in rows
    ]


def baseline_name(key: str, row: Json) -> str:
    """"guessing", "commonest answer", "blank image (GRPO)"."""
    return BASELINES[key] + (f" ({label(row['stage'])})" if row.get("stage") else "")


# --- sections ---------------------------------------------------------------------------------------------------------
def results_section(run: Run) -> Html:
    """The stages on the test split with the baselines, the paired tests, the meanings, validation folded."""
    validation = [row for row in run.results["stages"] if row["split"] == "validation"]
    n = rows_on_test(run.results)[0]["n"]
    return join([
        tag("h2", f"Results on the test split ({n} questions)"),
        tag("p", f"Small figures: 95{NARROW}% intervals.", class_="aside"),
        stages_table(rows_on_test(run.results), run.results.get("baselines") or {}), tests_table(run),
        tag("details", tag("summary", "What the columns mean"), tag("dl", *(
            join([tag("dt", name), tag("dd", meaning)]) for name, meaning in MEANINGS.items()
        ))),
        tag("details", tag("summary", "The same on the validation split, where the decisions were made"),
            stages_table(validation, {})) if validation else None,
    ])  # fmt: skip


def stages_table(rows: Sequence[Json], baselines: Json) -> Html:
    """A line a stage, then a line a baseline; Pass@K has a line of guessing."""
    ks = sorted(map(int, rows[0]["pass_at_k"]))
    at = f"{NARROW}={NARROW}".join(["K", str(rows[0]["rule_k"])])
    names = ["Stage", "n", "Acc@1", *(f"Pass@{k}" for k in ks), f"Support at {at}", "Gap, points", "Format failures", "Time"]
    head = tag("tr", *(tag("th", name, scope="col") for name in names))
    guess = [percent(rows[0]["chance_pass_at_k"][str(k)]) for k in ks]
    chance = baselines.get("chance") or {"acc": rows[0]["chance_pass_at_k"].get("1"), "n": rows[0]["n"]}
    body = [stage_line(row, ks) for row in rows]
    body += [baseline_line(key, baselines[key], [NONE] * len(ks)) for key in ("blank_image", "majority") if key in baselines]
    body.append(baseline_line("chance", chance, guess))
    return tag("div", tag("table", tag("thead", head), tag("tbody", *body), class_="wide"), class_="scroll", tabindex="0")


def stage_line(row: Json, ks: Sequence[int]) -> Html:
    """A stage's figures."""
    support = ranged(f"{row['support']:.2f}", "{:.2f} to {:.2f}".format(*row["support_ci95"]))
    cells = [row["n"], ranged(percent(row["acc_at_1"]), bounds(*row["acc_at_1_ci95"])),
             *(ranged(percent(row["pass_at_k"][str(k)]), bounds(*row["pass_at_k_ci95"][str(k)])) for k in ks),
             support, signed(100 * row["gap"]), percent(row["format_failure_frac"]), duration(row["seconds"])]  # fmt: skip
    return tag("tr", tag("th", plots.sign(row["name"]), label(row["name"]), scope="row"), *(tag("td", cell) for cell in cells))


def ranged(value: str, ci95: str) -> Html:
    """A figure with its interval below it."""
    return join([tag("b", value.replace("-", MINUS)), tag("small", ci95.replace("-", MINUS))])


def baseline_line(key: str, row: Json, reached: Sequence[str]) -> Html:
    """What is had without the model, or without the image."""
    name = baseline_name(key, row)
    ci = tag("small", bounds(*row["ci95"])) if "ci95" in row and key != "chance" else None
    acc = percent(row["acc"]) if row["acc"] is not None else NONE
    cells = [row["n"], join([acc, ci]), *reached, NONE, NONE, NONE, NONE]
    return tag("tr", tag("th", name[0].upper() + name[1:], scope="row"), *(tag("td", cell) for cell in cells), class_="baseline")


def tests_table(run: Run) -> Html | None:
    """Stage against stage on the same questions."""
    rows = run.results.get("tests") or {}
    if not rows:
        return None
    names = ["Compared", "Became right", "Became wrong", "Change of Acc@1", "McNemar", "At the 0.05 level"]
    lines = []
    for key, test in rows.items():
        after, _, before = key.partition("_vs_")
        cells = [test["c"], test["b"], f"{signed(100 * test['difference'])} points", p_value(test["p"]),
                 "significant" if test["p"] < 0.05 else "not significant"]  # fmt: skip
        lines.append(tag("tr", tag("th", f"{label(after)} against {label(before)}", scope="row"), *(tag("td", c) for c in cells)))
    head = tag("tr", *(tag("th", name, scope="col") for name in names))
    return tag("div", tag("table", tag("thead", head), tag("tbody", *lines), class_="wide tests"), class_="scroll", tabindex="0")


def decisions_section(run: Run) -> Html | None:
    """What was measured, what the rule said, what was done."""
    rows = run.results.get("decisions") or []
    if not rows:
        return None
    cards = [
        tag("li", measured(row["after"]), gauge(row["after"], row["support"], row["threshold"]),
            tag("p", tag("b", f"Decision: {label(row['action'])}")), tag("p", row["why"]))
        for row in rows
    ]  # fmt: skip
    last = rows_on_test(run.results)[-1]
    if last["stage"] == "grpo":
        support = next((row["support"] for row in run.results["stages"] if row["name"] == last["name"]), last["support"])
        end = f"Measured once more after training. On the test split: Acc@1 {percent(last['acc_at_1'])}."
        cards.append(tag("li", measured("grpo"), gauge("grpo", support), tag("p", tag("b", "End of the run")), tag("p", end)))
    elif not run.recipe.grpo.enabled:
        cards.append(tag("li", tag("p", tag("b", "GRPO is off"), class_="about"), tag("p", "The recipe has grpo.enabled = false.")))
    told = "Decided on the validation split; the test split is only reported. Support below the threshold asks for SFT, which brings answers within reach; at or above it GRPO sharpens what is there."
    return join([tag("h2", "What was decided, and why"), tag("p", told), tag("ol", *cards, class_="flow")])


def measured(name: str) -> Html:
    """Whose measurement a box is about."""
    return tag("p", "measured: ", plots.sign(name), tag("b", label(name)), class_="about")


def gauge(name: str, support: float, threshold: float | None = None) -> Html:
    """A stage's support on 0 to 1, with the threshold where one was asked for."""
    share = 100 * min(1.0, max(0.0, support))
    told = f"support {support:.2f}".replace("-", MINUS) + (f", threshold {threshold:.2f}" if threshold else "")
    mark = tag("i", class_="mark", style=f"left:{100 * threshold:.1f}%") if threshold else None
    fill = tag("i", class_=f"fill c-{plots.style_of(name)}", style=f"width:{share:.1f}%")
    return join([tag("div", fill, mark, class_="gauge"), tag("p", told, class_="aside")])


def reach_section(run: Run) -> Html:
    """Pass@K against K."""
    told = ("How often at least one of K sampled answers is right, with 95 % bands. Above the dashed line of guessing a model "
            "knows something; a line that starts higher answers better, one that ends higher has more within reach. "
            "Sharpening by GRPO typically lifts the left end and not the right one.")  # fmt: skip
    return join([tag("h2", "Pass@K: what is within reach"), tag("div", tag("p", told),
                 tag("figure", plots.pass_at_k(rows_on_test(run.results))), class_="beside")])  # fmt: skip


def training_section(run: Run) -> Html | None:
    """Curves of every training stage; None where nothing was trained."""
    figures = [panel for panel in [*sft_panels(run), *grpo_panels(run)] if panel]
    if not figures:
        return None
    told = "Strong line: moving average over about a tenth of the steps. Faint line: every logged step."
    return join([tag("h2", "Training"), tag("p", told), tag("div", *figures, class_="panels")])


def sft_panels(run: Run) -> list[Html | None]:
    """Loss and, where it was logged, token accuracy; a line a round."""
    rounds: dict[int, list[Json]] = defaultdict(list)
    for row in run.metrics:
        if row.get("stage") == "sft":
            rounds[row.get("round", 1)].append(row)

    def lines(key: str) -> list[plots.Curve]:
        names = {number: "sft" if number == 1 else f"sft-{number}" for number in rounds}
        return [plots.Curve(label(names[n]), plots.style_of(names[n]), series(rows, key)) for n, rows in rounds.items()]

    return [
        panel("sft-loss", "SFT: loss", "Cross-entropy of the written answers; lower is better learned.", lines("loss")),
    ]


def grpo_panels(run: Run) -> list[Html | None]:
    """Reward and its parts, groups without a signal, entropy, length."""
    rows, grpo = [row for row in run.metrics if row.get("stage") == "grpo"], run.recipe.grpo
    weights = " + ".join(f"{reward.weight:g} x {reward.name}" for reward in grpo.rewards)

    def line(key: str, name: str = "GRPO", style: str = "grpo", dashed: bool = False) -> plots.Curve:
        return plots.Curve(name, style, series(rows, key), dashed)

    parts = [line("rewards/accuracy", "accuracy"), line("rewards/format", "format", "reference", True)]
    silent = f"Groups whose {grpo.num_generations} answers all earned the same: nothing is learned from them."
    return [
        panel("grpo-reward", "GRPO: reward", f"Mean of {weights}, over sampled answers.", [line("reward")]),
        panel("grpo-parts", "GRPO: accuracy and format", "Share of sampled answers that are right, and that keep the form.",
              parts, share=True),
        panel("grpo-silent", "GRPO: groups without variance", silent, [line("frac_reward_zero_std")], share=True),
        panel("grpo-entropy", "GRPO: entropy", "Nats a token; falling means the answers become more alike.", [line("entropy")]),
        panel("grpo-length", "GRPO: length", "Mean tokens of an answer.", [line("completions/mean_length")]),
    ]  # fmt: skip


def series(rows: Sequence[Json], key: str) -> list[plots.Point]:
    """(step, value) of the rows that have the key."""
    return [(float(row["step"]), float(row[key])) for row in rows if isinstance(row.get(key), int | float)]


def panel(key: str, title: str, told: str, lines: Sequence[plots.Curve], *, share: bool = False) -> Html | None:
    """A training figure with its heading."""
    drawn = plots.curves(key, title, lines, share=share)
    return drawn and tag("figure", tag("figcaption", tag("b", title), told), drawn)


def groups_section(run: Run) -> Html | None:
    """Accuracy by kind and by modality."""
    rows = rows_on_test(run.results)
    signs = [tag("span", plots.sign(row["name"]), label(row["name"])) for row in rows]
    told = (f"Acc@1 on the test split; the number after a name is its questions. The whisker is the 95 % interval (Wilson) of "
            f"{label(rows[-1]['name'])}, the dashed tick is guessing. Small groups say little.")  # fmt: skip
    drawn = [
        tag("figure", tag("figcaption", tag("b", f"By {words}")), plots.by_group(rows, key, chances(run, key)))
        for key, words in (("kind", "kind of question"), ("modality", "modality"))
    ]
    return join([tag("h2", "Accuracy by kind and modality"), tag("p", told), tag("p", *signs, class_="legend"),
                 tag("div", *drawn, class_="pair")])  # fmt: skip


def chances(run: Run, key: str) -> dict[str, float]:
    """Accuracy of guessing in each group, from the options in completions.jsonl."""
    found: dict[str, list[float]] = defaultdict(list)
    for row in run.answers:
        if row.get("split") == "test" and row.get("name") == run.names[0] and row["options"]:
            found[row[key]].append(1 / len(row["options"]))
    return {name: sum(values) / len(values) for name, values in found.items()}


def gallery_section(run: Run) -> Html | None:
    """Test images with every stage's answer."""
    drawn = gallery(run.answers, run.names, run.recipe.report.gallery_size)
    return drawn and join([tag("h2", "Gallery of test images"), drawn])


# --- provenance -------------------------------------------------------------------------------------------------------
def provenance_section(run: Run) -> Html:
    """What made these figures, so that they can be made again."""
    results, model, peak = run.results, run.results["model"], run.results.get("peak_gib") or {}
    memory = [f"{name} {value:.1f} GiB" for name, value in (("process", peak.get("rss")), ("GPU", peak.get("cuda"))) if value]
    sizes = [f"{model[key]:,} {text}" for key, text in (("parameters", "parameters"), ("trained_parameters", "trained (LoRA)"))
             if model.get(key)]  # fmt: skip
    versions = [f"{name} {version}" for name, version in (results.get("versions") or {}).items()]
    facts = {
        "Command": tag("code", results.get("command", NONE)), "Seed": results.get("seed", NONE),
        "Model": ", ".join([model["name"], *sizes]),
        "Computed on": ", ".join(str(model[key]) for key in ("device", "dtype") if model.get(key)) or NONE,
        "Peak memory": ", ".join(memory) or NONE, "Versions": ", ".join(versions) or NONE,
    }  # fmt: skip
    return join([
        tag("h2", "Provenance"), tag("dl", *(join([tag("dt", name), tag("dd", value)]) for name, value in facts.items()), class_="facts"),
        times(results.get("seconds") or {}),
        tag("details", tag("summary", "Recipe as resolved, each value with its origin"), tag("pre", run.recipe_text, tabindex="0")),
    ])  # fmt: skip


def times(seconds: Json) -> Html | None:
    """Where the time went, as a small bar table."""
    parts = {name: value for name, value in seconds.items() if name != "total"}
    if not parts:
        return None
    longest = max(parts.values()) or 1.0
    lines = [
        tag("tr", tag("th", name, scope="row"), tag("td", duration(value)),
            tag("td", tag("i", style=f"width:{100 * value / longest:.1f}%"), class_="bar"))
        for name, value in parts.items()
    ]  # fmt: skip
    total = seconds.get("total")
    lines += [tag("tr", tag("th", "total", scope="row"), tag("td", duration(total)), tag("td"))] if total else []
    return tag("table", tag("caption", "Time"), tag("tbody", *lines), class_="times")


def sources(run: Run) -> list[Html]:
    """Whose data these are, under which licence."""
    if run.recipe.data.source != "embedded":
        return [tag("p", f"Data: {data_name(run)}. Their licences are those of the file's own sources.")]
    rows = read_json(EMBEDDED / "SOURCES.json").values()
    items = [
        tag("li", tag("b", row["name"]), f". Licence: {row['licence']}. {row['attribution']} ", tag("small", row["notice"]))
        for row in rows
    ]  # fmt: skip
    return [tag("h2", "Sources and licences of the embedded data"), tag("ul", *items)]
