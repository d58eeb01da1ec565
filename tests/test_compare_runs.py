"""Two runs against each other: figures by hand, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from lite_medrl import cli
from lite_medrl.measure.statistics import paired_bootstrap, wilson_ci
from lite_medrl.tools.compare_runs import compare_runs, describe, verdict
from lite_medrl.types import RecipeError

KINDS = ("organ", "sign")


def write_run(folder: Path, right: dict[str, list[bool]], *, split: str = "test", **changes: Any) -> Path:
    """A finished run with the given verdicts by stage; every second question is a yes/no question."""
    folder.mkdir()
    stages, rows = [], []
    for name, values in right.items():
        stages.append(
            {
                "name": name, "split": split, "pass_at_k": {"1": 0.25, "4": 0.75},
                "chance_pass_at_k": {"1": 0.4, "4": 0.8},
                "mean_at_k": 0.25, "maj_at_k": {"1": 0.25, "4": 0.5},
            }
        )  # fmt: skip
        for place, correct in enumerate(values):
            row = {
                "name": name, "split": split, "id": f"q{place}", "question": f"what {place}?",
                "options": ["no", "yes"] if place % 2 else ["lung", "heart"],
                "answer": "yes" if place % 2 else "lung", "kind": KINDS[place % 2], "modality": "head",
                "greedy": "", "failure": None if correct else "no_answer", "correct": correct,
            }  # fmt: skip
            rows.append(row | changes)
    rows.append({"stage": "grpo", "rollout": True})  # a training rollout, which has no split
    (folder / "results.json").write_text(json.dumps({"stages": stages}))
    (folder / "completions.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return folder


A = [True, True, False, False, False, True, False, False]
B = [True, True, True, True, True, False, False, True]


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    first = write_run(tmp_path / "a", {"base": [False] * 8, "grpo": A})
    return first, write_run(tmp_path / "b", {"base": [True] * 8, "sft": B})


def test_figures(runs: tuple[Path, Path]) -> None:
    found = compare_runs(*runs)
    assert (found["n"], found["split"], found["protocol"]) == (8, "test", "lite-v1")
    assert (found["a"]["stage"], found["b"]["stage"]) == ("grpo", "sft")
    assert (found["a"]["scores"]["accuracy"], found["b"]["scores"]["accuracy"]) == (3 / 8, 6 / 8)
    assert found["a"]["scores"]["ci95"] == pytest.approx(wilson_ci(3, 8))
    assert found["a"]["scores"]["parse_failure_frac"] == 5 / 8
    assert found["difference"] == 3 / 8
    assert found["difference_ci95"] == pytest.approx(paired_bootstrap(A, B).ci95)
    test = found["mcnemar"]
    assert (test["b"], test["c"]) == (1, 4)
    assert test["p"] == pytest.approx(stats.binomtest(1, 5).pvalue, abs=1e-12)
    assert test["p_mid"] == pytest.approx(test["p"] - stats.binom.pmf(1, 5, 0.5), abs=1e-12)
    assert test["p_continuity"] == pytest.approx(stats.chi2.sf(2**2 / 5, 1), abs=1e-12)
    organ, sign = found["by_kind"]["organ"], found["by_kind"]["sign"]
    assert (organ["n"], organ["a"], organ["b"], organ["mcnemar"]["c"]) == (4, 0.25, 0.75, 2)
    assert (sign["n"], sign["a"], sign["b"], sign["mcnemar"]["b"]) == (4, 0.5, 0.75, 1)
    assert found["by_answer_type"].keys() == {"choice", "yes_no"}
    assert found["by_modality"]["head"]["difference"] == 3 / 8


def test_text(runs: tuple[Path, Path]) -> None:
    text = describe(compare_runs(*runs))
    assert "8 questions of the test split" in text
    assert "(grpo): accuracy 0.375 [" in text
    assert "B - A  +0.375 [" in text
    assert "1 right in A only, 4 in B only; p = 0.38 exact, 0.22 mid-p, 0.37 with continuity" in text
    assert "A  mean@K 0.250, maj@1 0.250, maj@4 0.500, Pass@1 0.250 (chance 0.400), Pass@4 0.750" in text
    assert "kind organ (n = 4): 0.250 -> 0.750, +0.500 [" in text
    assert text.endswith("\nn = 8: too few questions to compare.")


def test_the_verdict_needs_the_interval_and_the_test(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", {"grpo": [False] * 30 + [True] * 10})
    better = write_run(tmp_path / "b", {"grpo": [True] * 8 + [False] * 22 + [True] * 10})
    slightly = write_run(tmp_path / "c", {"grpo": [True] * 5 + [False] * 25 + [True] * 10})
    found = compare_runs(first, better)
    low, high = (100 * bound for bound in found["difference_ci95"])
    assert found["mcnemar"]["p"] == pytest.approx(2 / 2**8)
    assert 0 < low < 20 < high
    assert found["verdict"] == f"B is better: +20.0 points [{low:.1f}, {high:.1f}]."
    assert describe(found).splitlines()[-1] == found["verdict"]
    assert compare_runs(better, first)["verdict"] == f"A is better: +20.0 points [{low:.1f}, {high:.1f}]."
    open_ = compare_runs(first, slightly)
    assert open_["difference_ci95"][0] > 0  # the interval alone would say B
    assert open_["mcnemar"]["p"] == pytest.approx(2 / 2**5)
    assert open_["verdict"] == "No difference can be told from n = 40 questions."
    assert compare_runs(first, first)["verdict"] == open_["verdict"]


def test_the_verdict_where_the_interval_holds_0() -> None:
    tested = {"difference": 0.1, "difference_ci95": [0.0, 0.2], "mcnemar": {"p": 0.01}}
    assert verdict(tested, 99) == "No difference can be told from n = 99 questions."


def test_stage_and_order(runs: tuple[Path, Path]) -> None:
    found = compare_runs(*runs, stage="base")
    assert (found["difference"], found["mcnemar"]["c"]) == (1.0, 8)
    assert compare_runs(*reversed(runs))["difference"] == -3 / 8
    same = compare_runs(runs[0], runs[0])
    assert (same["difference"], same["difference_ci95"], same["mcnemar"]["p"]) == (0.0, [0.0, 0.0], 1.0)


def test_the_verb(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", *map(str, runs)]) == 0
    assert "B - A  +0.375" in capsys.readouterr().out
    assert cli.main(["compare", *map(str, runs), "--stage", "base", "--json"]) == 0
    assert cli.main(["compare", *map(str, runs), "--stage", "sft"]) == 2
    message = capsys.readouterr().err
    assert "stage 'sft' was not measured on the test split; measured: base, grpo" in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer": "heart"}, "question 'q0' has another answer"),
        ({"question": "why?"}, "question 'q0' has another question"),
        ({"options": ["lung", "heart", "liver"]}, "question 'q0' has another options"),
    ],
)
def test_unlike_questions_are_refused(
    runs: tuple[Path, Path], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    other = write_run(tmp_path / "c", {"grpo": A}, **changes)
    with pytest.raises(RecipeError, match=message):
        compare_runs(runs[0], other)


def test_what_else_is_refused(runs: tuple[Path, Path], tmp_path: Path) -> None:
    short = write_run(tmp_path / "short", {"grpo": A[:6]})
    with pytest.raises(RecipeError, match=r"a answered 2 questions that .*short did not, such as 'q6'"):
        compare_runs(runs[0], short)
    with pytest.raises(RecipeError, match=r"a answered 2 questions that .*short did not"):
        compare_runs(short, runs[0])
    with pytest.raises(RecipeError, match="nothing was measured on the validation split"):
        compare_runs(*runs, split="validation")
    with pytest.raises(RecipeError, match=r"no results\.json"):
        compare_runs(tmp_path, runs[0])
    with (runs[1] / "completions.jsonl").open("a") as file:
        file.write('{"name": "sf')
    with pytest.raises(RecipeError, match=r"completions\.jsonl:18: not JSON"):
        compare_runs(*runs)
    (runs[1] / "completions.jsonl").write_text("{}\n")
    with pytest.raises(RecipeError, match="no answers of stage 'sft' on the test split"):
        compare_runs(*runs)
    (runs[1] / "completions.jsonl").unlink()
    with pytest.raises(RecipeError, match=r"no completions\.jsonl"):
        compare_runs(*runs)


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("results.json", "{", r"b/results\.json: not JSON \(.*run again with --overwrite"),
        ("results.json", "{}", r'b/results\.json: holds no list "stages".*run again with --overwrite'),
        ("results.json", "[1]", r'b/results\.json: holds no list "stages"'),
        ("results.json", '{"stages": {}}', r'b/results\.json: holds no list "stages"'),
        ("results.json", '{"stages": [7]}', r"b/results\.json: stage 1 has no name and split, got 7"),
        ("results.json", '{"stages": [{"name": "sft"}]}', "stage 1 has no name and split"),
        (
            "results.json",
            '{"stages": [{"name": "sft", "split": "test", "pass_at_k": {"1": 0.5}}]}',
            r"b/results\.json: stage 'sft': chance_pass_at_k is None; another version wrote it, so run again",
        ),
        ("completions.jsonl", "[]", r"b/completions\.jsonl:18: not an object, got \[\]; run again with"),
        ("completions.jsonl", "7", r"b/completions\.jsonl:18: not an object, got 7"),
        ("completions.jsonl", "\udcff", r"b/completions\.jsonl:18: not JSON"),
    ],
)
def test_a_damaged_file_is_named(runs: tuple[Path, Path], name: str, text: str, told: str) -> None:
    path = runs[1] / name
    kept = path.read_bytes() if name == "completions.jsonl" else b""
    path.write_bytes(kept + text.encode("utf-8", "surrogateescape") + b"\n")
    with pytest.raises(RecipeError, match=told):
        compare_runs(*runs)


@pytest.mark.parametrize("key", ["id", "question", "options", "answer", "kind", "modality", "correct"])
@pytest.mark.parametrize("lacks", [True, False])
def test_a_row_of_another_version_is_named(runs: tuple[Path, Path], key: str, lacks: bool) -> None:
    path = runs[1] / "completions.jsonl"
    lines = path.read_text().splitlines()
    row = json.loads(lines[9])
    del row[key]
    lines[9] = json.dumps(row if lacks else row | {key: None})
    path.write_text("\n".join(lines))
    told = f"lacks '{key}'; another version wrote it" if lacks else f"'{key}' is None; run again with"
    with pytest.raises(RecipeError, match=rf"b/completions\.jsonl:10: {told}"):
        compare_runs(*runs)
