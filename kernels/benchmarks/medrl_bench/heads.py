"""The op grouped_logp: ours, and every other way to log-probabilities from hidden states and a frozen head.

All of them get one target a state and temperature 1. The gradient is that of the hidden states alone. Where
the case asks for the entropy, no gradient flows into it, as in a GRPO step without entropy bonus.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from medrl_bench.inputs import DTYPES, HeadCase, HeadInputs, head_inputs
from medrl_bench.machine import installed
from medrl_bench.peer import MOST_SLACK, Op, Outputs, Peer, allowances, filter_eps, needs
from medrl_kernels import grouped_logp, reference
from medrl_kernels.configs import FILTER_MASS

Head = Callable[[HeadInputs, Tensor], tuple[Tensor, Tensor | None]]
PLAIN_CELLS = 2**27  # logits at once where plain PyTorch is only the yardstick
TRL_VOCABULARY_TILE = 32768  # TRL's own setting


def ours(impl: str, filtered: bool = False) -> Head:
    """`medrl_kernels.grouped_logp`."""

    def head(inputs: HeadInputs, hidden_ND: Tensor) -> tuple[Tensor, Tensor | None]:
        return grouped_logp(
            hidden_ND,
            inputs.weight_VD,
            inputs.target_N,
            with_entropy=inputs.case.with_entropy,
            filter_eps=filter_eps(inputs.weight_VD.dtype) if filtered else 0.0,
            impl=impl,
        )

    return head


def plain(inputs: HeadInputs, hidden_ND: Tensor) -> tuple[Tensor, Tensor | None]:
    """Logits in the inputs' dtype, log-softmax in fp32."""
    logp_NV = F.linear(hidden_ND, inputs.weight_VD).float().log_softmax(1)
    logp_N = logp_NV.gather(1, inputs.target_N[:, None]).squeeze(1)
    if not inputs.case.with_entropy:
        return logp_N, None
    logp_NV = logp_NV.detach()
    return logp_N, -(logp_NV.exp() * logp_NV).sum(1)


def compiled(inputs: HeadInputs, hidden_ND: Tensor) -> tuple[Tensor, None]:
    """The same without entropy through torch.compile."""
    return compile_plain()(hidden_ND, inputs.weight_VD, inputs.target_N), None


@functools.cache
def compile_plain() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The compiled function, made once."""

    def logp(hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor) -> Tensor:
        logp_NV = F.linear(hidden_ND, weight_VD).float().log_softmax(1)
        return logp_NV.gather(1, target_N[:, None]).squeeze(1)

    return torch.compile(logp)


def trl_tiles(inputs: HeadInputs, hidden_ND: Tensor) -> tuple[Tensor, Tensor | None]:
    """TRL's fused head: tiles of logits by cuBLAS, folded by Triton, made again in the backward."""
    from trl.trainer.utils import _ChunkedLogProbFunction

    outputs = ("log_probs", "entropy") if inputs.case.with_entropy else ("log_probs",)
    logp_N, entropy_N, *_ = _ChunkedLogProbFunction.apply(
        hidden_ND, inputs.weight_VD, None, inputs.target_N, 1.0, TRL_VOCABULARY_TILE, None, 1.0, outputs
    )
    return logp_N, entropy_N


def trl_tiles_missing(inputs: HeadInputs) -> str | None:
    """TRL 1.15's tiles need Triton; 1.16 folds them in PyTorch where there is no card."""
    version = installed("trl") or "0"
    folds_anywhere = tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) >= (1, 16)
    return needs("trl.trainer.utils", triton=not folds_anywhere)(inputs)


def trl_logits(inputs: HeadInputs, hidden_ND: Tensor) -> tuple[Tensor, Tensor | None]:
    """All logits, then TRL's `selective_log_softmax`: its eager path on a CPU, its Triton fold on CUDA."""
    from trl.trainer.utils import selective_log_softmax, selective_log_softmax_and_entropy

    logit_1NV, target_1N = F.linear(hidden_ND, inputs.weight_VD)[None], inputs.target_N[None]
    if not inputs.case.with_entropy:
        return selective_log_softmax(logit_1NV, target_1N)[0], None
    logp_1N, entropy_1N = selective_log_softmax_and_entropy(logit_1NV, target_1N, entropy_requires_grad=False)
    return logp_1N[0], entropy_1N[0]


def cce(filtered: bool) -> Head:
    """Apple's cut cross-entropy; what it calls the loss is -logp."""

    def head(inputs: HeadInputs, hidden_ND: Tensor) -> tuple[Tensor, None]:
        from cut_cross_entropy import linear_cross_entropy  # pyright: ignore[reportMissingImports]

        eps = filter_eps(inputs.weight_VD.dtype) if filtered else None
        loss_N = linear_cross_entropy(
            hidden_ND, inputs.weight_VD, inputs.target_N, reduction="none", filter_eps=eps
        )
        return -loss_N, None

    return head


def unsloth(inputs: HeadInputs, hidden_ND: Tensor) -> tuple[Tensor, Tensor | None]:
    """Unsloth's fused head, by its signature."""
    from unsloth_zoo.fused_losses.fused_linear import fused_linear_logprobs  # pyright: ignore[reportMissingImports]

    entropy = inputs.case.with_entropy
    found: Any = fused_linear_logprobs(
        hidden_ND, inputs.weight_VD, inputs.target_N, return_entropy=entropy, entropy_requires_grad=False
    )
    if not isinstance(found, (tuple, list)):
        return found, None
    return found[0], found[1] if entropy else None


def in_direction(head: Head) -> Callable[[HeadInputs, bool], Outputs]:
    """A head as the benchmark runs it: without a graph, or with the gradient of the hidden states."""

    def run(inputs: HeadInputs, backward: bool) -> Outputs:
        hidden_ND = inputs.hidden_ND.detach().requires_grad_(backward)
        with torch.set_grad_enabled(backward):
            logp_N, entropy_N = head(inputs, hidden_ND)
        found = {"logp": logp_N.detach()}
        if entropy_N is not None:
            found["entropy"] = entropy_N.detach()
        if backward:
            (found["grad"],) = torch.autograd.grad(logp_N, hidden_ND, inputs.grad_N.to(logp_N.dtype))
        return found

    return run


def truth(inputs: HeadInputs, backward: bool) -> Outputs:
    """The reference in fp32, in fp64 where the inputs are fp32 themselves."""
    wide = torch.float64 if inputs.weight_VD.dtype == torch.float32 else torch.float32

    def head(inputs: HeadInputs, hidden_ND: Tensor) -> tuple[Tensor, Tensor | None]:
        entropy = inputs.case.with_entropy
        return reference.grouped_logp(hidden_ND, inputs.weight_VD, inputs.target_N, with_entropy=entropy)

    return in_direction(head)(inputs._replace(hidden_ND=inputs.hidden_ND.to(wide)), backward)


def by_rows(inputs: HeadInputs) -> list[HeadInputs]:
    """The inputs in pieces whose logits fit PLAIN_CELLS."""
    rows = max(1, PLAIN_CELLS // len(inputs.weight_VD))
    parts = zip(*(x.split(rows) for x in (inputs.hidden_ND, inputs.target_N, inputs.grad_N)), strict=True)
    return [inputs._replace(hidden_ND=hidden, target_N=target, grad_N=grad) for hidden, target, grad in parts]


def plain_outputs(inputs: HeadInputs, backward: bool) -> Outputs:
    """What plain PyTorch computes in the inputs' dtype, a piece at a time."""
    found = [in_direction(plain)(part, backward) for part in by_rows(inputs)]
    return {name: torch.cat([part[name] for part in found]) for name in found[0]}


def allowed(inputs: HeadInputs, backward: bool, truth: Outputs) -> dict[str, float]:
    """Largest distance from the truth, by output."""
    return allowances(plain_outputs(inputs, backward), truth)


def slack(inputs: HeadInputs, truth: Outputs, drops: float) -> dict[str, float]:
    """Bound on what a filter drops from the gradient: a row's small probabilities, at most `drops` times
    eps of them, times the longest row of W."""
    extra = dict.fromkeys(truth, 0.0)
    if "grad" in truth:
        eps = filter_eps(inputs.weight_VD.dtype)
        tail_N = torch.cat([small_mass(part, eps) for part in by_rows(inputs)]).clamp(max=drops * eps)
        longest = max(float(rows.float().norm(dim=1).max()) for rows in inputs.weight_VD.split(2**14))
        lost = float((inputs.grad_N * tail_N).norm()) * longest
        extra["grad"] = min(MOST_SLACK, lost / float(truth["grad"].double().norm().clamp(min=1e-30)))
    return extra


def small_mass(inputs: HeadInputs, eps: float) -> Tensor:
    """Sum of each row's probabilities (N,) that are below eps."""
    with torch.no_grad():
        p_NV = F.linear(inputs.hidden_ND.float(), inputs.weight_VD.float()).softmax(1)
        return p_NV.masked_fill_(p_NV >= eps, 0.0).sum(1)


def work(case: HeadCase, backward: bool) -> tuple[float, str]:
    """One matrix product forward and one backward, the least that the exact gradient takes."""
    return 2.0 * case.tokens * case.vocabulary * case.width * (2 if backward else 1), "TFLOP/s"


def matmul(case: HeadCase, inputs: HeadInputs) -> Callable[[], Any]:
    """The bare product that makes the logits, into memory that is there already."""
    rows = inputs.hidden_ND
    out_NV = torch.empty((case.tokens, case.vocabulary), dtype=DTYPES[case.dtype], device=rows.device)
    return lambda: torch.mm(rows, inputs.weight_VD.t(), out=out_NV)


PEERS = (
    Peer("triton", in_direction(ours("triton")), needs(triton=True)),
    Peer("triton filtered", in_direction(ours("triton", filtered=True)), needs(triton=True), FILTER_MASS),
    Peer("reference", in_direction(ours("reference"))),
    Peer("trl tiles", in_direction(trl_tiles), trl_tiles_missing),
    Peer("trl logits", in_direction(trl_logits), needs("trl.trainer.utils")),
    Peer("unsloth", in_direction(unsloth), needs("unsloth_zoo.fused_losses.fused_linear", cuda=True)),
    Peer(
        "cce", in_direction(cce(filtered=True)),
        needs("cut_cross_entropy", cuda=True, half=True, entropy=False), drops=math.inf,
    ),
    Peer(
        "cce exact", in_direction(cce(filtered=False)),
        needs("cut_cross_entropy", cuda=True, half=True, entropy=False),
    ),
    Peer("plain logits", in_direction(plain)),
    Peer("torch.compile", in_direction(compiled), needs(cuda=True, entropy=False)),
)  # fmt: skip
OP = Op("grouped_logp", PEERS, head_inputs, truth, allowed, slack, work)
