"""Head and loss together, from hidden states to their gradient: what a policy update does, and the one thing
that Liger's fused linear GRPO does.

The old policy is the head's own, slightly off, so that no ratio is clipped: 16-bit logits differ too much
between implementations for a clip to fall alike.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from medrl_bench import heads, losses
from medrl_bench.inputs import EPSILON, StepCase, StepInputs, head_inputs, loss_inputs
from medrl_bench.peer import FLOOR, Op, Outputs, Peer, allowances, needs
from medrl_kernels import reference
from medrl_kernels.configs import FILTER_MASS

Step = Callable[[StepInputs, Tensor], Tensor]


def step_inputs(case: StepCase, device: torch.device) -> StepInputs:
    """A head's inputs and a loss's that belong together."""
    head = head_inputs(case.head, device)
    found = heads.truth(head._replace(case=head.case._replace(with_entropy=False)), False)
    return StepInputs(case, head, loss_inputs(case.loss, device, found["logp"].float()))


def joined(head_of: heads.Head, loss_of: losses.Loss) -> Step:
    """A head whose log-probabilities go into a loss."""

    def step(inputs: StepInputs, hidden_ND: Tensor) -> Tensor:
        logp_N, entropy_N = head_of(inputs.head, hidden_ND)
        return loss_of(inputs.loss, logp_N, None if entropy_N is None else entropy_N.detach())

    return step


def padded(inputs: StepInputs) -> dict[str, Tensor]:
    """Targets, mask and old log-probabilities (B, T), as Liger wants them."""
    shape = (inputs.case.loss.completions, inputs.case.loss.length)
    return {
        "target": inputs.head.target_N.view(shape),
        "mask": torch.ones(shape, dtype=torch.int64, device=inputs.head.target_N.device),
        "old": inputs.loss.old_logp_N.view(shape),
    }


def liger_fused(inputs: StepInputs, hidden_ND: Tensor) -> Tensor:
    """Liger's fused linear GRPO, with its own defaults: a chunk a completion, the loss compiled (on CUDA)."""
    own, case = padded(inputs), inputs.case.loss
    module = liger_module(case, compiled=hidden_ND.is_cuda)
    hidden_BTD = hidden_ND.view(case.completions, case.length, -1)
    weight_VD, old_BT = inputs.head.weight_VD, own["old"]
    advantage_B = inputs.loss.advantage_B
    return module(hidden_BTD, weight_VD, own["target"], own["mask"], advantage_B, old_per_token_logps=old_BT)[
        0
    ]


@functools.cache
def liger_module(case: Any, compiled: bool) -> Any:
    """The loss module of a case."""
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss  # pyright: ignore[reportMissingImports]

    return LigerFusedLinearGRPOLoss(
        beta=case.beta,
        compiled=compiled,
        use_ref_model=False,
        epsilon_low=EPSILON,
        epsilon_high=EPSILON,
        loss_type=case.loss_type,
        max_completion_length=case.length,
        importance_sampling_level=case.level,
        temperature=1.0,
    )


def liger_triton(inputs: StepInputs, hidden_ND: Tensor) -> Tensor:
    """All logits (one position more than targets, as a model gives them), then Liger's Triton GRPO loss."""
    from liger_kernel.transformers.grpo_loss import triton_grpo_loss  # pyright: ignore[reportMissingImports]

    own, case = padded(inputs), inputs.case.loss
    hidden_BTD = hidden_ND.view(case.completions, case.length, -1)
    logits = F.linear(F.pad(hidden_BTD, (0, 0, 0, 1)), inputs.head.weight_VD)
    return triton_grpo_loss(
        logits,
        own["old"],
        None,
        own["target"],
        inputs.loss.advantage_B,
        completion_mask=own["mask"],
        temperature=1.0,
        beta=case.beta,
        eps_low=EPSILON,
        eps_high=EPSILON,
        loss_type=case.loss_type,
        max_completion_length=case.length,
        importance_sampling_level=case.level,
        reduce=True,
    )[0]


def with_gradient(step: Step) -> Callable[[StepInputs, bool], Outputs]:
    """A step as the benchmark runs it; there is no step without backward."""

    def run(inputs: StepInputs, backward: bool) -> Outputs:
        hidden_ND = inputs.head.hidden_ND.detach().requires_grad_()
        loss = step(inputs, hidden_ND)
        (grad_ND,) = torch.autograd.grad(loss, hidden_ND)
        return {"loss": loss.detach(), "grad": grad_ND}

    return run


def loss_and_slope(inputs: StepInputs, logp_N: Tensor) -> tuple[Tensor, Tensor]:
    """The reference's loss of given log-probabilities, and its gradient there."""
    leaf_N = logp_N.float().requires_grad_()
    loss = reference.grpo_loss(leaf_N, **losses.our_options(inputs.loss)).loss
    (slope_N,) = torch.autograd.grad(loss, leaf_N)
    return loss.detach(), slope_N


def from_head(
    inputs: StepInputs, head_outputs: Callable[[Any, bool], Outputs]
) -> tuple[Outputs, heads.HeadInputs]:
    """Loss and gradient by the chain rule, the head's part by `head_outputs`; and the head's inputs with
    it."""
    head = inputs.head._replace(case=inputs.head.case._replace(with_entropy=False))
    loss, slope_N = loss_and_slope(inputs, head_outputs(head, False)["logp"])
    head = head._replace(grad_N=slope_N)
    return {"loss": loss, "grad": head_outputs(head, True)["grad"]}, head


def truth(inputs: StepInputs, backward: bool) -> Outputs:
    """The references in fp32 (the head's in fp64 where its inputs are fp32)."""
    return from_head(inputs, heads.truth)[0]


def allowed(inputs: StepInputs, backward: bool, truth: Outputs) -> dict[str, float]:
    """Largest distance from the truth: twice that of plain PyTorch in the inputs' dtype, and a floor."""
    limits = allowances(from_head(inputs, heads.plain_outputs)[0], truth)
    # The loss's own log-probabilities are rounded to fp32, and its slope with them.
    return limits | {"grad": limits["grad"] + FLOOR["grad"]}


def slack(inputs: StepInputs, truth: Outputs, drops: float) -> dict[str, float]:
    """What filtering may drop, given the gradient that reaches the head."""
    _, head = from_head(inputs, heads.truth)
    return {"loss": 0.0, "grad": heads.slack(head, {"grad": truth["grad"]}, drops)["grad"]}


def work(case: StepCase, backward: bool) -> tuple[float, str]:
    """That of the head: the loss adds nothing to speak of."""
    return heads.work(case.head, True)


PEERS = (
    Peer("triton", with_gradient(joined(heads.ours("triton"), losses.ours("triton"))), needs(triton=True)),
    Peer(
        "triton filtered",
        with_gradient(joined(heads.ours("triton", filtered=True), losses.ours("triton"))),
        needs(triton=True),
        FILTER_MASS,
    ),
    Peer("reference", with_gradient(joined(heads.ours("reference"), losses.ours("reference")))),
    Peer(
        "trl tiles + eager",
        with_gradient(joined(heads.trl_tiles, losses.trl_eager)),
        heads.trl_tiles_missing,
    ),
    Peer(
        "trl logits + eager",
        with_gradient(joined(heads.trl_logits, losses.trl_eager)),
        needs("trl.trainer.utils"),
    ),
    Peer("liger fused", with_gradient(liger_fused), needs("liger_kernel.chunked_loss")),
    Peer(
        "liger triton", with_gradient(liger_triton), needs("liger_kernel.transformers.grpo_loss", triton=True)
    ),
)
OP = Op("grouped_logp+grpo_loss", PEERS, step_inputs, truth, allowed, slack, work)
