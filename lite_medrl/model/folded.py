"""On a CPU: while answers are drawn, each LoRA layer is one product instead of three.

The sum of a layer's unpacked weight and its update is kept beside both for the time of a rollout and then
forgotten. Nothing is merged: the 4-bit weight and the adapter are not touched, and the next rollout starts
from them again. In fp32 the difference to separate products is rounding, which cannot be said of 16 bits; so
cards are left alone.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from lite_medrl.model.load import held_weight

MAX_GIB = 1.0  # of sums held at once; larger models gain little, their time is in the products themselves


@contextmanager
def folded(model: nn.Module) -> Iterator[None]:
    """LoRA layers have one weight each in here, where that is possible, and are as before afterwards."""
    layers = [(module, sums) for module in model.modules() if (sums := summed(module)) is not None]
    if sum(weight.nbytes for _, (weight, _) in layers) > MAX_GIB * 2**30:
        layers = []
    before = {module: module.__dict__.get("forward") for module, _ in layers}
    try:
        for module, (weight, bias) in layers:
            module.forward = functools.partial(nn.functional.linear, weight=weight, bias=bias)
        yield
    finally:
        for module, forward in before.items():
            module.__dict__.pop("forward", None)
            if forward is not None:
                module.forward = forward


def summed(module: Any) -> tuple[Tensor, Tensor | None] | None:
    """Weight and bias of a LoRA layer as it answers now, or None where they cannot be had exactly."""
    if not isinstance(module, LoraLayer) or not isinstance(module, nn.Module) or module.merged:
        return None
    found = held_weight(module.get_base_layer())
    if found is None or found[0].device.type != "cpu" or found[0].dtype not in (torch.float32, torch.float64):
        return None
    weight, bias = found
    for name in () if module.disable_adapters else module.active_adapters:
        if name not in module.lora_A:
            continue
        down: Any = module.lora_A[name]
        up: Any = module.lora_B[name]
        if name in module.lora_variant or up.bias is not None or module.training:
            return None
        update = (up.weight.to(weight.dtype) @ down.weight.to(weight.dtype)) * module.scaling[name]
        weight = weight + (update.T if getattr(module, "fan_in_fan_out", False) else update)
    return weight, bias
