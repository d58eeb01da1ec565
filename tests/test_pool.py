"""Runs that differ in seed, put together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lite_medrl.measure.pool import describe, pool
from lite_medrl.types import RecipeError

STAGES = ("base", "sft", "grpo")


def write_run(folder: Path, right: dict[str, list[bool]], seed: int) -> Path:
    """A finished run with the given greedy verdicts on the test split."""
    folder.mkdir()
    stages = [
        {
            "stage": name,
            "name": name,
            "split": "test",
            "acc_at_1": sum(values) / len(values),
            "support": 0.1 * seed,
            "gap": 0.2,
            "format_failure_frac": 0.0,
            "rule_k": 2,
            "pass_at_k": {"1": 0.5, "2": 0.6 + 0.1 * seed},
            "chance_pass_at_k": {"1": 0.3, "2": 0.5},
        }
        for name, values in right.items()
    ]
    result = {
        "stages": stages,
        "seed": seed,
        "seconds": {"total": 1.0},
        "peak_gib": {"rss": 1.0},
        "versions": {"torch": "x"},
        "baselines": {"majority": {"acc": 0.3 + 0.1 * seed}},
    }
    (folder / "results.json").write_text(json.dumps(result))
    rows = [
        {"name": name, "split": split, "id": f"q{i}", "correct": value}
        for name, values in right.items()
        for i, value in enumerate(values)
        for split in ("test", "validation")
    ]
    (folder / "completions.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    one = {"base": [False] * 6, "sft": [True, False, True, False, True, False], "grpo": [True] * 5 + [False]}
    two = {"base": [False] * 5 + [True], "sft": [True, True, False, False, True, True], "grpo": [True] * 6}
    return [write_run(tmp_path / "a", one, 0), write_run(tmp_path / "b", two, 1)]


def test_means_and_tests_are_over_all_answers(runs: list[Path]) -> None:
    pooled = pool(runs)
    assert pooled["n_questions"] == 6
    assert [pooled["stages"][s]["acc_at_1"] for s in STAGES] == pytest.approx([1 / 12, 7 / 12, 11 / 12])
    assert pooled["stages"]["sft"]["acc_at_1_runs"] == pytest.approx([0.5, 4 / 6])
    assert pooled["stages"]["sft"]["support"] == pytest.approx(0.05)
    assert pooled["stages"]["sft"]["pass_at_k"]["2"] == pytest.approx(0.65)
    test = pooled["tests"]["grpo_vs_sft"]
    assert (test["b"], test["c"]) == (0, 4)
    assert test["p_sign_flip"] == pytest.approx(2 * 0.5**3)  # three questions moved, one of them twice
    assert "p" not in test
    assert test["difference"] == pytest.approx(4 / 12)
    low, high = test["difference_ci95"]
    assert 0 <= low < 4 / 12 < high
    assert pooled["baselines"]["majority"] == pytest.approx(0.35)
    told = describe(pooled)
    assert "grpo_vs_sft: +0.333" in told
    assert "sign-flip p = 0.25 over questions" in told
    assert told.endswith("\nn = 6: too few questions to compare")


def test_a_seed_more_with_the_same_answers_is_no_more_evidence(runs: list[Path], tmp_path: Path) -> None:
    """McNemar's test on the pooled answers had it otherwise: p fell with every seed that said the same."""
    right = {"base": [False] * 12, "sft": [True] * 4 + [False] * 8, "grpo": [True] * 6 + [False] * 6}
    same = [write_run(tmp_path / f"same{seed}", right, seed) for seed in range(4)]
    alone, many = (pool(folders)["tests"]["sft_vs_base"] for folders in (same[:1], same))
    assert alone["p_sign_flip"] == many["p_sign_flip"] == pytest.approx(2 * 0.5**4)
    assert alone["difference_ci95"] == many["difference_ci95"]
    assert (alone["c"], many["c"]) == (4, 16)


def test_unlike_runs_are_refused(runs: list[Path], tmp_path: Path) -> None:
    odd = write_run(tmp_path / "c", {"base": [True], "sft": [True], "grpo": [True]}, 2)
    with pytest.raises(RecipeError, match="did not answer the same questions"):
        pool([*runs, odd])
    with pytest.raises(RecipeError, match=r"no results\.json"):
        pool([tmp_path])
