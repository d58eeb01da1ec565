"""The op grpo_loss: ours, and the loss that TRL's trainer computes, on the same log-probabilities.

Both get the entropies too, of which each makes its metric. TRL's is its own `_compute_loss` on a trainer
without `__init__`, whose forward pass hands out the given tensors; what it does to the token ids is kept
small (they are one byte wide and there is no prompt), so that its time is that of the loss.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from medrl_bench.inputs import EPSILON, LossCase, LossInputs, loss_inputs
from medrl_bench.peer import FLOOR, Op, Outputs, Peer, needs, no_slack
from medrl_kernels import grpo_loss, reference

Loss = Callable[[LossInputs, Tensor, Tensor | None], Tensor]


def our_options(inputs: LossInputs) -> dict[str, Any]:
    """Arguments of `grpo_loss` but for logp and entropy."""
    case = inputs.case
    return case.options | {
        "old_logp_N": inputs.old_logp_N,
        "advantage_B": inputs.advantage_B,
        "length_B": inputs.length_B,
        "ref_logp_N": inputs.ref_logp_N if case.beta else None,
        "epsilon": EPSILON,
        "max_completion_length": case.length,
        "num_items_in_batch": case.completions * case.length,
    }


def ours(impl: str) -> Loss:
    """`medrl_kernels.grpo_loss`."""

    def loss(inputs: LossInputs, logp_N: Tensor, entropy_N: Tensor | None) -> Tensor:
        return grpo_loss(logp_N, entropy_N=entropy_N, **our_options(inputs), impl=impl).loss

    return loss


class OneProcess:
    """The part of an accelerator that TRL's loss uses."""

    num_processes = 1
    sync_gradients = True

    def gather(self, x: Tensor) -> Tensor:
        return x

    def reduce(self, x: Tensor, reduction: str) -> Tensor:
        return x


def trl_trainer(case: LossCase) -> Any:
    """TRL's trainer with a case's options where its loss looks for them and its defaults elsewhere."""
    from trl import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    trainer: Any = object.__new__(GRPOTrainer)
    fields = GRPOConfig.__dataclass_fields__
    trainer.args = SimpleNamespace(**{name: field.default for name, field in fields.items()})
    trainer.args.steps_per_generation = 1
    for name in ("top_entropy_quantile", "entropy_coef", "off_policy_mask_threshold"):
        setattr(trainer, name, fields[name].default)
    trainer.loss_type, trainer.importance_sampling_level, trainer.beta = case.loss_type, case.level, case.beta
    trainer.epsilon_low = trainer.epsilon_high = EPSILON
    trainer.max_completion_length = case.length
    trainer.use_vllm = trainer.use_adaptive_entropy = trainer.aux_loss_enabled = False
    trainer._entropy_bonus_enabled = False
    trainer.current_gradient_accumulation_steps = 1
    trainer.accelerator = OneProcess()
    trainer.model = SimpleNamespace(training=True)
    trainer._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
    return trainer


def trl_eager(inputs: LossInputs, logp_N: Tensor, entropy_N: Tensor | None) -> Tensor:
    """TRL's loss, its metrics included."""
    case = inputs.case
    trainer = trl_trainer(case)
    shape = (case.completions, case.length)
    entropy_N = torch.zeros_like(logp_N) if entropy_N is None else entropy_N
    trainer._get_per_token_logps_and_entropies = lambda *a, **k: (
        logp_N.view(shape),
        entropy_N.view(shape),
        None,
    )
    mask_BT = logp_N.new_ones(shape, dtype=torch.int32)
    batch = {
        "prompt_ids": mask_BT[:, :0].to(torch.int8),
        "prompt_mask": mask_BT[:, :0],
        "completion_ids": mask_BT.to(torch.int8),
        "completion_mask": mask_BT,
        "advantages": inputs.advantage_B,
        "num_items_in_batch": torch.tensor(len(logp_N)),
        "old_per_token_logps": inputs.old_logp_N.view(shape),
        "ref_per_token_logps": inputs.ref_logp_N.view(shape),
    }
    return trainer._compute_loss(None, batch)


@functools.cache
def one(device: torch.device, dtype: torch.dtype) -> Tensor:
    """The gradient of a loss in itself, made once: left out, autograd launches a kernel to fill it."""
    return torch.ones((), device=device, dtype=dtype)


def in_direction(loss_of: Loss) -> Callable[[LossInputs, bool], Outputs]:
    """A loss as the benchmark runs it: alone, or with the gradient of the log-probabilities."""

    def run(inputs: LossInputs, backward: bool) -> Outputs:
        logp_N = inputs.logp_N.detach().requires_grad_(backward)
        with torch.set_grad_enabled(backward):
            loss = loss_of(inputs, logp_N, inputs.entropy_N)
        if not backward:
            return {"loss": loss.detach()}
        (grad_N,) = torch.autograd.grad(loss, logp_N, one(loss.device, loss.dtype))
        return {"loss": loss.detach(), "grad": grad_N}

    return run


def truth(inputs: LossInputs, backward: bool) -> Outputs:
    """The reference in fp64."""
    wide = inputs._replace(**{
        name: value.double()
        for name, value in inputs._asdict().items()
        if isinstance(value, Tensor) and value.is_floating_point()
    })  # fmt: skip

    def loss(inputs: LossInputs, logp_N: Tensor, entropy_N: Tensor | None) -> Tensor:
        return reference.grpo_loss(logp_N, entropy_N=entropy_N, **our_options(inputs)).loss

    return in_direction(loss)(wide, backward)


def allowed(inputs: LossInputs, backward: bool, truth: Outputs) -> dict[str, float]:
    """fp32 rounding: no input lies at a clip bound, so nothing else can differ."""
    return {name: FLOOR[name] for name in truth}


def work(case: LossCase, backward: bool) -> tuple[float, str]:
    """Bytes of each input read once (policy, old policy, entropy, reference) and of the gradient written."""
    vectors = 3 + (case.beta != 0) + backward
    return 4.0 * case.completions * case.length * vectors, "GB/s"


PEERS = (
    Peer("triton", in_direction(ours("triton")), needs(triton=True)),
    Peer("reference", in_direction(ours("reference"))),
    Peer("trl eager", in_direction(trl_eager), needs("trl.trainer.grpo_trainer")),
)
OP = Op("grpo_loss", PEERS, loss_inputs, truth, allowed, no_slack, work)
