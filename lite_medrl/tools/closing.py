"""What a run measures once its stages are done: baselines, paired tests, peak memory and sizes."""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from lite_medrl.tools.progress import Bar
from lite_medrl.tools.run_folder import Json


def baselines(job: Any) -> Json:
    """What a guess, the commonest answer and the last trained model without the image score on the test
    split.
    """
    from lite_medrl.measure.statistics import bootstrap_ci
    from lite_medrl.measure.support import majority_baseline

    test, recipe = job.sets["test"], job.recipe
    rows = {
        "majority": majority_baseline(job.sets["train"], test),
        "blank_image": blank_answers(job),
        "chance": [1 / len(s.options) for s in test],
    }
    found: Json = {}
    for name, values in rows.items():
        scores = [float(v) for v in values]
        low, high = bootstrap_ci(
            scores, bootstrap_samples=recipe.diagnose.bootstrap_samples, seed=recipe.seed
        )
        found[name] = {
            "acc": sum(scores) / len(scores),
            "ci95": [low, high],
            "n": len(scores),
            "split": "test",
        }
    found["blank_image"]["stage"] = job.state.stages[-1]["name"]
    return found


def blank_answers(job: Any) -> list[bool]:
    """Whether the last trained model is right about each test question without its image."""
    from lite_medrl.measure.ask import ask, drawing, greedy
    from lite_medrl.model.encode import wording

    test, recipe = job.sets["test"], job.recipe
    with Bar("blank images", len(test), "question") as bar:
        asked = ask(
            job.model,
            job.processor,
            test,
            num_samples=0,
            blank=True,
            progress=bar.advance,
            sampling=greedy(recipe),
            batch_size=recipe.diagnose.batch_size,
            seed=recipe.seed,
            **drawing(recipe.rollout),
            **wording(recipe.prompt),
        )
    return [a.correct for a in asked]


def paired_tests(folder: Path, stages: Sequence[Json]) -> Json:
    """McNemar between neighbouring stages, and between the first and the last, on the test split."""
    from lite_medrl.measure.statistics import mcnemar

    answers: dict[str, dict[str, bool]] = {}
    for line in (folder / "completions.jsonl").read_text(encoding="utf-8").rstrip("\n").split("\n"):
        row = json.loads(line)
        if row.get("split") == "test":
            answers.setdefault(row["name"], {})[row["id"]] = row["correct"]
    names = [s["name"] for s in stages if s["split"] == "test"]
    found: Json = {}
    for before, after in [*pairwise(names), *([(names[0], names[-1])] if len(names) > 2 else [])]:
        pairs = [(answers[before][i], answers[after][i]) for i in answers[before]]
        found[f"{after}_vs_{before}"] = asdict(mcnemar([a for a, _ in pairs], [b for _, b in pairs]))
    return found


def parameter_counts(model: Any) -> Json:
    """How many parameters there are and how many are trained (4-bit ones counted as weights, not bytes)."""
    trained, total = model.get_nb_trainable_parameters()
    return {"parameters": total, "trained_parameters": trained}


def peak_gib() -> dict[str, float | None]:
    """Peak resident memory of this process, and of the CUDA allocator where there is one."""
    import torch

    cuda = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None
    unit = 2**30 if sys.platform == "darwin" else 2**20  # macOS counts bytes, Linux KiB
    return {"rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, "cuda": cuda}
