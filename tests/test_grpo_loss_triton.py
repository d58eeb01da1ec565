"""The Triton grpo_loss in the interpreter, against the reference: losses, gradients, metrics, bounds, NaN.

TOLERANCE is what the two differ by when both are run in fp32: each stays within
2e-6 of float64 at these sizes.
"""

from __future__ import annotations

import inspect
import math
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_options import heard
from torch import Tensor
from triton.runtime import interpreter

from medrl_kernels import grpo_loss, grpo_loss_triton, reference
from medrl_kernels.configs import ARCHITECTURES
from medrl_kernels.dispatch import IMPORTANCE_SAMPLING_MODES, LOSS_TYPES, OWN_OPTIONS

# NumPy's, in the interpreter: the kernels let NaN and Inf through on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")
BLOCK = grpo_loss_triton.BLOCK
LEVELS = ("token", "sequence")
TOLERANCE = {"rtol": 1e-5, "atol": 1e-7}
TENSORS = ("logp_N", "old_logp_N", "ref_logp_N", "sampling_logp_N", "entropy_N", "advantage_B")
ONE_OF_EACH_FAMILY = ("grpo", "cispo", "sapo", "vespo")


@pytest.fixture(autouse=True)
def _few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two programs share the completions: the interpreter is slow, and a program has more than one."""
    allow_programs(monkeypatch, 2)


def allow_programs(patch: pytest.MonkeyPatch, most: int) -> None:
    """Let a launch have as many programs."""
    patch.setattr(grpo_loss_triton, "_room", lambda *args: (64, most))


def packed(
    lengths: list[int], seed: int = 0, spread: float = 0.4, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    """Random arguments of a call; `spread` is the size of the log-ratios."""
    g = torch.Generator().manual_seed(seed)
    n = sum(lengths)
    logp = -torch.rand(n, generator=g) * 3

    def near() -> Tensor:
        return (logp + spread * torch.randn(n, generator=g)).to(dtype)

    return {
        "logp_N": logp.to(dtype),
        "old_logp_N": near(),
        "advantage_B": torch.randn(len(lengths), generator=g).to(dtype),
        "length_B": torch.tensor(lengths),
        "ref_logp_N": near(),
        "sampling_logp_N": near(),
        "entropy_N": torch.rand(n, generator=g).to(dtype),
        "max_completion_length": 16,
        "num_items_in_batch": torch.tensor(29),
    }


def of_token(call: dict[str, Any], seed: int = 1) -> dict[str, Any]:
    """The call with an advantage for every token."""
    g = torch.Generator().manual_seed(seed)
    advantage = torch.randn(len(call["logp_N"]), generator=g).to(call["logp_N"].dtype)
    return call | {"advantage_B": None, "advantage_N": advantage}


def run(op: Any, call: dict[str, Any], **options: Any) -> tuple[Tensor, Tensor, Tensor, dict[str, float]]:
    """Loss, its gradients times 3 with respect to logp and entropy, and metrics."""
    leaves = {name: call[name].detach().clone().requires_grad_() for name in ("logp_N", "entropy_N")}
    out = op(**heard(call | options) | leaves)
    grads = torch.autograd.grad(
        out.loss, list(leaves.values()), torch.tensor(3.0), allow_unused=True, materialize_grads=True
    )
    return out.loss.detach(), *grads, {name: float(value) for name, value in out.metrics.items()}


def kernel(**options: Any) -> Any:
    """The op by the public door, in Triton."""
    return grpo_loss(**options, impl="triton")


def assert_same(
    call: dict[str, Any], options: dict[str, Any], *, infinite_alike: bool = False, **tolerance: float
) -> None:
    """Assert that kernel and reference give equal loss, gradients and metrics.

    `infinite_alike`: whether inf - inf or 0 * inf comes first in a sum is not compared; that it shows, is.
    """
    tolerance = TOLERANCE | tolerance
    got, want = run(kernel, call, **options), run(reference.grpo_loss, call, **options)
    for name, ours, theirs in zip(("loss", "d logp", "d entropy"), got[:3], want[:3], strict=True):
        if infinite_alike:
            ours, theirs = (x.masked_fill(~x.isfinite(), math.nan) for x in (ours, theirs))
        torch.testing.assert_close(
            ours, theirs, **tolerance, equal_nan=True, msg=lambda m, name=name: f"{name}: {m}"
        )
    assert got[3] == pytest.approx(want[3], rel=tolerance["rtol"], abs=1e-6, nan_ok=True)


BASE: dict[str, Any] = {"epsilon_high": 0.28}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "epsilon_high=None": {"epsilon": 0.3, "epsilon_high": None},
    "delta": {"delta": 1.4},
    "small delta": {"delta": 0.7},
    "no old policy": {"old_logp_N": None, "beta": 0.1, "off_policy_mask_threshold": 0.05},
    "beta": {"beta": 0.3, "use_bias_correction_kl": False},
    "beta, corrected": {"beta": 0.3},
    "beta, corrected, delta": {"beta": 0.3, "delta": 1.3},
    "no entropies": {"beta": 0.1},
    "off-policy mask": {"off_policy_mask_threshold": 0.05},
    "off-policy mask, old policy for sampler": {"off_policy_mask_threshold": 0.05, "sampling_logp_N": None},
    "top entropy": {"top_entropy_quantile": 0.4},
    "entropy bonus": {"entropy_coef": 0.02},
    "entropy bonus on top tokens": {"entropy_coef": 0.02, "top_entropy_quantile": 0.3},
    "steps": {"gradient_accumulation_steps": 4, "steps_per_generation": 2, "entropy_coef": 0.02},
    "processes": {"num_processes": 2, "num_items_in_batch": 40.0},
    "sapo's own": {"sapo_temperature_pos": 0.7, "sapo_temperature_neg": 2.0},
    "vespo's own": {"vespo_k_pos": 1.5, "vespo_lambda_pos": 2.5, "vespo_k_neg": 2.0, "vespo_lambda_neg": -1},
    "all": {
        "beta": 0.1, "entropy_coef": 0.01, "top_entropy_quantile": 0.6, "off_policy_mask_threshold": 0.1,
        "gradient_accumulation_steps": 2, "steps_per_generation": 4, "importance_sampling_correction": True,
        "importance_sampling_mode": "token_truncate",
    },
}  # fmt: skip
for mode in IMPORTANCE_SAMPLING_MODES:
    correction = {"importance_sampling_correction": True, "importance_sampling_mode": mode}
    OPTIONS[mode] = correction | {"importance_sampling_clip_max": 1.3}
    OPTIONS[f"{mode}, both ends"] = correction | {
        "importance_sampling_clip_min": 0.8, "importance_sampling_clip_max": 1.2, "beta": 0.1,
    }  # fmt: skip


def fits(loss_type: str, options: dict[str, Any]) -> bool:
    """False for what the door refuses."""
    sequence_weights = str(options.get("importance_sampling_mode")).startswith("sequence")
    return not (loss_type == "vespo" and sequence_weights)


# bnpo, dr_grpo and luspo differ from dapo in their divisor alone.
CASES = [
    (loss_type, level, option)
    for loss_type, level, option in product(LOSS_TYPES, LEVELS, OPTIONS)
    if fits(loss_type, OPTIONS[option])
    and (loss_type not in ("bnpo", "dr_grpo", "luspo") or option in ("plain", "steps", "all"))
]


@pytest.mark.parametrize(("loss_type", "level", "option"), CASES)
def test_loss_gradients_and_metrics_are_the_references(loss_type: str, level: str, option: str) -> None:
    options = BASE | {"loss_type": loss_type, "importance_sampling_level": level} | OPTIONS[option]
    call = packed([7, 0, 5])
    assert_same(of_token(call) if list(OPTIONS).index(option) % 2 else call, options)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_fp16_storage(loss_type: str, level: str) -> None:
    """Computed in fp32 by both, so only the rounding of the gradient to fp16 may differ."""
    options = {"loss_type": loss_type, "importance_sampling_level": level} | OPTIONS["all"]
    call = packed([9, 4, 2], dtype=torch.float16)
    got, want = run(kernel, call, **options), run(reference.grpo_loss, call, **options)
    torch.testing.assert_close(got[0], want[0], **TOLERANCE)
    for ours, theirs in zip(got[1:3], want[1:3], strict=True):
        assert ours.dtype == torch.float16
        torch.testing.assert_close(ours, theirs, rtol=2**-10, atol=2**-24)
    assert got[3] == pytest.approx(want[3], rel=1e-5, abs=1e-6)


def test_error_is_at_most_twice_that_of_the_reference() -> None:
    """Against float64, on more than one block; the floor is a rounding of the largest gradient, and for the
    loss of its terms before they cancel, which are about the gradients."""
    call = packed([1500, 700, 1024, 3], seed=5, spread=0.2)
    call64 = {
        k: v.double() if isinstance(v, Tensor) and v.dtype == torch.float32 else v for k, v in call.items()
    }
    for loss_type, level in product(LOSS_TYPES, LEVELS):
        options = {
            "loss_type": loss_type,
            "importance_sampling_level": level,
            "beta": 0.1,
            "entropy_coef": 0.1,
        }
        exact = run(reference.grpo_loss, call64, **options)
        ours, theirs = run(kernel, call, **options), run(reference.grpo_loss, call, **options)
        for i in range(3):
            floor = 2**-22 * float(exact[i].abs().max() if i else exact[1].abs().sum())
            error, allowed = ((x[i].double() - exact[i]).abs().max() for x in (ours, theirs))
            assert float(error) <= 2 * float(allowed) + floor, (loss_type, level, i)


def exactly_equal_exp(around: float) -> float:
    """A log-ratio near `around` whose exponential NumPy (the interpreter) and torch round alike."""
    for step in range(1000):
        x = np.float32(around + step * 1e-3)
        if np.exp(x) == torch.exp(torch.tensor(x)).numpy():
            return float(x)
    raise AssertionError("no such number")


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loss_type", ["dapo", "cispo"])
def test_at_the_bounds_themselves(loss_type: str, level: str) -> None:
    """Ratios of exactly 1 - epsilon, 1 + epsilon_high and delta: one value and three advantages each."""
    low, high = exactly_equal_exp(-0.4), exactly_equal_exp(0.2)
    log_ratio = torch.tensor([low, low, low, 0.0, 0.0, 0.0, high, high, high])
    rho_low, rho_high = (float(torch.tensor(x).exp()) for x in (low, high))
    call = packed([1] * 9) | {"logp_N": log_ratio, "old_logp_N": torch.zeros(9)}
    call |= {"advantage_B": torch.tensor([1.0, 0.0, -1.0] * 3), "entropy_N": torch.zeros(9)}
    options = {"loss_type": loss_type, "importance_sampling_level": level}
    bounds = [(1 - rho_low, rho_high - 1), (0.0, 0.0), (0.0, rho_high - 1), (1 - rho_low, 0.0)]
    assert 1 - bounds[0][0] == rho_low
    assert 1 + bounds[0][1] == rho_high
    if loss_type == "cispo":
        bounds = [(0.2, rho_high), (0.2, 1.0), (0.2, rho_low)]
    for (epsilon, epsilon_high), delta in product(bounds, (None, 1.0, rho_high)):
        if delta is None or loss_type != "cispo":
            limits = {"epsilon": epsilon, "epsilon_high": epsilon_high, "delta": delta}
            assert_same(call, options | limits)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("loss_type", ONE_OF_EACH_FAMILY)
def test_what_is_not_a_number_goes_where_the_reference_lets_it(
    loss_type: str, name: str, value: float
) -> None:
    # Without its power of w, VESPO's weight is far from the 0 that it is where w is not a number.
    every = OPTIONS["all"] | {"loss_type": loss_type, "vespo_k_pos": 0.0, "vespo_k_neg": 0.0}
    for level, beta in (("token", 0.0), ("sequence", 0.1)):
        call = packed([3, 2])
        call[name][1] = value
        options = every | {"importance_sampling_level": level, "beta": beta}
        assert_same(call, options, infinite_alike=name == "advantage_B")


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loss_type", ONE_OF_EACH_FAMILY)
def test_ratios_beyond_fp32(loss_type: str, level: str) -> None:
    """e^100 is infinite and times an advantage of 0 not a number; e^-200 is 0."""
    call = packed([1] * 6 + [3])
    call["old_logp_N"] = call["logp_N"] - torch.tensor([100.0, 100, 100, -200, -200, -200, 100, 0, -100])
    call["advantage_B"] = torch.tensor([1.0, 0, -1, 1, 0, -1, 0])
    assert_same(call, {"loss_type": loss_type, "importance_sampling_level": level})


@pytest.mark.parametrize("lengths", [[0, 2, 0, 1], [0, 2 * BLOCK + 1, 0]], ids=str)
def test_extremes_leave_out_completions_without_tokens(
    lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second kind of batch is cut into parts, of which each has a share of what is clipped."""
    allow_programs(monkeypatch, 16)
    for ratio, advantage, name in ((0.5, -1.0, "clip_ratio/low_min"), (2.0, 1.0, "clip_ratio/high_max")):
        call = packed(lengths) | {"advantage_B": torch.full((len(lengths),), advantage)}
        call["old_logp_N"] = call["logp_N"] - math.log(ratio)
        call["old_logp_N"][-1] = call["logp_N"][-1]
        assert_same(call, {})
        call["old_logp_N"] = call["logp_N"] - math.log(ratio)
        assert float(kernel(**call).metrics[name]) == 1


@pytest.mark.parametrize("mode", IMPORTANCE_SAMPLING_MODES)
def test_unknown_sampling_logps_weigh_one(mode: str) -> None:
    call = packed([4, 3, 2])
    call["sampling_logp_N"][[1, 4, 5, 6]] = math.nan
    correction = {"importance_sampling_correction": True, "importance_sampling_mode": mode}
    for loss_type in ("grpo", *(["vespo"] if mode.startswith("token") else [])):
        assert_same(call, correction | {"loss_type": loss_type, "off_policy_mask_threshold": 0.1})
    call["sampling_logp_N"][:] = math.nan
    assert_same(call, correction)


SIZES = [[1], [1, 1], [BLOCK - 1], [BLOCK], [BLOCK + 1], [3 * BLOCK, 5, BLOCK + 7], [0, 0, 3, 0]]


@pytest.mark.parametrize("lengths", SIZES, ids=str)
@pytest.mark.parametrize("level", LEVELS)
def test_sizes_around_a_block(level: str, lengths: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """At token level few long completions are cut into parts; the sums then come from several programs."""
    allow_programs(monkeypatch, 16)
    call = packed(lengths, spread=0.05)
    for loss_type, option in (("grpo", "plain"), ("dapo", "beta, corrected, delta"), ("vespo", "beta")):
        options = {"loss_type": loss_type, "importance_sampling_level": level} | OPTIONS[option]
        options |= {"epsilon": 0.02, "epsilon_high": 0.03}
        assert_same(call, options, rtol=5e-5)
    options = {"loss_type": "cispo", "importance_sampling_level": level, "epsilon_high": 1.02}
    assert_same(of_token(call), options, rtol=5e-5)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loss_type", ONE_OF_EACH_FAMILY)
def test_more_completions_than_programs(loss_type: str, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    allow_programs(monkeypatch, 4)
    options = {"loss_type": loss_type, "importance_sampling_level": level}
    for option in ("all", "token_mask"):
        call = packed([3, 0, 5, 1, 2, 0, 4, 6, 1, 0, 2])
        assert_same(call, options | OPTIONS[option])
        assert_same(of_token(call), options | OPTIONS[option])


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_without_tokens_there_is_a_zero_with_a_graph(loss_type: str) -> None:
    none = torch.empty(0, requires_grad=True)
    call = {"length_B": torch.tensor([0, 0]), "entropy_N": torch.empty(0), "max_completion_length": 4}
    call |= {"old_logp_N": None, "advantage_B": torch.randn(2), "loss_type": loss_type}
    out = kernel(logp_N=none, **call, entropy_coef=0.1, top_entropy_quantile=0.2)
    out.loss.backward()
    assert float(out.loss.detach()) == 0
    assert none.grad is not None


def test_strides_do_not_matter() -> None:
    """Inputs that are not contiguous, and an incoming gradient of stride 0."""
    call = packed([5, 3, 4])
    want = run(kernel, call, beta=0.1, entropy_coef=0.1)
    spread = {}
    for name in TENSORS:
        spread[name] = torch.stack([call[name], torch.full_like(call[name], math.nan)], 1)[:, 0]
        assert not spread[name].is_contiguous()
    logp, entropy = (spread[name].requires_grad_() for name in ("logp_N", "entropy_N"))
    loss = kernel(**call | spread | {"logp_N": logp, "entropy_N": entropy}, beta=0.1, entropy_coef=0.1).loss
    grads = torch.autograd.grad(loss, (logp, entropy), torch.tensor([3.0]).expand(7)[4])
    for got, other in zip((loss.detach(), *grads), want[:3], strict=True):
        assert torch.equal(got, other)
    many = kernel(**call | {"logp_N": logp, "entropy_N": entropy}, beta=0.1, entropy_coef=0.1).loss.expand(3)
    again = torch.autograd.grad(many.sum(), (logp, entropy))
    assert all(torch.equal(a, b) for a, b in zip(again, grads, strict=True))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loss_type", ONE_OF_EACH_FAMILY)
def test_every_cell_is_written(loss_type: str, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh memory is full of NaN here."""
    for name in ("empty", "empty_like"):
        real = getattr(torch, name)

        def filled(*args: Any, real: Any = real, **kwargs: Any) -> Tensor:
            return real(*args, **kwargs).fill_(math.nan)

        monkeypatch.setattr(grpo_loss_triton.torch, name, filled)
    assert torch.empty(3).isnan().all()
    options = {"loss_type": loss_type, "importance_sampling_level": level}
    for lengths, option in (([4, 0, 3], "all"), ([4, 0, 3], "plain"), ([2 * BLOCK + 1], "entropy bonus")):
        got = run(kernel, packed(lengths, spread=0.01), **options | OPTIONS[option])
        assert all(x.isfinite().all() for x in got[:3])
        assert all(map(math.isfinite, got[3].values()))


def test_gradients_only_where_asked_for() -> None:
    call = packed([3, 2]) | {"entropy_coef": 0.1}
    assert not kernel(**call).loss.requires_grad
    entropy = call["entropy_N"].clone().requires_grad_()
    loss = kernel(**call | {"entropy_N": entropy}).loss
    torch.testing.assert_close(torch.autograd.grad(loss, entropy)[0], torch.full((5,), -0.1 / 5))
    assert not kernel(**call | {"entropy_N": entropy, "entropy_coef": 0.0}).loss.requires_grad
    with torch.no_grad():
        assert not kernel(**call | {"logp_N": call["logp_N"].clone().requires_grad_()}).loss.requires_grad
    others = {name: call[name].clone().requires_grad_() for name in TENSORS[1:4]}
    assert not kernel(**call | others, beta=0.1, importance_sampling_correction=True).loss.requires_grad
    metrics = kernel(**call | {"logp_N": call["logp_N"].clone().requires_grad_()}).metrics
    assert all(value.shape == () and not value.requires_grad for value in metrics.values())


def test_backward_may_run_twice() -> None:
    call = packed([3, 2])
    logp = call["logp_N"].clone().requires_grad_()
    loss = kernel(**call | {"logp_N": logp}).loss
    first = torch.autograd.grad(loss, logp, retain_graph=True)[0]
    kept = first.clone()
    second = torch.autograd.grad(loss * 2, logp, retain_graph=True)[0]
    assert torch.equal(first, kept)
    assert torch.equal(second, 2 * kept)
    first.fill_(math.nan)
    loss.backward()
    assert logp.grad is not None
    assert torch.equal(logp.grad, kept)


@pytest.mark.parametrize("items", [torch.tensor(40), torch.tensor(0), torch.tensor(7.0), 7.0, 0, None])
def test_num_items_as_tensor_and_number(items: Any) -> None:
    for loss_type in ("dapo", "cispo", "vespo"):
        assert_same(packed([3, 2]), {"loss_type": loss_type, "num_items_in_batch": items})
    with pytest.raises(ValueError, match="num_items_in_batch must be one number"):
        kernel(**packed([3, 2]) | {"num_items_in_batch": torch.tensor([5, 6])})


def test_float64_goes_to_the_reference() -> None:
    call = packed([3, 2])
    call["logp_N"] = call["logp_N"].double()
    got, want = (op(**call).loss for op in (grpo_loss_triton.grpo_loss, reference.grpo_loss))
    assert got.dtype == torch.float64
    assert torch.equal(got, want)


DEFAULTS = {name: x.default for name, x in inspect.signature(reference.grpo_loss).parameters.items()}
BAD = [
    ({"logp_N": torch.zeros(5, 1)}, r"logp_N must have 1 dimension\(s\), got shape \(5, 1\)"),
    ({"logp_N": torch.zeros(5).int()}, "logp_N must be floating point .*, got torch.int32"),
    ({"old_logp_N": torch.zeros(4)}, r"old_logp_N must have one entry per trained token \(5\), got 4"),
    ({"ref_logp_N": torch.zeros(5, device="meta")}, "ref_logp_N is on meta, the others are on cpu"),
    ({"length_B": torch.tensor([3, 3])}, "length_B adds up to 6, but logp_N has 5 entries"),
    ({"length_B": torch.tensor([6, -1])}, "length_B must not be negative, got -1"),
    ({"length_B": torch.tensor([3.0, 2.0])}, "length_B must be int32 or int64, got torch.float32"),
    ({"advantage_B": torch.zeros(3)}, r"advantage_B must have one entry per completion \(2\), got 3"),
    ({"advantage_B": None}, r"give one of advantage_B and advantage_N, got \[\]"),
    ({"loss_type": "ppo"}, "loss_type must be one of grpo, bnpo, .*, got 'ppo'"),
    ({"importance_sampling_level": "word"}, "importance_sampling_level must be one of token, sequence"),
    ({"epsilon": -0.1}, r"epsilon must be finite and in \[0, inf\], got -0.1"),
    ({"delta": 2.0, "loss_type": "sapo"}, "sapo has no delta, got 2.0: leave it None"),
    ({"delta": 2.0, "loss_type": "cispo"}, "cispo has no delta, got 2.0"),
    ({"epsilon": 0.3, "loss_type": "sapo"}, "sapo has no epsilon, got 0.3: leave it 0.2"),
    ({"epsilon_high": 0.3, "loss_type": "vespo"}, "vespo has no epsilon_high, got 0.3: leave it None"),
    ({"sapo_temperature_pos": 2.0}, "dapo has no sapo_temperature_pos, got 2.0: leave it 1.0"),
    ({"vespo_k_neg": 1, "loss_type": "sapo"}, "sapo has no vespo_k_neg, got 1: leave it 3.0"),
    ({"max_completion_length": -3}, r"max_completion_length must be finite and in \[1, inf\], got -3"),
    ({"max_completion_length": "a"}, "max_completion_length must be a number, got 'a'"),
    ({"num_items_in_batch": -5}, r"num_items_in_batch must be finite and in \[0, inf\], got -5"),
    ({"num_items_in_batch": torch.tensor(-5)}, "num_items_in_batch must be finite"),
    (
        {"num_items_in_batch": torch.tensor([5, 6])},
        "num_items_in_batch must be one number, got a tensor of sh",
    ),
    ({"num_processes": math.nan}, "num_processes must be at least 1, got nan"),
    ({"epsilon": None}, "epsilon must be a number, got None"),
    ({"top_entropy_quantile": None}, "top_entropy_quantile must be a number, got None"),
    ({"beta": None}, "beta must be a number, got None"),
    ({"vespo_k_pos": None, "loss_type": "vespo"}, "vespo_k_pos must be a number, got None"),
    ({"length_B": [3, 2]}, "length_B must be a tensor, got list"),
    ({"advantage_B": [0.5, 2.0]}, "advantage_B must be a tensor, got list"),
    ({"ref_logp_N": [0.0] * 5}, "ref_logp_N must be a tensor, got list"),
    (
        {"logp_N": torch.zeros(5).to(torch.float8_e4m3fn)},
        "logp_N must be floating point .* got torch.float8_e4m3fn",
    ),
    ({"beta": 0.1, "ref_logp_N": None}, "beta=0.1 needs ref_logp_N, got None"),
    ({"loss_type": "dr_grpo", "max_completion_length": None}, "dr_grpo needs max_completion_length >= 1"),
    ({"gradient_accumulation_steps": 2, "num_items_in_batch": None}, "needs num_items_in_batch, got None"),
    (
        {"loss_type": "vespo", "importance_sampling_correction": True},
        r"vespo needs a token_\* importance_sampling_mode",
    ),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_arguments_are_refused_before_any_launch(
    change: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpo_loss_triton, "_launch_forward", None)
    monkeypatch.setattr(grpo_loss_triton, "_forward_arguments", None)
    good = {name: x for name, x in packed([3, 2]).items() if "sampling" not in name}
    grpo_loss_triton._plan(SimpleNamespace(**dict.fromkeys(grpo_loss_triton.TENSORS) | DEFAULTS | good))
    call = good | change
    with pytest.raises(ValueError, match=message):
        grpo_loss_triton.grpo_loss(**call)
    with pytest.raises(ValueError, match=message):
        reference.grpo_loss(**call)


def test_values_that_a_loss_type_has_not_may_stand_at_their_defaults() -> None:
    """A trainer may hand over all of them, and `epsilon_high` as TRL resolves it."""
    for loss_type in LOSS_TYPES:
        options = {name: x for own in OWN_OPTIONS.values() for name, x in own.items()} | {"epsilon_high": 0.2}
        assert_same(packed([3, 2]), {"loss_type": loss_type})
        kernel(**packed([3, 2]) | options | {"loss_type": loss_type})


def test_signature_is_the_references() -> None:
    ours, theirs = (inspect.signature(op) for op in (grpo_loss_triton.grpo_loss, reference.grpo_loss))
    assert ours == theirs


@pytest.mark.parametrize(
    ("loss_type", "level"),
    [*((x, "token") for x in LOSS_TYPES if x != "bnpo"), ("grpo", "sequence"), ("cispo", "sequence")],
)
def test_eight_micro_batches_of_one_equal_one_of_eight(loss_type: str, level: str) -> None:
    lengths = [4, 1, 7, 3, 2, 5, 6, 2]
    call = packed(lengths) | {"num_items_in_batch": 30}
    options = {"loss_type": loss_type, "importance_sampling_level": level, "beta": 0.1}
    loss, grad, _, _ = run(kernel, call, **options)
    steps = {"gradient_accumulation_steps": 8, "steps_per_generation": 8}
    losses, grads, start = [], [], 0
    for b, length in enumerate(lengths):
        part = {k: v[start : start + length] if k.endswith("_N") else v for k, v in call.items()}
        part |= {"length_B": call["length_B"][b : b + 1], "advantage_B": call["advantage_B"][b : b + 1]}
        one = run(kernel, part, **options, **steps)
        losses.append(one[0])
        grads.append(one[1])
        start += length
    torch.testing.assert_close(torch.stack(losses).sum(), loss)
    torch.testing.assert_close(torch.cat(grads), grad)


@settings(max_examples=30)
@given(
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=6).filter(any),
    loss_type=st.sampled_from(LOSS_TYPES),
    level=st.sampled_from(LEVELS),
    mode=st.sampled_from([None, *IMPORTANCE_SAMPLING_MODES]),
    spread=st.sampled_from([0.0, 1e-3, 0.3, 3.0]),
    scale=st.sampled_from([1e-4, 1.0, 1e4]),
    beta=st.sampled_from([0.0, 0.04]),
    quantile=st.sampled_from([1.0, 0.5, 0.1]),
    threshold=st.sampled_from([None, 0.0]),
    coef=st.sampled_from([0.0, 0.01]),
    per_token=st.booleans(),
    programs=st.sampled_from([1, 2, 8]),
    seed=st.integers(0, 2**16),
)
def test_any_call_agrees_with_the_reference(
    lengths: list[int], loss_type: str, level: str, mode: str | None, spread: float, scale: float,
    beta: float, quantile: float, threshold: float | None, coef: float, per_token: bool, programs: int,
    seed: int,
) -> None:  # fmt: skip
    options = {"loss_type": loss_type, "importance_sampling_level": level, "beta": beta, "entropy_coef": coef}
    options |= {"top_entropy_quantile": quantile, "off_policy_mask_threshold": threshold}
    if mode is not None and fits(loss_type, {"importance_sampling_mode": mode}):
        options |= {"importance_sampling_correction": True, "importance_sampling_mode": mode}
    call = packed(lengths, seed, spread)
    call["advantage_B"] *= scale
    with pytest.MonkeyPatch.context() as patch:
        allow_programs(patch, programs)
        assert_same(of_token(call) if per_token else call, options, rtol=1e-4, atol=1e-6 * max(scale, 1.0))


@pytest.mark.parametrize("level", LEVELS)
def test_addresses_past_two_to_the_31(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels see vectors that begin 2^31 tokens before the memory that is there, and completions behind
    them: an offset in 32 bits would miss them by gigabytes."""
    far = 2**31 + 2 * grpo_loss_triton.BACKWARD_BLOCK
    options = {"importance_sampling_level": level} | OPTIONS["all"]
    call = of_token(packed([5, 3, 7]))
    want = run(kernel, call, **options)
    real_arguments, real_tile = grpo_loss_triton._shared_out, grpo_loss_triton._backward_tile
    real_pointer = interpreter._implicit_cvt

    def far_arguments(*args: Any) -> dict[str, Any]:
        arguments = real_arguments(*args)
        arguments["bounds_B1"] += far
        return arguments

    def far_pointer(arg: Any) -> Any:
        pointer = real_pointer(arg)
        if isinstance(arg, Tensor) and arg.shape == (15,):
            pointer.handle.data -= np.uint64(far * arg.element_size())
        return pointer

    def far_tile(tile: Any, *args: Any) -> None:
        real_tile(
            tile + far // grpo_loss_triton.BACKWARD_BLOCK, *args[:-2], args[-2].to(tl.int64) + far, args[-1]
        )

    monkeypatch.setattr(grpo_loss_triton, "_shared_out", far_arguments)
    monkeypatch.setattr(grpo_loss_triton, "_backward_tile", far_tile)
    monkeypatch.setattr(interpreter, "_implicit_cvt", far_pointer)
    got = run(kernel, call, **options)
    assert all(torch.equal(a, b) for a, b in zip(got[:3], want[:3], strict=True))
    assert got[3] == want[3]


def test_arrivals_are_counted_from_zero_again() -> None:
    for _ in range(2):
        kernel(**packed([3, 2, 4]))
        assert int(grpo_loss_triton._counter_of(torch.device("cpu"))) == 0


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_what_is_shipped_covers_every_loss_and_option(arch: int) -> None:
    found = grpo_loss_triton.compilations(arch)
    names = [c.name for c in found]
    assert len(set(names)) == len(names)
    assert {f"{loss_type}-{level}" for loss_type, level in product(LOSS_TYPES, LEVELS)} <= set(names)
    types = {kind for c in found for kind in c.signature.values()}
    assert ("*bf16" in types) == (arch >= 80)
    assert {"*fp16", "*fp32"} <= types
    forward = [c for c in found if not c.name.startswith("backward")]
    for c in forward:
        assert list(c.signature) == grpo_loss_triton._forward_kernel.arg_names
        assert c.constexprs.keys() == {k for k, kind in c.signature.items() if kind == "constexpr"}
    flags = (
        "FAMILY",
        "SEQUENCE",
        "ADVANTAGE_OF_TOKEN",
        "MEAN",
        "CORRECT_KL",
        "OFF_POLICY",
        "ROLLOUT",
        "MASKS",
    )
    seen = {name: {c.constexprs[name] for c in forward} for name in flags}
    assert seen["FAMILY"] == {0, 1, 2, 3}
    assert seen["ROLLOUT"] == {0, 1, 2}
    assert all(len(seen[name]) == 2 for name in flags if name not in ("FAMILY", "ROLLOUT"))
    for pointer in ("ref_N", "sampling_N", "entropy_N", "threshold_ptr", "items_ptr", "clipped_2CB"):
        assert len({pointer in c.constexprs for c in forward}) == 2, pointer
