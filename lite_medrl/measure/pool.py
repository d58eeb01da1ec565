"""Several runs of one recipe with different seeds, as one result: means, intervals and paired tests.

The same questions come back under every seed, so the item of every interval and test is the question, with
the mean of its answers under all seeds; the answers themselves are not independent of each other.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lite_medrl.measure.statistics import bootstrap_ci, sign_flip_p, too_few
from lite_medrl.types import RecipeError

Json = dict[str, Any]


def pool(folders: Sequence[Path]) -> Json:
    """Stages and tests over the runs in `folders`, measured on their test split.

    Raises:
        RecipeError: a folder holds no finished run, or the runs did not measure the same stages and
            questions.
    """
    results = [read_results(folder) for folder in folders]
    correct = [correct_by_stage(folder) for folder in folders]
    last = {"base": "base", "sft": last_sft(results), "grpo": "grpo"}
    check_alike(correct, list(last.values()), folders)
    right = {
        stage: np.array([[run[name][i] for i in correct[0][name]] for run in correct])
        for stage, name in last.items()
    }
    return {
        "runs": [
            {key: r.get(key) for key in ("seed", "command", "model", "seconds", "peak_gib")} for r in results
        ],
        "split": "test",
        "n_questions": right["base"].shape[1],
        "stages": {stage: stage_summary(stage, name, right[stage], results) for stage, name in last.items()},
        "tests": {
            f"{b}_vs_{a}": paired(right[a], right[b])
            for a, b in (("base", "sft"), ("sft", "grpo"), ("base", "grpo"))
        },
        "baselines": {
            name: float(np.mean([r["baselines"][name]["acc"] for r in results]))
            for name in results[0]["baselines"]
        },
        "versions": results[0]["versions"],
        "cpu_cores": os.cpu_count(),
    }


def read_results(folder: Path) -> Json:
    """results.json of a finished run, with "stages" that each have a name and a split.

    Raises RecipeError where there is none, or one that no run writes.
    """
    path = folder / "results.json"
    if not path.is_file():
        raise RecipeError(
            f"{folder}: no results.json; is it the output directory of a finished `lite-medrl run`?"
        )
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RecipeError(f"{path}: not JSON ({error}); run again with --overwrite") from None
    stages = results.get("stages") if isinstance(results, dict) else None
    if not isinstance(stages, list):
        raise RecipeError(f'{path}: holds no list "stages", so no run wrote it; run again with --overwrite')
    for number, row in enumerate(stages, 1):
        if not isinstance(row, dict) or not {"name", "split"} <= row.keys():
            raise RecipeError(
                f"{path}: stage {number} has no name and split, got {row!r:.60}; run again with --overwrite"
            )
    return results


def correct_by_stage(folder: Path) -> dict[str, dict[str, bool]]:
    """Stage name -> question id -> whether the greedy answer was right, on the test split."""
    found: dict[str, dict[str, bool]] = {}
    for line in (folder / "completions.jsonl").read_text(encoding="utf-8").rstrip("\n").split("\n"):
        row = json.loads(line)
        if row.get("split") == "test":
            found.setdefault(row["name"], {})[row["id"]] = row["correct"]
    return found


def last_sft(results: Sequence[Json]) -> str:
    """Name of the last SFT round, the same in all runs."""
    names = {
        [s["name"] for s in r["stages"] if s["stage"] == "sft"][-1] for r in results if has_stage(r, "sft")
    }
    if len(names) != 1:
        raise RecipeError(
            f"the runs ended SFT in different rounds ({', '.join(sorted(names)) or 'none'}); pool like runs"
        )
    return names.pop()


def has_stage(result: Json, stage: str) -> bool:
    """Whether a run has measured a stage."""
    return any(s["stage"] == stage for s in result["stages"])


def check_alike(
    correct: Sequence[dict[str, dict[str, bool]]], names: Sequence[str], folders: Sequence[Path]
) -> None:
    """RecipeError unless every run answered the same questions in every stage."""
    for run, folder in zip(correct, folders, strict=True):
        for name in names:
            if run.get(name, {}).keys() != correct[0].get(name, {}).keys():
                raise RecipeError(
                    f"{folder}: stage {name!r} did not answer the same questions as {folders[0]}"
                )


def stage_summary(stage: str, name: str, right_RQ: np.ndarray, results: Sequence[Json]) -> Json:
    """Accuracy over runs and questions with its interval over questions, and the runs' own figures."""
    rows = [next(s for s in r["stages"] if s["name"] == name and s["split"] == "test") for r in results]
    keys = ("support", "gap", "format_failure_frac")
    return {
        "acc_at_1": float(right_RQ.mean()),
        "acc_at_1_ci95": list(bootstrap_ci(right_RQ.mean(0))),
        "acc_at_1_runs": [row["acc_at_1"] for row in rows],
        **{key: float(np.mean([row[key] for row in rows])) for key in keys},
        "support_runs": [row["support"] for row in rows],
        "rule_k": rows[0]["rule_k"],
        "pass_at_k": {k: float(np.mean([row["pass_at_k"][k] for row in rows])) for k in rows[0]["pass_at_k"]},
        "chance_pass_at_k": rows[0]["chance_pass_at_k"],
    }


def paired(before_RQ: np.ndarray, after_RQ: np.ndarray) -> Json:
    """Mean difference, its interval and sign-flip p over questions; `b` answers became wrong, `c` right."""
    difference_Q = after_RQ.mean(0) - before_RQ.mean(0)
    return {
        "b": int((before_RQ & ~after_RQ).sum()),
        "c": int((~before_RQ & after_RQ).sum()),
        "difference": float(difference_Q.mean()),
        "difference_ci95": list(bootstrap_ci(difference_Q)),
        "p_sign_flip": sign_flip_p(difference_Q),
    }


def describe(pooled: Json) -> str:
    """The stages and tests as lines of text."""
    lines = [f"{len(pooled['runs'])} runs x {pooled['n_questions']} test questions"]
    for stage, row in pooled["stages"].items():
        low, high = row["acc_at_1_ci95"]
        runs = ", ".join(f"{value:.3f}" for value in row["acc_at_1_runs"])
        lines.append(
            f"{stage:<5} Acc@1 {row['acc_at_1']:.3f} [{low:.3f}, {high:.3f}] ({runs}); "
            f"support {row['support']:.3f}"
        )
    for name, test in pooled["tests"].items():
        low, high = test["difference_ci95"]
        lines.append(
            f"{name}: {test['difference']:+.3f} [{low:+.3f}, {high:+.3f}], sign-flip p = "
            f"{test['p_sign_flip']:.2g} over questions"
        )
    return "\n".join(filter(None, [*lines, too_few(pooled["n_questions"])]))


def markdown(pooled: Json, *, device: str, command: str) -> str:
    """README's results table, every row with its interval, device, minutes, memory and command."""
    runs = pooled["runs"]
    minutes = f"{np.mean([r['seconds']['total'] for r in runs]) / 60:.1f}"
    memory = f"{max(r['peak_gib']['rss'] for r in runs):.1f}"
    lines = [
        "| stage | Acc@1, test split [95 %] | seeds | support above chance | format failures | device "
        "| minutes, whole run | peak GiB | command |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for stage, row in pooled["stages"].items():
        low, high = row["acc_at_1_ci95"]
        seeds = ", ".join(f"{value:.3f}" for value in row["acc_at_1_runs"])
        lines.append(
            f"| {stage} | **{row['acc_at_1']:.3f}** [{low:.3f}, {high:.3f}] | {seeds} | {row['support']:.3f} "
            f"| {row['format_failure_frac']:.1%} | {device} | {minutes} | {memory} | `{command}` |"
        )
    for name, value in pooled["baselines"].items():
        lines.append(f"| *{name.replace('_', ' ')}* | {value:.3f} | | | | | | | `{command}` |")
    return "\n".join(lines)
