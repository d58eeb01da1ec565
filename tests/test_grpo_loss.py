"""grpo_loss: closed forms, gradients, reductions and the door; test_trl_parity.py holds it against TRL."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_options import heard
from torch import Tensor

from medrl_kernels import GRPOLoss, grpo_loss, reference
from medrl_kernels.dispatch import LOSS_TYPES

F64 = torch.float64
LEVELS = ("token", "sequence")
CLIP_METRICS = {
    f"clip_ratio/{name}" for name in ("low_mean", "high_mean", "region_mean", "low_min", "high_max")
}


def packed(lengths: list[int], seed: int = 0, spread: float = 0.5) -> dict[str, Any]:
    """Random float64 arguments of a call; `spread` is the size of the log-ratios."""
    g = torch.Generator().manual_seed(seed)
    n = sum(lengths)
    logp = -torch.rand(n, generator=g, dtype=F64) * 3

    def near() -> Tensor:
        return logp + spread * torch.randn(n, generator=g, dtype=F64)

    return {
        "logp_N": logp,
        "old_logp_N": near(),
        "advantage_B": torch.randn(len(lengths), generator=g, dtype=F64),
        "length_B": torch.tensor(lengths),
        "ref_logp_N": near(),
        "sampling_logp_N": near(),
        "entropy_N": torch.rand(n, generator=g, dtype=F64),
        "max_completion_length": 16,
    }


def loss_and_grad(call: dict[str, Any], **options: Any) -> tuple[Tensor, Tensor]:
    """Loss and its gradient with respect to logp_N."""
    logp = call["logp_N"].clone().requires_grad_()
    loss = grpo_loss(**heard({**call, "logp_N": logp, **options})).loss
    return loss.detach(), torch.autograd.grad(loss, logp)[0]


def one_token(loss_type: str, ratio: float, advantage: float, **options: Any) -> tuple[float, float]:
    """Loss of a single token of log-prob log(ratio) - 1 against an old one of -1, and d loss / d logp."""
    logp = torch.tensor([math.log(ratio) - 1], dtype=F64)
    call = {"logp_N": logp, "old_logp_N": torch.tensor([-1.0], dtype=F64), "length_B": torch.tensor([1])}
    call |= {"advantage_B": torch.tensor([advantage], dtype=F64), "max_completion_length": 1}
    loss, grad = loss_and_grad(call, loss_type=loss_type, **options)
    return float(loss), float(grad)


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo", "luspo"])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    ("ratio", "advantage", "options", "loss", "grad"),
    [
        (1.1, 2.0, {}, -2.2, -2.2),
        (1.5, 2.0, {}, -2.4, 0.0),  # above the clip, A > 0: cut at 1.2
        (1.5, 2.0, {"epsilon_high": 0.4}, -2.8, 0.0),
        (1.5, -2.0, {}, 3.0, 3.0),  # above the clip, A < 0: pessimistic, not cut
        (0.5, -2.0, {}, 1.6, 0.0),  # below the clip, A < 0: cut at 0.8
        (0.5, -2.0, {"epsilon": 0.1, "epsilon_high": 0.4}, 1.8, 0.0),
        (0.5, 2.0, {}, -1.0, -1.0),
        (9.0, -2.0, {"delta": 4.0}, 8.0, 0.0),  # delta bounds what the clip lets through
        (3.0, -2.0, {"delta": 4.0}, 6.0, 6.0),
        (1.1, 2.0, {"delta": 1.05}, -2.1, 0.0),
    ],
)
def test_clipped_surrogate_in_closed_form(
    loss_type: str,
    level: str,
    ratio: float,
    advantage: float,
    options: dict[str, Any],
    loss: float,
    grad: float,
) -> None:
    got = one_token(loss_type, ratio, advantage, importance_sampling_level=level, **options)
    assert got == pytest.approx((loss, grad), abs=1e-12)


@pytest.mark.parametrize(("ratio", "advantage"), [(1.3, 2.0), (0.7, -1.5), (2.0, -0.5)])
def test_the_other_losses_in_closed_form(ratio: float, advantage: float) -> None:
    logp = math.log(ratio) - 1
    weight = min(ratio, 1.2)
    cispo = one_token("cispo", ratio, advantage, epsilon_high=1.2)
    assert cispo == pytest.approx((-weight * advantage * logp, -weight * advantage))

    temperature = 1.0 if advantage > 0 else 1.05
    gate = 1 / (1 + math.exp(-temperature * (ratio - 1)))
    sapo = one_token("sapo", ratio, advantage)
    assert sapo == pytest.approx(
        (-4 / temperature * gate * advantage, -4 * advantage * ratio * gate * (1 - gate))
    )

    k, rate = (2.0, 3.0) if advantage >= 0 else (3.0, 2.0)
    phi = ratio**k * math.exp(rate * (1 - ratio))
    vespo = one_token("vespo", ratio, advantage)
    assert vespo == pytest.approx((-phi * advantage * logp, -phi * advantage))


def test_gradient_at_the_bounds_themselves() -> None:
    """At ratio = 1 +- epsilon or = delta, clamp passes the gradient; min shares it among equal branches."""
    for ratio, advantage, options, want in [
        (1.25, 1.0, {"epsilon": 0.25}, -1.25),
        (0.75, -1.0, {"epsilon": 0.25}, 0.75),
        (4.0, -1.0, {"epsilon": 0.25, "delta": 4.0}, 4.0),
    ]:
        logp = torch.tensor([0.0], dtype=F64, requires_grad=True)
        ratio_N = torch.tensor([ratio], dtype=F64) * torch.exp(logp)  # exactly `ratio`
        epsilon = options["epsilon"]
        loss = reference.clipped_loss(
            ratio_N, torch.tensor([advantage], dtype=F64), epsilon, epsilon, options.get("delta")
        )
        assert float(torch.autograd.grad(loss.sum(), logp)[0]) == pytest.approx(want)


MANY_OPTIONS = {
    "beta": 0.3,
    "entropy_coef": 0.2,
    "epsilon": 0.9,
    "importance_sampling_correction": True,
    "importance_sampling_mode": "token_truncate",
}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loss_type", [x for x in LOSS_TYPES if x not in ("cispo", "vespo")])
def test_gradcheck(loss_type: str, level: str) -> None:
    call = packed([3, 1, 4], spread=0.1) | MANY_OPTIONS
    call |= {"loss_type": loss_type, "importance_sampling_level": level}

    def op(logp: Tensor, entropy: Tensor) -> Tensor:
        return grpo_loss(**heard({**call, "logp_N": logp, "entropy_N": entropy})).loss

    leaves = (call["logp_N"].clone().requires_grad_(), call["entropy_N"].clone().requires_grad_())
    assert torch.autograd.gradcheck(op, leaves)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loss_type", ["cispo", "vespo"])
def test_detached_weights_are_the_gradient(loss_type: str, level: str) -> None:
    """The loss sums weight x logp, and weights pass no gradient: gradient x logp adds up to it."""
    call = packed([3, 1, 4]) | MANY_OPTIONS | {"beta": 0.0, "entropy_coef": 0.0}
    loss, grad = loss_and_grad(call, loss_type=loss_type, importance_sampling_level=level)
    torch.testing.assert_close((grad * call["logp_N"]).sum(), loss)
    assert grad.abs().min() > 0


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_first_step_is_the_plain_policy_gradient(loss_type: str) -> None:
    """With the old policy left out, every ratio is 1, nothing is clipped, and KL to itself is 0."""
    call = packed([2, 5, 1]) | {"old_logp_N": None, "num_items_in_batch": 8}
    call["ref_logp_N"] = call["logp_N"]
    _, grad = loss_and_grad(call, loss_type=loss_type, beta=0.1, epsilon_high=1.0)
    advantage = call["advantage_B"].repeat_interleave(call["length_B"])
    lengths = call["length_B"].repeat_interleave(call["length_B"]).double()
    divisor = {"grpo": 3 * lengths, "sapo": 3 * lengths, "dr_grpo": 3 * 16, "luspo": 3}.get(loss_type, 8)
    torch.testing.assert_close(grad, -advantage / divisor)
    metrics = grpo_loss(**call, loss_type=loss_type, beta=0.1).metrics
    assert float(metrics["kl"]) == 0
    assert all(float(v) == 0 for name, v in metrics.items() if "clip_ratio" in name and loss_type != "cispo")


@pytest.mark.parametrize(
    ("loss_type", "names"),
    [
        *((name, CLIP_METRICS) for name in ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")),
        ("cispo", {"cispo_clip_ratio"}),
        ("sapo", set()),
        ("vespo", {"vespo/phi_seq_mean"}),
    ],
)
def test_metrics_are_named_as_in_trl_detached_and_single(loss_type: str, names: set[str]) -> None:
    call = packed([3, 2]) | {"loss_type": loss_type, "importance_sampling_mode": "token_mask"}
    call["logp_N"].requires_grad_()
    call["entropy_N"].requires_grad_()
    out = grpo_loss(**call)
    assert isinstance(out, GRPOLoss)
    assert out.metrics.keys() == names | {"entropy"}
    full = grpo_loss(**call, beta=0.1, entropy_coef=0.1, importance_sampling_correction=True).metrics
    sampling = {f"sampling/sampling_logp_difference/{x}" for x in ("mean", "max")}
    sampling |= {f"sampling/importance_sampling_ratio/{x}" for x in ("min", "mean", "max")}
    assert full.keys() == names | {"entropy", "kl", "policy_loss"} | sampling
    assert all(v.shape == () and not v.requires_grad for v in full.values())
    assert out.loss.shape == ()
    assert out.loss.requires_grad


def test_clip_metrics_by_hand() -> None:
    ratio = torch.tensor([0.5, 1.0, 0.5, 2.0, 2.0, 1.0, 1.0])
    lengths, advantage = torch.tensor([3, 2, 0, 2]), torch.tensor([-1.0, 1.0, 1.0, -1.0])
    metrics = grpo_loss(ratio.log(), torch.zeros(7), advantage, lengths).metrics
    want = {"low_mean": 2 / 7, "high_mean": 2 / 7, "region_mean": 4 / 7, "low_min": 0.0, "high_max": 1.0}
    got = {name.removeprefix("clip_ratio/"): float(value) for name, value in metrics.items()}
    assert got == pytest.approx(want)
    sequence = grpo_loss(
        ratio.log(), torch.zeros(7), advantage, lengths, importance_sampling_level="sequence"
    )
    # Geometric means 0.63, 2, 1 (no token) and 1: one of four completions is clipped on each side.
    assert float(sequence.metrics["clip_ratio/low_mean"]) == pytest.approx(1 / 4)
    assert float(sequence.metrics["clip_ratio/high_mean"]) == pytest.approx(1 / 4)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_a_completion_without_tokens_counts_but_adds_nothing(loss_type: str, level: str) -> None:
    call = packed([3, 2, 0, 4], seed=5)
    options = {"loss_type": loss_type, "importance_sampling_level": level}
    loss, grad = loss_and_grad(call, **options)
    keep = torch.tensor([0, 1, 3])
    shorter = call | {"length_B": call["length_B"][keep], "advantage_B": call["advantage_B"][keep]}
    loss_without, grad_without = loss_and_grad(shorter, **options)
    share = 3 / 4 if loss_type in ("grpo", "sapo", "dr_grpo", "luspo") else 1
    torch.testing.assert_close(loss, loss_without * share)
    torch.testing.assert_close(grad, grad_without * share)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loss_type", [x for x in LOSS_TYPES if x != "bnpo"])
def test_completions_of_zero_advantage_may_be_left_out(loss_type: str, level: str) -> None:
    """Given as length 0 they change nothing; bnpo divides by the tokens that are there."""
    call = packed([3, 2, 4], seed=7)
    call["advantage_B"][1] = 0
    options = {"loss_type": loss_type, "importance_sampling_level": level, "num_items_in_batch": 9}
    loss, grad = loss_and_grad(call, **options)
    keep = torch.tensor([0, 1, 2, 5, 6, 7, 8])
    fewer = {name: x[keep] if name.endswith("_N") else x for name, x in call.items()}
    fewer["length_B"] = torch.tensor([3, 0, 4])
    loss_of_fewer, grad_of_fewer = loss_and_grad(fewer, **options)
    torch.testing.assert_close(loss_of_fewer, loss)
    torch.testing.assert_close(grad_of_fewer, grad[keep])
    assert not grad[[3, 4]].any()


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_nothing_but_empty_completions_gives_a_zero_with_a_graph(loss_type: str) -> None:
    none = torch.empty(0, requires_grad=True)
    out = grpo_loss(
        none, None, torch.randn(2), torch.tensor([0, 0]), entropy_N=torch.empty(0), top_entropy_quantile=0.2,
        entropy_coef=0.1, loss_type=loss_type, max_completion_length=4,
    )  # fmt: skip
    out.loss.backward()
    assert float(out.loss.detach()) == 0
    assert none.grad is not None
    if loss_type in ("grpo", "dapo"):
        assert out.metrics["clip_ratio/low_min"].isnan()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_advantage_of_every_token_may_be_given(loss_type: str, level: str) -> None:
    call = packed([3, 1, 4])
    options = {"loss_type": loss_type, "importance_sampling_level": level, "beta": 0.1}
    spread = call | {
        "advantage_B": None,
        "advantage_N": call["advantage_B"].repeat_interleave(call["length_B"]),
    }
    for got, want in zip(loss_and_grad(spread, **options), loss_and_grad(call, **options), strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loss_type", [x for x in LOSS_TYPES if x != "bnpo"])
def test_eight_micro_batches_of_one_equal_one_of_eight(loss_type: str, level: str) -> None:
    """bnpo is left out: it weighs each micro-batch by its own tokens, in TRL too."""
    lengths = [4, 1, 7, 3, 2, 5, 6, 2]
    call = packed(lengths, seed=2)
    options = {"loss_type": loss_type, "importance_sampling_level": level, "beta": 0.1}
    options |= {"num_items_in_batch": 30, "off_policy_mask_threshold": 0.1}
    options |= {"importance_sampling_correction": True, "importance_sampling_mode": "token_mask"}
    whole, whole_grad = loss_and_grad(call, **options)
    losses, grads, start = [], [], 0
    for b, length in enumerate(lengths):
        part = {k: v[start : start + length] for k, v in call.items() if k.endswith("_N")}
        part |= {"length_B": call["length_B"][b : b + 1], "advantage_B": call["advantage_B"][b : b + 1]}
        part["max_completion_length"] = 16
        loss, grad = loss_and_grad(part, **options, gradient_accumulation_steps=8, steps_per_generation=8)
        losses.append(loss)
        grads.append(grad)
        start += length
    torch.testing.assert_close(sum(losses), whole)
    torch.testing.assert_close(torch.cat(grads), whole_grad)


@given(
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=6).filter(any),
    loss_type=st.sampled_from(LOSS_TYPES),
    level=st.sampled_from(LEVELS),
    seed=st.integers(0, 2**16),
)
def test_order_of_the_completions_does_not_matter(
    lengths: list[int], loss_type: str, level: str, seed: int
) -> None:
    call = packed(lengths, seed)
    options = {"loss_type": loss_type, "importance_sampling_level": level, "beta": 0.1}
    options |= {"top_entropy_quantile": 0.5, "entropy_coef": 0.01, "off_policy_mask_threshold": 0.0}
    back = {k: v for k, v in call.items() if k == "max_completion_length"}
    for name, value in call.items():
        if name.endswith("_N"):
            back[name] = torch.cat(list(value.split(lengths))[::-1])
        elif name.endswith("_B"):
            back[name] = value.flip(0)
    loss, grad = loss_and_grad(call, **options)
    loss_back, grad_back = loss_and_grad(back, **options)
    torch.testing.assert_close(loss_back, loss)
    torch.testing.assert_close(torch.cat(list(grad_back.split(lengths[::-1]))[::-1]), grad)


@given(
    shift=st.floats(-3, 3),
    loss_type=st.sampled_from(["grpo", "bnpo", "dr_grpo", "dapo", "luspo"]),
    advantage=st.sampled_from([-2.0, 0.0, 2.0]),
)
def test_a_clipped_token_is_never_pushed_further_out(shift: float, loss_type: str, advantage: float) -> None:
    _, grad = one_token(loss_type, math.exp(shift), advantage)
    outside = abs(math.exp(shift) - 1) > 0.2
    further = shift * advantage > 0
    assert (grad == 0) == (advantage == 0 or (outside and further))
    assert grad * advantage <= 0


def test_high_entropy_mask_keeps_the_top_share() -> None:
    entropy = torch.tensor([0.1, 0.9, 0.5, 0.7, 0.3])
    assert reference.high_entropy_mask(entropy, 0.4).tolist() == [False, True, False, True, False]
    assert reference.high_entropy_mask(entropy, 1.0).all()
    assert reference.high_entropy_mask(entropy, 0.0).tolist() == [False, True, False, False, False]


def test_rollout_weights_by_hand() -> None:
    old = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0])
    sampling = torch.tensor([math.log(1 / 2), math.log(2), math.nan, math.log(1 / 1.5), math.log(1 / 4)])
    call = packed([3, 2]) | {"old_logp_N": old, "sampling_logp_N": sampling, "logp_N": old}
    want = {
        "token_truncate": [2.0, 0.6, 1.0, 1.5, 3.0],
        "token_mask": [2.0, 0.0, 1.0, 1.5, 0.0],
        "sequence_truncate": [1.0, 1.0, 1.0, 3.0, 3.0],
        "sequence_mask": [1.0, 1.0, 1.0, 0.0, 0.0],
    }
    for mode, weights in want.items():
        _, grad = loss_and_grad(
            call, importance_sampling_correction=True, importance_sampling_mode=mode,
            importance_sampling_clip_min=0.6, importance_sampling_clip_max=3.0,
        )  # fmt: skip
        advantage = call["advantage_B"].float().repeat_interleave(call["length_B"])
        torch.testing.assert_close(grad, -advantage * torch.tensor(weights) / 5)


def test_not_a_number_reaches_the_loss() -> None:
    for name in ("logp_N", "old_logp_N", "ref_logp_N", "entropy_N", "advantage_B"):
        call = packed([3, 2])
        call[name][1] = math.nan
        assert grpo_loss(**call, beta=0.1, entropy_coef=0.1).loss.isnan(), name
        assert grpo_loss(**call, beta=0.1, loss_type="vespo").loss.isnan() or name == "entropy_N", name
    call = packed([3, 2])
    call["entropy_N"][1] = math.nan  # then no token is among those of the highest entropy
    assert grpo_loss(**call, top_entropy_quantile=0.5).loss.isnan()


WAYS = [
    ("logp_N", {}),
    ("old_logp_N", {}),
    ("ref_logp_N", {"beta": 0.1}),
    ("advantage_B", {}),
    ("entropy_N", {"entropy_coef": 0.1}),
    ("entropy_N", {"top_entropy_quantile": 0.5}),
    ("sampling_logp_N", {"off_policy_mask_threshold": 0.1}),
    ("sampling_logp_N", {"importance_sampling_correction": True, "importance_sampling_mode": "token_mask"}),
    (
        "sampling_logp_N",
        {"importance_sampling_correction": True, "importance_sampling_mode": "sequence_mask"},
    ),
    (
        "sampling_logp_N",
        {"importance_sampling_correction": True, "importance_sampling_mode": "token_truncate"},
    ),
]


@pytest.mark.parametrize("value", [math.inf, -math.inf])
@pytest.mark.parametrize(("name", "options"), WAYS, ids=lambda x: ",".join(x) if isinstance(x, dict) else x)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_infinity_reaches_the_loss_and_its_gradient(
    loss_type: str, level: str, name: str, options: dict[str, Any], value: float
) -> None:
    """Bounds and masks would make a number of it, for advantages of either sign and for 0.

    A weight that is not a number shows in the loss; the gradient is then whatever clamp and min let through.
    """
    if loss_type == "vespo" and "sequence" in str(options):
        return
    for advantage in (1.0, -1.0, 0.0):
        call = packed([3, 2]) | options | {"loss_type": loss_type, "importance_sampling_level": level}
        call["advantage_B"][:] = advantage
        call[name][1] = value
        loss, grad = loss_and_grad(call)
        assert not loss.isfinite()
        assert not grad.isfinite().all() or name in ("entropy_N", "sampling_logp_N")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_storage_is_computed_in_fp32(dtype: torch.dtype) -> None:
    call = {
        k: v.to(dtype) if isinstance(v, Tensor) and v.dtype == F64 else v for k, v in packed([3, 2]).items()
    }
    out = grpo_loss(**call, beta=0.1)
    call = {k: v.float() if isinstance(v, Tensor) and v.dtype == dtype else v for k, v in call.items()}
    assert out.loss.dtype == torch.float32
    assert torch.equal(out.loss, grpo_loss(**call, beta=0.1).loss)


def test_window_losses_divide_by_one_window_of_the_generation_batch() -> None:
    call = packed([3, 2])
    base, _ = loss_and_grad(call, loss_type="dapo")
    counts = {"num_processes": 2, "gradient_accumulation_steps": 4, "steps_per_generation": 2}
    got, _ = loss_and_grad(call, loss_type="dapo", num_items_in_batch=torch.tensor(40), **counts)
    torch.testing.assert_close(got, base * 5 / (40 / 2 * 4 / 2))
    empty, _ = loss_and_grad(call, loss_type="dapo", num_items_in_batch=0)
    torch.testing.assert_close(empty, base * 5)


GOOD = {
    "logp_N": torch.zeros(5),
    "old_logp_N": None,
    "advantage_B": torch.zeros(2),
    "length_B": torch.tensor([3, 2]),
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logp_N": torch.zeros(5, 1)}, r"logp_N must have 1 dimension\(s\), got shape \(5, 1\)"),
        ({"logp_N": torch.zeros(5).int()}, "logp_N must be floating point .*, got torch.int32"),
        ({"old_logp_N": torch.zeros(4)}, r"old_logp_N must have one entry per trained token \(5\), got 4"),
        ({"ref_logp_N": torch.zeros(5, device="meta")}, "ref_logp_N is on meta, the others are on cpu"),
        ({"length_B": torch.tensor([3, 3])}, "length_B adds up to 6, but logp_N has 5 entries"),
        ({"length_B": torch.tensor([6, -1])}, "length_B must not be negative, got -1"),
        ({"length_B": torch.tensor([3.0, 2.0])}, "length_B must be int32 or int64, got torch.float32"),
        ({"length_B": torch.tensor([]).long(), "logp_N": torch.zeros(0)}, "length_B is empty"),
        ({"advantage_B": torch.zeros(3)}, r"advantage_B must have one entry per completion \(2\), got 3"),
        ({"advantage_B": None}, r"give one of advantage_B and advantage_N, got \[\]"),
        ({"advantage_N": torch.zeros(5)}, r"got \['advantage_B', 'advantage_N'\]"),
        ({"loss_type": "ppo"}, "loss_type must be one of grpo, bnpo, .*, got 'ppo'"),
        ({"importance_sampling_level": "word"}, "importance_sampling_level must be one of token, sequence"),
        ({"importance_sampling_mode": "mask"}, "importance_sampling_mode must be one of token_truncate"),
        ({"epsilon": -0.1}, r"epsilon must be finite and in \[0, inf\], got -0.1"),
        ({"epsilon_high": math.nan}, "epsilon_high must be finite"),
        ({"delta": 0.0}, "delta must be finite and above 0, got 0.0"),
        ({"delta": 2.0, "loss_type": "sapo"}, "sapo has no delta, got 2.0"),
        ({"sapo_temperature_neg": 0.0}, "sapo_temperature_neg must be finite and above 0"),
        ({"vespo_k_pos": math.inf}, "vespo_k_pos must be finite"),
        ({"beta": 0.1}, "beta=0.1 needs ref_logp_N, got None"),
        ({"entropy_coef": 0.1}, "entropy_coef=0.1 needs entropy_N, got None"),
        ({"top_entropy_quantile": 0.2}, "top_entropy_quantile=0.2 needs entropy_N, got None"),
        ({"top_entropy_quantile": 1.2}, r"top_entropy_quantile must be finite and in \[0, 1\], got 1.2"),
        ({"importance_sampling_correction": True}, "importance_sampling_correction needs sampling_logp_N"),
        (
            {"loss_type": "vespo", "importance_sampling_correction": True, "sampling_logp_N": torch.zeros(5)},
            r"vespo needs a token_\* importance_sampling_mode, got 'sequence_mask'",
        ),
        ({"loss_type": "dr_grpo"}, "dr_grpo needs max_completion_length >= 1, got None"),
        ({"gradient_accumulation_steps": 8}, "dapo over several steps or processes needs num_items_in_batch"),
        ({"num_processes": 0}, "num_processes must be at least 1, got 0"),
        ({"off_policy_mask_threshold": math.nan}, "off_policy_mask_threshold must be finite"),
        (
            {"importance_sampling_clip_min": 5.0},
            "importance_sampling_clip_min=5.0 is above importance_sampling_clip_max=3.0",
        ),
        ({"importance_sampling_clip_max": math.nan}, "importance_sampling_clip_max must be finite"),
        ({"num_items_in_batch": -5}, r"num_items_in_batch must be finite and in \[0, inf\], got -5"),
        ({"num_items_in_batch": torch.tensor(math.nan)}, "num_items_in_batch must be finite"),
        ({"epsilon": "0.2"}, "epsilon must be a number, got '0.2'"),
        ({"logp_N": [0.0] * 5}, "logp_N must be a tensor, got list"),
        ({"advantage_B": [1.0, 2.0]}, "advantage_B must be a tensor, got list"),
        ({"steps_per_generation": None}, "steps_per_generation must be at least 1, got None"),
    ],
    ids=lambda x: ",".join(x) if isinstance(x, dict) else "",
)
def test_bad_arguments_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grpo_loss(**{**GOOD, **change})


def test_the_public_signature_is_that_of_the_reference() -> None:
    public = dict(inspect.signature(grpo_loss).parameters)
    assert public.pop("impl").default == "auto"
    assert public == dict(inspect.signature(reference.grpo_loss).parameters)
