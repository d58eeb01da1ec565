"""What is in the folder of a finished run? Its files, read and checked once, for all that reports on it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lite_medrl.recipe import Recipe, load_recipe
from lite_medrl.types import RecipeError

Json = dict[str, Any]
STAGE_KEYS = frozenset(
    [
        "stage",
        "name",
        "split",
        "n",
        "acc_at_1",
        "acc_at_1_ci95",
        "pass_at_k",
        "pass_at_k_ci95",
        "chance_pass_at_k",
        "support",
        "support_ci95",
        "rule_k",
        "gap",
        "format_failure_frac",
        "by_kind",
        "by_modality",
        "seconds",
    ]
)


@dataclass(frozen=True, slots=True)
class Run:
    """results.json, metrics.jsonl, completions.jsonl and recipe.yaml of a run."""

    results: Json
    metrics: list[Json]
    completions: list[Json]
    recipe: Recipe
    recipe_text: str

    @property
    def test(self) -> list[Json]:
        """The stages as measured on the test split, in order; there is at least one."""
        return [row for row in self.results["stages"] if row["split"] == "test"]

    @property
    def baselines(self) -> Json:
        """What is reached without the model or without the image; may be empty."""
        return self.results.get("baselines") or {}

    @property
    def model_name(self) -> str:
        """Hub id of the model, or the last part of its folder."""
        name = str(self.results["model"]["name"])
        return Path(name).name if Path(name).is_absolute() else name

    @property
    def data_name(self) -> str:
        """Name of the data source, without its folders."""
        return Path(self.recipe.data.source).name


def read_run(folder: Path) -> Run:
    """The run in a folder; metrics.jsonl and completions.jsonl may be absent.

    Raises RecipeError where the folder holds no finished run, or a file that cannot be used.
    """
    missing = [name for name in ("recipe.yaml", "results.json") if not (folder / name).is_file()]
    if missing:
        raise RecipeError(
            f"{folder}: no {' and no '.join(missing)}; give the output directory of a finished run "
            "(lite-medrl run ... --resume finishes an interrupted one)"
        )
    results = read_json(folder / "results.json")
    check_results(results, folder / "results.json")
    return Run(
        results,
        [row for _, row in read_lines(folder / "metrics.jsonl")],
        [row for _, row in read_lines(folder / "completions.jsonl")],
        load_recipe(folder / "recipe.yaml").recipe,
        (folder / "recipe.yaml").read_text(encoding="utf-8"),
    )


def read_json(path: Path) -> Any:
    """The value in a JSON file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RecipeError(f"{path}: not JSON ({error}); run again with --overwrite") from None


def read_lines(path: Path) -> list[tuple[int, Json]]:
    """One object a line, each with the line's number from 1; none where there is no file."""
    data = path.read_bytes() if path.is_file() else b""
    rows: list[tuple[int, Json]] = []
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise RecipeError(f"{path}:{number}: not JSON ({error}); run again with --overwrite") from None
        if not isinstance(row, dict):
            raise RecipeError(f"{path}:{number}: not an object, got {row!r:.60}; run again with --overwrite")
        rows.append((number, row))
    return rows


def check_results(results: Any, path: Path) -> None:
    """RecipeError where results.json is not what a run writes."""
    stages = results.get("stages") if isinstance(results, dict) else None
    if not isinstance(stages, list) or not all(isinstance(row, dict) for row in stages):
        raise RecipeError(f'{path}: holds no list "stages"; it is not the results.json of a run')
    for number, row in enumerate(stages, 1):
        lacking = sorted(STAGE_KEYS - set(row))
        if lacking:
            raise RecipeError(
                f"{path}: stage {number} lacks {', '.join(lacking)}; another version wrote it, so run again"
            )
    if not any(row["split"] == "test" for row in stages):
        raise RecipeError(f"{path}: no stage was measured on the test split; finish the run with --resume")
    if not isinstance(results.get("model"), dict) or "name" not in results["model"]:
        raise RecipeError(f'{path}: does not name its "model"; another version wrote it, so run again')
