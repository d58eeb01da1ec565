"""grpo_loss against TRL's own code: `GRPOTrainer._compute_loss` and its rollout correction, on a stand-in.

The stand-in is a GRPOTrainer without `__init__`: it holds the attributes that the loss reads, and its forward
pass hands out given tensors. So TRL itself computes all that is compared: loss, gradients and metrics.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_options import heard
from torch import Tensor
from trl import GRPOConfig
from trl.trainer import grpo_trainer
from trl.trainer.grpo_trainer import GRPOTrainer

from medrl_kernels import grpo_loss
from medrl_kernels.dispatch import CLIPPED_LOSSES, IMPORTANCE_SAMPLING_MODES, LOSS_TYPES

F64 = torch.float64
LENGTHS = (7, 3, 5, 1)
NUM_ITEMS = 29


class OneProcess:
    """The parts of an accelerator that the loss uses, on a single process."""

    num_processes = 1
    sync_gradients = True

    def gather(self, x: Tensor) -> Tensor:
        return x

    def reduce(self, x: Tensor, reduction: str) -> Tensor:
        return x

    def pad_across_processes(self, x: Tensor, dim: int, pad_index: float) -> Tensor:
        return x


def default_of(name: str) -> Any:
    """Default of a GRPOConfig field."""
    return GRPOConfig.__dataclass_fields__[name].default


ARGS = (
    "delta",
    "use_bias_correction_kl",
    "sapo_temperature_pos",
    "sapo_temperature_neg",
    "steps_per_generation",
)
ARGS += ("vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg", "entropy_target")
OURS = ("loss_type", "importance_sampling_level", "beta", "top_entropy_quantile", "entropy_coef")
OURS += ("off_policy_mask_threshold", "max_completion_length")


def stand_in(options: dict[str, Any], training: bool) -> GRPOTrainer:
    """A trainer with the options (in our names) where TRL's loss looks for them, TRL's defaults elsewhere."""
    trainer = object.__new__(GRPOTrainer)
    trainer.args = SimpleNamespace(**{name: options.get(name, default_of(name)) for name in ARGS})
    trainer.args.steps_per_generation = options.get("steps_per_generation", 1)
    for name in OURS:
        setattr(trainer, name, options.get(name, default_of(name)))
    trainer.epsilon_low = options.get("epsilon", default_of("epsilon"))
    high = options.get("epsilon_high")
    trainer.epsilon_high = trainer.epsilon_low if high is None else high
    trainer.use_vllm = options.get("importance_sampling_correction", False)
    trainer.vllm_importance_sampling_correction = True
    for name in ("mode", "clip_max", "clip_min"):
        full = f"vllm_importance_sampling_{name}"
        setattr(trainer, full, options.get(f"importance_sampling_{name}", default_of(full)))
    trainer.current_gradient_accumulation_steps = options.get("gradient_accumulation_steps", 1)
    trainer.use_adaptive_entropy, trainer.aux_loss_enabled = False, False
    trainer._entropy_bonus_enabled = trainer.entropy_coef != 0
    trainer.accelerator = OneProcess()
    trainer.model = SimpleNamespace(training=training)
    trainer._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
    return trainer


def trl_blocks(assigned: str) -> list[Any]:
    """Compiled code of TRL's `if self.use_vllm and ...` blocks that assign (or read) the name `assigned`."""
    source = textwrap.dedent(inspect.getsource(GRPOTrainer._generate_and_score_completions))
    blocks = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.If) and "self.use_vllm" in ast.unparse(node.test):
            names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
            if assigned in names:
                blocks.append(compile(ast.Module([node], []), "trl", "exec"))
    return blocks


CORRECTION = trl_blocks("vllm_importance_sampling_ratio")
SAMPLING_METRICS = trl_blocks("mean_importance_sampling_ratio")
assert (len(CORRECTION), len(SAMPLING_METRICS)) == (1, 1), "TRL's rollout correction has moved"


def batch(lengths: tuple[int, ...] = LENGTHS, seed: int = 0, spread: float = 0.4) -> dict[str, Any]:
    """Padded float64 tensors (B, T) as in TRL; the entropies are exact in fp32, in which TRL ranks them."""
    g = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(lengths))
    logp = -torch.rand(*shape, generator=g, dtype=F64) * 3

    def near() -> Tensor:
        return logp + spread * torch.randn(*shape, generator=g, dtype=F64)

    return {
        "logp": logp,
        "old": near(),
        "ref": near(),
        "sampling": near(),
        "entropy": torch.rand(*shape, generator=g).double(),
        "advantage": torch.randn(len(lengths), generator=g, dtype=F64),
        "advantage_of_token": torch.randn(*shape, generator=g, dtype=F64),
        "mask": (torch.arange(shape[1]) < torch.tensor(lengths)[:, None]).long(),
    }


def run_trl(b: dict[str, Any], options: dict[str, Any], per_token: bool, training: bool) -> tuple[Any, ...]:
    """TRL's loss, gradients with respect to logp and entropy at the trained tokens, and metrics."""
    trainer = stand_in(options, training)
    logp, entropy = b["logp"].clone().requires_grad_(), b["entropy"].clone().requires_grad_()
    trainer._get_per_token_logps_and_entropies = lambda *a, **k: (logp, entropy, None)
    ids = torch.zeros_like(b["mask"])
    inputs = {"prompt_ids": ids, "prompt_mask": ids, "completion_ids": ids, "completion_mask": b["mask"]}
    inputs |= {"advantages": b["advantage_of_token" if per_token else "advantage"]}
    inputs |= {"num_items_in_batch": torch.tensor(options.get("num_items_in_batch", NUM_ITEMS))}
    inputs |= {"ref_per_token_logps": b["ref"]}
    if b["old"] is not None:
        inputs["old_per_token_logps"] = b["old"]
    if b["sampling"] is not None:
        inputs["sampling_per_token_logps"] = b["sampling"]
    if trainer.use_vllm:
        scope = dict(vars(grpo_trainer)) | {"self": trainer, "completion_mask": b["mask"], "tool_mask": None}
        scope |= {"old_per_token_logps": b["old"], "sampling_per_token_logps": b["sampling"], "device": "cpu"}
        scope["mode"] = "train" if training else "eval"
        for block in (*CORRECTION, *SAMPLING_METRICS):
            exec(block, scope)
        inputs["importance_sampling_ratio"] = scope["vllm_importance_sampling_ratio"]
    loss = trainer._compute_loss(SimpleNamespace(training=training), inputs)
    grads = torch.autograd.grad(loss, (logp, entropy), allow_unused=True, materialize_grads=True)
    metrics = {name: values[0] for name, values in trainer._metrics["train" if training else "eval"].items()}
    metrics.pop("entropy_coef", None)  # the trainer's own state, not the loss's
    return loss.detach(), *(grad[b["mask"].bool()] for grad in grads), metrics


def run_ours(b: dict[str, Any], options: dict[str, Any], per_token: bool) -> tuple[Any, ...]:
    """The same of `grpo_loss`, on the trained tokens packed end to end."""
    keep = b["mask"].bool()

    def pack(x: Tensor | None) -> Tensor | None:
        return None if x is None else x[keep]

    logp, entropy = b["logp"][keep].requires_grad_(), b["entropy"][keep].requires_grad_()
    out = grpo_loss(
        logp,
        pack(b["old"]),
        None if per_token else b["advantage"],
        b["mask"].sum(1),
        advantage_N=b["advantage_of_token"][keep] if per_token else None,
        ref_logp_N=pack(b["ref"]),
        sampling_logp_N=pack(b["sampling"]),
        entropy_N=entropy,
        **{"num_items_in_batch": NUM_ITEMS, "max_completion_length": default_of("max_completion_length")}
        | heard(options),
    )
    grads = torch.autograd.grad(out.loss, (logp, entropy), allow_unused=True, materialize_grads=True)
    return out.loss.detach(), *grads, {name: float(value) for name, value in out.metrics.items()}


def assert_same(
    b: dict[str, Any],
    options: dict[str, Any],
    *,
    per_token: bool = False,
    training: bool = True,
    rtol: float = 1e-11,
) -> None:
    """Assert that loss, both gradients and all metrics agree; `training=False` is TRL's evaluation mode."""
    loss, grad, entropy_grad, metrics = run_trl(b, options, per_token, training)
    steps = () if training else ("gradient_accumulation_steps", "steps_per_generation")
    ours = run_ours(b, {k: v for k, v in options.items() if k not in steps}, per_token)
    torch.testing.assert_close(ours[0], loss, rtol=rtol, atol=1e-12)
    torch.testing.assert_close(ours[1], grad, rtol=rtol, atol=1e-12)
    torch.testing.assert_close(ours[2], entropy_grad, rtol=rtol, atol=1e-12)
    assert ours[3] == pytest.approx(metrics, rel=2e-7, abs=1e-9, nan_ok=True)  # TRL counts in fp32


# sapo_temperature_neg is exact in fp32 here: TRL holds the temperatures in fp32 whatever the rest is in.
BASE: dict[str, Any] = {"sapo_temperature_neg": 1.125, "epsilon_high": 0.28}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "narrow": {"epsilon": 0.05, "epsilon_high": 0.4},
    "epsilon_high=None": {"epsilon": 0.3, "epsilon_high": None},
    "delta": {"delta": 1.4},
    "small delta": {"delta": 1.1, "epsilon_high": 0.28},
    "beta": {"beta": 0.3, "use_bias_correction_kl": False},
    "beta, corrected": {"beta": 0.3},
    "beta, corrected, delta": {"beta": 0.3, "delta": 1.3},
    "off-policy mask": {"off_policy_mask_threshold": 0.05},
    "top entropy": {"top_entropy_quantile": 0.4},
    "entropy bonus": {"entropy_coef": 0.02},
    "entropy bonus on top tokens": {"entropy_coef": 0.02, "top_entropy_quantile": 0.3},
    "steps": {"gradient_accumulation_steps": 4, "steps_per_generation": 2, "entropy_coef": 0.02},
    "vespo's own": {"vespo_k_pos": 1.5, "vespo_lambda_pos": 2.5, "vespo_k_neg": 2.0, "vespo_lambda_neg": 0.5},
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


def refused(loss_type: str, options: dict[str, Any]) -> bool:
    """True for what TRL refuses in its config, and we in the loss: vespo with sequence weights."""
    return loss_type == "vespo" and str(options.get("importance_sampling_mode")).startswith("sequence")


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_loss_gradient_and_metrics_are_trls(loss_type: str, level: str, option: str) -> None:
    options = BASE | {"loss_type": loss_type, "importance_sampling_level": level} | OPTIONS[option]
    if refused(loss_type, options):
        with pytest.raises(ValueError, match="vespo needs"):
            run_ours(batch(), options, per_token=False)
        return
    for per_token in (False, True):
        assert_same(batch(), options, per_token=per_token)


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_without_old_policy_and_in_evaluation_and_with_empty_completions(loss_type: str, level: str) -> None:
    options = BASE | {"loss_type": loss_type, "importance_sampling_level": level, "beta": 0.2}
    options |= {"off_policy_mask_threshold": 0.0, "entropy_coef": 0.1}
    assert_same(batch() | {"old": None}, options)
    assert_same(batch() | {"old": None, "sampling": None}, options)
    options |= {"gradient_accumulation_steps": 4, "steps_per_generation": 8}
    assert_same(batch(), options, training=False)
    assert_same(batch((4, 0, 2, 0, 5)), options)


@pytest.mark.parametrize("loss_type", CLIPPED_LOSSES)
def test_gradient_at_the_bounds_themselves_is_trls(loss_type: str) -> None:
    b = batch((2, 2))
    b["logp"] = b["old"] + torch.tensor([[0.3, -0.2], [0.3, -0.2]], dtype=F64)
    low, high = (float(x) for x in (b["logp"] - b["old"]).exp().flatten()[[1, 0]])
    for signs in ([1.0, -1.0], [-1.0, 1.0]):
        b["advantage"] = torch.tensor(signs, dtype=F64)
        options = {"loss_type": loss_type, "epsilon": 1 - low, "epsilon_high": high - 1}
        assert 1 - options["epsilon"] == low
        assert 1 + options["epsilon_high"] == high
        assert_same(b, options)
        assert_same(b, options | {"delta": high})


def test_unknown_sampling_logps_are_treated_as_in_trl() -> None:
    for mode in IMPORTANCE_SAMPLING_MODES:
        b = batch()
        b["sampling"][0, 2] = b["sampling"][1] = torch.nan
        correction = {"importance_sampling_correction": True, "importance_sampling_mode": mode}
        assert_same(b, correction | {"loss_type": "grpo", "off_policy_mask_threshold": 0.1})


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_defaults_are_trls_in_fp32(loss_type: str) -> None:
    """Only the loss type is named: every other default is each side's own."""
    b = {name: x.float() if x.dtype == F64 else x for name, x in batch().items()}
    loss, grad, _, metrics = run_trl(b, {"loss_type": loss_type}, per_token=False, training=True)
    ours = run_ours(b, {"loss_type": loss_type}, per_token=False)
    torch.testing.assert_close(ours[0], loss)
    torch.testing.assert_close(ours[1], grad)
    assert ours[3] == pytest.approx(metrics, rel=1e-5)
    for name, parameter in inspect.signature(grpo_loss).parameters.items():
        field = name.replace("importance_sampling_", "vllm_importance_sampling_")
        field = name if name in GRPOConfig.__dataclass_fields__ else field
        given_by_trainer = ("importance_sampling_correction", "max_completion_length")
        given_by_trainer += ("gradient_accumulation_steps", "steps_per_generation")
        if field in GRPOConfig.__dataclass_fields__ and name not in given_by_trainer:
            assert parameter.default == default_of(field), name


def summed(parts: list[tuple[Any, ...]]) -> tuple[Tensor, Tensor]:
    """Loss and gradient of an accumulation window from those of its micro-batches."""
    return torch.stack([part[0] for part in parts]).sum(), torch.cat([part[1] for part in parts])


@pytest.mark.parametrize("lengths", [(4, 1, 7, 3, 2, 5, 6, 3), (3,) * 8], ids=["uneven", "even"])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_splitting_an_accumulation_window_is_trls_too(
    loss_type: str, level: str, lengths: tuple[int, ...]
) -> None:
    """1 x 8, 2 x 4, 4 x 2 and 8 x 1 completions: each micro-batch is TRL's, and so is whether they add up.

    They do, but for bnpo, which weighs each micro-batch by its own tokens: only of equal counts there.
    """
    b = batch(lengths)
    options = BASE | {"loss_type": loss_type, "importance_sampling_level": level, "num_items_in_batch": 30}
    options |= {"beta": 0.1, "off_policy_mask_threshold": 0.1}
    options |= {"importance_sampling_correction": True, "importance_sampling_mode": "token_truncate"}
    whole = run_trl(b, options, per_token=False, training=True)
    for size in (1, 2, 4, 8):
        steps = 8 // size
        options |= {"gradient_accumulation_steps": steps, "steps_per_generation": steps}
        cuts = [{name: x[i : i + size] for name, x in b.items()} for i in range(0, 8, size)]
        for cut in cuts:
            assert_same(cut, options)
        theirs = summed([run_trl(cut, options, per_token=False, training=True) for cut in cuts])
        ours = summed([run_ours(cut, options, per_token=False) for cut in cuts])
        adds_up = loss_type != "bnpo" or size == 8 or len(set(lengths)) == 1
        for loss, grad in (theirs, ours):
            assert torch.allclose(loss, whole[0], rtol=1e-10) == adds_up
            assert torch.allclose(grad, whole[1], rtol=1e-10) == adds_up


@settings(max_examples=60)
@given(
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=6).filter(lambda x: max(x) > 1),
    loss_type=st.sampled_from(LOSS_TYPES),
    level=st.sampled_from(["token", "sequence"]),
    mode=st.sampled_from([None, *IMPORTANCE_SAMPLING_MODES]),
    spread=st.sampled_from([1e-3, 0.3, 3.0]),
    beta=st.sampled_from([0.0, 0.04]),
    quantile=st.sampled_from([1.0, 0.5, 0.1]),
    threshold=st.sampled_from([None, 0.0]),
    per_token=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_any_batch_agrees_with_trl(
    lengths: list[int],
    loss_type: str,
    level: str,
    mode: str | None,
    spread: float,
    beta: float,
    quantile: float,
    threshold: float | None,
    per_token: bool,
    seed: int,
) -> None:
    options = BASE | {"loss_type": loss_type, "importance_sampling_level": level, "beta": beta}
    options |= {"top_entropy_quantile": quantile, "off_policy_mask_threshold": threshold}
    if mode is not None and not (loss_type == "vespo" and mode.startswith("sequence")):
        options |= {"importance_sampling_correction": True, "importance_sampling_mode": mode}
    assert_same(batch(tuple(lengths), seed, spread), options, per_token=per_token, rtol=1e-8)
