"""What a run measures once its stages are done: baselines, paired tests, peak memory and sizes."""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from platform import python_version
from typing import Any

from lite_medrl import __version__
from lite_medrl.tools.progress import Bar
from lite_medrl.tools.run_folder import Json

PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "accelerate")


def baselines(job: Any, unseen: Sequence[Json]) -> Json:
    """What a guess, the commonest answer and the last trained model without the image score on the test
    split.

    Args:
        unseen: that model's answers with other images (`unseen_rows`).
    """
    from lite_medrl.measure.support import majority_baseline

    test, recipe = job.sets["test"], job.recipe
    rows = {
        "majority": majority_baseline(job.sets["train"], test),
        "blank_image": [row["correct"] for row in unseen if row["shown"] == "blank"],
        "shuffled_image": [row["correct"] for row in unseen if row["shown"] == "shuffled"],
        "chance": [1 / len(s.options) for s in test],
    }
    bootstrap = {"bootstrap_samples": recipe.diagnose.bootstrap_samples, "seed": recipe.seed}
    found = {
        name: baseline([float(v) for v in values], **bootstrap)
        for name, values in rows.items()
        if len(values)
    }
    for name in ("blank_image", "shuffled_image"):
        if name in found:
            found[name]["stage"] = job.state.stages[-1]["name"]
    return found


def baseline(scores: Sequence[float], **bootstrap: int) -> Json:
    """Mean of scores on the test split; its interval is Wilson's where each is 0 or 1, else by bootstrap."""
    from lite_medrl.measure.statistics import bootstrap_ci, wilson_ci

    right, n = sum(scores), len(scores)
    counted = set(scores) <= {0.0, 1.0}
    ci95 = wilson_ci(int(right), n) if counted else bootstrap_ci(scores, **bootstrap)
    return {"acc": right / n, "ci95": list(ci95), "n": n, "split": "test"}


def unseen_rows(job: Any) -> list[Json]:
    """The last trained model's greedy answers to the test questions with a grey image and another one."""
    from lite_medrl.data.same_images import checked_images
    from lite_medrl.data.sources import Tally
    from lite_medrl.measure.ask import drawing
    from lite_medrl.measure.evaluate import Answerer, evaluate
    from lite_medrl.measure.protocols import protocol, worded
    from lite_medrl.measure.shown import exchange

    test = checked_images(job.sets["test"], on_error="stop", tally=Tally()).samples
    recipe = job.recipe
    changes = {"num_samples": 0, "max_new_tokens": recipe.diagnose.max_completion_length}
    asked = worded(protocol("lite-v1", changes), recipe.prompt, recipe.rollout.stop)
    answerer = Answerer(
        job.model, job.processor, asked, recipe.diagnose.batch_size, recipe.seed, **drawing(recipe.rollout)
    )
    found: list[Json] = []
    with Bar("other images", len(test), "question") as bar:
        for rows in evaluate(answerer, test, exchange(test, recipe.seed), shown=("blank", "shuffled")):
            found += rows
            bar.advance(len({row["id"] for row in rows}))
    return found


def image_reliance(job: Any, unseen: Sequence[Json]) -> Json | None:
    """How much the last trained model's answers to the test questions hang on the image."""
    from lite_medrl.measure.reliance import reliance

    last, real = job.state.stages[-1]["name"], []
    for line in (job.folder / "completions.jsonl").read_text(encoding="utf-8").rstrip("\n").split("\n"):
        row = json.loads(line)
        if (row.get("split"), row.get("name")) == ("test", last):
            real.append(row | {"shown": "real", "text": row["greedy"]})
    found = reliance([*real, *unseen], seed=job.recipe.seed)
    return found and {"stage": last, "split": "test", "n": len(real), **found}


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


def versions() -> dict[str, str]:
    """lite-medrl's own version, those of the libraries that its figures hang on, and Python's."""
    found = {name: version(name) for name in PACKAGES}
    return {"lite-medrl": __version__, **found, "python": python_version()}


def machine() -> Json:
    """The card, or the kind of CPU where there is none, and the number of CPU cores."""
    from lite_medrl.tools.doctor import device

    return {"name": device()["name"], "cpu_cores": os.cpu_count()}


def peak_gib() -> dict[str, float | None]:
    """Peak resident memory of this process, and of the CUDA allocator where there is one."""
    import torch

    cuda = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None
    unit = 2**30 if sys.platform == "darwin" else 2**20  # macOS counts bytes, Linux KiB
    return {"rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, "cuda": cuda}
