"""The Triton grouped_logp in the interpreter, against the reference and against float64 autograd.

Tiles are 64 columns wide here, so a vocabulary of 150 needs three and the last is cut.
"""

from __future__ import annotations

import ast
import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from medrl_kernels import grouped_logp, grouped_logp_triton
from medrl_kernels.configs import ARCHITECTURES, FILTER_MASS

EPS = {torch.float32: 2**-23, torch.float16: 2**-10}


def problem(
    states: int, targets: int | None, vocabulary: int, width: int, dtype: torch.dtype, seed: int = 0
) -> dict[str, Any]:
    """Random arguments of one call; `targets=None` gives each state one target. Every fifth is ignored."""
    g = torch.Generator().manual_seed(seed)
    n = states if targets is None else targets
    target_N = torch.randint(vocabulary, (n,), generator=g)
    if n > 4:
        target_N[4::5] = -100
    return {
        "hidden": torch.randn(states, width, generator=g).to(dtype),
        "weight": (torch.randn(vocabulary, width, generator=g) / math.sqrt(width) * 3).to(dtype),
        "bias": torch.randn(vocabulary, generator=g).to(dtype),
        "target": target_N,
        "source": None if targets is None else torch.randint(states, (n,), generator=g),
        "up": torch.randn(2, n, generator=g),
    }


def naive64(p: dict[str, Any], *, head: bool, bias: bool, entropy: bool, **o: Any) -> list[Tensor]:
    """logp, entropy, and the gradients of hidden, weight and bias in float64, from full rows of logits.

    `filter_eps` is ignored: where it drops nothing, it changes nothing.
    """
    hidden = p["hidden"].double().requires_grad_()
    weight = p["weight"].double().requires_grad_()
    bias_V = p["bias"].double().requires_grad_()
    rows = hidden if p["source"] is None else hidden[p["source"]]
    logits = (rows @ weight.T + (bias_V if bias else 0)) * o.get("logit_scale", 1.0)
    if o.get("softcap"):
        logits = o["softcap"] * torch.tanh(logits / o["softcap"])
    log_p = F.log_softmax(logits / o.get("temperature", 1.0), -1)
    keep = p["target"] != -100
    logp = torch.where(keep, log_p.gather(1, p["target"].clamp(min=0)[:, None])[:, 0], 0.0)
    spread = torch.where(keep, -(log_p.exp() * log_p).sum(-1), 0.0)
    loss = (logp * p["up"][0].double()).sum() + entropy * (spread * p["up"][1].double()).sum()
    wanted = [hidden, *([weight] if head else []), *([bias_V] if head and bias else [])]
    return [logp.detach(), spread.detach(), *torch.autograd.grad(loss, wanted)]


def kernel(
    p: dict[str, Any], *, head: bool, bias: bool, entropy: bool, impl: str = "triton", **o: Any
) -> list[Tensor]:
    """The same five from the op."""
    hidden = p["hidden"].clone().requires_grad_()
    weight = p["weight"].clone().requires_grad_(head)
    bias_V = p["bias"].clone().requires_grad_(head) if bias else None
    out = grouped_logp(
        hidden, weight, p["target"], p["source"], bias_V=bias_V, with_entropy=True, impl=impl, **o
    )
    assert out.entropy_N is not None
    loss = (out.logp_N * p["up"][0]).sum()
    if entropy:  # an entropy whose gradient is asked for, be it 0, takes the other way through the backward
        loss = loss + (out.entropy_N * p["up"][1]).sum()
    loss.backward()
    grads = [hidden.grad, *([weight.grad] if head else [])]
    grads += [bias_V.grad] if head and bias_V is not None else []
    assert all(g is not None for g in grads)
    return [out.logp_N.detach(), out.entropy_N.detach(), *(g for g in grads if g is not None)]


def assert_error_rule(p: dict[str, Any], **o: Any) -> None:
    """Kernel error <= 2 x the error of the plain reference in that dtype + a floor of its rounding."""
    exact = naive64(p, **o)
    logit = 1 + (p["hidden"].double() @ p["weight"].double().T).abs().max() * abs(o.get("logit_scale", 1.0))
    rounding = 4 * EPS[torch.float32] * float(logit) / o.get("temperature", 1.0)  # of a logit, in fp32
    ours, plain = kernel(p, **o), kernel(p, impl="reference", **o)
    for x, ours_x, plain_x in zip(exact, ours, plain, strict=True):
        floor = (4 * EPS[ours_x.dtype] + rounding) * max(1.0, float(x.abs().max()))
        error, allowed = (ours_x.double() - x).abs().max(), (plain_x.double() - x).abs().max()
        assert error <= 2 * allowed + floor, (float(error), float(allowed), floor)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.7},
    {"bias": True, "logit_scale": 1.3},
    {"softcap": 4.0, "temperature": 1.5},
    {"entropy": True},
    {"entropy": True, "bias": True, "softcap": 4.0, "temperature": 0.7},
    {"head": True},
    {"head": True, "bias": True, "entropy": True, "softcap": 4.0, "logit_scale": -1.3},
    {"filter_eps": 1e-12},
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o) or "plain")
@pytest.mark.parametrize("shared", [False, True], ids=["each", "shared"])
def test_values_and_gradients(dtype: torch.dtype, options: dict[str, Any], shared: bool) -> None:
    p = problem(7, 13 if shared else None, 150, 24, dtype)
    assert_error_rule(p, **{"head": False, "bias": False, "entropy": False} | options)


@pytest.mark.parametrize("vocabulary", [1, 2, 63, 64, 65, 128])
@pytest.mark.parametrize(("states", "width"), [(1, 1), (3, 17)])
def test_sizes_around_a_block(vocabulary: int, states: int, width: int) -> None:
    p = problem(states, None, vocabulary, width, torch.float32, seed=vocabulary)
    assert_error_rule(p, head=True, bias=True, entropy=True)
    assert_error_rule(p, head=False, bias=False, entropy=False)


@settings(max_examples=25)
@given(
    states=st.integers(1, 5),
    targets=st.integers(1, 9),
    vocabulary=st.integers(1, 140),
    width=st.integers(1, 20),
    magnitude=st.sampled_from([1e-3, 1.0, 30.0]),
    dtype=st.sampled_from([torch.float32, torch.float16]),
    head=st.booleans(),
    bias=st.booleans(),
    entropy=st.booleans(),
    softcap=st.sampled_from([None, 2.0, 30.0]),
    temperature=st.sampled_from([0.5, 1.0, 2.0]),
    seed=st.integers(0, 99),
)
def test_any_shape_option_and_magnitude(
    states: int, targets: int, vocabulary: int, width: int, magnitude: float, seed: int, **o: Any
) -> None:
    p = problem(states, targets, vocabulary, width, o.pop("dtype"), seed)
    p["hidden"] = p["hidden"] * magnitude
    assert_error_rule(p, **o)


def test_ignored_targets_give_zero_and_take_no_gradient() -> None:
    p = problem(6, None, 70, 8, torch.float32)
    p["target"][:] = torch.tensor([-100, 3, -100, 69, -100, 0])
    logp, entropy, grad = kernel(p, head=False, bias=False, entropy=True)
    ignored = p["target"] == -100
    for x in (logp, entropy, grad):
        assert (x[ignored] == 0).all()
        assert (x[~ignored] != 0).any(-1).all() if x.dim() > 1 else (x[~ignored] != 0).all()


def test_nothing_to_compute() -> None:
    p = problem(3, None, 70, 8, torch.float32)
    p["target"][:] = -100
    for head in (False, True):
        logp, entropy, *grads = kernel(p, head=head, bias=head, entropy=True)
        assert all((x == 0).all() for x in (logp, entropy, *grads))
        assert [g.shape for g in grads] == [(3, 8), *([(70, 8), (70,)] if head else [])]


def test_gradient_of_a_sum_is_expanded() -> None:
    p = problem(5, 9, 100, 16, torch.float32)
    p["up"] = torch.ones(2, 9)
    expected = kernel(p, head=False, bias=False, entropy=True)[2]
    hidden = p["hidden"].clone().requires_grad_()
    out = grouped_logp(hidden, p["weight"], p["target"], p["source"], with_entropy=True, impl="triton")
    assert out.entropy_N is not None
    (out.logp_N.sum() + out.entropy_N.sum()).backward()  # autograd hands down a scalar with stride 0
    assert hidden.grad is not None
    torch.testing.assert_close(hidden.grad, expected)


@pytest.mark.parametrize("head", [False, True], ids=["frozen", "trained"])
def test_every_cell_is_written(monkeypatch: pytest.MonkeyPatch, head: bool) -> None:
    """Memory that PyTorch hands out unset holds NaN here, so that a cell nobody wrote shows."""
    empty, empty_like, new_empty = torch.empty, torch.empty_like, Tensor.new_empty

    def filled(make: Any) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Tensor:
            x = make(*args, **kwargs)
            return x.fill_(math.nan if x.is_floating_point() else 2**40)

        return wrapped

    p = problem(7, 13, 150, 24, torch.float32)
    expected = kernel(p, head=head, bias=True, entropy=True)
    monkeypatch.setattr(torch, "empty", filled(empty))
    monkeypatch.setattr(torch, "empty_like", filled(empty_like))
    monkeypatch.setattr(Tensor, "new_empty", filled(new_empty))
    for x, y in zip(kernel(p, head=head, bias=True, entropy=True), expected, strict=True):
        assert torch.equal(x, y)


def of_rows(p: dict[str, Any], rows: Tensor) -> dict[str, Any]:
    """A call with some of the states, in some order, one target each."""
    return p | {"hidden": p["hidden"][rows], "target": p["target"][rows], "up": p["up"][:, rows]}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize(
    "options", [{}, {"filter_eps": 1e-3}, {"entropy": True}], ids=["", "filter", "entropy"]
)
def test_results_do_not_depend_on_what_else_a_call_holds(dtype: torch.dtype, options: dict[str, Any]) -> None:
    """To the last bit, in real numbers: calls of 1 to 45 states, in another order, some of them ignored.

    What a filter leaves out of a gradient is decided for a band of rows together; what it computes is not."""
    asked = {"head": False, "bias": True, "entropy": False} | options
    p = problem(45, None, 150, 48, dtype)
    whole = kernel(p, **asked)
    order = torch.randperm(45, generator=torch.Generator().manual_seed(1))
    for size in (1, 31, 45):
        pieces = [kernel(of_rows(p, rows), **asked) for rows in order.split(size)[:3]]
        for k, want in enumerate(whole[: 2 if "filter_eps" in options else 3]):
            assert torch.equal(torch.cat([piece[k] for piece in pieces]), want[order[: 3 * size]])


def test_a_shared_state_has_the_bits_of_the_same_targets_alone() -> None:
    """Its likeliest target decides what stays out of a state's sums, so all of them come along."""
    p = problem(23, 40, 150, 16, torch.float16)
    together = kernel(p, head=False, bias=True, entropy=False)
    own = p["source"] == p["source"][0]
    one = p | {"target": p["target"][own], "source": p["source"][own], "up": p["up"][:, own]}
    alone = kernel(one, head=False, bias=True, entropy=False)
    assert torch.equal(alone[0], together[0][own])
    assert torch.equal(alone[1], together[1][own])
    assert torch.equal(alone[2][p["source"][0]], together[2][p["source"][0]])


def test_the_gradient_of_the_head_does_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the order of its sum over the states."""
    p = problem(77, 90, 150, 16, torch.float32)
    want = kernel(p, head=True, bias=True, entropy=True)
    config = grouped_logp_triton.logp_config(None)
    monkeypatch.setattr(grouped_logp_triton, "logp_config", lambda capability: config._replace(rows=128))
    for x, y in zip(kernel(p, head=True, bias=True, entropy=True), want, strict=True):
        torch.testing.assert_close(x, y, atol=2e-6, rtol=2e-6)


PASSES = [
    ({"needs_grad": False}, 1, "a pass without gradient"),
    ({}, 2, "forward and backward"),
    ({"with_entropy": True}, 2, "an entropy that is looked at"),
    ({"with_entropy": True, "entropy": True}, 4, "the gradient of an entropy"),
    ({"head": True}, 4, "a head with gradient"),
]


@pytest.mark.parametrize(("asked", "products", "what"), PASSES, ids=[x[2] for x in PASSES])
def test_how_many_matrix_products_it_takes(
    asked: dict[str, Any], products: int, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted in cells: one product is chunks of rows, filled up, times the vocabulary."""
    cells = 0
    for name in ("product", "accumulate"):
        real = getattr(grouped_logp_triton, name)

        def counted(*args: Tensor, real: Any = real) -> None:
            nonlocal cells
            a, b = args[:2] if real.__name__ == "product" else args[1:]
            cells += a.shape[0] * a.shape[1] * (b.shape[0] if real.__name__ == "product" else b.shape[1])
            real(*args)

        monkeypatch.setattr(grouped_logp_triton, name, counted)
    p = problem(40, None, 150, 16, torch.float32)
    p["target"].clamp_(min=0)
    hidden = p["hidden"].requires_grad_(asked.get("needs_grad", True))
    weight = p["weight"].requires_grad_(asked.get("head", False))
    entropy = asked.get("with_entropy", False)
    out = grouped_logp(hidden, weight, p["target"], with_entropy=entropy, impl="triton")
    if hidden.requires_grad:
        more = out.entropy_N.sum() if asked.get("entropy") and out.entropy_N is not None else 0.0
        (out.logp_N.sum() + more).backward()
    assert cells == products * 64 * 150 * 16


def test_backward_may_run_again_after_an_entropys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The entropy's gradient takes the memory of E; what comes later makes it again."""
    p = problem(7, 13, 150, 24, torch.float32)
    hidden = p["hidden"].requires_grad_()
    out = grouped_logp(hidden, p["weight"], p["target"], p["source"], with_entropy=True, impl="triton")
    assert out.entropy_N is not None

    def gradient(loss: Tensor) -> Tensor:
        return torch.autograd.grad(loss, hidden, retain_graph=True)[0]

    logp, entropy = (out.logp_N * p["up"][0]).sum(), (out.entropy_N * p["up"][1]).sum()
    first = gradient(logp)
    both = gradient(logp + entropy)
    torch.testing.assert_close(gradient(logp), first, rtol=1e-5, atol=1e-6)
    assert torch.equal(gradient(logp + entropy), both)
    torch.testing.assert_close(gradient(entropy), both - first, rtol=1e-4, atol=1e-5)


def test_policy_old_and_filtered_passes_agree_to_the_bit() -> None:
    p = problem(7, 13, 150, 24, torch.float16)
    passes = []
    for needs_grad, head, eps in (
        (True, False, 0.0),
        (False, False, 0.0),
        (True, False, 0.01),
        (True, True, 0.0),
    ):
        hidden = p["hidden"].clone().requires_grad_(needs_grad)
        weight = p["weight"].clone().requires_grad_(head)
        out = grouped_logp(hidden, weight, p["target"], p["source"], impl="triton", filter_eps=eps)
        passes.append(out.logp_N)
    for x in passes[1:]:
        assert torch.equal(x, passes[0])  # so the ratio starts at exactly 1 and KL at exactly 0


def certain(rest: float, dtype: torch.dtype) -> dict[str, Any]:
    """One state that gives its target the probability 1 - rest; five others share the rest."""
    p = problem(1, None, 6, 8, dtype)
    weight = torch.zeros(6, 8)
    weight[:, :6] = torch.eye(6)
    hidden = torch.zeros(1, 8)
    hidden[0, 0] = math.log((1 - rest) / (rest / 5))
    p |= {"weight": weight.to(dtype), "hidden": hidden.to(dtype), "target": torch.tensor([0])}
    p["up"] = torch.ones(2, 1)
    return p


@pytest.mark.parametrize("rest", [1e-1, 1e-3, 1e-5, 1e-7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
def test_digits_survive_near_certainty(rest: float, dtype: torch.dtype) -> None:
    p = certain(rest, dtype)
    p["hidden"] = p["hidden"].float() if dtype == torch.float32 else p["hidden"]
    exact, ours = (f(p, head=False, bias=False, entropy=False) for f in (naive64, kernel))
    torch.testing.assert_close(ours[0].double(), exact[0], rtol=2e-6, atol=0)
    small = dtype == torch.float16  # its gradients have a spacing of 2^-24 near 0
    torch.testing.assert_close(ours[2].double(), exact[2], rtol=2e-3, atol=2**-24 if small else 0)


def test_small_weights_count_in_fp16() -> None:
    """A probability 1.5 * 2^-24 of the likeliest has a place of its own in the head: without the power of two
    that weights carry, fp16 would make it a third more or less."""
    p = problem(1, None, 3, 8, torch.float16)
    hidden, weight = torch.zeros(1, 8), torch.zeros(3, 8)
    weight[[0, 1, 2], [0, 1, 2]] = 1.0
    hidden[0, :3] = torch.tensor([0.0, 18.0, 18.0 + math.log(1.5 * 2.0**-24)])  # the target is unlikely
    p |= {"hidden": hidden.half(), "weight": weight.half(), "target": torch.tensor([0])}
    p["up"] = torch.full((2, 1), 2.0**14)  # the gradient itself is far from the least of fp16
    exact, ours = (f(p, head=False, bias=False, entropy=False) for f in (naive64, kernel))
    assert float(exact[2][0, 2].abs()) > 2**-11
    torch.testing.assert_close(ours[2][0, 2].double(), exact[2][0, 2], rtol=2e-2, atol=0)


@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("up", [2.0**-30, 2.0**12])
def test_gradients_far_from_the_range_of_fp16_reach_the_bias(entropy: bool, up: float) -> None:
    """The tiles hold d loss / d logit in fp16, near 1 by a power of two; a bias in fp32 shows its digits."""
    p = certain(1e-3, torch.float16)
    p["bias"] = torch.zeros(6)
    p["up"] = torch.full((2, 1), up)
    exact, ours = (f(p, head=True, bias=True, entropy=entropy) for f in (naive64, kernel))
    torch.testing.assert_close(ours[4].double(), exact[4], rtol=4e-3, atol=0)


@pytest.mark.parametrize("entropy", [False, True])
def test_nan_and_inf_reach_the_results(entropy: bool) -> None:
    for place, value in (("hidden", math.nan), ("hidden", math.inf), ("weight", math.nan)):
        p = problem(3, None, 100, 8, torch.float32)
        p["target"] = torch.tensor([5, 99, 64])
        p[place][1, 2] = value
        logp, spread, grad = kernel(p, head=False, bias=False, entropy=entropy)
        rows = [1] if place == "hidden" else [0, 1, 2]
        assert logp[rows].isnan().all()
        assert spread[rows].isnan().all()
        assert grad[rows].isnan().any(1).all()
        rest = [r for r in range(3) if r not in rows]
        assert logp[rest].isfinite().all()
        assert grad[rest].isfinite().all()


def test_a_bias_of_minus_infinity_forbids_a_token() -> None:
    p = problem(2, None, 70, 8, torch.float32)
    p["target"] = torch.tensor([3, 66])
    p["bias"][[3, 65]] = -math.inf
    logp, spread, grad = kernel(p, head=False, bias=True, entropy=False)
    ours, plain = (logp, spread), kernel(p, head=False, bias=True, entropy=False, impl="reference")
    assert logp[0] == -math.inf
    for x, y in zip(ours, plain[:2], strict=True):
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(grad[1], plain[2][1], rtol=1e-5, atol=1e-6)


def peaked(states: int, vocabulary: int, width: int, seed: int = 0) -> dict[str, Any]:
    """States that like one token much, as a policy does where it was sampled: most blocks cannot matter."""
    p = problem(states, None, vocabulary, width, torch.float32, seed)
    g = torch.Generator().manual_seed(seed)
    p["target"] = torch.randint(vocabulary, (states,), generator=g)
    p["hidden"] = p["weight"][p["target"]] * 0.7 + 0.1 * p["hidden"]
    return p


@pytest.mark.parametrize("eps", [1e-6, 1e-4, 1e-3, 1e-2])
@pytest.mark.parametrize("policy", ["peaked", "flat"])
def test_filter_drops_no_more_than_it_may(eps: float, policy: str) -> None:
    """A row of dh misses at most 16 eps times its incoming gradient and the head's longest row: by proof."""
    p = peaked(33, 300, 32)
    p["hidden"] *= {"peaked": 1.6, "flat": 0.05}[policy]
    p["weight"] += 1.0  # in common, so that it changes no probability, and E is as long as a row of W
    exact = naive64(p, head=False, bias=False, entropy=False)
    ours = kernel(p, head=False, bias=False, entropy=False, filter_eps=eps)
    torch.testing.assert_close(ours[0].double(), exact[0], rtol=1e-5, atol=1e-6)
    bound_S = FILTER_MASS * eps * p["up"][0].double().abs() * p["weight"].double().norm(dim=1).max()
    error_S = (ours[2].double() - exact[2]).norm(dim=1)
    assert (error_S <= bound_S + 1e-5 * exact[2].norm(dim=1) + 1e-7).all()
    if (eps, policy) == (1e-2, "peaked"):
        assert error_S.max() > 1e-4  # something was left out


def live_blocks(monkeypatch: pytest.MonkeyPatch, p: dict[str, Any], eps: float) -> Tensor:
    """Which blocks of 16 columns the filter of the first band of rows kept, in their order."""
    reached: list[Tensor] = []
    launch = grouped_logp_triton._live_blocks_kernel

    class Spy:
        def __getitem__(self, grid: Any) -> Any:
            def run(*args: Any, **kwargs: Any) -> None:
                reached.append(args[3][0].clone())
                launch[grid](*args, **kwargs)

            return run

    monkeypatch.setattr(grouped_logp_triton, "_live_blocks_kernel", Spy())
    kernel(p, head=False, bias=False, entropy=False, filter_eps=eps)
    return torch.cat(reached).bool()


def known_policy(prob_SV: Tensor) -> dict[str, Any]:
    """States whose probabilities are given: the head is the unit matrix, logits are their logs."""
    states, vocabulary = prob_SV.shape
    p = problem(states, None, vocabulary, vocabulary, torch.float32)
    p |= {"hidden": prob_SV.log().clamp(min=-80), "weight": torch.eye(vocabulary)}
    return p | {"target": prob_SV.argmax(1)}


EPS_HERE = 2.0**-10
# Of 192 columns in blocks of 16: the blocks' largest probability in units of eps, and over how many columns.
# A block may lose FILTER_MASS eps * 16 / 192 = 1.33 eps in all.
BLOCKS = [
    (0.9, 1, False),
    (1.1, 1, True),
    (0.2, 16, True),
    (0.05, 16, False),
    (0.6, 2, False),
    (0.75, 2, True),
]


@pytest.mark.parametrize(("peak", "columns", "lives"), BLOCKS)
def test_a_block_lives_by_its_largest_probability_and_by_their_sum(
    monkeypatch: pytest.MonkeyPatch, peak: float, columns: int, lives: bool
) -> None:
    prob_V = torch.zeros(192)
    prob_V[80 : 80 + columns] = peak * EPS_HERE
    prob_V[5] = 1 - prob_V.sum()
    want = torch.zeros(12, dtype=torch.bool)
    want[5] = lives
    p = known_policy(prob_V[None])
    assert torch.equal(live_blocks(monkeypatch, p, EPS_HERE), want)


def test_a_block_lives_if_one_of_its_rows_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    prob_SV = torch.zeros(5, 192)
    prob_SV[:, 5] = 1.0
    prob_SV[3, [5, 190]] = torch.tensor([1 - 2 * EPS_HERE, 2 * EPS_HERE])
    want = torch.zeros(12, dtype=torch.bool)
    want[11] = True
    assert torch.equal(live_blocks(monkeypatch, known_policy(prob_SV), EPS_HERE), want)


def test_a_flat_row_is_not_filtered_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every probability is below eps here, and all of them together are everything."""
    p = problem(3, None, 320, 8, torch.float32)
    p["hidden"] *= 0.01
    assert live_blocks(monkeypatch, p, 1 / 300).all()
    exact = naive64(p, head=False, bias=False, entropy=False)
    ours = kernel(p, head=False, bias=False, entropy=False, filter_eps=1 / 300)
    torch.testing.assert_close(ours[2].double(), exact[2], rtol=1e-4, atol=1e-6)


def test_what_is_skipped_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the blocks of a peaked policy and more; the pivot's own column does not count."""
    p = peaked(8, 192, 32)
    p["target"][:] = 5
    p["hidden"][:] = p["weight"][5] * 3
    live = live_blocks(monkeypatch, p, 1e-3)
    assert live.sum() < len(live) / 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"filter_eps": 2.0}, "filter_eps"),
        ({"target": torch.tensor([0, 70])}, r"target_N must lie in \[0, 70\)"),
        ({"target": torch.tensor([0.0, 1.0])}, "target_N must be int32 or int64"),
        ({"hidden": torch.zeros(2, 9)}, "D must agree"),
        ({"hidden": torch.zeros(2, 8, dtype=torch.float64)}, "float64"),
    ],
)
def test_bad_arguments_never_reach_a_kernel(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(grouped_logp_triton._GroupedLogp, "apply", None)
    p = problem(2, None, 70, 8, torch.float32) | change
    options = {k: v for k, v in change.items() if k in ("temperature", "filter_eps")}
    with pytest.raises(ValueError, match=message):
        grouped_logp(p["hidden"], p["weight"], p["target"], impl="triton", **options)


def test_strided_inputs_are_read_as_they_lie() -> None:
    p = problem(5, 9, 100, 16, torch.float32)
    expected = kernel(p, head=False, bias=False, entropy=False)
    wide = torch.randn(100, 40)
    wide[:, 3:19] = p["weight"]
    p["weight"] = wide[:, 3:19]
    p["hidden"] = p["hidden"].t().contiguous().t()
    hidden = p["hidden"].detach().requires_grad_()
    out = grouped_logp(hidden, p["weight"], p["target"], p["source"], impl="triton")
    (out.logp_N * p["up"][0]).sum().backward()
    torch.testing.assert_close(out.logp_N, expected[0])
    torch.testing.assert_close(hidden.grad, expected[2])


def test_launches_say_how_many_warps_and_stages() -> None:
    """Triton's own default of three stages is not what is compiled ahead of time."""
    launches = [
        call
        for call in ast.walk(ast.parse(inspect.getsource(grouped_logp_triton)))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Subscript)
        and ast.unparse(call.func.value).endswith("_kernel")
    ]  # fmt: skip
    assert len(launches) == 7
    for call in launches:
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        filtered = ast.unparse(call.func).startswith("_live_blocks_kernel")
        assert given["num_stages"] == ("config.filter_stages" if filtered else "NUM_STAGES")
        assert "num_warps" in given


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_what_is_shipped_covers_every_option_and_dtype(arch: int) -> None:
    found = grouped_logp_triton.compilations(arch)
    assert len({c.name for c in found}) == len(found)
    assert {c.num_stages for c in found if c.fn is not grouped_logp_triton._live_blocks_kernel} == {2}
    folds = [c for c in found if c.fn is grouped_logp_triton._fold_kernel]
    flags = {tuple(c.constexprs[k] for k in ("SOFTCAP", "ENTROPY", "PARTS", "FILTER")) for c in folds}
    filtered = [False] if arch == 75 else [False, True]
    wanted = {(x, x, True, f) for x, f in product((False, True), filtered)}
    assert wanted | {(False, True, True, False), (False, False, False, False)} <= flags
    assert {(x, y, False, False) for x, y in ((True, True), (False, True))} <= flags
    dtypes = {"fp16", "fp32"} if arch < 80 else {"bf16", "fp16", "fp32"}
    for kernel_of, states in ((grouped_logp_triton._pivot_kernel, "hidden_ptr"),
                              (grouped_logp_triton._gather_kernel, "grad_ptr")):  # fmt: skip
        pairs = {(c.signature[states], c.signature["weight_ptr"]) for c in found if c.fn is kernel_of}
        assert pairs == {(f"*{x}", f"*{y}") for x, y in product(dtypes, dtypes)}
    dlogits = [c.constexprs for c in found if c.fn is grouped_logp_triton._dlogit_kernel]
    assert {(c["SOFTCAP"], c["ENTROPY"]) for c in dlogits} == {(True, True), (False, True), (False, False)}


def test_kernels_run_on_the_card_of_their_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward: a launch goes to the current card, which need not be the tensors'."""
    entered: list[bool] = []
    launches: list[bool] = []

    @contextmanager
    def device_of(tensor: Tensor) -> Iterator[None]:
        entered.append(True)
        yield
        entered.pop()

    class Spy:
        def __init__(self, name: str) -> None:
            self.real = getattr(grouped_logp_triton, name)

        def __getitem__(self, grid: Any) -> Any:
            launches.append(bool(entered))
            return self.real[grid]

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    for name in ("_pivot_kernel", "_fold_kernel", "_finish_kernel", "_coefficient_kernel", "_gather_kernel"):
        monkeypatch.setattr(grouped_logp_triton, name, Spy(name))
    kernel(problem(3, None, 70, 8, torch.float32), head=False, bias=False, entropy=False)
    assert len(launches) == 6  # the vocabulary takes two tiles
    assert all(launches)
