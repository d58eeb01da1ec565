"""The directory of a run: who may write into it, how files get there whole, what is kept for --resume."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lite_medrl.types import RecipeError

MARKER = "progress.json"
LINES = ("metrics.jsonl", "completions.jsonl")
Json = dict[str, Any]


@dataclass
class State:
    """What is done so far; written to progress.json after every stage."""

    base: str = ""  # fingerprint of the base that the adapters belong to
    done: list[str] = field(default_factory=list)
    stages: list[Json] = field(default_factory=list)
    decisions: list[Json] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    bytes_written: dict[str, int] = field(default_factory=dict)


def refuse_occupied(folder: Path, *, overwrite: bool, resume: bool) -> None:
    """RecipeError unless the folder is free, or a run of ours that may be replaced or is to be continued."""
    if folder.exists() and not folder.is_dir():
        raise RecipeError(f"output_dir: {folder} is a file; give a folder")
    if not folder.exists() or not any(folder.iterdir()):
        if resume:
            raise RecipeError(
                f"output_dir: {folder} holds no run to go on with; check the path, or begin without --resume"
            )
        return
    ours = (folder / MARKER).is_file() and (folder / "recipe.yaml").is_file()
    if not ours:
        raise RecipeError(
            f"output_dir: {folder} is not empty and holds no run of lite-medrl; give another folder"
        )
    if not (overwrite or resume):
        raise RecipeError(
            f"output_dir: {folder} holds a run already; add --resume to go on, --overwrite to replace it, "
            "or give another folder"
        )


def write_text(path: Path, text: str) -> None:
    """Whole or not at all: written beside, flushed, renamed."""
    beside = path.with_name(f".{path.name}.tmp")
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def values_of(path: Path) -> Json:
    """The values of a resolved recipe."""
    from lite_medrl.recipe import load_recipe

    return load_recipe(path).recipe.model_dump()


def save_adapter(model: Any, processor: Any, folder: Path) -> None:
    """Adapter as safetensors with its config, processor and chat template; replaces the folder at once."""
    beside = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    model.save_pretrained(beside, safe_serialization=True, selected_adapters=["default"])
    processor.save_pretrained(beside)
    shutil.rmtree(folder, ignore_errors=True)
    beside.replace(folder)


def load_adapter(model: Any, folder: Path) -> None:
    """Puts a saved adapter's weights into the model's "default" adapter."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    set_peft_model_state_dict(model, load_file(folder / "adapter_model.safetensors"))


def base_of(folder: Path) -> str:
    """Fingerprint of the base under a run's adapters; "" where the run did not note it."""
    path = folder / MARKER
    return json.loads(path.read_text()).get("base", "") if path.is_file() else ""


def append_lines(path: Path, rows: Sequence[Json]) -> None:
    """Adds rows to a JSONL file."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def save_state(folder: Path, state: State) -> None:
    """progress.json: what is finished, and how long the JSONL files are by now."""
    files = [folder / name for name in LINES]
    state.bytes_written = {file.name: file.stat().st_size for file in files if file.exists()}
    write_text(folder / MARKER, json.dumps(asdict(state)) + "\n")


def read_state(folder: Path) -> State:
    """What progress.json says."""
    return State(**json.loads((folder / MARKER).read_text()))


def is_finished(folder: Path) -> bool:
    """Whether the run in the folder has written its results and its report."""
    there = all((folder / name).is_file() for name in (MARKER, "results.json", "report.html"))
    return there and "report" in read_state(folder).done


def load_state(folder: Path) -> State:
    """What progress.json says; the JSONL files are cut back to what the finished stages wrote."""
    state = read_state(folder)
    for name in LINES:
        if (folder / name).exists():
            os.truncate(folder / name, state.bytes_written.get(name, 0))
    return state
