"""The two training stages of a run: recipe section in, trained adapter out, one metrics row a logged step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from lite_medrl.model.encode import wording
from lite_medrl.model.load import Policy
from lite_medrl.sections import Recipe, Training
from lite_medrl.train.columns import to_dataset
from lite_medrl.train.config import GRPOConfig, SFTConfig
from lite_medrl.train.grpo import GRPOTrainer
from lite_medrl.train.guards import FiniteOnly, refuse_not_finite, told_by_stage
from lite_medrl.train.rewards import resolve
from lite_medrl.train.sft import SFTTrainer
from lite_medrl.types import RecipeError, Sample

Row = dict[str, Any]
# TRL's names on the left, ours in metrics.jsonl on the right; others pass through.
RENAMED = {
    "rewards/accuracy_reward/mean": "rewards/accuracy",
    "rewards/format_reward/mean": "rewards/format",
    "step_time": "trl_step_time_s",
}
DROPPED = {"num_input_tokens_seen", "total_flos", "epoch", "trl_step_time_s"}


class Recorder(TrainerCallback):
    """Hands every logged row, timed, to the caller."""

    def __init__(self, stage: str, number: int, write: Callable[[Row], None]) -> None:
        self.stage, self.number, self.write = stage, number, write
        self.clock, self.tokens = time.perf_counter(), 0.0

    def on_log(self, args: Any, state: Any, control: Any, logs: Row | None = None, **kwargs: Any) -> None:
        """One row a logging step; the closing summary of the Trainer is left out."""
        if not logs or "loss" not in logs:
            return
        now, tokens = time.perf_counter(), float(logs.get("num_tokens", 0.0))
        row: Row = {
            "stage": self.stage,
            "round": self.number,
            "step": state.global_step,
            "max_steps": state.max_steps,
        }
        row |= {RENAMED.get(k, k): json_safe(v) for k, v in logs.items() if RENAMED.get(k, k) not in DROPPED}
        row |= {
            "step_time_s": now - self.clock,
            "tokens_per_s": (tokens - self.tokens) / max(now - self.clock, 1e-9),
        }
        self.clock, self.tokens = now, tokens
        self.write(row)


def json_safe(value: Any) -> Any:
    """The value, or None where it is NaN or infinite: JSON has neither."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def run_sft(
    model: Any,
    processor: Any,
    samples: Sequence[Sample],
    recipe: Recipe,
    policy: Policy,
    *,
    number: int,
    folder: Path,
    write: Callable[[Row], None],
) -> None:
    """Trains the model's adapter on written reasoning and gold answers, in place.

    Raises FloatingPointError for a loss, a gradient or trained weights that are not finite.
    """
    name = "sft" if number == 1 else f"sft-{number}"
    config = SFTConfig(
        **shared_config(recipe.sft, recipe, policy, folder),
        max_length=None,
        packing=False,
        completion_only_loss=True,
        seed=recipe.seed + 1000 * number,
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    dataset = to_dataset(
        samples, **wording(recipe.prompt), letter=recipe.prompt.answer_style == "letter", with_completion=True
    )
    trainer = SFTTrainer(
        model=model,
        args=config,
        processing_class=processor,
        train_dataset=dataset,
        callbacks=[FiniteOnly(name), Recorder("sft", number, write)],
    )
    run_quietly(trainer, name)


def run_grpo(
    model: Any,
    processor: Any,
    samples: Sequence[Sample],
    recipe: Recipe,
    policy: Policy,
    *,
    folder: Path,
    write: Callable[[Row], None],
) -> list[Row]:
    """Sharpens the model's adapter by GRPO, in place; returns the last batch of completions with their
    rewards.

    Raises FloatingPointError for a loss, a gradient or trained weights that are not finite.
    """
    grpo = recipe.grpo
    functions, weights = resolve([r.name for r in grpo.rewards]), [r.weight for r in grpo.rewards]
    config = GRPOConfig(
        **shared_config(grpo, recipe, policy, folder),
        num_generations=grpo.num_generations,
        max_completion_length=grpo.max_completion_length,
        temperature=grpo.temperature,
        top_p=grpo.top_p,
        top_k=grpo.top_k,
        min_p=grpo.min_p,
        repetition_penalty=grpo.repetition_penalty,
        **generator_config(recipe),
        beta=grpo.beta,
        epsilon=grpo.epsilon,
        epsilon_high=grpo.epsilon_high,
        delta=grpo.delta,
        loss_type=grpo.loss_type,
        scale_rewards=grpo.scale_rewards,
        importance_sampling_level=grpo.importance_sampling_level,
        num_iterations=grpo.num_iterations,
        mask_truncated_completions=grpo.mask_truncated_completions,
        reward_weights=weights,
        resample_rounds=grpo.resample_rounds,
        seed=recipe.seed,
        log_completions=False,
    )
    trainer = GRPOTrainer(
        model=model,
        args=config,
        processing_class=processor,
        reward_funcs=functions,
        train_dataset=to_dataset(
            samples,
            **wording(recipe.prompt),
            letter=recipe.prompt.answer_style == "letter",
            with_completion=False,
        ),
        callbacks=[FiniteOnly("grpo"), Recorder("grpo", 1, write)],
    )
    run_quietly(trainer, "grpo")
    return rollouts(trainer)


def generator_config(recipe: Recipe) -> dict[str, Any]:
    """Who draws the completions, in our config's words or, for vLLM, in TRL's."""
    rollout = recipe.rollout
    if rollout.generator == "vllm":
        stops = {"generation_kwargs": {"stop": rollout.stop, "include_stop_str_in_output": True}}
        options = {"vllm_mode": "colocate"} | vllm_options(rollout.vllm)
        return {"use_vllm": True, **options, **(stops if rollout.stop else {})}
    return {
        "generator": rollout.generator,
        "max_cache_gib": rollout.max_cache_gib,
        "stop": rollout.stop or None,
    }


def vllm_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as they are; RecipeError for one that TRL does not have."""
    known = [field.name for field in fields(GRPOConfig) if field.name.startswith("vllm_")]
    for name in options:
        if name not in known:
            near = get_close_matches(name, known, 1, 0.0)[0]
            raise RecipeError(f"rollout.vllm.{name}: TRL has no such option; did you mean {near}?")
    return dict(options)


def run_quietly(trainer: Any, stage: str) -> None:
    """Trains, and leaves the model in evaluation mode, its weights finite. The Trainer's own printing is ours
    to do.
    """
    from transformers import PrinterCallback, ProgressCallback

    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    with told_by_stage(trainer, stage):
        trainer.train()
    refuse_not_finite(trainer.model, stage)
    trainer.model.eval()


def rollouts(trainer: Any) -> list[Row]:
    """The last generation batch as rows: completion, advantage and every reward."""
    logs = trainer._logs
    texts = [c[0]["content"] if isinstance(c, list) else c for c in logs["completion"]]
    return [
        {
            "stage": "grpo",
            "rollout": True,
            "step": trainer.state.global_step,
            "completion": text,
            "advantage": advantage,
            "rewards": {name: values[i] for name, values in logs["rewards"].items()},
        }
        for i, (text, advantage) in enumerate(zip(texts, logs["advantages"], strict=True))
    ]


def shared_config(section: Training, recipe: Recipe, policy: Policy, folder: Path) -> dict[str, Any]:
    """TrainingArguments common to both stages; saving and reporting are done by the pipeline."""
    checkpointing = recipe.model.gradient_checkpointing
    return {
        "output_dir": str(folder),
        "max_steps": section.max_steps,
        "learning_rate": section.learning_rate,
        "lr_scheduler_type": section.lr_scheduler_type,
        "warmup_steps": round(section.warmup_ratio * section.max_steps),
        "per_device_train_batch_size": section.per_device_train_batch_size,
        "gradient_accumulation_steps": section.gradient_accumulation_steps,
        "max_grad_norm": section.max_grad_norm,
        "weight_decay": section.weight_decay,
        "logging_steps": section.logging_steps,
        "logging_nan_inf_filter": False,
        "prefix_tree": section.prefix_tree,
        "max_tree_tokens": section.max_tree_tokens,
        "group_by_image": section.group_by_image,
        "bf16": policy.dtype == torch.bfloat16,
        "fp16": policy.dtype == torch.float16,
        "use_cpu": policy.device == "cpu",
        "gradient_checkpointing": policy.device == "cuda" if checkpointing == "auto" else checkpointing,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": policy.device == "cuda",
    }
