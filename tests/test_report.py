"""The report shows what the run's files say, escapes what the model said, loads nothing, copes with gaps."""

from __future__ import annotations

import json
import math
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cache
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lite_medrl.data.answers import parse
from lite_medrl.data.sources import load_samples
from lite_medrl.measure.rule import Limits, decide
from lite_medrl.measure.scores import scores
from lite_medrl.measure.statistics import bootstrap_ci, mcnemar
from lite_medrl.measure.support import diagnose, majority_baseline
from lite_medrl.measure.votes import votes
from lite_medrl.recipe import load_recipe, to_yaml
from lite_medrl.tools.report import figures, write_report
from lite_medrl.tools.report.curves import smooth, step_ticks, thin
from lite_medrl.tools.report.gallery import cases as cases_of
from lite_medrl.tools.report.gallery import choose, outcome
from lite_medrl.tools.report.gauge import axis
from lite_medrl.tools.report.headline import paragraph, verdict
from lite_medrl.tools.report.markup import Html, tag
from lite_medrl.tools.report.run import Run, read_run
from lite_medrl.tools.report.svg import ticks
from lite_medrl.tools.report.words import duration, p_value, signed
from lite_medrl.types import RecipeError, Sample

REPO = Path(__file__).parents[1]
Json = dict[str, Any]
SKILL = {"base": -0.9, "sft": 1.1, "sft-2": 1.3, "grpo": 1.9}
ALL = ("base", "sft", "grpo")
OFF = ("sft.max_rounds=0", "grpo.enabled=false")
HOSTILE = "</title></style><script>alert('x')</script><img src=x onerror=alert(1)> & \u202e\x00 \"'>"


# --- a run that never ran ---------------------------------------------------------------------------------
def fake_run(
    folder: Path,
    names: Sequence[str] = ALL,
    *,
    n: int = 60,
    overrides: Sequence[str] = (),
    bootstrap_samples: int = 100,
    skill: dict[str, float] = SKILL,
) -> Json:
    """Writes a run's folder as the pipeline does, about real questions with made-up answers; its results."""
    folder.mkdir(parents=True, exist_ok=True)
    resolved = load_recipe(REPO / "examples" / "quickstart.yaml", overrides)
    (folder / "recipe.yaml").write_text(to_yaml(resolved), encoding="utf-8")
    drawn = random.Random(0)
    sets = {split: drawn.sample(questions(split), n) for split in ("validation", "test")}
    stages, decisions, lines = [], [], []
    for i, name in enumerate(names):
        for split, samples in sets.items():
            answered = [made_up_answer(sample, name, skill[name]) for sample in samples]
            support = measured(samples, answered, bootstrap_samples)
            head = {"stage": name.partition("-")[0], "round": round_of(name), "name": name, "split": split}
            more = {"seconds": 31.4 + 2 * i, "scores": scores(answered, bootstrap_samples=100)}
            stages.append(head | support.to_json() | more | votes(answered, (1, 2, 4, 8, 16)))
            lines += [head | {key: a[key] for key in a if key != "broken"} for a in answered]
            if split == "validation" and name != "grpo":
                rounds = sum(other.startswith("sft") for other in names)
                limits = Limits(i, rounds, "grpo" in names)
                decisions.append({"after": name, "split": split} | decide(support, 0.5, limits).to_json())
    if "grpo" in names:
        lines.append({"stage": "grpo", "rollout": True, "step": 80, "completion": HOSTILE, "advantage": 0.5})
    results = {
        "stages": stages,
        "decisions": decisions,
        "baselines": made_up_baselines(sets["test"], names[-1]),
        "tests": made_up_tests(lines, names),
        **about_the_run(),
    }
    write_lines(folder / "completions.jsonl", lines)
    write_lines(folder / "metrics.jsonl", made_up_metrics(names, drawn))
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return results


def round_of(name: str) -> int:
    return int(name.partition("-")[2] or (name != "base"))


@cache
def questions(split: str) -> list[Sample]:
    return load_samples("embedded", split)


def made_up_answer(sample: Sample, name: str, skill: float) -> Json:
    """A row of completions.jsonl: some questions and kinds are harder, a better stage is right more often."""
    own = random.Random(f"{sample.id} {name}")
    hard = random.Random(sample.id).gauss(0, 1.6) + random.Random(sample.kind).gauss(0, 0.9)
    guess = 1 / len(sample.options)
    p = min(max(0.65 * guess + (1 - guess) / (1 + math.exp(hard - skill - 0.3)), 0.02), 0.99)
    wrong = own.choice([option for option in sample.options if option != sample.answer])
    told = sample.answer if own.random() < p else wrong
    text = f"<think> {sample.reasoning} </think><answer> {told} </answer>"
    if own.random() < (0.3 if name == "base" else 0.01):
        text = f"{told} {told} the the"
    read = parse(text, options=sample.options)
    sampled = p * (0.85 if name == "base" else 1)
    return {
        "id": sample.id,
        "question": sample.question,
        "options": list(sample.options),
        "answer": sample.answer,
        "kind": sample.kind,
        "modality": sample.modality,
        "source": sample.source,
        "images": [{"path": "embedded", "member": image.member} for image in sample.images],
        "greedy": text,
        "parsed": read.value,
        "correct": read.value == sample.answer,
        "failure": read.failure,
        "num_correct": sum(right := [own.random() < sampled for _ in range(16)]),
        "num_samples": 16,
        "sampled": [sample.answer if hit else wrong for hit in right],
        "broken": not read.has_format,
    }


def measured(samples: Sequence[Sample], answered: Sequence[Json], bootstrap_samples: int) -> Any:
    return diagnose(
        [a["correct"] for a in answered],
        [a["num_correct"] for a in answered],
        16,
        [len(s.options) for s in samples],
        format_failure_Q=[a["broken"] for a in answered],
        kind_Q=[s.kind for s in samples],
        modality_Q=[s.modality for s in samples],
        bootstrap_samples=bootstrap_samples,
    )


def made_up_baselines(test: Sequence[Sample], last: str) -> Json:
    right = {
        "majority": majority_baseline(questions("train"), test),
        "blank_image": np.array([random.Random(s.id).random() < 1.3 / len(s.options) for s in test]),
        "shuffled_image": np.array([random.Random(f"{s.id}.").random() < 0.9 / len(s.options) for s in test]),
        "chance": np.array([1 / len(s.options) for s in test]),
    }
    found: Json = {}
    for name, values in right.items():
        ci95 = list(bootstrap_ci(values, bootstrap_samples=100))
        found[name] = {"acc": float(values.mean()), "ci95": ci95, "n": len(test), "split": "test"}
    found["blank_image"]["stage"] = found["shuffled_image"]["stage"] = last
    return found


def made_up_tests(lines: Sequence[Json], names: Sequence[str]) -> Json:
    test = [row for row in lines if row.get("split") == "test"]
    right = {name: [row["correct"] for row in test if row["name"] == name] for name in names}
    pairs = [*pairwise(names), *([(names[0], names[-1])] if len(names) > 2 else [])]
    return {f"{b}_vs_{a}": asdict(mcnemar(right[a], right[b])) for a, b in pairs}


def made_up_metrics(names: Sequence[str], drawn: random.Random) -> list[Json]:
    rows: list[Json] = []
    for name in names:
        head = {"stage": name.partition("-")[0], "round": round_of(name)}
        for step in range(1, 151 if head["stage"] == "sft" else 81):
            loss = 0.25 + (2.4 if name == "sft" else 0.6) * math.exp(-step / 25) + drawn.gauss(0, 0.05)
            row = head | {"step": step, "loss": loss, "learning_rate": 1e-4, "grad_norm": 0.5}
            right, progress = 0.70 + step / 800 + drawn.gauss(0, 0.04), step / 80
            if name == "grpo":
                row |= {
                    "reward": right + 0.197,
                    "rewards/accuracy": right,
                    "rewards/format": min(1.0, 0.985 + drawn.gauss(0, 0.006)),
                    "frac_reward_zero_std": 0.3 + 0.25 * progress + drawn.gauss(0, 0.07),
                    "entropy": 0.4 - 0.2 * progress + drawn.gauss(0, 0.02),
                    "completions/mean_length": 17 + drawn.gauss(0, 0.4),
                }
            rows += [row] if name != "base" else []
    return rows


def about_the_run() -> Json:
    return {
        "seconds": {
            "load": 3.1,
            "diagnose": 190.5,
            "sft": 61.0,
            "grpo": 122.4,
            "report": 14.9,
            "total": 392.2,
        },
        "peak_gib": {"rss": 2.31, "cuda": None},
        "versions": {"lite-medrl": "0.1.0", "torch": "2.13.0", "trl": "1.15.0", "python": "3.11.2"},
        "date": "2026-03-04T05:06:07+00:00",
        "machine": {"name": "x86_64", "cpu_cores": 2},
        "command": "lite-medrl run examples/quickstart.yaml --output_dir runs/quickstart",
        "seed": 0,
        "model": {
            "name": "embedded",
            "device": "cpu",
            "parameters": 6_400_000,
            "trained_parameters": 310_000,
        },
    }


def write_lines(path: Path, rows: Sequence[Json]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def change_lines(path: Path, change: Any) -> None:
    """Rewrites a JSONL file, every row changed in place."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        change(row)
    write_lines(path, rows)


# --- a page read back -------------------------------------------------------------------------------------
class Page(HTMLParser):
    """Elements, texts and table rows of a document; fails where elements are not closed in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.rows: list[list[str]] = []
        self.html = path.read_text(encoding="utf-8")
        self.feed(self.html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "input", "br"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.words.append(data)
        if {"td", "th"} & set(self.open[-3:]) and "tr" in self.open:
            self.rows[-1][-1] += data + ("|" if self.open[-1] == "b" else "")

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def of(self, tag: str, class_: str = "") -> list[dict[str, str | None]]:
        found = [a for name, a in self.elements if name == tag]
        return [a for a in found if not class_ or class_ in (a.get("class") or "").split()]

    def row(self, *start: str) -> list[str]:
        return next(row for row in self.rows if row[: len(start)] == list(start))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run")
    fake_run(path)
    write_report(path)
    return path


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """A run of its own, to be changed."""
    fake_run(tmp_path, n=24)
    return tmp_path


def pct(value: float) -> str:
    return f"{100 * value:.1f}\u202f%"


def span(low: float, high: float) -> str:
    return f"{100 * low:.1f} to {100 * high:.1f}"


def test_numbers_are_those_of_the_results(folder: Path) -> None:
    page, results = Page(folder / "report.html"), json.loads((folder / "results.json").read_text())
    for split in ("test", "validation"):
        rows = [row for row in results["stages"] if row["split"] == split]
        shown = [row for row in page.rows if len(row) == 13 and row[0] in ("Base", "SFT", "GRPO")]
        shown = shown[:3] if split == "test" else shown[3:]
        assert [row[0] for row in shown] == ["Base", "SFT", "GRPO"]
        for row, cells in zip(rows, shown, strict=True):
            assert cells[1] == str(row["n"])
            assert cells[2] == f"{pct(row['acc_at_1'])}|{span(*row['acc_at_1_ci95'])}"
            for k, cell in zip(("1", "2", "4", "8", "16"), cells[3:8], strict=True):
                assert cell == f"{pct(row['pass_at_k'][k])}|{span(*row['pass_at_k_ci95'][k])}"
            low, high = row["support_ci95"]
            assert cells[8] == f"{row['support']:.2f}|{low:.2f} to {high:.2f}".replace("-", "\u2212")
            assert cells[9] == signed(100 * row["gap"])
            assert cells[10] == pct(row["format_failure_frac"])
            assert cells[11] == pct(row["scores"]["parse_failure_frac"])
            assert cells[12] == f"{row['seconds']:.0f}\u202fs"
    assert "Time" in page.words


def test_votes_stand_beside_pass_at_k_and_guessing(folder: Path, fresh: Path) -> None:
    page, results = Page(folder / "report.html"), json.loads((folder / "results.json").read_text())
    base, chance = results["stages"][1], results["baselines"]["chance"]["acc"]
    ks = ("2", "4", "8", "16")
    assert page.row("Stage", "mean@K") == [
        "Stage",
        "mean@K",
        *(f"{w}@{k}" for k in ks for w in ("maj", "Pass")),
    ]
    votes_rows = [row for row in page.rows if len(row) == 10]
    assert [row[0] for row in votes_rows] == ["Stage", "Base", "SFT", "GRPO", "Guessing"]
    pairs = [base[key][k] for k in ks for key in ("maj_at_k", "pass_at_k")]
    assert votes_rows[1][1:] == [pct(base["mean_at_k"]), *map(pct, pairs)]
    assert base["mean_at_k"] == pytest.approx(base["pass_at_k"]["1"])
    guessed = [value for k in ks for value in (chance, base["chance_pass_at_k"][k])]
    assert votes_rows[4][1:] == [pct(chance), *map(pct, guessed)]
    results = json.loads((fresh / "results.json").read_text())
    for row in results["stages"]:
        del row["scores"], row["mean_at_k"], row["maj_at_k"]
    (fresh / "results.json").write_text(json.dumps(results))
    old = Page(write_report(fresh))
    assert "mean@K" not in old.words
    assert old.row("Base", "24")[11] == "\u2013"


def test_what_was_left_out_is_shown(fresh: Path) -> None:
    assert "Left out of the data" not in Page(write_report(fresh)).text
    results = json.loads((fresh / "results.json").read_text())
    nothing = {"rows": 9, "skipped": 0, "other_questions": 0, "unknown_fields": [], "faults": []}
    train = nothing | {"skipped": 2, "other_questions": 1, "faults": ["my.jsonl:2: <b>no answer</b>"]}
    left_out = {"train": train, "validation": nothing, "test": nothing | {"skipped": 1}}
    for found in ({"train": nothing}, left_out):
        results["data"] = {"source": "my.jsonl", "left_out": found}
        (fresh / "results.json").write_text(json.dumps(results))
        told = Page(write_report(fresh)).text
        assert ("Left out of the data" in told) == (found is left_out)
    assert "train: 2 rows with a fault, 1 open question; test: 1 row with a fault." in told
    assert "my.jsonl:2: <b>no answer</b>" in told


def test_few_questions_are_said_in_the_headline_and_above_each_table(tmp_path: Path, fresh: Path) -> None:
    fake_run(tmp_path / "few", n=9)
    told, few = Page(write_report(tmp_path / "few")).text, "n = 9: too few questions to compare"
    assert told.count(f"intervals. {few}.") == 2
    assert f"({few})." in verdict(read_run(tmp_path / "few"))
    assert "too few" not in Page(write_report(fresh)).text
    fake_run(tmp_path / "base", ("base",), n=9, overrides=OFF)
    assert verdict(read_run(tmp_path / "base")).endswith(f"of the test questions correctly ({few}).")


def test_baselines_and_paired_tests_are_those_of_the_results(folder: Path) -> None:
    page, results = Page(folder / "report.html"), json.loads((folder / "results.json").read_text())
    found = results["baselines"]
    blank, majority = found["blank_image"], found["majority"]
    assert page.row("Blank image (GRPO)")[2] == pct(blank["acc"]) + span(*blank["ci95"])
    other = found["shuffled_image"]
    assert page.row("Another image (GRPO)")[2] == pct(other["acc"]) + span(*other["ci95"])
    assert page.row("Commonest answer")[2] == pct(majority["acc"]) + span(*majority["ci95"])
    chance = results["stages"][1]["chance_pass_at_k"]
    assert page.row("Guessing", "60")[2:8] == [pct(found["chance"]["acc"]), *map(pct, chance.values())]
    for name, key in (("SFT against Base", "sft_vs_base"), ("GRPO against SFT", "grpo_vs_sft")):
        test = results["tests"][key]
        sure = "significant" if test["p"] < 0.05 else "not significant"
        told = [str(test["c"]), str(test["b"]), signed(100 * test["difference"]), p_value(test["p"]), sure]
        assert page.row(name)[1:] == told


def test_the_folded_parts_and_the_footer(folder: Path) -> None:
    text = Page(folder / "report.html").text
    results = json.loads((folder / "results.json").read_text())
    for told in (
        results["command"],
        results["decisions"][0]["why"],
        "Not a medical device",
        "Same-patient figures",
        "process 2.3 GiB",
        "lite-medrl 0.1.0, torch 2.13.0, trl 1.15.0",
        "2026-03-04T05:06:07+00:00",
        "cpu, x86_64, 2 CPU cores",
        "6,400,000 parameters",
        "max_chance: 0.7",
        "quickstart.yaml:",
        "6\u202fmin 32\u202fs",
        "BIC-MNI",
        "10.7937/K9/TCIA.2015.LO9QL9SX",
    ):
        assert told in text


def test_every_stage_is_shown(tmp_path: Path) -> None:
    fake_run(tmp_path, ("base", "sft", "sft-2", "grpo"), n=24)
    page = Page(write_report(tmp_path))
    names = ["Base", "SFT", "SFT 2", "GRPO"]
    assert [row[0] for row in page.rows if len(row) == 13][1:5] == names
    assert [row[0] for row in page.rows if row[0].count(" against ")] == [
        "SFT against Base", "SFT 2 against SFT", "GRPO against SFT 2", "GRPO against Base"
    ]  # fmt: skip
    for style in ("base", "sft", "sft2", "grpo"):
        assert page.of("path", f"c-{style}")
    assert len(page.of("path", "band")) == 4


def test_well_formed_and_accessible(folder: Path) -> None:
    page = Page(folder / "report.html")
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(set(ids)) == len(ids)
    plots = page.of("svg", "plot")
    assert len(plots) == 4 + 6
    for plot in plots:
        assert plot["role"] == "img"
        assert {f"{key}" for key in (plot["aria-labelledby"] or "").split()} <= set(ids)
    assert all(image["alt"] for image in page.of("img"))
    assert {a["href"] for a in page.of("a")} == {
        f"#{name}" for name in ids if f'<section id="{name}"' in page.html
    }
    assert not re.search(r"\b(nan|inf|None)\b", page.text)


def test_nothing_is_loaded_and_nothing_runs(folder: Path) -> None:
    page = Page(folder / "report.html")
    names = {name for name, _ in page.elements}
    assert not names & {"script", "link", "iframe", "object", "embed", "base", "form"}
    assert all((image["src"] or "").startswith("data:image/jpeg;base64,/9j/") for image in page.of("img"))
    assert not re.search(r"url\(|@import|src=\"http|href=\"http", page.html)
    assert not [key for _, a in page.elements for key in a if key.startswith("on") or key == "srcset"]
    policy = next(a["content"] for a in page.of("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_hostile_text_stays_text(fresh: Path) -> None:
    def poison(row: Json) -> None:
        if "id" in row:
            row.update(greedy=HOSTILE, parsed=HOSTILE, question=HOSTILE, kind=HOSTILE, id=HOSTILE + row["id"])
            row["options"] = [HOSTILE, row["answer"]]

    change_lines(fresh / "completions.jsonl", poison)
    results = json.loads((fresh / "results.json").read_text())
    results["command"] = results["decisions"][0]["why"] = HOSTILE
    results["versions"] = {HOSTILE: HOSTILE}
    for row in results["stages"]:
        row["by_kind"] = {HOSTILE: {"n": 24, "acc_at_1": 0.5}}
    (fresh / "results.json").write_text(json.dumps(results))
    recipe = (fresh / "recipe.yaml").read_text().replace("title: null", f"title: {json.dumps(HOSTILE)}")
    (fresh / "recipe.yaml").write_text(recipe)
    page = Page(write_report(fresh))
    assert not page.of("script")
    assert all("onerror" not in image for image in page.of("img"))
    assert page.text.count("<script>alert('x')</script>") > 24
    assert "\x00" not in page.html
    assert "\u202e" not in page.html


def test_markup_escapes_all_but_markup() -> None:
    assert (
        tag("p", "<b>", Html("<i></i>"), None, title='"x"') == '<p title="&quot;x&quot;">&lt;b&gt;<i></i></p>'
    )
    assert (
        tag("input", checked=True, id=None, aria_label="a", x=1 / 3)
        == '<input checked aria-label="a" x="0.33">'
    )
    assert tag("p", "\ud800\x07") == "<p>?\ufffd</p>"


def test_gallery_has_the_size_of_the_recipe(fresh: Path) -> None:
    fake_run(fresh, n=24, overrides=["report.gallery_size=7"])
    first = write_report(fresh).read_text(encoding="utf-8")
    page = Page(fresh / "report.html")
    assert len(page.of("article")) == 7
    assert "7 of the 24 test questions" in page.text
    assert first == write_report(fresh).read_text(encoding="utf-8")
    fake_run(fresh, n=24, overrides=["report.gallery_size=0"])
    assert not Page(write_report(fresh)).of("article")


def test_gallery_marks_gold_and_every_answer(folder: Path) -> None:
    page = Page(folder / "report.html")
    count = len(page.of("article"))
    assert count == 24
    assert len(page.of("li", "gold")) == len(page.of("span", "note")) == count
    chosen = choose(cases_of(read_run(folder).completions, ALL), 24)
    right = sum(row["correct"] for case in chosen for row in case.rows)
    assert len(page.of("span", "yes")) == page.text.count("\u2713 right") == right
    assert len(page.of("span", "no")) == page.text.count("\u2717 wrong") == 3 * count - right
    assert len(page.of("details")) >= 3 * count
    assert page.words.count("no answer found") == sum(
        row["failure"] == "no_answer" for case in chosen for row in case.rows
    )
    assert "no answer found" in page.words


@pytest.mark.parametrize(
    ("right", "names", "told"),
    [
        ("01", ("base", "sft"), "Fixed by SFT"),
        ("011", ALL, "Fixed by SFT"),
        ("001", ALL, "Fixed by GRPO only"),
        ("01", ("base", "grpo"), "Fixed by GRPO"),
        ("010", ALL, "Broken by training"),
        ("100", ALL, "Broken by training"),
        ("000", ALL, "Never right"),
        ("101", ALL, "Right from the start"),
        ("0101", ("base", "sft", "sft-2", "grpo"), "Fixed by SFT"),
        ("0011", ("base", "sft", "sft-2", "grpo"), "Fixed by SFT 2"),
        ("0", ("base",), "Wrong"),
        ("1", ("base",), "Right"),
    ],
)
def test_outcomes(right: str, names: Sequence[str], told: str) -> None:
    assert outcome([mark == "1" for mark in right], names) == told


def test_gallery_takes_about_as_many_of_each_outcome(folder: Path) -> None:
    found = cases_of(read_run(folder).completions, ALL)
    assert len(found) == 60
    chosen, all_of = Counter(c.outcome for c in choose(found, 20)), Counter(c.outcome for c in found)
    assert chosen.total() == 20
    assert chosen.keys() == all_of.keys()
    full = [count for name, count in chosen.items() if count < all_of[name]]
    assert max(full) - min(full) <= 1
    images = [str(case.rows[0]["images"]) for case in choose(found, 20)]
    assert len(set(images)) == len(images)


def test_a_missing_image_is_said(fresh: Path) -> None:
    def lose(row: Json) -> None:
        row["images"] = [{"path": "gone/one.png", "member": None}] * 6

    change_lines(fresh / "completions.jsonl", lose)
    page = Page(write_report(fresh))
    assert not page.of("img")
    assert "The image could not be shown. image gone/one.png: no such file" in page.text
    assert page.text.count("and 2 more") == len(page.of("article"))


def test_base_alone(tmp_path: Path) -> None:
    fake_run(tmp_path, ("base",), n=24, overrides=OFF)
    for name in ("metrics.jsonl", "completions.jsonl"):
        page = Page(write_report(tmp_path))
        assert "Nothing was trained: the base model answers" in page.text
        assert "this is a diagnosis, which trains nothing" in page.text
        assert "training" not in [a.get("id") for _, a in page.elements]
        (tmp_path / name).unlink()
    page = Page(write_report(tmp_path))
    assert not page.of("article")
    assert len(page.of("svg", "plot")) == 4
    assert figures(tmp_path).keys() == {"accuracy", "pass_at_k", "by_kind", "by_modality"}


def test_without_sft_and_with_metrics_that_are_not_numbers(tmp_path: Path) -> None:
    fake_run(tmp_path, ("base", "grpo"), n=24, overrides=["sft.max_rounds=0"])
    change_lines(tmp_path / "metrics.jsonl", lambda row: row.update(entropy=math.nan, reward=None))
    page = Page(write_report(tmp_path))
    shown = [a["aria-labelledby"] for a in page.of("svg", "plot")]
    assert [name for name in shown if "grpo-" in str(name)] == [
        f"grpo-{name}-t grpo-{name}-d" for name in ("parts", "silent", "length")
    ]
    assert "sft-loss" not in page.html


def test_old_results_without_the_extras(fresh: Path) -> None:
    results = json.loads((fresh / "results.json").read_text())
    extras = ("decisions", "baselines", "tests", "seconds", "peak_gib", "versions", "command", "seed")
    for key in (*extras, "date", "machine"):
        del results[key]
    (fresh / "results.json").write_text(json.dumps(results))
    page = Page(write_report(fresh))
    assert "(not tested)" in page.text
    assert "What was decided" not in page.text


def test_a_decision_against_the_rule_says_so(tmp_path: Path) -> None:
    results = fake_run(tmp_path, n=24, skill={"base": -9.0, "sft": -9.0, "grpo": -9.0})
    page = Page(write_report(tmp_path))
    assert [(row["rule"], row["action"]) for row in results["decisions"]] == [("sft", "sft"), ("sft", "grpo")]
    assert "Decision: SFT, as the rule asks" in page.text
    assert "Decision: GRPO, though the rule asks for SFT" in page.text
    assert "is used up (sft.max_rounds = 1) and GRPO begins with support still below" in page.text
    results = fake_run(tmp_path, ("base",), n=24, overrides=OFF, skill={"base": -9.0})
    page = Page(write_report(tmp_path))
    assert "Decision: nothing is trained; the rule asks for SFT" in page.text


def places(page: Page, kind: str) -> list[tuple[float, float]]:
    """(left, right) of every line or bar of the gauges, in percent of the width."""
    found = []
    for mark in page.of("i", kind):
        style = dict(part.split(":") for part in (mark["style"] or "").split(";"))
        left, width = (float(style.get(key, "0%").rstrip("%")) for key in ("left", "width"))
        found.append((left, left + width))
    return found


def test_gauges_show_support_below_guessing_in_full(fresh: Path) -> None:
    """One axis from -1.5 to 1: guessing at 60 %, the threshold of 0.5 at 80 %."""
    results = json.loads((fresh / "results.json").read_text())
    support = {"base": (-1.2, [-1.3, -1.05]), "sft": (-0.25, [-0.5, 0.05]), "grpo": (0.75, [0.5, 0.9])}
    for row in results["stages"]:
        row["support"], row["support_ci95"] = support[row["name"]]
    for row in results["decisions"]:
        row["support"] = support[row["after"]][0]
    (fresh / "results.json").write_text(json.dumps(results))
    page = Page(write_report(fresh))
    assert places(page, "fill") == [(12, 60), (50, 60), (60, 90)]
    assert places(page, "ci") == [(8, 18), (40, 62), (80, 96)]
    assert places(page, "zero") == [(60, 60)] * 3
    assert places(page, "mark") == [(80, 80)] * 2
    minus = "\u2212"
    said = f"support {minus}1.20 (95\u202f% interval {minus}1.30 to {minus}1.05), below guessing"
    assert said in page.text
    assert page.of("div", "gauge")[0]["aria-label"] == (
        f"{said}; 0 is guessing; threshold 0.50; axis from {minus}1.5 to 1"
    )
    assert "support 0.75 (95\u202f% interval 0.50 to 0.90)" in page.text
    assert [page.words.count(word) for word in (f"{minus}1.5", "guessing", "threshold 0.50")] == [3, 3 + 2, 2]


def test_an_axis_holds_0_1_and_the_lowest_value() -> None:
    assert [axis(values).low for values in ([], [0.3], [-0.01], [-0.5], [-1.12, 0.4])] == [
        0,
        0,
        -0.5,
        -0.5,
        -1.5,
    ]
    assert (axis([-1.0]).at(-1.0), axis([-1.0]).at(0.0), axis([-1.0]).at(1.0)) == (0, 50, 100)


# --- the words --------------------------------------------------------------------------------------------
def run_with(
    folder: Path, accuracies: Sequence[float], p_values: Sequence[float], *, reached: float = 0.9, **more: Any
) -> Run:
    """The run of a folder with other accuracies on the test split, p values of its steps, last Pass@2."""
    run = read_run(folder)
    rows = [dict(row) for row in run.test]
    for row, acc in zip(rows, accuracies, strict=True):
        row |= {"acc_at_1": acc, "acc_at_1_ci95": [acc - 0.04, acc + 0.04]}
        row["pass_at_k"] = row["pass_at_k"] | {"2": reached if row is rows[-1] else 0.9}
    tests = {
        f"{b['name']}_vs_{a['name']}": {"b": 7, "c": 5, "p": p, "difference": b["acc_at_1"] - a["acc_at_1"]}
        for (a, b), p in zip(pairwise(rows), p_values, strict=True)
    }
    tests["grpo_vs_base"] = {"b": 3, "c": 9, "p": 0.001, "difference": accuracies[-1] - accuracies[0]}
    return replace(run, results=run.results | {"stages": rows, "tests": tests} | more)


@pytest.mark.parametrize(
    ("accuracies", "p_values", "told", "never"),
    [
        (
            (0.4, 0.7, 0.75),
            (1e-9, 0.03),
            ["SFT raised", "GRPO then raised it to 75.0"],
            ["chance may", "moved"],
        ),
        (
            (0.4, 0.7, 0.73),
            (1e-9, 0.05),
            ["SFT raised", "GRPO then moved it to 73.0", "chance may"],
            ["GRPO then r"],
        ),
        ((0.4, 0.7, 0.6), (1e-9, 0.01), ["GRPO then lowered it to 60.0"], ["chance may"]),
        ((0.4, 0.7, 0.7), (1e-9, 1.0), ["GRPO then left it there"], ["chance may"]),
        ((0.4, 0.3, 0.3), (0.01, 1.0), ["SFT lowered the share"], ["raised"]),
        ((0.4, 0.45, 0.9), (0.2, 1e-9), ["SFT moved the share", "chance may explain; GRPO then raised"], []),
    ],
)
def test_the_verdict_says_no_more_than_the_tests(
    folder: Path, accuracies: Sequence[float], p_values: Sequence[float], told: list[str], never: list[str]
) -> None:
    said = verdict(run_with(folder, accuracies, p_values))
    assert [part for part in told if part not in said] == []
    assert [part for part in never if part in said] == []


def test_the_paragraph(folder: Path) -> None:
    chance = {"chance": {"acc": 0.41, "ci95": [0.4, 0.42], "n": 60}}
    blank = {"blank_image": {"acc": 0.5, "ci95": [0.4, 0.6], "n": 60, "stage": "grpo"}}
    said = paragraph(run_with(folder, (0.4, 0.7, 0.66), (1e-9, 0.0499), baselines=chance | blank))
    assert "guessing gets 41.0\u202f%, so it may have been guessing" in said
    worse = "5 questions became right and 7 became wrong, \u22124.0 points (McNemar p = 0.0499, significant)"
    assert f"GRPO against SFT: it got worse: {worse}" in said
    assert "GRPO still gets 50.0\u202f%" in said
    assert "no clear sign" not in said
    assert "All training together" not in said
    assert "bettered" not in said
    better = paragraph(run_with(folder, (0.4, 0.7, 0.8), (1e-9, 0.01), baselines=chance))
    assert "GRPO bettered the first answer without bringing more within reach." in better
    wider = paragraph(run_with(folder, (0.4, 0.7, 0.8), (1e-9, 0.01), reached=0.92))
    assert "for 90.0\u202f%, then 90.0\u202f%, then 92.0\u202f% of the questions (Pass@2). With" in wider
    open_ = paragraph(
        run_with(folder, (0.4, 0.7, 0.69), (1e-9, 0.7), baselines=blank | {"majority": {"acc": 0.66}})
    )
    assert (
        "fewer right: 5 questions became right and 7 became wrong, \u22121.0 points (McNemar p = 0.700, not"
        in open_
    )
    assert "All training together: +29.0 points (p = 0.001)." in open_
    assert "Always giving the commonest answer gets 66.0\u202f%: the model is not clearly better." in open_
    blind = paragraph(run_with(folder, (0.4, 0.5, 0.52), (0.1, 0.7), baselines=blank))
    assert "So there is no clear sign that it uses the image." in blind
    low = {"blank_image": blank["blank_image"] | {"acc": 0.1}, "shuffled_image": {"acc": 0.5, "n": 60}}
    swapped = run_with(folder, (0.4, 0.5, 0.52), (0.1, 0.7), baselines=low)
    swapped.results["reliance"] = {"unchanged_frac": 0.25}
    told = paragraph(swapped)
    assert "still gets 10.0\u202f%, with the image of another question 50.0\u202f%." in told
    assert "25.0\u202f% of its answers do not change, whichever is shown." in told
    assert "So there is no clear sign that it uses the image." in told


def test_numbers_as_words() -> None:
    assert [p_value(p) for p in (0.0004, 0.0213, 0.0496, 0.05, 0.5)] == [
        "p < 0.001", "p = 0.021", "p = 0.0496", "p = 0.0500", "p = 0.500"
    ]  # fmt: skip
    assert [signed(x) for x in (3.14, -1.2, 0, -0.04)] == ["+3.1", "\u22121.2", "0.0", "0.0"]
    told = [duration(s).replace("\u202f", " ") for s in (8.44, 83.2, 725, 12_000)]
    assert told == ["8.4 s", "83 s", "12 min 5 s", "3 h 20 min"]


# --- the figures ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("span", [(0.83, 1.04), (0, 1), (2.4, 2.4), (-3e-7, 5e-6), (17, 18.2), (0, 0)])
def test_ticks_are_round_and_cover(span: tuple[float, float]) -> None:
    found = ticks(*span)
    gaps = [b - a for a, b in pairwise(found)]
    assert found[0] <= span[0] <= span[1] <= found[-1]
    assert 2 <= len(found) <= 7
    assert max(gaps) == pytest.approx(min(gaps))
    assert f"{gaps[0]:.1e}"[:3] in ("1.0", "2.0", "2.5", "5.0")


def test_smoothing_keeps_lines_and_calms_noise() -> None:
    line = [(float(i), 3 - 0.5 * i) for i in range(50)]
    assert np.allclose(smooth(line), line)
    assert smooth([(1.0, 7.0)]) == [(1.0, 7.0)]
    drawn = random.Random(0)
    noisy = [(float(i), drawn.gauss(0, 1)) for i in range(200)]
    assert np.std([v for _, v in smooth(noisy)]) < 0.4
    long = [(float(i), float(i % 2)) for i in range(4000)]
    assert len(thin(long)) == 400
    assert {value for _, value in thin(long)} == {0.5}
    assert thin(line) == line
    assert step_ticks(1, 150) == [50, 100, 150]
    assert step_ticks(1, 2) == [1, 2]


def test_figures_show_by_themselves(folder: Path, tmp_path: Path) -> None:
    found = figures(folder)
    assert list(found) == ["accuracy", "pass_at_k", "training", "by_kind", "by_modality"]
    for name, html in found.items():
        (tmp_path / name).write_text(html, encoding="utf-8")
        page = Page(tmp_path / name)
        assert page.of("svg", "plot")
        assert "--lm-sft:" in html


# --- bad folders ------------------------------------------------------------------------------------------
def test_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no recipe\.yaml and no results\.json; give the output directory"):
        write_report(tmp_path)
    with pytest.raises(RecipeError, match="no recipe"):
        write_report(tmp_path / "absent")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("results.json", "{", r"results\.json: not JSON"),
        ("results.json", "[]", r'results\.json: holds no list "stages"'),
        ("results.json", '{"stages": []}', "no stage was measured on the test split"),
        ("results.json", '{"stages": [{"name": "base"}]}', "stage 1 lacks acc_at_1, acc_at_1_ci95, by_kind"),
        ("metrics.jsonl", '{"step": 1}\n\n{"step"', r"metrics\.jsonl:3: not JSON"),
        ("completions.jsonl", '{"step": 1}\n7\n', r"completions\.jsonl:2: not an object, got 7"),
        ("recipe.yaml", "modle: {}", r"recipe\.yaml:1: unknown key modle"),
    ],
)
def test_bad_files_are_named(fresh: Path, name: str, text: str, told: str) -> None:
    (fresh / name).write_text(text)
    with pytest.raises(RecipeError, match=told):
        write_report(fresh)
    assert not (fresh / "report.html").exists()


# --- in a browser -----------------------------------------------------------------------------------------
def test_in_a_browser(folder: Path, browser_path: str) -> None:
    from playwright.sync_api import sync_playwright

    wide = "[...document.querySelectorAll('svg.plot text')].filter(t => {"
    wide += "const a = t.getBoundingClientRect(), b = t.closest('svg').getBoundingClientRect();"
    wide += "return a.width && (a.left < b.left - 1 || a.right > b.right + 1)}).map(t => t.textContent)"
    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=browser_path, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 390, "height": 800}, java_script_enabled=True)
        trouble: list[str] = []
        page.on("console", lambda message: trouble.append(message.text))
        page.on("request", lambda request: trouble.append(request.url[:80]))
        page.goto((folder / "report.html").as_uri())
        requested = [entry for entry in trouble if not entry.startswith(("data:", "file:"))]
        assert requested == []
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        assert page.evaluate(wide) == []
        total = page.locator("article:visible").count()
        page.locator("label", has_text="Never right").click()
        left = page.locator("article:visible")
        assert 0 < left.count() < total
        assert all("Never right" in card for card in left.all_inner_texts())
        browser.close()


def test_the_report_needs_no_torch() -> None:
    code = "import sys, lite_medrl.tools.report; print('torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPO)
    assert done.stdout.split() == ["False", "False"]
