"""The door of every op: arguments are checked, and one implementation is chosen and logged.

All implementations share both, so that each refuses the same calls with the same sentence.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import math
import os
from collections.abc import Collection
from numbers import Real
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

IGNORE_INDEX = -100
CLIPPED_LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")
WINDOW_LOSSES = ("dapo", "cispo", "vespo")  # divided by the trained tokens of one accumulation window
LOSS_TYPES = (*CLIPPED_LOSSES, "cispo", "sapo", "vespo")
# Options that some loss types have, with TRL's defaults. Another value would change nothing, unseen, in a
# loss type without the option.
RATIO_BOUNDS = {"epsilon": 0.2, "epsilon_high": None}
OWN_OPTIONS = {loss_type: RATIO_BOUNDS | {"delta": None} for loss_type in CLIPPED_LOSSES} | {
    "cispo": RATIO_BOUNDS,
    "sapo": {"sapo_temperature_pos": 1.0, "sapo_temperature_neg": 1.05},
    "vespo": {"vespo_k_pos": 2.0, "vespo_lambda_pos": 3.0, "vespo_k_neg": 3.0, "vespo_lambda_neg": 2.0},
}
IMPORTANCE_SAMPLING_LEVELS = ("token", "sequence")
IMPORTANCE_SAMPLING_MODES = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
IMPLS = ("auto", "reference", "triton")
FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

logger = logging.getLogger("medrl_kernels")


@functools.cache
def choose_impl(
    op: str, impl: str, device_type: str, dtype: torch.dtype = torch.float32, capability: int | None = None
) -> str:
    """ "triton" or "reference": what runs `op`; decided and logged once per request and kind of input.

    "auto" takes Triton on CUDA where it can run, else the reference. capability: of the card, as 75 or 90.
    ValueError for an unknown name, and for "triton" where it cannot run, with the reason.
    """
    check_choice("impl", impl, IMPLS)
    obstacle = triton_obstacle(device_type, dtype, capability)
    if impl == "triton":
        require(obstacle is None, f"{op}: impl='triton' cannot run here: {obstacle}")
    if impl == "auto" and device_type != "cuda" and obstacle is None:
        obstacle = "the interpreter is for tests"
    chosen = "triton" if impl == "triton" or (impl == "auto" and not obstacle) else "reference"
    why = f", because {obstacle}" if impl == "auto" and obstacle else ""
    logger.info("%s on %s, %s: %s implementation (impl=%r%s)", op, device_type, dtype, chosen, impl, why)
    return chosen


@functools.cache
def note_no_filter(op: str, why: str) -> None:
    """Says once that `filter_eps` leaves nothing out here."""
    logger.warning("%s: filter_eps leaves nothing out of the gradient here: %s", op, why)


def triton_obstacle(device_type: str, dtype: torch.dtype, capability: int | None) -> str | None:
    """Why the Triton kernels cannot run on such an input; None if they can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if device_type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"the input is on {device_type}, not on a CUDA card (TRITON_INTERPRET=1 runs kernels on a CPU)"
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"the kernels compute in fp32, the input is {dtype}"
    if capability is not None and capability < 75:
        return f"compute capability 7.5 is the least, this card has {capability / 10:.1f}"
    if dtype == torch.bfloat16 and capability is not None and capability < 80:
        return f"compute capability {capability / 10:.1f} has no bfloat16: use float16"
    return None


def capability_of(tensor: Tensor) -> int | None:
    """Compute capability of the tensor's card as one number (75, 90, ..); None on a CPU."""
    if not tensor.is_cuda:
        return None
    major, minor = torch.cuda.get_device_capability(tensor.device)
    return 10 * major + minor


def require(condition: bool, message: str) -> None:
    """Raise ValueError with `message` unless `condition` holds."""
    if not condition:
        raise ValueError(message)


def check_choice(name: str, value: str, allowed: Collection[str]) -> None:
    """ValueError unless `value` is one of `allowed`."""
    require(value in allowed, f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def check_number(name: str, value: object) -> None:
    """ValueError unless `value` is None or a real number."""
    real = isinstance(value, Real) and not isinstance(value, bool)
    require(value is None or real, f"{name} must be a number, got {value!r}")


def check_interval(name: str, value: Any, low: float, high: float = math.inf) -> None:
    """ValueError unless `value` is None or a finite number of [low, high]."""
    check_number(name, value)
    inside = value is None or (low <= value <= high and math.isfinite(value))
    require(inside, f"{name} must be finite and in [{low}, {high}], got {value}")


def check_given(name: str, value: object) -> None:
    """ValueError if an option that has no off is None."""
    require(value is not None, f"{name} must be a number, got None")


def check_positive(name: str, value: float | None) -> None:
    """ValueError unless `value` is None or a finite number above 0."""
    check_number(name, value)
    require(value is None or 0 < value < math.inf, f"{name} must be finite and above 0, got {value}")


def check_is_tensor(name: str, tensor: object) -> None:
    """ValueError unless it is a tensor at all."""
    require(isinstance(tensor, Tensor), f"{name} must be a tensor, got {type(tensor).__name__}")


def check_floating(name: str, tensor: object) -> None:
    """ValueError unless it is a tensor of a dtype that the ops compute with."""
    check_is_tensor(name, tensor)
    assert isinstance(tensor, Tensor)
    known = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATING)
    require(tensor.dtype in FLOATING, f"{name} must be floating point ({known}), got {tensor.dtype}")


def check_tensor(
    name: str, tensor: Tensor, dims: int, device: torch.device, *, integer: bool = False
) -> None:
    """ValueError unless the tensor has `dims` dimensions, lies on `device` and is floating (or int32,
    int64)."""
    check_is_tensor(name, tensor)
    require(tensor.dim() == dims, f"{name} must have {dims} dimension(s), got shape {tuple(tensor.shape)}")
    require(tensor.device == device, f"{name} is on {tensor.device}, the others are on {device}")
    if not integer:
        return check_floating(name, tensor)
    fits = tensor.dtype in (torch.int32, torch.int64)
    require(fits, f"{name} must be int32 or int64, got {tensor.dtype}")


def check_length(name: str, tensor: Tensor, length: int, of_what: str) -> None:
    """ValueError unless the flat tensor has `length` entries."""
    require(len(tensor) == length, f"{name} must have one entry per {of_what} ({length}), got {len(tensor)}")


def check_range(name: str, low: int, high: int, bound: int, allowed: str) -> None:
    """ValueError unless the least and the largest index lie in [0, bound)."""
    require(low >= 0 and high < bound, f"{name} must lie in {allowed}, got values from {low} to {high}")


def check_grouped_logp(call: SimpleNamespace) -> None:
    """ValueError unless the arguments of a `grouped_logp` call fit together."""
    hidden_SD, weight_VD = call.hidden_SD, call.weight_VD
    check_is_tensor("hidden_SD", hidden_SD)
    check_tensor("hidden_SD", hidden_SD, 2, hidden_SD.device)
    check_tensor("weight_VD", weight_VD, 2, hidden_SD.device)
    states, vocabulary = len(hidden_SD), len(weight_VD)
    shapes = f"hidden_SD is {tuple(hidden_SD.shape)}, weight_VD is {tuple(weight_VD.shape)}"
    require(hidden_SD.shape[1] == weight_VD.shape[1], f"D must agree: {shapes}")
    require(vocabulary > 0, f"the vocabulary is empty: {shapes}")
    if call.bias_V is not None:
        check_tensor("bias_V", call.bias_V, 1, hidden_SD.device)
        check_length("bias_V", call.bias_V, vocabulary, "vocabulary entry")
    check_targets(call.target_N, call.source_N, states, vocabulary, hidden_SD.device)
    for name in ("temperature", "logit_scale", "filter_eps"):
        check_given(name, getattr(call, name))
        check_number(name, getattr(call, name))
    check_positive("temperature", call.temperature)
    check_positive("abs(logit_scale)", abs(call.logit_scale))
    check_positive("softcap", call.softcap)
    check_interval("filter_eps", call.filter_eps, 0, 1)
    whole = isinstance(call.chunk_size, int) and call.chunk_size >= 1
    require(whole, f"chunk_size must be a whole number of at least 1, got {call.chunk_size!r}")


def check_targets(
    target_N: Tensor, source_N: Tensor | None, states: int, vocabulary: int, device: torch.device
) -> None:
    """ValueError unless targets lie in the vocabulary (or are -100) and sources among the states."""
    check_tensor("target_N", target_N, 1, device, integer=True)
    ranges = [torch.where(target_N == IGNORE_INDEX, 0, target_N)]
    if source_N is None:
        check_length("target_N without source_N", target_N, states, "state")
    else:
        check_tensor("source_N", source_N, 1, device, integer=True)
        check_length("source_N", source_N, len(target_N), "target")
        ranges.append(source_N)
    if len(target_N) == 0:
        return
    # All four bounds come from the device at once: each copy would wait for it.
    low, high, *source = torch.stack([end for x in ranges for end in (x.amin(), x.amax())]).tolist()
    check_range("target_N", low, high, vocabulary, f"[0, {vocabulary}) or be {IGNORE_INDEX}")
    if source:
        check_range("source_N", source[0], source[1], states, f"[0, {states})")


def check_grpo_loss(call: SimpleNamespace) -> None:
    """ValueError unless the arguments of a `grpo_loss` call fit together."""
    check_choice("loss_type", call.loss_type, LOSS_TYPES)
    check_choice("importance_sampling_level", call.importance_sampling_level, IMPORTANCE_SAMPLING_LEVELS)
    check_choice("importance_sampling_mode", call.importance_sampling_mode, IMPORTANCE_SAMPLING_MODES)
    check_packed(call)
    check_bounds(call)
    check_needs(call)
    check_counts(call)


def check_packed(call: SimpleNamespace) -> None:
    """ValueError unless the tensors are flat, on one device (length_B also on the CPU) and as long as the
    completions say."""
    check_is_tensor("logp_N", call.logp_N)
    device = call.logp_N.device
    check_tensor("logp_N", call.logp_N, 1, device)
    check_is_tensor("length_B", call.length_B)
    # Lengths may stay on the CPU: their values are checked, and on a card each look would wait for it.
    on_cpu = call.length_B.device.type == "cpu"
    check_tensor("length_B", call.length_B, 1, call.length_B.device if on_cpu else device, integer=True)
    tokens, completions = len(call.logp_N), len(call.length_B)
    require(completions > 0, "length_B is empty: there is no completion")
    require(int(call.length_B.min()) >= 0, f"length_B must not be negative, got {int(call.length_B.min())}")
    total = int(call.length_B.sum())
    require(total == tokens, f"length_B adds up to {total}, but logp_N has {tokens} entries")
    for name in ("old_logp_N", "advantage_N", "ref_logp_N", "sampling_logp_N", "entropy_N"):
        if (tensor := getattr(call, name)) is not None:
            check_tensor(name, tensor, 1, device)
            check_length(name, tensor, tokens, "trained token")
    given = [name for name in ("advantage_B", "advantage_N") if getattr(call, name) is not None]
    require(len(given) == 1, f"give one of advantage_B and advantage_N, got {given}")
    if call.advantage_B is not None:
        check_tensor("advantage_B", call.advantage_B, 1, device)
        check_length("advantage_B", call.advantage_B, completions, "completion")


def check_bounds(call: SimpleNamespace) -> None:
    """ValueError unless every number lies where its formula makes sense."""
    vespo = tuple(OWN_OPTIONS["vespo"])
    for name in ("epsilon", "top_entropy_quantile", "beta", "entropy_coef", *OWN_OPTIONS["sapo"], *vespo):
        check_given(name, getattr(call, name))
    check_interval("epsilon", call.epsilon, 0)
    check_interval("epsilon_high", call.epsilon_high, 0)
    check_interval("top_entropy_quantile", call.top_entropy_quantile, 0, 1)
    check_positive("delta", call.delta)
    check_interval("off_policy_mask_threshold", call.off_policy_mask_threshold, -math.inf)
    low, high = call.importance_sampling_clip_min, call.importance_sampling_clip_max
    for name, value in (("importance_sampling_clip_min", low), ("importance_sampling_clip_max", high)):
        check_interval(name, value, -math.inf)
    if low is not None and high is not None:
        require(
            low <= high, f"importance_sampling_clip_min={low} is above importance_sampling_clip_max={high}"
        )
    check_positive("sapo_temperature_pos", call.sapo_temperature_pos)
    check_positive("sapo_temperature_neg", call.sapo_temperature_neg)
    for name in ("beta", "entropy_coef", *vespo):
        check_interval(name, getattr(call, name), -math.inf)


def foreign_options(loss_type: str) -> dict[str, float | None]:
    """The options, with their defaults, that other loss types have and this one has not."""
    every = {name: default for own in OWN_OPTIONS.values() for name, default in own.items()}
    return {name: default for name, default in every.items() if name not in OWN_OPTIONS[loss_type]}


def check_needs(call: SimpleNamespace) -> None:
    """ValueError if an option is switched on that the loss type lacks, or whose tensor is missing."""
    for name, default in foreign_options(call.loss_type).items():
        given = getattr(call, name)
        unused = given == default or (name == "epsilon_high" and given == RATIO_BOUNDS["epsilon"])
        require(unused, f"{call.loss_type} has no {name}, got {given}: leave it {default}")
    mode = call.importance_sampling_mode
    if call.loss_type == "vespo" and call.importance_sampling_correction:
        require(mode.startswith("token"), f"vespo needs a token_* importance_sampling_mode, got {mode!r}")
    for switched_on, option, tensor in (
        (call.beta != 0, f"beta={call.beta}", "ref_logp_N"),
        (call.entropy_coef != 0, f"entropy_coef={call.entropy_coef}", "entropy_N"),
        (call.top_entropy_quantile < 1, f"top_entropy_quantile={call.top_entropy_quantile}", "entropy_N"),
        (call.importance_sampling_correction, "importance_sampling_correction", "sampling_logp_N"),
    ):
        require(not switched_on or getattr(call, tensor) is not None, f"{option} needs {tensor}, got None")


def check_counts(call: SimpleNamespace) -> None:
    """ValueError unless the reduction of the loss type knows what to divide by."""
    names = ("num_processes", "gradient_accumulation_steps", "steps_per_generation")
    check_items(call.num_items_in_batch)
    for name in names:
        check_number(name, getattr(call, name))
        given = getattr(call, name)
        require(given is not None and 1 <= given < math.inf, f"{name} must be at least 1, got {given}")
    check_interval("max_completion_length", call.max_completion_length, 1)
    if call.loss_type == "dr_grpo":
        given = call.max_completion_length
        require(given is not None, f"dr_grpo needs max_completion_length >= 1, got {given}")
    if call.loss_type in WINDOW_LOSSES and call.num_items_in_batch is None:
        alone = all(getattr(call, name) == 1 for name in names)
        require(alone, f"{call.loss_type} over several steps or processes needs num_items_in_batch, got None")


def check_items(items: object) -> None:
    """ValueError unless num_items_in_batch is None, a number, or a tensor of one; on a card its value is not
    looked at, which would wait for it: the ops take 1 for anything less."""
    if not isinstance(items, Tensor):
        return check_interval("num_items_in_batch", items, 0)
    shape = tuple(items.shape)
    require(items.numel() == 1, f"num_items_in_batch must be one number, got a tensor of shape {shape}")
    if items.device.type == "cpu":
        check_interval("num_items_in_batch", items.item(), 0)
    return None
