"""grouped_logp against log_softmax + gather written out, in value and gradient."""

from __future__ import annotations

import ast
import inspect
import logging
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from medrl_kernels import GroupedLogp, configs, dispatch, grouped_logp, reference

F64 = torch.float64


def naive(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    source: Tensor | None = None,
    *,
    temperature: float = 1.0,
    bias_V: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """One full row of logits per target: log-probability and entropy, 0 where ignored."""
    rows = hidden if source is None else hidden[source]
    logits = (rows @ weight.T + (0 if bias_V is None else bias_V)) * logit_scale
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    logp = F.log_softmax(logits / temperature, dim=-1)
    keep = target != -100
    chosen = logp.gather(1, target.clamp(min=0)[:, None]).squeeze(1)
    return torch.where(keep, chosen, 0.0), torch.where(keep, -(logp.exp() * logp).sum(-1), 0.0)


def problem(states: int, targets: int | None, vocabulary: int, width: int, seed: int = 0) -> dict[str, Any]:
    """Random float64 arguments; `targets=None` gives each state one target."""
    g = torch.Generator().manual_seed(seed)
    n = states if targets is None else targets
    return {
        "hidden": torch.randn(states, width, generator=g, dtype=F64),
        "weight": torch.randn(vocabulary, width, generator=g, dtype=F64),
        "target": torch.randint(vocabulary, (n,), generator=g),
        "source": None if targets is None else torch.randint(states, (n,), generator=g),
        "bias": torch.randn(vocabulary, generator=g, dtype=F64),
        "up": torch.randn(2, n, generator=g, dtype=F64),
    }


def both(p: dict[str, Any], chunk_size: int = 1024, bias: bool = False, **options: Any) -> None:
    """Assert that values and all gradients of op and naive statement agree to float64 rounding."""
    results = []
    for op in (grouped_logp, naive):
        leaves = [p[name].clone().requires_grad_() for name in ("hidden", "weight", "bias")]
        extra = {"with_entropy": True, "chunk_size": chunk_size} if op is grouped_logp else {}
        out = op(
            leaves[0],
            leaves[1],
            p["target"],
            p["source"],
            bias_V=leaves[2] if bias else None,
            **options,
            **extra,
        )
        wanted = leaves if bias else leaves[:2]
        total = (out[0] * p["up"][0]).sum() + (out[1] * p["up"][1]).sum()
        results.append([out[0], out[1], *torch.autograd.grad(total, wanted)])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("states", [1, 3, 8, 9, 16, 21])
@pytest.mark.parametrize("targets", [None, 1, 13])
def test_matches_naive_at_sizes_around_a_chunk(states: int, targets: int | None) -> None:
    both(problem(states, targets, vocabulary=11, width=5), chunk_size=8)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.7},
        {"temperature": 3.0, "logit_scale": 0.25},
        {"logit_scale": -2.0},
        {"softcap": 2.0},
        {"softcap": 30.0, "temperature": 0.5, "logit_scale": 0.5},
    ],
    ids=str,
)
@pytest.mark.parametrize("bias", [False, True])
def test_matches_naive_with_options(options: dict[str, Any], bias: bool) -> None:
    both(problem(6, 10, vocabulary=17, width=4), chunk_size=4, bias=bias, **options)


def test_ignored_targets_are_zero_without_gradient() -> None:
    p = problem(7, 12, vocabulary=9, width=3)
    p["target"][[0, 5, 6]] = -100
    both(p, chunk_size=2, bias=True)
    hidden = p["hidden"].requires_grad_()
    only = torch.full_like(p["target"], -100)
    out = grouped_logp(hidden, p["weight"], only, p["source"], with_entropy=True)
    out.logp_N.sum().backward()
    assert hidden.grad is not None
    assert torch.equal(hidden.grad, torch.zeros_like(hidden))
    assert out.entropy_N is not None
    assert not out.logp_N.any()
    assert not out.entropy_N.any()


def test_no_target_at_all_gives_an_empty_result_with_a_graph() -> None:
    hidden = torch.randn(3, 4, requires_grad=True)
    empty = torch.empty(0, dtype=torch.int64)
    out = grouped_logp(hidden, torch.randn(5, 4), empty, empty)
    assert out.logp_N.shape == (0,)
    out.logp_N.sum().backward()
    assert hidden.grad is not None
    assert not hidden.grad.any()


def test_each_state_in_use_meets_the_head_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    inner = reference.head_logits

    def counting(hidden: Tensor, *rest: Any) -> Tensor:
        rows.append(len(hidden))
        return inner(hidden, *rest)

    monkeypatch.setattr(reference, "head_logits", counting)
    source = torch.tensor([5, 5, 5, 5, 2, 0, 9])
    target = torch.tensor([1, 2, 3, 1, 0, -100, 4])
    grouped_logp(torch.randn(10, 4), torch.randn(6, 4), target, source)
    assert sum(rows) == 3  # states 2, 5 and 9; state 0 serves an ignored target, the others none


def test_shared_state_gives_equal_logps_and_adds_up_its_gradients() -> None:
    hidden = torch.randn(2, 4, dtype=F64, requires_grad=True)
    weight = torch.randn(6, 4, dtype=F64)
    shared = grouped_logp(hidden, weight, torch.tensor([3, 3, 3, 1]), torch.tensor([1, 1, 1, 0])).logp_N
    once = grouped_logp(hidden, weight, torch.tensor([1, 3])).logp_N
    torch.testing.assert_close(shared, once[[1, 1, 1, 0]], rtol=0, atol=0)
    (grad_shared,) = torch.autograd.grad(shared.sum(), hidden)
    (grad_once,) = torch.autograd.grad((once * torch.tensor([1.0, 3.0])).sum(), hidden)
    torch.testing.assert_close(grad_shared, grad_once)


@pytest.mark.parametrize("chunk_size", [1, 2, 5, 12, 13, 10_000])
def test_chunking_does_not_change_the_result(chunk_size: int) -> None:
    p = problem(12, 30, vocabulary=33, width=8, seed=3)
    args = (p["hidden"].float(), p["weight"].float(), p["target"], p["source"])
    whole = grouped_logp(*args, with_entropy=True)
    parts = grouped_logp(*args, with_entropy=True, chunk_size=chunk_size)
    for got, want in zip(parts, whole, strict=True):
        torch.testing.assert_close(got, want, rtol=3e-6, atol=3e-6)  # a GEMM of other height rounds otherwise


def test_recomputing_gives_the_same_bits_and_keeps_no_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    p = problem(32, 64, vocabulary=200, width=4)
    hidden = p["hidden"].float().requires_grad_()
    weight, up = p["weight"].float(), p["up"].float()

    def run() -> tuple[Tensor, Tensor, int]:
        cells = 0

        def count(x: Tensor) -> Tensor:
            nonlocal cells
            cells += x.numel() if x.shape != weight.shape else 0
            return x

        with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
            out = grouped_logp(hidden, weight, p["target"], p["source"], with_entropy=True, chunk_size=8)
        assert out.entropy_N is not None
        kept = cells
        return (
            out.logp_N,
            torch.autograd.grad((out.logp_N * up[0] + out.entropy_N * up[1]).sum(), hidden)[0],
            kept,
        )

    logp, grad, kept = run()
    monkeypatch.setattr(reference, "KEEP_CELLS", 0)
    logp_again, grad_again, kept_again = run()
    assert torch.equal(logp, logp_again)
    assert torch.equal(grad, grad_again)
    assert kept > 32 * 200
    assert kept_again < 32 * 200


def test_the_head_is_cut_by_cells_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "CHUNK_CELLS", 25)
    monkeypatch.setattr(reference, "KEEP_CELLS", 0)
    both(problem(7, 9, vocabulary=11, width=3))


@pytest.mark.parametrize("recompute", [False, True])
def test_gradcheck(recompute: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if recompute:
        monkeypatch.setattr(reference, "KEEP_CELLS", 0)
    p = problem(3, 5, vocabulary=7, width=2)
    p["target"][1] = -100

    def op(hidden: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor | None]:
        return tuple(
            grouped_logp(
                hidden, weight, p["target"], p["source"],
                bias_V=bias, temperature=0.8, logit_scale=0.5, softcap=3.0, with_entropy=True, chunk_size=2,
            )
        )  # fmt: skip

    leaves = tuple(p[name].requires_grad_() for name in ("hidden", "weight", "bias"))
    assert torch.autograd.gradcheck(op, leaves)


def test_frozen_head_gets_no_gradient_and_expanded_upstream_gradient_works() -> None:
    hidden, weight = torch.randn(4, 3, dtype=F64, requires_grad=True), torch.randn(5, 3, dtype=F64)
    target = torch.arange(4)
    out = grouped_logp(hidden, weight, target).logp_N
    (expanded,) = torch.autograd.grad(out, hidden, torch.ones((), dtype=F64).expand(4), retain_graph=True)
    want = weight[target] - torch.softmax(hidden.detach() @ weight.T, -1) @ weight
    torch.testing.assert_close(expanded, want)
    assert weight.grad is None


def test_probability_near_one_keeps_its_digits() -> None:
    gaps = torch.tensor([5.0, 12.0, 20.0, 40.0, 80.0])
    hidden = gaps[:, None].clone().requires_grad_()
    weight = torch.tensor([[1.0], [0.0], [0.0]])
    out = grouped_logp(hidden, weight, torch.zeros(5, dtype=torch.int64), with_entropy=True)
    exact = -torch.log1p(2 * torch.exp(-gaps.double()))
    torch.testing.assert_close(out.logp_N.double(), exact, rtol=1e-5, atol=0)
    (grad,) = torch.autograd.grad(out.logp_N.sum(), hidden)
    torch.testing.assert_close(grad[:, 0].double(), -torch.expm1(exact), rtol=1e-5, atol=0)
    p_rest = torch.exp(-gaps.double()) / (1 + 2 * torch.exp(-gaps.double()))
    entropy = -exact.exp() * exact - 2 * p_rest * p_rest.log()
    assert out.entropy_N is not None
    torch.testing.assert_close(out.entropy_N.double(), entropy, rtol=1e-5, atol=0)


def test_forbidden_tokens_have_probability_zero_and_a_finite_entropy() -> None:
    hidden, weight = torch.randn(4, 3, requires_grad=True), torch.randn(6, 3)
    bias = torch.tensor([0.0, -math.inf, 0.0, 0.0, -math.inf, 0.0])
    out = grouped_logp(hidden, weight, torch.tensor([0, 2, 3, 5]), bias_V=bias, with_entropy=True)
    allowed = bias == 0
    want = naive(hidden, weight[allowed], torch.tensor([0, 1, 2, 3]))
    assert out.entropy_N is not None
    torch.testing.assert_close(out.logp_N, want[0])
    torch.testing.assert_close(out.entropy_N, want[1])
    got = torch.autograd.grad((3 * out.entropy_N + out.logp_N).sum(), hidden)[0]
    torch.testing.assert_close(got, torch.autograd.grad((3 * want[1] + want[0]).sum(), hidden)[0])
    assert grouped_logp(hidden, weight, torch.tensor([1, 1, 4, 4]), bias_V=bias).logp_N.eq(-math.inf).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_not_a_number_reaches_the_output(bad: float) -> None:
    hidden, weight = torch.ones(3, 2), torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.5, 0.5]])
    hidden[1, 0] = bad
    out = grouped_logp(hidden, weight, torch.tensor([0, 1, 2]), with_entropy=True)
    assert out.entropy_N is not None
    assert not out.logp_N[1].isfinite()
    assert out.logp_N[[0, 2]].isfinite().all()
    assert out.entropy_N[[0, 2]].isfinite().all()


@pytest.mark.parametrize("width", [1, 127, 128, 129, 256, 300])
def test_the_largest_logit_is_found_wherever_it_is(width: int) -> None:
    for place in {0, width // 2, width - 1, max(width - 2, 0)}:
        for value in (3.0, math.inf, math.nan):
            logit = torch.randn(2, width).clamp(max=2)
            logit[1, place] = value
            peak, top = reference.largest(logit)
            assert (peak[0], top[0]) == (logit[0].max(), logit[0].argmax())
            assert torch.equal(peak[1], torch.tensor([value])) or (peak[1].isnan() and math.isnan(value))
            assert top[1] == place
    assert reference.largest(torch.full((1, width), -math.inf))[0] == -math.inf


def test_an_infinite_logit_is_not_a_certain_answer() -> None:
    bias = torch.tensor([0.0, math.inf, 0.0])
    args = (torch.ones(3, 2), torch.ones(3, 2), torch.tensor([0, 1, 2]))
    out = grouped_logp(*args, bias_V=bias, with_entropy=True)
    assert out.entropy_N is not None
    assert not out.logp_N.isfinite().any()
    assert not out.entropy_N.isfinite().any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_storage_is_computed_in_fp32(dtype: torch.dtype) -> None:
    hidden, weight = torch.randn(5, 16).to(dtype).requires_grad_(), torch.randn(40, 16).to(dtype)
    target = torch.randint(40, (5,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = grouped_logp(hidden, weight, target, with_entropy=True)
    want = grouped_logp(hidden.float(), weight.float(), target, with_entropy=True)
    assert got.logp_N.dtype == torch.float32
    assert torch.equal(got.logp_N, want.logp_N)
    (grad,) = torch.autograd.grad(got.logp_N.sum(), hidden)
    assert grad.dtype == dtype


def test_old_pass_and_policy_pass_agree_to_the_bit() -> None:
    hidden, weight = torch.randn(300, 24, requires_grad=True), torch.randn(100, 24)
    target = torch.randint(100, (300,))
    with torch.no_grad():
        old = grouped_logp(hidden, weight, target, chunk_size=64).logp_N
    assert torch.equal(old, grouped_logp(hidden, weight, target, with_entropy=True, chunk_size=64).logp_N)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.tuples(*(st.integers(1, top) for top in (9, 20, 30, 6))),
    chunk_size=st.integers(1, 10),
    scale=st.sampled_from([1e-3, 1.0, 30.0]),
    temperature=st.floats(0.1, 10),
    softcap=st.sampled_from([None, 1.0, 50.0]),
    seed=st.integers(0, 2**16),
)
def test_any_shape_and_magnitude(
    sizes: tuple[int, int, int, int],
    chunk_size: int,
    scale: float,
    temperature: float,
    softcap: float | None,
    seed: int,
) -> None:
    p = problem(*sizes, seed=seed)
    p["hidden"] = p["hidden"] * scale
    p["target"][torch.rand(len(p["target"]), generator=torch.Generator().manual_seed(seed)) < 0.2] = -100
    both(p, chunk_size=chunk_size, temperature=temperature, softcap=softcap)


@settings(max_examples=20, deadline=None)
@given(vocabulary=st.integers(1, 50), scale=st.sampled_from([0.01, 1.0, 20.0]), seed=st.integers(0, 2**16))
def test_probabilities_of_one_state_sum_to_one(vocabulary: int, scale: float, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(1, 4, generator=g, dtype=F64) * scale
    weight = torch.randn(vocabulary, 4, generator=g, dtype=F64)
    every = torch.arange(vocabulary)
    out = grouped_logp(hidden, weight, every, torch.zeros_like(every), with_entropy=True)
    assert float(out.logp_N.exp().sum()) == pytest.approx(1, abs=1e-12)
    assert out.entropy_N is not None
    p = out.logp_N.exp()
    assert float(out.entropy_N[0]) == pytest.approx(float(-(p * out.logp_N.clamp(min=-700)).sum()), abs=1e-10)


HIDDEN, WEIGHT, TARGET = torch.zeros(3, 2), torch.zeros(4, 2), torch.zeros(3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_SD": torch.zeros(3)}, r"hidden_SD must have 2 dimension\(s\), got shape \(3,\)"),
        ({"hidden_SD": torch.zeros(3, 2).int()}, r"hidden_SD must be floating point \(.*\), got torch.int32"),
        ({"hidden_SD": HIDDEN.to(torch.float8_e5m2)}, "hidden_SD must be floating .* torch.float8_e5m2"),
        ({"weight_VD": WEIGHT.to(torch.float8_e5m2)}, "weight_VD must be floating .* torch.float8_e5m2"),
        ({"hidden_SD": torch.zeros(3, 5)}, r"D must agree: hidden_SD is \(3, 5\), weight_VD is \(4, 2\)"),
        ({"weight_VD": torch.zeros(4, 2, 1)}, r"weight_VD must have 2 dimension"),
        ({"weight_VD": torch.zeros(0, 2)}, "the vocabulary is empty"),
        ({"weight_VD": torch.zeros(4, 2, device="meta")}, "weight_VD is on meta, the others are on cpu"),
        ({"bias_V": torch.zeros(3)}, r"bias_V must have one entry per vocabulary entry \(4\), got 3"),
        ({"target_N": torch.zeros(3)}, "target_N must be int32 or int64, got torch.float32"),
        ({"target_N": TARGET[:2]}, r"target_N without source_N must have one entry per state \(3\), got 2"),
        ({"target_N": torch.tensor([0, 4, 1])}, r"must lie in \[0, 4\) or be -100, got values from 0 to 4"),
        ({"target_N": torch.tensor([0, -1, 1])}, "got values from -1 to 1"),
        ({"source_N": torch.tensor([0, 1, 3])}, r"source_N must lie in \[0, 3\), got values from 0 to 3"),
        ({"source_N": torch.tensor([0, 1])}, r"source_N must have one entry per target \(3\), got 2"),
        ({"temperature": 0.0}, "temperature must be finite and above 0, got 0.0"),
        ({"temperature": None}, "temperature must be a number, got None"),
        ({"temperature": "a"}, "temperature must be a number, got 'a'"),
        ({"chunk_size": 1.5}, "chunk_size must be a whole number of at least 1, got 1.5"),
        ({"hidden_SD": [[1.0]]}, "hidden_SD must be a tensor, got list"),
        ({"target_N": [1]}, "target_N must be a tensor, got list"),
        ({"temperature": math.inf}, "temperature must be finite and above 0, got inf"),
        ({"logit_scale": 0.0}, "logit_scale"),
        ({"softcap": -1.0}, "softcap must be finite and above 0, got -1.0"),
        ({"filter_eps": -0.1}, r"filter_eps must be finite and in \[0, 1\], got -0.1"),
        ({"chunk_size": 0}, "chunk_size must be a whole number of at least 1, got 0"),
        ({"impl": "cuda"}, "impl must be one of auto, reference, triton, got 'cuda'"),
    ],
    ids=str,
)  # fmt: skip
def test_bad_arguments_are_named(change: dict[str, Any], message: str) -> None:
    call: dict[str, Any] = {"hidden_SD": HIDDEN, "weight_VD": WEIGHT, "target_N": TARGET} | change
    with pytest.raises(ValueError, match=message):
        grouped_logp(**call)


def test_implementation_is_chosen_once_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    dispatch.choose_impl.cache_clear()
    with caplog.at_level(logging.INFO, logger="medrl_kernels"):
        results = [grouped_logp(HIDDEN, WEIGHT, TARGET, impl=name) for name in ("auto", "auto", "reference")]
    assert [r.getMessage() for r in caplog.records] == [
        "grouped_logp on cpu, torch.float32: reference implementation (impl='auto', because the interpreter "
        "is for tests)",
        "grouped_logp on cpu, torch.float32: reference implementation (impl='reference')",
    ]
    assert isinstance(results[0], GroupedLogp)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (("cpu", torch.float64, None), "the kernels compute in fp32, the input is torch.float64"),
        (("cuda", torch.float64, 90), "the kernels compute in fp32, the input is torch.float64"),
        (("cuda", torch.float16, 70), "compute capability 7.5 is the least, this card has 7.0"),
        (("cuda", torch.bfloat16, 75), "compute capability 7.5 has no bfloat16: use float16"),
    ],
    ids=str,
)
def test_triton_says_why_it_cannot_run(kind: tuple[Any, ...], reason: str) -> None:
    with pytest.raises(ValueError, match=f"impl='triton' cannot run here: {reason}"):
        dispatch.choose_impl("an op", "triton", *kind)
    assert dispatch.choose_impl("an op", "auto", *kind) == "reference"


def test_triton_runs_on_cards_and_elsewhere_only_in_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    half = torch.float16
    assert dispatch.choose_impl("op a", "auto", "cuda", half, 75) == "triton"
    assert dispatch.choose_impl("op a", "triton", "cpu", half) == "triton"  # the tests run interpreted
    assert dispatch.choose_impl("op a", "auto", "cpu", half) == "reference"
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ValueError, match="the input is on cpu, not on a CUDA card"):
        dispatch.choose_impl("op b", "triton", "cpu", half)
    assert dispatch.choose_impl("op b", "auto", "cuda", half, 90) == "triton"
    monkeypatch.setattr(dispatch.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="triton is not installed"):
        dispatch.choose_impl("op c", "triton", "cuda", half, 90)
    assert dispatch.choose_impl("op c", "auto", "cuda", half, 90) == "reference"


def test_a_filter_that_leaves_nothing_out_is_said_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules["medrl_kernels.grouped_logp"]
    dispatch.note_no_filter.cache_clear()
    for _ in range(2):
        grouped_logp(HIDDEN, WEIGHT, TARGET, filter_eps=0.1, impl="reference")
        grouped_logp(HIDDEN, WEIGHT, TARGET, impl="reference")
    grouped_logp(HIDDEN, WEIGHT, TARGET, filter_eps=0.1, impl="triton")  # the interpreter has blocks
    monkeypatch.setattr(module, "logp_config", lambda capability: configs.logp_config(75))
    grouped_logp(HIDDEN, WEIGHT, TARGET, filter_eps=0.1, impl="triton")
    said = "grouped_logp: filter_eps leaves nothing out of the gradient here: "
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        said + "the reference has no blocks to leave out",
        said + "Triton multiplies without tensor cores before compute capability 8.0",
    ]


WITHOUT_TRITON = """
import importlib.abc, sys
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "triton":
            raise ModuleNotFoundError(f"No module named {name!r}")
sys.meta_path.insert(0, Refuse())
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "triton" else find(name, package)
import torch
from medrl_kernels import grouped_logp, grpo_loss
hidden = torch.ones(3, 2, requires_grad=True)
logp, _ = grouped_logp(hidden, torch.eye(4, 2), torch.tensor([0, 1, 2]))
loss, _ = grpo_loss(logp, None, torch.ones(1), torch.tensor([3]))
loss.backward()
assert bool(hidden.grad.abs().sum() > 0)
assert not [name for name in sys.modules if name.partition(".")[0] == "triton"]
try:
    grouped_logp(hidden, torch.eye(4, 2), torch.tensor([0, 1, 2]), impl="triton")
except ValueError as error:
    print(error)
"""


def test_without_triton_everything_but_triton_runs() -> None:
    kernels = str(Path(reference.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TRITON], env=os.environ | {"PYTHONPATH": kernels},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "impl='triton' cannot run here: triton is not installed" in done.stdout


def test_public_op_has_the_signature_of_the_reference() -> None:
    public = dict(inspect.signature(grouped_logp).parameters)
    assert public.pop("impl").default == "auto"
    assert public == dict(inspect.signature(reference.grouped_logp).parameters)


def test_the_package_imports_torch_and_itself_only() -> None:
    folder = Path(reference.__file__).parent
    assert not (folder.parent / "__init__.py").exists()
    for file in folder.glob("*.py"):
        allowed = {"torch", "medrl_kernels", *(["triton"] if file.name.endswith("_triton.py") else [])}
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                top = name.split(".")[0]
                assert top in allowed or top in sys.stdlib_module_names, f"{file.name} imports {name}"
