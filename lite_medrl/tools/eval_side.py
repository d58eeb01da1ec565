"""An evaluation as one side of a comparison: its protocol, its greedy answers by question, its figures.

Several benchmarks are compared together; a question is known by its benchmark and id.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lite_medrl.measure.scores import scores
from lite_medrl.measure.summary import completion, sampled_figures
from lite_medrl.tools.eval_folder import SETUP, Shard, gathered
from lite_medrl.types import RecipeError

Json = dict[str, Any]


def is_evaluation(folder: Path) -> bool:
    """Whether `eval` made this folder."""
    return (folder / SETUP).is_file()


def evaluation_side(folder: Path) -> Json:
    """Where it is from, its scores, and its rows by question, as `compare` wants them.

    Raises RecipeError for an evaluation that is not finished.
    """
    if not (folder / "results.json").is_file():
        raise RecipeError(f"{folder}: the evaluation is not finished; go on by --resume, or its other shards")
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    rows = gathered(folder, Shard(1, results["shards"]).all_files())
    real = [row for row in rows if not row["number"] and row["shown"] == "real"]
    found = {f"{row['benchmark']}:{row['id']}": completion(row) for row in real}
    keys = ("mean_at_k", "maj_at_k", "pass_at_k", "chance_pass_at_k")
    closed = [row for row in real if row["options"]]
    drawn = sampled_figures(closed, rows) if closed and len(results["benchmarks"]) == 1 else None
    return {
        "run": str(folder),
        "stage": results["model"]["stage"],
        "protocol": results["protocol"]["id"],
        "split": " + ".join("/".join([one["name"], *one["splits"]]) for one in results["benchmarks"]),
        "scores": scores(list(found.values())),
        **({key: drawn[key] for key in keys} if drawn else {}),
        "rows": found,
    }
