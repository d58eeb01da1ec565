"""What stands between TRL's constructors and our losses: options that we would ignore, rounded adapters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


def refuse_ignored(args: Any, only: Mapping[str, Any]) -> None:
    """ValueError for an option of TRL's that differs from the one value our trainer has."""
    for name, value in only.items():
        if (given := getattr(args, name, value)) != value:
            raise ValueError(
                f"{name}={given!r}: this trainer has {name}={value!r} only; TRL's own has others"
            )


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
