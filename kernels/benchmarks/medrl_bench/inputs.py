"""What is measured on: cases, and the inputs that they stand for, the same for every implementation.

Policies of the head's inputs: "peaked" has the entropy of a language model that was trained (about 0.3 nats a
token; most tokens are nearly certain, some are open between a few), its likely tokens drawn by Zipf's law
over the ids, which byte-pair vocabularies order by frequency; "scattered" is the same with likely tokens
drawn evenly over the vocabulary, the worst case for skipping blocks of it; "flat" spreads its probability
over everything.

Letters: N tokens, V vocabulary, D hidden size, K likely tokens, B completions, T tokens of a completion.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

POLICIES = ("peaked", "scattered", "flat")
CANDIDATES = 8
TOP_LOGIT, TAIL_SPREAD = 24.0, 2.0  # of a trained model: its best logit, and how the vocabulary's scatter
OPEN_SHARE = 0.23  # of the tokens are open between a few; 0.3 nats a token come from there
EPSILON = 0.2
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class HeadCase(NamedTuple):
    """A pass of the head over N tokens."""

    tokens: int
    vocabulary: int
    width: int
    dtype: str
    policy: str = "peaked"
    with_entropy: bool = False

    @property
    def shape(self) -> str:
        return f"N={self.tokens} V={self.vocabulary} D={self.width}"

    @property
    def label(self) -> str:
        return self.policy + (", with entropy" if self.with_entropy else "")


class LossCase(NamedTuple):
    """The loss of B completions of T tokens each, of which none is padding."""

    completions: int
    length: int
    loss_type: str = "dapo"
    beta: float = 0.0
    level: str = "token"

    dtype = "fp32"

    @property
    def shape(self) -> str:
        return f"B={self.completions} T={self.length}"

    @property
    def label(self) -> str:
        return f"{self.loss_type}, {self.level} level" + (f", beta={self.beta:g}" if self.beta else "")

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of `medrl_kernels.grpo_loss`."""
        return {"loss_type": self.loss_type, "beta": self.beta, "importance_sampling_level": self.level}


class StepCase(NamedTuple):
    """The head and the loss together: what a policy update does with hidden states."""

    head: HeadCase
    loss: LossCase

    @property
    def dtype(self) -> str:
        return self.head.dtype

    @property
    def shape(self) -> str:
        return f"{self.loss.shape} V={self.head.vocabulary} D={self.head.width}"

    @property
    def label(self) -> str:
        return f"{self.head.label}; {self.loss.label}"


class HeadInputs(NamedTuple):
    """Hidden states, a frozen head, targets drawn from the policy, and the gradient that comes in."""

    case: HeadCase
    hidden_ND: Tensor
    weight_VD: Tensor
    target_N: Tensor
    grad_N: Tensor


class LossInputs(NamedTuple):
    """Log-probabilities of packed completions of equal length; `.view(B, T)` of any of them is TRL's
    layout. The lengths are on the CPU, where a batch is put together: on a card ours would wait for them."""

    case: LossCase
    logp_N: Tensor
    old_logp_N: Tensor
    ref_logp_N: Tensor
    entropy_N: Tensor
    advantage_B: Tensor
    length_B: Tensor


class StepInputs(NamedTuple):
    """A head's inputs, and a loss's whose old log-probabilities are the head's, slightly off."""

    case: StepCase
    head: HeadInputs
    loss: LossInputs


@functools.lru_cache(maxsize=1)
def head_weight(vocabulary: int, width: int, dtype: str, device: torch.device) -> Tensor:
    """A head (V, D) whose rows are about 1 long; kept for the next case of its shape."""
    generator = torch.Generator(device).manual_seed(1)
    weight_VD = torch.randn(vocabulary, width, generator=generator, device=device, dtype=DTYPES[dtype])
    return weight_VD.mul_(width**-0.5)


def head_inputs(case: HeadCase, device: torch.device) -> HeadInputs:
    """Inputs of a case; the same for the same case."""
    if case.policy not in POLICIES:
        raise ValueError(f"policy must be one of {', '.join(POLICIES)}, got {case.policy!r}")
    generator = torch.Generator(device).manual_seed(2)
    weight_VD = head_weight(case.vocabulary, case.width, case.dtype, device)
    if case.policy == "flat":
        hidden_ND = 0.5 * normal(generator, case.tokens, case.width)
        target_N = torch.randint(case.vocabulary, (case.tokens,), generator=generator, device=device)
    else:
        hidden_ND, target_N = trained_policy(case, weight_VD, generator)
    grad_N = normal(generator, case.tokens) / case.tokens
    return HeadInputs(case, hidden_ND.to(weight_VD.dtype), weight_VD, target_N, grad_N)


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    """Standard normal numbers in fp32 on the generator's device."""
    return torch.randn(*shape, generator=generator, device=generator.device)


def trained_policy(case: HeadCase, weight_VD: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """States (N, D) made of their likely tokens' rows and noise, and targets (N,) drawn among the likely."""
    token_NK = likely_tokens(case, generator)
    logit_NK = likely_logits(case.tokens, generator)
    hidden_ND = TAIL_SPREAD * normal(generator, case.tokens, case.width)
    for k in range(CANDIDATES):
        row_ND = weight_VD[token_NK[:, k]].float()
        # On top of the noise, which has its own share of this row: the logit then is the one wanted.
        share_N1 = (hidden_ND * row_ND).sum(1, keepdim=True)
        hidden_ND += (logit_NK[:, k : k + 1] - share_N1) * row_ND / row_ND.square().sum(1, keepdim=True)
    for k in range(
        CANDIDATES
    ):  # what they have become: rows are not quite orthogonal, and two may be the same
        logit_NK[:, k] = (hidden_ND * weight_VD[token_NK[:, k]]).sum(1)
    pick_N1 = torch.multinomial(logit_NK.softmax(1), 1, generator=generator)
    return hidden_ND, token_NK.gather(1, pick_N1).squeeze(1)


def likely_tokens(case: HeadCase, generator: torch.Generator) -> Tensor:
    """Distinct tokens (N, K), the likeliest first: one from each K-th of the law that the policy draws by."""
    shape = (case.tokens, CANDIDATES)
    place_NK = torch.rand(shape, generator=generator, device=generator.device)
    part_NK = torch.rand(shape, generator=generator, device=generator.device).argsort(1)
    place_NK = (part_NK + place_NK) / CANDIDATES
    id_NK = case.vocabulary**place_NK if case.policy == "peaked" else 1 + case.vocabulary * place_NK
    return (id_NK.long() - 1).clamp(0, case.vocabulary - 1)


def likely_logits(tokens: int, generator: torch.Generator) -> Tensor:
    """Logits (N, K) of the likely tokens, falling from TOP_LOGIT: fast for most, slowly for the open ones."""
    step_NK = torch.rand((tokens, CANDIDATES), generator=generator, device=generator.device)
    open_N1 = torch.rand((tokens, 1), generator=generator, device=generator.device) < OPEN_SHARE
    gap_NK = torch.where(open_N1, 1.2 * step_NK, 4 + 8 * step_NK)
    gap_NK[:, 0] = 0
    return TOP_LOGIT - gap_NK.cumsum(1)


def loss_inputs(case: LossCase, device: torch.device, logp_N: Tensor | None = None) -> LossInputs:
    """Inputs of a case. With `logp_N` the ratios stay inside the clip range; else some tokens are clipped.

    No ratio lies so near a clip bound that rounding would decide on which side.
    """
    generator = torch.Generator(device).manual_seed(3)
    tokens = case.completions * case.length
    near = logp_N is not None
    if logp_N is None:
        logp_N = -3 * torch.rand(tokens, generator=generator, device=device)
    gap_N = 0.02 * normal(generator, tokens).clamp(-3, 3) if near else 0.15 * normal(generator, tokens)
    ratio_N = gap_N.exp()
    close_N = ((ratio_N - 1).abs() - EPSILON).abs() < 1e-3
    return LossInputs(
        case,
        logp_N=logp_N,
        old_logp_N=logp_N - gap_N.masked_fill(close_N, 0.0),
        ref_logp_N=logp_N + 0.1 * normal(generator, tokens),
        entropy_N=torch.rand(tokens, generator=generator, device=device),
        advantage_B=normal(generator, case.completions),
        length_B=torch.full((case.completions,), case.length, device="cpu"),
    )
