"""An evaluation as one side of a comparison: its protocol, its greedy answers by question, its figures.

Several benchmarks are compared together; a question is known by its benchmark and id.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lite_medrl.measure.reliance import counts
from lite_medrl.measure.scores import scores
from lite_medrl.measure.summary import SAMPLED, completion, sampled_figures
from lite_medrl.tools.eval_folder import SETUP, Shard, gathered
from lite_medrl.types import RecipeError

Json = dict[str, Any]


def is_evaluation(folder: Path) -> bool:
    """Whether `eval` made this folder."""
    return (folder / SETUP).is_file()


def evaluation_side(folder: Path) -> Json:
    """Where it is from, its scores, and its rows by question, as `compare` wants them.

    "rows" are the closed questions (the open ones, if there are no others), "open_rows" the open ones beside
    them. Raises RecipeError for an evaluation that is not finished, or damaged.
    """
    results = finished_results(folder)
    rows = gathered(folder, Shard(1, results["shards"]).all_files())
    real = [row for row in rows if not row["number"] and row["shown"] == "real"]
    if not real or not all({"closed", "correct", "text", "options", "answer"} <= row.keys() for row in real):
        raise RecipeError(f"{folder}: its answers are missing or damaged; evaluate again with --overwrite")
    closed = by_question([row for row in real if row["closed"]])
    free = by_question([row for row in real if not row["closed"]])
    asked = [row for row in real if row["options"]]
    drawn = sampled_figures(asked, rows) if len(results["benchmarks"]) == 1 else None
    return {
        "run": str(folder),
        "stage": results["model"]["stage"],
        "protocol": results["protocol"]["id"],
        "split": " + ".join("/".join([one["name"], *one["splits"]]) for one in results["benchmarks"]),
        "skipped": sum(left["skipped"] for left in results["left_out"].values()),
        "scores": scores([row for row in (closed or free).values() if counts(row)]),
        **({key: drawn[key] for key in SAMPLED} if drawn else {}),
        "rows": closed or free,
        "open_rows": free if closed else {},
    }


def by_question(rows: list[Json]) -> dict[str, Json]:
    """The rows by benchmark and id."""
    return {f"{row['benchmark']}:{row['id']}": completion(row) for row in rows}


def finished_results(folder: Path) -> Json:
    """results.json of an evaluation; RecipeError where it is not there or not one."""
    path = folder / "results.json"
    if not path.is_file():
        raise RecipeError(f"{folder}: the evaluation is not finished; go on by --resume, or its other shards")
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RecipeError(f"{path}: not JSON ({error}); evaluate again with --overwrite") from None
    needed = {"kind", "shards", "model", "protocol", "benchmarks", "left_out"}
    if not isinstance(results, dict) or not needed <= results.keys():
        raise RecipeError(f"{path}: no results of an evaluation; evaluate again with --overwrite")
    return results
