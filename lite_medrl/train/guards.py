"""What stands between TRL and our losses: options that we would ignore, rounded adapters, lost numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

# torch's loss scaler (fp16 only) begins at 2**16 and halves it in every step whose gradients overflow; such a
# step leaves the weights as they are. After so many in a row the scale is below 1: the fault is not its own.
SCALER_HALVINGS = 17


def refuse_ignored(args: Any, only: Mapping[str, Any]) -> None:
    """ValueError for an option of TRL's that differs from the one value our trainer has."""
    for name, value in only.items():
        if (given := getattr(args, name, value)) != value:
            raise ValueError(
                f"{name}={given!r}: this trainer has {name}={value!r} only; TRL's own has others"
            )


def refuse_foreign(args: Any, foreign: Mapping[str, Any]) -> None:
    """ValueError for an option of other loss types that is not at its default: this one would not see it."""
    for name, default in foreign.items():
        if (given := getattr(args, name, default)) not in (default, None):
            raise ValueError(
                f"{name}={given!r}: loss_type={args.loss_type!r} has no {name}; leave it {default!r}"
            )


def refuse_processes(num_processes: int) -> None:
    """ValueError for more than one process: our forward passes go around DDP's wrapper, so gradients would
    not be averaged.
    """
    if num_processes > 1:
        raise ValueError(
            f"num_processes={num_processes}: this trainer runs on one GPU; start it without `accelerate "
            "launch` or torchrun, or take TRL's own trainer for several"
        )


def refuse_tools(tools: Any) -> None:
    """NotImplementedError for completions that hold the results of tools."""
    if tools:
        raise NotImplementedError("tools: completions with tool results are not supported; use TRL's trainer")


def drops_out(model: nn.Module) -> bool:
    """Whether a layer drops values out while training, so that two passes over one text differ."""
    return any(isinstance(m, nn.Dropout) and m.p > 0 for m in model.modules())


def trainable(model: Any) -> dict[str, torch.Tensor]:
    """The values of the trainable parameters, for `restore`; none for a model that is still a name."""
    named = model.named_parameters() if isinstance(model, nn.Module) else ()
    return {name: parameter.data for name, parameter in named if parameter.requires_grad}


def restore(model: nn.Module, values: Mapping[str, torch.Tensor]) -> None:
    """Trainable parameters in fp32 with these values: TRL rounds those of a quantised model to bf16.

    A T4 and a CPU cannot train in bf16, and an SFT adapter would lose digits before GRPO starts from it.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = values.get(name, parameter.data).to(parameter.device, torch.float32)


class FiniteOnly(TrainerCallback):
    """Stops a stage in the step whose logged loss or gradient norm is not finite.

    A gradient norm that overflows in fp16 is the loss scaler's to deal with, SCALER_HALVINGS times in a row.
    """

    def __init__(self, stage: str) -> None:
        self.stage, self.skipped = stage, 0

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """FloatingPointError naming stage, step and value."""
        seen = {name: float(logs[name]) for name in ("loss", "grad_norm") if logs and name in logs}
        bad = {name: value for name, value in seen.items() if not math.isfinite(value)}
        self.skipped = self.skipped + 1 if list(bad) == ["grad_norm"] and args.fp16 else 0
        if bad and not 0 < self.skipped <= SCALER_HALVINGS:
            told = " and ".join(f"{name} is {value}" for name, value in bad.items())
            raise FloatingPointError(f"{self.stage}, step {state.global_step}: {told}; {advice(self.stage)}")


@contextmanager
def told_by_stage(trainer: Any, stage: str) -> Iterator[None]:
    """Names stage and step in a FloatingPointError that knows neither (answers drawn from lost weights)."""
    try:
        yield
    except FloatingPointError as error:
        if str(error).startswith(stage):
            raise
        step = trainer.state.global_step
        raise FloatingPointError(f"{stage}, after step {step}: {error}; {advice(stage)}") from error


def refuse_not_finite(model: nn.Module, stage: str) -> None:
    """FloatingPointError where a trained weight is not finite; it names the stage and the first one."""
    trained = {name: p.data for name, p in model.named_parameters() if p.requires_grad}
    bad = [name for name, value in trained.items() if not bool(torch.isfinite(value).all())]
    if bad:
        told = f"{len(bad)} of its {len(trained)} trained tensors are not finite, first {bad[0]}"
        raise FloatingPointError(f"{stage}, after its last step: {told}; {advice(stage)}")


def advice(stage: str) -> str:
    """What became of the stage, and what to do."""
    section = stage.partition("-")[0]
    return (
        f"no adapter of this stage is saved. Lower {section}.learning_rate or {section}.max_grad_norm, or "
        "set model.dtype=float32, and begin again with --overwrite"
    )
