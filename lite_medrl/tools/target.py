"""Which model is meant: a stage of a run, or a model by its folder or hub id with an adapter on top?

The adapter stays live; nothing is merged into 4-bit weights.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lite_medrl.recipe import load_recipe
from lite_medrl.sections import Recipe
from lite_medrl.tools.compare import TRAINED, refuse_incomplete, with_adapters
from lite_medrl.tools.run_folder import base_of
from lite_medrl.types import ModelError, RecipeError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Target:
    """What is asked: the recipe's model with this adapter (None: the base); `run` where it is a run's."""

    recipe: Recipe
    stage: str
    adapter: Path | None = None
    run: Path | None = None

    @property
    def label(self) -> str:
        """A short name, fit for a folder."""
        if self.run:
            return f"{self.run.resolve().name}-{self.stage}"
        name = Path(self.recipe.model.model_name_or_path).name
        return f"{name}-{self.adapter.name}" if self.adapter else name


def target(
    model: str, *, stage: str | None = None, adapter: Path | None = None, overrides: Sequence[str] = ()
) -> Target:
    """A run's folder (its last trained stage, or the one named), else a model's folder, hub id or "embedded".

    Args:
        overrides: `key=value` of a recipe: model.dtype=float16, rollout.max_cache_gib=4.

    Raises:
        RecipeError: no such stage, or options that do not go together.
    """
    folder = Path(model)
    if (folder / "recipe.yaml").is_file():
        if adapter is not None:
            raise RecipeError(f"--adapter: {folder} is a run; choose its adapter by --stage")
        return of_run(folder, stage, overrides)
    if not folder.exists() and len(folder.parts) > 1 and folder.parent.is_dir():
        raise RecipeError(f"MODEL: there is no folder {folder} in {folder.parent}; give a run, or a hub id")
    if stage is not None:
        raise RecipeError(f"--stage: {model} is not the folder of a run; give a run, or --adapter DIR")
    name = yaml.safe_dump(model, default_style='"').strip()
    recipe = load_recipe(None, [f"model.model_name_or_path={name}", *overrides]).recipe
    return Target(recipe, "adapter" if adapter else "base", adapter)


def of_run(folder: Path, stage: str | None, overrides: Sequence[str]) -> Target:
    """A stage of a run, with the run's own model and wording."""
    have = ["base", *(name for name in TRAINED if (folder / "adapters" / name).is_dir())]
    stage = stage or have[-1]
    if stage not in have:
        raise RecipeError(f"--stage: {folder} has no stage {stage!r}; it has {', '.join(have)}")
    adapter = None if stage == "base" else folder / "adapters" / stage
    return Target(load_recipe(folder / "recipe.yaml", overrides).recipe, stage, adapter, folder)


def load_target(wanted: Target) -> tuple[Any, dict[str, Any]]:
    """The loaded model, and what results say of it.

    Raises ModelError where it cannot be loaded, or an adapter belongs to another base.
    """
    from lite_medrl.model.load import fingerprint, load_for

    if wanted.adapter:
        refuse_incomplete(wanted.adapter)
    loaded = load_for(wanted.recipe.model)
    base = fingerprint(loaded.model)
    refuse_other_base(wanted, base)
    model = loaded.model
    if wanted.adapter:
        model = with_adapters(model, {wanted.stage: wanted.adapter})
    told = {
        "name": wanted.recipe.model.model_name_or_path,
        "revision": wanted.recipe.model.revision,
        "fingerprint": base,
        "stage": wanted.stage,
        "adapter": adapter_digest(wanted.adapter),
        "load_in_4bit": wanted.recipe.model.load_in_4bit,
        "device": loaded.policy.device,
        "dtype": str(loaded.policy.dtype).removeprefix("torch."),
    }
    return type(loaded)(model.eval(), loaded.processor, loaded.policy), told


def refuse_other_base(wanted: Target, base: str) -> None:
    """ModelError for an adapter that a run trained on other weights; a warning for one of another name."""
    name = wanted.recipe.model.model_name_or_path
    run = wanted.run or (wanted.adapter.resolve().parents[1] if wanted.adapter else None)
    trained_on = base_of(run) if run else ""
    if trained_on not in ("", base):
        raise ModelError(
            f"{wanted.adapter or run}: trained on other weights than those of {name} (fingerprint "
            f"{trained_on}, here {base}); give the model that it was trained on, in the same precision"
        )
    if wanted.adapter and not trained_on:
        config = json.loads((wanted.adapter / "adapter_config.json").read_text(encoding="utf-8"))
        told = str(config.get("base_model_name_or_path") or "")
        if told and Path(told).name != Path(name).name:
            log.warning("adapter %s says that it was trained on %s, not on %s", wanted.adapter, told, name)


def adapter_digest(folder: Path | None) -> str | None:
    """16 hex digits of an adapter's weights."""
    if folder is None:
        return None
    return hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()[:16]
