"""Every op of medrl_kernels in plain PyTorch: the specification that any faster kernel is held to.

Names, defaults and maths of `grpo_loss` are those of TRL 1.15 and 1.16 (`GRPOTrainer._compute_loss`). It
differs in layout (completions are packed end to end, not padded), in refusing options that the loss type
would ignore, in that Inf in a log-prob shows as NaN where TRL's bounds hide it, and in that quantiles and
metrics are those of this call: nothing is gathered from other processes. One file on purpose, longer than
the others: a specification is read in one place.

Letters: B completions, N trained tokens (packed), S source states, U states in use, K tokens that are not
ignored, V vocabulary, D hidden size; X is B or N, whichever a value is given for. Log-probabilities are
natural logs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from medrl_kernels.dispatch import IGNORE_INDEX, WINDOW_LOSSES, check_grouped_logp, check_grpo_loss

# Most logits in one chunk, and most that autograd may keep rather than recompute: 64 MiB each in fp32.
CHUNK_CELLS = 2**24
KEEP_CELLS = 2**24
SEARCHED = 128  # columns of a block, in which the largest logit of a row is looked for
EXP_IS_ZERO = -1e4  # exp of it is 0 in fp32 and fp64
LOG_W_MIN, LOG_W_MAX = math.log(1e-8), 20.0  # VESPO's bounds on the log of a sequence weight, as in TRL


class GroupedLogp(NamedTuple):
    """Log-probability of each target and, if asked for, the entropy in nats of the distribution behind it."""

    logp_N: Tensor
    entropy_N: Tensor | None


class GRPOLoss(NamedTuple):
    """The scalar to call `backward()` on, and detached 0-d metrics under TRL's names."""

    loss: Tensor
    metrics: dict[str, Tensor]


class LogitShape(NamedTuple):
    """How a product with the head becomes a logit, and in which precision."""

    dtype: torch.dtype
    logit_scale: float
    softcap: float | None
    temperature: float


def working_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if any of the tensors is float64, else float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def grouped_logp(
    hidden_SD: Tensor,
    weight_VD: Tensor,
    target_N: Tensor,
    source_N: Tensor | None = None,
    *,
    temperature: float = 1.0,
    bias_V: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    with_entropy: bool = False,
    filter_eps: float = 0.0,
    chunk_size: int = 1024,
) -> GroupedLogp:
    """Log-probability of `target_N[n]` under the head applied to state `source_N[n]`, with no (N, V) logits.

    hidden_SD (S, D) and weight_VD (V, D) floating, bias_V (V,); target_N (N,) int in [0, V) or -100 (ignored:
    logp and entropy 0, no gradient); source_N (N,) int in [0, S), None when each state has one target (S =
    N). Logits are `(h W^T + b) * logit_scale`, then `softcap * tanh(z / softcap)`, then `/ temperature`.
    Returns fp32 (N,), fp64 for fp64 inputs, differentiable in hidden, weight and bias. Each state in use
    meets the head once, at most `chunk_size` states at a time; what exceeds KEEP_CELLS is recomputed in the
    backward. `filter_eps` is the largest probability whose gradient a kernel may drop; this reference drops
    none. ValueError for arguments that do not fit.
    """
    check_grouped_logp(SimpleNamespace(**locals()))
    dtype = working_dtype(hidden_SD, weight_VD)
    shape = LogitShape(dtype, logit_scale, softcap, temperature)
    kept_K = (target_N != IGNORE_INDEX).nonzero().squeeze(1)
    used_U, source_K = distinct_sources(source_N, kept_K)
    hidden_UD = hidden_SD if len(used_U) == len(hidden_SD) else hidden_SD.index_select(0, used_U)
    target_K = target_N[kept_K].long()
    step = max(1, min(chunk_size, CHUNK_CELLS // len(weight_VD)))
    recompute = len(used_U) * len(weight_VD) > KEEP_CELLS

    places, logps, entropies = [], [], []
    for start in range(0, max(1, len(used_U)), step):
        here = ((source_K >= start) & (source_K < start + step)).nonzero().squeeze(1)
        states = hidden_UD[start : start + step]
        args = (states, weight_VD, bias_V, target_K[here], source_K[here] - start, shape, with_entropy)
        logp, entropy = recomputed_chunk(*args) if recompute else chunk_logp(*args)
        places.append(kept_K[here])
        logps.append(logp)
        entropies.append(entropy)
    zero_N = torch.zeros(len(target_N), dtype=dtype, device=hidden_SD.device)
    logp_N = zero_N.index_copy(0, torch.cat(places), torch.cat(logps))
    entropy_N = zero_N.index_copy(0, torch.cat(places), torch.cat(entropies)) if with_entropy else None
    return GroupedLogp(logp_N, entropy_N)


def distinct_sources(source_N: Tensor | None, kept_K: Tensor) -> tuple[Tensor, Tensor]:
    """The sorted states that the kept tokens need (U,), and for each kept token its row among them (K,)."""
    if source_N is None:
        return kept_K, torch.arange(len(kept_K), device=kept_K.device)
    used_U, source_K = torch.unique(source_N[kept_K].long(), return_inverse=True)
    return used_U, source_K


def head_logits(hidden_UD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, shape: LogitShape) -> Tensor:
    """Logits (U, V) in the working precision, whatever the storage of hidden and head and any autocast."""
    bias_V = None if bias_V is None else bias_V.to(shape.dtype)
    with torch.autocast(hidden_UD.device.type, enabled=False):
        logit_UV = F.linear(hidden_UD.to(shape.dtype), weight_VD.to(shape.dtype), bias_V)
    if shape.logit_scale != 1.0:
        logit_UV = logit_UV * shape.logit_scale
    if shape.softcap is not None:
        logit_UV = shape.softcap * torch.tanh(logit_UV / shape.softcap)
    return logit_UV if shape.temperature == 1.0 else logit_UV / shape.temperature


def chunk_logp(
    hidden_UD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    target_K: Tensor,
    source_K: Tensor,
    shape: LogitShape,
    with_entropy: bool,
) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy of a chunk's targets, (K,) each; the entropy is empty if not asked for."""
    logit_UV = head_logits(hidden_UD, weight_VD, bias_V, shape)
    found = LogpOfLogits.apply(logit_UV, target_K, source_K, with_entropy)
    assert isinstance(found, tuple)
    return found


class LogpOfLogits(torch.autograd.Function):
    """Log-probability and entropy (K,) of targets under rows of logits (U, V), which it overwrites.

    The largest logit z* stays out of the sum: logsumexp = z* + log1p(r), r = sum of exp(z - z*) over the
    others. Only a probability above 1/2 could cancel; then the target is z* itself, and logp = -log1p(r) and
    its gradient r / (1 + r), which never see z* - z*, keep their digits. The gradient is written out because
    autograd's own passes five times over (U, V): d logp / dz_j = [j = target] - p_j and
    dH / dz_j = -p_j (log p_j + H), with p_j = exp(z_j - z*) / (1 + r).
    """

    @staticmethod
    def forward(
        ctx: Any, logit_UV: Tensor, target_K: Tensor, source_K: Tensor, with_entropy: bool
    ) -> tuple[Tensor, Tensor]:
        peak_U1, top_U1 = largest(logit_UV)
        gap_K = logit_UV[source_K, target_K] - peak_U1[source_K, 0]
        below_UV = logit_UV.sub_(peak_U1).scatter_(1, top_U1, -math.inf)
        rest_UV = below_UV.exp() if with_entropy else below_UV.exp_()
        rest_U = rest_UV.sum(1)
        zero_U = (peak_U1 - peak_U1).squeeze(1)  # NaN, so that it shows, where a logit is infinite
        tail_U = rest_U.log1p() + zero_U
        is_top_K = target_K == top_U1[source_K, 0]
        logp_K = gap_K.masked_fill(is_top_K, 0.0) - tail_U[source_K]
        entropy_U = tail_U
        if with_entropy:
            # The clamp makes 0 * -inf (the top logit, a token that a bias of -inf forbids) the 0 that it is.
            drop_U = torch.einsum("uv,uv->u", rest_UV, below_UV.clamp_(min=EXP_IS_ZERO))
            entropy_U = tail_U - drop_U / (1 + rest_U)
        ctx.save_for_backward(rest_UV, rest_U, tail_U, entropy_U, top_U1, target_K, source_K, is_top_K)
        return logp_K, entropy_U[source_K] if with_entropy else logp_K.new_empty(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_K: Tensor, entropy_grad_K: Tensor | None) -> tuple[Tensor, None, None, None]:
        rest_UV, rest_U, tail_U, entropy_U, top_U1, target_K, source_K, is_top_K = ctx.saved_tensors
        grad_U = torch.zeros_like(rest_U).index_add(0, source_K, grad_K)
        out_UV = rest_UV * (-grad_U / (1 + rest_U) + 0 * tail_U)[:, None]
        top_K = torch.where(is_top_K, rest_U[source_K], rest_U.new_tensor(-1.0)) / (1 + rest_U[source_K])
        top_U = torch.zeros_like(rest_U).index_add(0, source_K, grad_K * top_K)
        if entropy_grad_K is not None and entropy_grad_K.numel() and bool((entropy_grad_K != 0).any()):
            scale_U = torch.zeros_like(rest_U).index_add(0, source_K, entropy_grad_K) / (1 + rest_U)
            log_p_UV = rest_UV.log().clamp_(min=EXP_IS_ZERO).sub_(tail_U[:, None])
            out_UV -= rest_UV * scale_U[:, None] * (log_p_UV + entropy_U[:, None])
            top_U -= scale_U * (entropy_U - tail_U)
        out_UV.scatter_(1, top_U1, top_U[:, None])
        others_K = grad_K.masked_fill(is_top_K, 0.0)
        return out_UV.index_put_((source_K, target_K), others_K, accumulate=True), None, None, None


def largest(logit_UV: Tensor) -> tuple[Tensor, Tensor]:
    """`logit_UV.max(1, keepdim=True)`: torch's is slow on a CPU where it also says the place, so the place is
    looked for in the best block of the row alone."""
    width = logit_UV.shape[1]
    whole = width - width % SEARCHED
    best_UB = logit_UV[:, :whole].unflatten(1, (-1, SEARCHED)).amax(2)
    if whole < width:
        best_UB = torch.cat([best_UB, logit_UV[:, whole:].amax(1, keepdim=True)], 1)
    first_U1 = best_UB.argmax(1, keepdim=True) * SEARCHED
    place_UC = (first_U1 + torch.arange(SEARCHED, device=logit_UV.device)).clamp_(max=width - 1)
    peak_U1, found_U1 = logit_UV.gather(1, place_UC).max(1, keepdim=True)
    return peak_U1, place_UC.gather(1, found_U1)


def recomputed_chunk(*args: object) -> tuple[Tensor, Tensor]:
    """`chunk_logp` that keeps only its inputs for the backward."""
    out = checkpoint(chunk_logp, *args, use_reentrant=False, preserve_rng_state=False)
    assert isinstance(out, tuple)
    return out


def grpo_loss(
    logp_N: Tensor,
    old_logp_N: Tensor | None,
    advantage_B: Tensor | None,
    length_B: Tensor,
    *,
    advantage_N: Tensor | None = None,
    ref_logp_N: Tensor | None = None,
    sampling_logp_N: Tensor | None = None,
    entropy_N: Tensor | None = None,
    loss_type: str = "dapo",
    importance_sampling_level: str = "token",
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    delta: float | None = None,
    beta: float = 0.0,
    use_bias_correction_kl: bool = True,
    sapo_temperature_pos: float = 1.0,
    sapo_temperature_neg: float = 1.05,
    vespo_k_pos: float = 2.0,
    vespo_lambda_pos: float = 3.0,
    vespo_k_neg: float = 3.0,
    vespo_lambda_neg: float = 2.0,
    top_entropy_quantile: float = 1.0,
    entropy_coef: float = 0.0,
    off_policy_mask_threshold: float | None = None,
    importance_sampling_correction: bool = False,
    importance_sampling_mode: str = "sequence_mask",
    importance_sampling_clip_max: float | None = 3.0,
    importance_sampling_clip_min: float | None = None,
    max_completion_length: int | None = None,
    num_items_in_batch: Tensor | float | None = None,
    num_processes: int = 1,
    gradient_accumulation_steps: int = 1,
    steps_per_generation: int = 1,
) -> GRPOLoss:
    """The GRPO objective of one micro-batch as TRL computes it, with TRL's metrics.

    Tokens are packed: completion b owns the next `length_B[b]` of the N entries; length 0 adds nothing but
    counts in B. `length_B` may lie on the CPU whatever the others do. Exactly one of advantage_B (one a
    completion) and advantage_N (one a token) is given.
    `old_logp_N=None` means the policy itself, detached. Gradient flows to logp_N and, through `entropy_coef`,
    to entropy_N; the rest is data. `importance_sampling_{correction,mode,clip_max,clip_min}` are TRL's
    `vllm_importance_sampling_*`, off unless asked for: weights of old over sampling policy, 1 where a
    sampling log-prob is NaN (unknown). `num_items_in_batch`: trained tokens of the whole generation batch
    over all processes, needed by dapo, cispo and vespo as soon as a step or a process is not alone. When
    evaluating, leave both step counts at 1. Returns a scalar loss in fp32 (fp64 for fp64 logp_N) and 0-d
    metrics. ValueError for shapes, names or options that do not fit.
    """
    call = SimpleNamespace(**locals())
    check_grpo_loss(call)
    batch = pack(call)
    ratio = importance_ratio(batch, importance_sampling_level)
    rollout = rollout_weight(batch, call) if importance_sampling_correction else None
    loss_X, metrics = policy_loss(batch, ratio, rollout, call)
    if off_policy_mask_threshold is not None:
        loss_X = loss_X.of_tokens(loss_X.token_N * on_policy_mask(batch, off_policy_mask_threshold))
    acting_N = torch.ones_like(batch.old_N)
    if batch.entropy_N is not None and top_entropy_quantile < 1:
        acting_N = high_entropy_mask(batch.entropy_N, top_entropy_quantile)
        loss_X = loss_X.of_tokens(loss_X.token_N * acting_N)
    if rollout is not None:
        metrics |= rollout_metrics(batch, rollout)
        if loss_type != "vespo":
            loss_X = loss_X.of_tokens(loss_X.token_N * rollout.token_N)
    if batch.ref_N is not None and beta != 0:
        kl_N = k3(batch.logp_N, batch.ref_N) * (ratio.token_N if use_bias_correction_kl else 1)
        metrics["kl"] = mean_or_zero(kl_N)
        loss_X = loss_X.of_tokens(loss_X.token_N + beta * kl_N)

    loss = reduce_loss(loss_X, batch.packing, call)
    if batch.entropy_N is not None:
        metrics["entropy"] = mean_or_zero(batch.entropy_N)
    if batch.entropy_N is not None and entropy_coef != 0:
        steps = 1 if loss_type in WINDOW_LOSSES else gradient_accumulation_steps
        metrics["policy_loss"] = loss.detach() * steps  # TRL's, before accumulation divides it
        bonus = (batch.entropy_N * acting_N).sum() / acting_N.sum().clamp(min=1)
        loss = loss - entropy_coef * bonus / gradient_accumulation_steps
    return GRPOLoss(loss, metrics)


@dataclass(frozen=True)
class Leveled:
    """A value on the level it is given for (B completions or N tokens), and spread over the tokens."""

    own_X: Tensor
    owner_N: Tensor
    per_completion: bool

    @functools.cached_property
    def token_N(self) -> Tensor:
        """The value of each token; spread only once it is asked for."""
        return self.own_X.index_select(0, self.owner_N) if self.per_completion else self.own_X

    def of_tokens(self, x_N: Tensor) -> Leveled:
        """Another value, one a token."""
        return Leveled(x_N, self.owner_N, per_completion=False)


@dataclass(frozen=True)
class Packing:
    """Which completion owns which of the N packed tokens; a completion may own none."""

    owner_N: Tensor
    length_B: Tensor

    def sum(self, x_N: Tensor) -> Tensor:
        """Sum over each completion's tokens, (B,)."""
        return x_N.new_zeros(len(self.length_B)).index_add(0, self.owner_N, x_N)

    def mean(self, x_N: Tensor) -> Tensor:
        """Mean over each completion's tokens, (B,); 0 where there are none."""
        return self.sum(x_N) / self.length_B.clamp(min=1)

    def total(self, x: Leveled) -> Tensor:
        """Sum over all tokens."""
        return (x.own_X * self.length_B).sum() if x.per_completion else x.own_X.sum()

    def means(self, x: Leveled) -> Tensor:
        """Mean over each completion's tokens, (B,); 0 where there are none."""
        return x.own_X * (self.length_B > 0) if x.per_completion else self.mean(x.own_X)

    def level(self, x_X: Tensor, per_completion: bool) -> Leveled:
        """The value with its spread over the tokens."""
        return Leveled(x_X, self.owner_N, per_completion)


class Batch(NamedTuple):
    """The tensors of a call in the working precision; all but logp_N and entropy_N are constants of the
    loss."""

    packing: Packing
    logp_N: Tensor
    old_N: Tensor
    sampling_N: Tensor
    ref_N: Tensor | None
    entropy_N: Tensor | None
    advantage: Leveled


def pack(call: SimpleNamespace) -> Batch:
    """The tensors of a checked call; where old or sampling policy are not given, the newer one stands in."""
    dtype = working_dtype(call.logp_N)
    logp_N = call.logp_N.to(dtype)
    old_N = (logp_N if call.old_logp_N is None else call.old_logp_N).detach().to(dtype)
    sampling_N = old_N if call.sampling_logp_N is None else call.sampling_logp_N.detach().to(dtype)
    ref_N = None if call.ref_logp_N is None else call.ref_logp_N.detach().to(dtype)
    entropy_N = None if call.entropy_N is None else call.entropy_N.to(dtype)
    length_B = call.length_B.to(logp_N.device)
    owner_N = torch.repeat_interleave(length_B.long(), output_size=len(logp_N))
    packing = Packing(owner_N, length_B.to(dtype))
    advantage_X = (call.advantage_N if call.advantage_B is None else call.advantage_B).detach().to(dtype)
    advantage = packing.level(advantage_X, call.advantage_B is not None)
    return Batch(packing, logp_N, old_N, sampling_N, ref_N, entropy_N, advantage)


def log_ratio(batch: Batch) -> Tensor:
    """Log of policy over old policy (N,). NaN where it is infinite: a bound would make a number of it."""
    gap_N = batch.logp_N - batch.old_N
    return gap_N + nothing(gap_N)


def nothing(x_N: Tensor) -> Tensor:
    """0 where a value is finite, else NaN; a constant."""
    return x_N.detach() - x_N.detach()


def known_gap(gap_N: Tensor) -> Tensor:
    """A difference of log-probs, 0 where it is NaN (one of them is unknown) and NaN where it is infinite."""
    gap_N = gap_N.masked_fill(gap_N.isnan(), 0.0)
    return gap_N + nothing(gap_N)


def importance_ratio(batch: Batch, importance_sampling_level: str) -> Leveled:
    """Policy over old policy, per token, or (GSPO) as the geometric mean over each completion."""
    log_ratio_N, per_completion = log_ratio(batch), importance_sampling_level == "sequence"
    log_ratio_X = batch.packing.mean(log_ratio_N) if per_completion else log_ratio_N
    return batch.packing.level(log_ratio_X.exp(), per_completion)


def rollout_weight(batch: Batch, call: SimpleNamespace) -> Leveled:
    """Old over sampling policy, clamped to [clip_min, clip_max] ("truncate") or 0 outside it ("mask")."""
    per_completion = call.importance_sampling_mode.startswith("sequence")
    gap_N = known_gap(batch.old_N - batch.sampling_N)
    weight_X = (batch.packing.sum(gap_N) if per_completion else gap_N).exp()
    low, high = call.importance_sampling_clip_min, call.importance_sampling_clip_max
    low, high = -math.inf if low is None else low, math.inf if high is None else high
    if call.importance_sampling_mode.endswith("truncate"):
        weight_X = weight_X.clamp(low, high)
    else:
        weight_X = weight_X.masked_fill((weight_X < low) | (weight_X > high), 0.0)
    return batch.packing.level(weight_X, per_completion)


def policy_loss(
    batch: Batch, ratio: Leveled, rollout: Leveled | None, call: SimpleNamespace
) -> tuple[Leveled, dict[str, Tensor]]:
    """The loss before masks, rollout weights and KL, and the loss type's own metrics."""
    advantage = batch.advantage
    high = call.epsilon if call.epsilon_high is None else call.epsilon_high
    if call.loss_type == "cispo":
        loss_N = cispo_loss(ratio.token_N, advantage.token_N, batch.logp_N, high)
        ratio_X, advantage_X = common_level(ratio, advantage)
        return ratio.of_tokens(loss_N), {
            "cispo_clip_ratio": mean_or_zero((ratio_X > high) & (advantage_X > 0))
        }
    ratio_X, advantage_X = common_level(ratio, advantage)
    per_completion = ratio.per_completion and advantage.per_completion
    if call.loss_type == "sapo":
        temperatures = (call.sapo_temperature_pos, call.sapo_temperature_neg)
        loss_X = sapo_loss(ratio_X, advantage_X, *temperatures)
        return batch.packing.level(loss_X, per_completion), {}
    if call.loss_type == "vespo":
        phi = vespo_phi(batch, rollout, call)
        loss_N = -phi.token_N * advantage.token_N * batch.logp_N
        return phi.of_tokens(loss_N), {"vespo/phi_seq_mean": mean_or_zero(phi.own_X)}
    loss_X = clipped_loss(ratio_X, advantage_X, call.epsilon, high, call.delta)
    metrics = clip_metrics(batch.packing, ratio, advantage, call.epsilon, high, call.delta)
    return batch.packing.level(loss_X, per_completion), metrics


def clipped_loss(
    ratio_N: Tensor, advantage_N: Tensor, epsilon: float, epsilon_high: float, delta: float | None
) -> Tensor:
    """PPO's pessimistic surrogate: -min(rho A, clip(rho, 1 - epsilon, 1 + epsilon_high) A), rho <= delta."""
    clipped_N = ratio_N.clamp(1 - epsilon, 1 + epsilon_high)
    bounded_N = ratio_N if delta is None else ratio_N.clamp(max=delta)
    return -torch.min(bounded_N * advantage_N, clipped_N * advantage_N)


def cispo_loss(ratio_N: Tensor, advantage_N: Tensor, logp_N: Tensor, epsilon_high: float) -> Tensor:
    """CISPO (MiniMax-M1): REINFORCE weighted by the detached ratio, which `epsilon_high` itself bounds."""
    return -ratio_N.detach().clamp(max=epsilon_high) * advantage_N * logp_N


def sapo_loss(ratio_N: Tensor, advantage_N: Tensor, temperature_pos: float, temperature_neg: float) -> Tensor:
    """SAPO: a sigmoid gate around ratio 1 in place of the clip; a temperature for each sign of advantage."""
    temperature_N = choose(advantage_N > 0, temperature_pos, temperature_neg, like=ratio_N)
    return -torch.sigmoid(temperature_N * (ratio_N - 1)) * 4 / temperature_N * advantage_N


def vespo_phi(batch: Batch, rollout: Leveled | None, call: SimpleNamespace) -> Leveled:
    """VESPO's gamma weight w^k exp(lambda (1 - w)) of a completion, w the product of its token ratios."""
    log_w_B = batch.packing.sum(log_ratio(batch).detach().clamp(-20, 20))
    if rollout is not None:
        log_w_B = log_w_B + batch.packing.sum(rollout.token_N.log().clamp(LOG_W_MIN, LOG_W_MAX))
    log_w = batch.packing.level(log_w_B.clamp(LOG_W_MIN, LOG_W_MAX), per_completion=True)
    per_completion = batch.advantage.per_completion
    log_w_X = log_w.own_X if per_completion else log_w.token_N
    nonneg_X = batch.advantage.own_X >= 0
    k_X = choose(nonneg_X, call.vespo_k_pos, call.vespo_k_neg, like=log_w_X)
    lambda_X = choose(nonneg_X, call.vespo_lambda_pos, call.vespo_lambda_neg, like=log_w_X).clamp(min=1e-4)
    phi_X = (lambda_X + k_X * log_w_X - lambda_X * log_w_X.exp()).exp()
    return batch.packing.level(phi_X.nan_to_num(nan=math.nan, posinf=0.0, neginf=0.0), per_completion)


def on_policy_mask(batch: Batch, threshold: float) -> Tensor:
    """1 for tokens (N,) with A >= 0, or whose completion's mean log-prob fell by at most `threshold`, else 0;
    NaN where that mean is not a number."""
    fall_B = batch.packing.mean(known_gap(batch.sampling_N - batch.logp_N.detach()))
    near = batch.packing.level((fall_B <= threshold) + nothing(fall_B), per_completion=True)
    return torch.where(batch.advantage.token_N >= 0, 1 + nothing(near.token_N), near.token_N)


def high_entropy_mask(entropy_N: Tensor, top_entropy_quantile: float) -> Tensor:
    """1 for the `top_entropy_quantile` share of the tokens with the highest entropy, ties included, else 0.

    NaN for all where an entropy is NaN: there is no quantile then; for itself, where one is infinite.
    """
    if len(entropy_N) == 0:
        return torch.zeros_like(entropy_N)
    threshold = torch.quantile(entropy_N.detach().float(), 1 - top_entropy_quantile)
    kept_N = (entropy_N.detach() >= threshold).to(entropy_N)
    return kept_N + nothing(threshold) + nothing(entropy_N)


def k3(logp_N: Tensor, ref_N: Tensor) -> Tensor:
    """Schulman's k3 estimate of KL(policy || reference), exp(d) - d - 1 with d = ref - policy; never
    negative."""
    gap_N = ref_N - logp_N
    return gap_N.exp() - gap_N - 1


def reduce_loss(loss: Leveled, packing: Packing, call: SimpleNamespace) -> Tensor:
    """One number from the token losses, each loss type with its own divisor (table in kernels/README.md)."""
    completions, steps = len(packing.length_B), call.gradient_accumulation_steps
    tokens = len(packing.owner_N)
    if call.loss_type in WINDOW_LOSSES:
        items = tokens if call.num_items_in_batch is None else call.num_items_in_batch
        window = torch.as_tensor(items).to(packing.length_B).reshape(()).clamp(min=1) / call.num_processes
        return packing.total(loss) / (window * steps / call.steps_per_generation)
    if call.loss_type == "bnpo":
        return packing.total(loss) / max(tokens, 1) / steps
    if call.loss_type == "dr_grpo":
        return packing.total(loss) / (completions * call.max_completion_length) / steps
    if call.loss_type == "luspo":
        return packing.total(loss) / completions / steps
    return packing.means(loss).mean() / steps  # grpo, sapo


def choose(condition_X: Tensor, yes: float, no: float, *, like: Tensor) -> Tensor:
    """`yes` where the condition holds, else `no`, in the dtype of `like`."""
    return torch.where(condition_X, like.new_full((), yes), like.new_full((), no))


def mean_or_zero(x: Tensor) -> Tensor:
    """Detached mean; 0 if there is nothing to average."""
    x = x.detach() if x.is_floating_point() else x.float()
    return x.sum() / max(x.numel(), 1)


def common_level(ratio: Leveled, advantage: Leveled) -> tuple[Tensor, Tensor]:
    """Ratio and advantage where TRL clips and counts: completions (B,) if both are given so, else tokens."""
    if ratio.per_completion and advantage.per_completion:
        return ratio.own_X, advantage.own_X
    return ratio.token_N, advantage.token_N


def clip_metrics(
    packing: Packing,
    ratio: Leveled,
    advantage: Leveled,
    epsilon: float,
    epsilon_high: float,
    delta: float | None,
) -> dict[str, Tensor]:
    """TRL's five clip ratios; like TRL's, they look at the ratio after `delta`."""
    ratio_X, advantage_X = common_level(ratio, advantage)
    ratio_X = ratio_X.detach()
    ratio_X = ratio_X if delta is None else ratio_X.clamp(max=delta)
    low_X = ((ratio_X < 1 - epsilon) & (advantage_X < 0)).to(ratio_X)
    high_X = ((ratio_X > 1 + epsilon_high) & (advantage_X > 0)).to(ratio_X)
    by_completion = ratio.per_completion and advantage.per_completion
    low_B, high_B = (x if by_completion else packing.sum(x) / packing.length_B for x in (low_X, high_X))
    return {
        "clip_ratio/low_mean": mean_or_zero(low_X),
        "clip_ratio/high_mean": mean_or_zero(high_X),
        "clip_ratio/region_mean": mean_or_zero(low_X + high_X),
        "clip_ratio/low_min": extreme(low_B, torch.min),
        "clip_ratio/high_max": extreme(high_B, torch.max),
    }


def extreme(x_B: Tensor, pick: Callable[[Tensor], Tensor]) -> Tensor:
    """`pick` over the completions that have tokens; NaN if none has."""
    real = x_B[~x_B.isnan()]
    return pick(real) if len(real) else x_B.new_tensor(math.nan)


def rollout_metrics(batch: Batch, rollout: Leveled) -> dict[str, Tensor]:
    """How far the sampler was from the old policy, where known, and the weights in use; 0 if there are
    none."""
    gap_N = (batch.old_N - batch.sampling_N).abs()
    gap, weight_X = gap_N[~gap_N.isnan()], rollout.own_X
    zero = gap_N.new_zeros(())
    return {
        "sampling/sampling_logp_difference/mean": mean_or_zero(gap),
        "sampling/sampling_logp_difference/max": gap.max() if len(gap) else zero,
        "sampling/importance_sampling_ratio/min": weight_X.min() if len(weight_X) else zero,
        "sampling/importance_sampling_ratio/mean": mean_or_zero(weight_X),
        "sampling/importance_sampling_ratio/max": weight_X.max() if len(weight_X) else zero,
    }
