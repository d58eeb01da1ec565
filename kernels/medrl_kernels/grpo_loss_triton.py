"""`grpo_loss` in one launch each way: loss, gradient and metrics out of one pass over the packed tokens.

`reference.grpo_loss` holds the formulas. Each family of losses gives, at weight w = mask * mask * rollout,

    clipped  d L/d rho = -w A, where min and clamp let it pass            d L/d logp = 0
    sapo     d L/d rho = -4 w A s (1 - s),  s = sigmoid(tau (rho - 1))    d L/d logp = 0
    cispo    d L/d rho = 0                                                d L/d logp = -w A min(rho, high)
    vespo    d L/d rho = 0                                                d L/d logp = -w A phi
    + beta kl (times rho): d L/d rho += beta k3, d L/d logp += beta (1 - e^(ref - logp)) (times rho)

    token level     d loss/d logp_n = c (d L/d logp + rho d L/d rho)
    sequence level  d loss/d logp_n = c (d L/d logp + rho / |b| sum over b of d L/d rho)

with c the share of a token in the reduction. Ties are torch's: min gives each of two equal branches half,
clamp passes the gradient at its bounds.

Forward: a program takes whole completions (or, where few are long and nothing is summed over a completion,
parts of one). A first loop makes the sums that a completion's tokens need, a second the losses and d loss /
d logp, a third adds at sequence level what came through the ratio. Each program leaves its sums in a table;
the last to finish adds the table up in a fixed order, so equal calls give equal bits. Backward: the
incoming gradient times what was saved.

Read: 4 bytes a token and vector in fp32 (2 in 16 bit), a second time, mostly from cache, where sums over a
completion come first. Saved: d loss / d logp (N,) fp32. Written back: one vector. All maths is fp32.
One file, longer than the others: kernels, launchers and gradient are read together.

Letters: B completions, N packed tokens, X either of them, B1 their bounds (B + 1), P programs, K sums, C
parts of a completion.
"""

from __future__ import annotations

import functools
import inspect
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from medrl_kernels import reference
from medrl_kernels.configs import Compilation
from medrl_kernels.dispatch import WINDOW_LOSSES, check_grpo_loss, check_is_tensor, check_items
from medrl_kernels.reference import GRPOLoss

# Chosen by count of registers and of bytes under way; no timing has chosen among them yet.
BLOCK = 512  # tokens of a tile: 4 a thread
BACKWARD_BLOCK = 2048
NUM_WARPS = 4
NUM_STAGES = 1  # plain loads: what hides their latency is the other programs of the multiprocessor
WIDTH = tl.constexpr(256)  # programs whose sums the last one adds up at a time

# Families in this order: the first two send their gradient through the ratio, the middle two clip it.
SAPO, CLIPPED, CISPO, VESPO = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)
FAMILIES = {"sapo": SAPO, "cispo": CISPO, "vespo": VESPO}  # every other loss type is CLIPPED
OFF, BY_TOKEN, BY_COMPLETION = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)  # rollout correction
LOG_W_MIN, LOG_W_MAX = tl.constexpr(reference.LOG_W_MIN), tl.constexpr(reference.LOG_W_MAX)

# Sums of a program, and (below, by name) where a metric stands among the results.
SUMS = 16
LOSS, KL, ENTROPY, ACTING_ENTROPY, ACTING = (tl.constexpr(k) for k in range(5))
LOW, HIGH, LOW_MIN, HIGH_MAX = (tl.constexpr(k) for k in range(5, 9))
GAP, KNOWN, GAP_MAX, WEIGHT, WEIGHT_MIN, WEIGHT_MAX = (tl.constexpr(k) for k in range(9, 15))
REGION = ACTING
METRICS = {
    "clipped": {
        "clip_ratio/low_mean": LOW,
        "clip_ratio/high_mean": HIGH,
        "clip_ratio/region_mean": REGION,
        "clip_ratio/low_min": LOW_MIN,
        "clip_ratio/high_max": HIGH_MAX,
    },
    "cispo": {"cispo_clip_ratio": HIGH},
    "sapo": {},
    "vespo": {"vespo/phi_seq_mean": HIGH},
    "rollout": {
        "sampling/sampling_logp_difference/mean": GAP,
        "sampling/sampling_logp_difference/max": GAP_MAX,
        "sampling/importance_sampling_ratio/min": WEIGHT_MIN,
        "sampling/importance_sampling_ratio/mean": WEIGHT,
        "sampling/importance_sampling_ratio/max": WEIGHT_MAX,
    },
}


# --- kernels
@triton.jit
def _clamp(x, low, high):
    """torch.clamp: NaN stays NaN, `high` wins over `low`."""
    x = tl.where(x < low, low, x)
    return tl.where(x > high, high, x)


@triton.jit
def _known_gap(gap):
    """A difference of log-probs, 0 where it is NaN (one of them is unknown) and NaN where it is infinite."""
    gap = tl.where(gap == gap, gap, 0.0)
    return gap + (gap - gap)


@triton.jit
def _log_ratio(logp, old):
    """Log of policy over old policy; NaN where it is infinite: a bound would make a number of it."""
    gap = logp - old
    return gap + (gap - gap)


@triton.jit
def _load(x_N, at, inside):
    """A tile in fp32; 0 outside the completion."""
    return tl.load(x_N + at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _load_policies(logp_N, old_N, sampling_N, at, inside):
    """Log-probs of policy, old policy and sampler; where one is not given, the one before it stands in."""
    logp = _load(logp_N, at, inside)
    old = logp
    if old_N is not None:
        old = _load(old_N, at, inside)
    sampling = old
    if sampling_N is not None:
        sampling = _load(sampling_N, at, inside)
    return logp, old, sampling


@triton.jit
def _rollout_weight(log_weight, low, high, MASKS: tl.constexpr):
    """Old over sampling policy, clamped to [low, high], or 0 outside it."""
    weight = tl.exp(log_weight)
    if MASKS:
        return tl.where((weight < low) | (weight > high), 0.0, weight)
    return _clamp(weight, low, high)


@triton.jit
def _of_completion(
    logp_N, old_N, sampling_N, start, stop, off_policy_threshold, rollout_low, rollout_high,
    FAMILY: tl.constexpr, SEQUENCE: tl.constexpr, OFF_POLICY: tl.constexpr, ROLLOUT: tl.constexpr,
    MASKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """What a completion's tokens share: rho; 1 if it is on policy, else 0; rollout weight; log w of VESPO."""
    log_ratios = tl.full([BLOCK], 0.0, tl.float32)
    gaps = log_ratios
    falls = log_ratios
    log_ws = log_ratios
    begin = start
    for _ in range(0, (stop - start + BLOCK - 1) // BLOCK):
        at = begin + tl.arange(0, BLOCK)
        begin += BLOCK
        inside = at < stop
        logp, old, sampling = _load_policies(logp_N, old_N, sampling_N, at, inside)
        if SEQUENCE:
            log_ratios += _log_ratio(logp, old)
        if ROLLOUT == BY_COMPLETION:
            gaps += _known_gap(old - sampling)
        if OFF_POLICY:
            falls += _known_gap(sampling - logp)
        if FAMILY == VESPO:
            log_w = _clamp(_log_ratio(logp, old), -20.0, 20.0)
            if ROLLOUT == BY_TOKEN:
                weight = _rollout_weight(_known_gap(old - sampling), rollout_low, rollout_high, MASKS)
                log_w += _clamp(tl.log(weight), LOG_W_MIN, LOG_W_MAX)
            log_ws += tl.where(inside, log_w, 0.0)
    count = tl.maximum(stop - start, 1).to(tl.float32)
    fall = tl.sum(falls) / count
    near = tl.where(fall <= off_policy_threshold, 1.0, 0.0) + (fall - fall)
    rollout = _rollout_weight(tl.sum(gaps), rollout_low, rollout_high, MASKS)
    return tl.exp(tl.sum(log_ratios) / count), near, rollout, _clamp(tl.sum(log_ws), LOG_W_MIN, LOG_W_MAX)


@triton.jit
def _clipped(ratio, advantage, weight, low, high, delta):
    """-min(min(rho, delta) A, clip(rho, low, high) A) and its weighted derivative by rho."""
    clipped = _clamp(ratio, low, high)
    bounded = tl.where(ratio > delta, delta, ratio)
    one, other = bounded * advantage, clipped * advantage
    loss = -tl.where((one < other) | (one != one), one, other)
    share = tl.where(one == other, 0.5 * weight, weight)
    d_one = tl.where(one > other, 0.0, share) * advantage
    d_other = tl.where(one < other, 0.0, share) * advantage
    d_one = tl.where(ratio <= delta, d_one, 0.0)
    d_other = tl.where((ratio >= low) & (ratio <= high), d_other, 0.0)
    return loss, -(d_one + d_other)


@triton.jit
def _sapo(ratio, advantage, weight, temperature_pos, temperature_neg):
    """The sigmoid gate around ratio 1 and its weighted derivative by rho."""
    temperature = tl.where(advantage > 0, temperature_pos, temperature_neg)
    gate = tl.sigmoid(temperature * (ratio - 1.0))
    return -gate * 4.0 / temperature * advantage, -4.0 * weight * advantage * gate * (1.0 - gate)


@triton.jit
def _vespo_phi(log_w, advantage, k_pos, lambda_pos, k_neg, lambda_neg):
    """VESPO's weight w^k exp(lambda (1 - w)); 0 where it is NaN or infinite."""
    k = tl.where(advantage >= 0, k_pos, k_neg)
    rate = tl.where(advantage >= 0, lambda_pos, lambda_neg)
    rate = tl.where(rate < 1e-4, 1e-4, rate)
    phi = tl.exp(rate + k * log_w - rate * tl.exp(log_w))
    return tl.where(phi == float("inf"), 0.0, phi)


@triton.jit
def _policy_loss(logp, ratio, advantage, weight, phi, c0, c1, c2, FAMILY: tl.constexpr):
    """Loss of each token, unweighted; weighted, its derivatives by rho and, at fixed rho, by logp."""
    nothing = tl.full(logp.shape, 0.0, tl.float32)
    if FAMILY == CLIPPED:
        loss, d_ratio = _clipped(ratio, advantage, weight, c0, c1, c2)
        d_logp = nothing
    elif FAMILY == SAPO:
        loss, d_ratio = _sapo(ratio, advantage, weight, c0, c1)
        d_logp = nothing
    else:
        pull = phi * advantage
        if FAMILY == CISPO:
            pull = tl.where(ratio > c1, c1, ratio) * advantage
        loss, d_ratio, d_logp = -pull * logp, nothing, -pull * weight
    return loss, d_ratio, d_logp


@triton.jit
def _kl(logp, ref, ratio, beta, CORRECT_KL: tl.constexpr):
    """k3, times rho if corrected, and the derivatives of beta times it by rho and, at fixed rho, by logp."""
    gap = ref - logp
    growth = tl.exp(gap)
    kl = growth - gap - 1.0
    d_ratio = beta * kl
    weight = tl.full(logp.shape, 0.0, tl.float32) + beta
    if CORRECT_KL:
        kl *= ratio
        weight *= ratio
    # The difference is 0, or as in autograd NaN where the weight is infinite.
    return kl, d_ratio, weight * (1.0 - growth) + (weight - weight)


@triton.jit
def _clip_flags(ratio, advantage, low, high, delta):
    """1.0 where the ratio, after `delta`, is clipped from below; the same from above."""
    ratio = tl.where(ratio > delta, delta, ratio)
    is_low = tl.where((ratio < low) & (advantage < 0), 1.0, 0.0)
    return is_low, tl.where((ratio > high) & (advantage > 0), 1.0, 0.0)


@triton.jit
def _column(sums_KP, k, program, programs, other):
    """One sum of some programs; `other` where there is none. Past the L1 cache: others wrote it."""
    at = sums_KP + k * programs + program
    return tl.load(at, mask=program < programs, other=other, cache_modifier=".cg")


@triton.jit
def _extremes_of_parts(clipped_2CB, bounds_B1, completions, splits):
    """Least share of low-clipped and largest of high-clipped tokens over the completions with tokens."""
    low_min = tl.full([WIDTH], float("inf"), tl.float32)
    high_max = tl.full([WIDTH], float("-inf"), tl.float32)
    for first in range(0, completions, WIDTH):
        b = first + tl.arange(0, WIDTH)
        there = b < completions
        length = tl.load(bounds_B1 + b + 1, mask=there, other=0) - tl.load(bounds_B1 + b, mask=there, other=0)
        low = tl.full([WIDTH], 0.0, tl.float32)
        high = low
        for part in range(0, splits):
            at = clipped_2CB + part * completions + b
            low += tl.load(at, mask=there, other=0.0, cache_modifier=".cg")
            high += tl.load(at + splits * completions, mask=there, other=0.0, cache_modifier=".cg")
        count = tl.maximum(length, 1).to(tl.float32)
        low_min = tl.minimum(low_min, tl.where(length > 0, low / count, float("inf")))
        high_max = tl.maximum(high_max, tl.where(length > 0, high / count, float("-inf")))
    return tl.min(low_min), tl.max(high_max)


@triton.jit
def _finish_rollout(metrics_K, sums_KP, programs, weights):
    """The metrics of the rollout correction; `weights`: over how many weights the mean goes."""
    gaps = tl.full([WIDTH], 0.0, tl.float32)
    knowns = gaps
    gap_maxima = gaps
    sums = gaps
    minima = tl.full([WIDTH], float("inf"), tl.float32)
    maxima = tl.full([WIDTH], float("-inf"), tl.float32)
    for first in range(0, programs, WIDTH):
        p = first + tl.arange(0, WIDTH)
        gaps += _column(sums_KP, GAP, p, programs, 0.0)
        knowns += _column(sums_KP, KNOWN, p, programs, 0.0)
        gap_maxima = tl.maximum(gap_maxima, _column(sums_KP, GAP_MAX, p, programs, 0.0))
        sums += _column(sums_KP, WEIGHT, p, programs, 0.0)
        minima = tl.minimum(minima, _column(sums_KP, WEIGHT_MIN, p, programs, float("inf")))
        maxima = tl.maximum(maxima, _column(sums_KP, WEIGHT_MAX, p, programs, float("-inf")))
    tl.store(metrics_K + GAP, tl.sum(gaps) / tl.maximum(tl.sum(knowns), 1.0))
    tl.store(metrics_K + GAP_MAX, tl.max(gap_maxima))
    total = tl.sum(sums)  # NaN if a weight is, which extremes would pass over
    tl.store(metrics_K + WEIGHT, total / weights)
    tl.store(metrics_K + WEIGHT_MIN, tl.where(total == total, tl.min(minima), total))
    tl.store(metrics_K + WEIGHT_MAX, tl.where(total == total, tl.max(maxima), total))


@triton.jit
def _finish(
    loss_ptr, metrics_K, entropy_scale_ptr, sums_KP, clipped_2CB, bounds_B1,
    programs, completions, splits, tokens, flagged, entropy_coef, accumulation_steps,
    FAMILY: tl.constexpr, WITH_KL: tl.constexpr, WITH_ENTROPY: tl.constexpr,
):  # fmt: skip
    """What the last program does: adds the programs' sums up into the loss and the metrics.

    tokens, flagged: over how many tokens and clip flags the means go.
    """
    losses = tl.full([WIDTH], 0.0, tl.float32)
    kls = losses
    entropies = losses
    actings = losses
    acting_entropies = losses
    lows = losses
    highs = losses
    low_minima = tl.full([WIDTH], float("inf"), tl.float32)
    high_maxima = tl.full([WIDTH], float("-inf"), tl.float32)
    for first in range(0, programs, WIDTH):
        p = first + tl.arange(0, WIDTH)
        losses += _column(sums_KP, LOSS, p, programs, 0.0)
        if WITH_KL:
            kls += _column(sums_KP, KL, p, programs, 0.0)
        if WITH_ENTROPY:
            entropies += _column(sums_KP, ENTROPY, p, programs, 0.0)
        if entropy_scale_ptr is not None:
            actings += _column(sums_KP, ACTING, p, programs, 0.0)
            acting_entropies += _column(sums_KP, ACTING_ENTROPY, p, programs, 0.0)
        if FAMILY != SAPO:
            lows += _column(sums_KP, LOW, p, programs, 0.0)
            highs += _column(sums_KP, HIGH, p, programs, 0.0)
        if FAMILY == CLIPPED and clipped_2CB is None:
            minima = _column(sums_KP, LOW_MIN, p, programs, float("inf"))
            maxima = _column(sums_KP, HIGH_MAX, p, programs, float("-inf"))
            low_minima = tl.minimum(low_minima, minima)
            high_maxima = tl.maximum(high_maxima, maxima)

    loss = tl.sum(losses)
    if entropy_scale_ptr is not None:
        tl.store(metrics_K + LOSS, loss * accumulation_steps)
        acting = tl.sum(actings)
        acting = tl.where(acting < 1.0, 1.0, acting)  # a card's maximum would make 1 of NaN
        loss -= entropy_coef * tl.sum(acting_entropies) / acting
        tl.store(entropy_scale_ptr, -entropy_coef / acting)
    tl.store(loss_ptr, loss)
    if WITH_KL:
        tl.store(metrics_K + KL, tl.sum(kls) / tokens)
    if WITH_ENTROPY:
        tl.store(metrics_K + ENTROPY, tl.sum(entropies) / tokens)
    if FAMILY != SAPO:
        low, high = tl.sum(lows), tl.sum(highs)
        tl.store(metrics_K + LOW, low / flagged)
        tl.store(metrics_K + HIGH, high / flagged)
        tl.store(metrics_K + REGION, (low + high) / flagged)
    if FAMILY == CLIPPED:
        if clipped_2CB is not None:
            low_min, high_max = _extremes_of_parts(clipped_2CB, bounds_B1, completions, splits)
        else:
            low_min, high_max = tl.min(low_minima), tl.max(high_maxima)
        tl.store(metrics_K + LOW_MIN, low_min)
        tl.store(metrics_K + HIGH_MAX, high_max)


@triton.jit(do_not_specialize=["completions", "splits"])
def _forward_kernel(
    logp_N, old_N, sampling_N, ref_N, entropy_N, advantage_X, bounds_B1, threshold_ptr, items_ptr,
    d_logp_N, entropy_scale_ptr, loss_ptr, metrics_K, sums_KP, clipped_2CB, arrived_ptr,
    completions, splits, divisor, tokens, flagged, weights, accumulation_steps, entropy_coef, beta,
    off_policy_threshold, rollout_low, rollout_high, c0, c1, c2, c3,
    FAMILY: tl.constexpr, SEQUENCE: tl.constexpr, ADVANTAGE_OF_TOKEN: tl.constexpr, MEAN: tl.constexpr,
    CORRECT_KL: tl.constexpr, OFF_POLICY: tl.constexpr, ROLLOUT: tl.constexpr, MASKS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Loss, metrics and d loss / d logp; a pointer is None where its option is off.

    `c0` .. `c3` are what the family needs: lowest and highest ratio and delta (clipped; cispo has the
    highest only); temperatures for positive and negative advantages (sapo); k and lambda for either sign
    (vespo).
    """
    program, programs = tl.program_id(0), tl.num_programs(0)
    lanes = tl.arange(0, BLOCK)
    zero = tl.full([BLOCK], 0.0, tl.float32)
    CLIPS: tl.constexpr = (FAMILY >= CLIPPED) and (FAMILY <= CISPO)
    FLAG_OF_COMPLETION: tl.constexpr = SEQUENCE and not ADVANTAGE_OF_TOKEN
    THROUGH_RATIO: tl.constexpr = (FAMILY <= CLIPPED) or CORRECT_KL
    DIRECT: tl.constexpr = (FAMILY >= CISPO) or (ref_N is not None)
    if items_ptr is not None:
        n_items = tl.load(items_ptr).to(tl.float32)
        divisor *= tl.where(n_items < 1.0, 1.0, n_items)

    losses = zero
    kls = zero
    entropies = zero
    acting_entropies = zero
    actings = zero
    phis = zero
    gaps = zero
    knowns = zero
    gap_maxima = zero
    rollouts = zero
    rollout_minima = tl.full([BLOCK], float("inf"), tl.float32)
    rollout_maxima = tl.full([BLOCK], float("-inf"), tl.float32)
    rollout_sum = 0.0
    rollout_min = float("inf")
    rollout_max = float("-inf")
    low_sum = 0.0
    high_sum = 0.0
    low_min = float("inf")
    high_max = float("-inf")

    for unit in range(program, completions * splits, programs):
        completion = unit // splits
        start = tl.load(bounds_B1 + completion)
        stop = tl.load(bounds_B1 + completion + 1)
        count = tl.maximum(stop - start, 1).to(tl.float32)
        share = 1.0 / divisor
        if MEAN:
            share = share / count
        advantage = zero
        if not ADVANTAGE_OF_TOKEN:
            advantage += tl.load(advantage_X + completion).to(tl.float32)

        # What a completion's tokens share.
        ratio = zero
        phi = zero
        rollout = zero
        near = 0.0
        log_w = 0.0
        if SEQUENCE or OFF_POLICY or ROLLOUT == BY_COMPLETION or FAMILY == VESPO:
            ratio_b, near, rollout_b, log_w = _of_completion(
                logp_N, old_N, sampling_N, start, stop, off_policy_threshold, rollout_low, rollout_high,
                FAMILY, SEQUENCE, OFF_POLICY, ROLLOUT, MASKS, BLOCK,
            )  # fmt: skip
            ratio += ratio_b
            if ROLLOUT == BY_COMPLETION:
                rollout += rollout_b
                rollout_sum += rollout_b
                rollout_min = tl.minimum(rollout_min, rollout_b)
                rollout_max = tl.maximum(rollout_max, rollout_b)
        if FAMILY == VESPO and not ADVANTAGE_OF_TOKEN:
            phi = _vespo_phi(log_w, advantage, c0, c1, c2, c3)
            high_sum += tl.max(phi)  # all lanes hold the same
        lows = zero
        highs = zero
        through_ratio = zero

        tiles = ((stop - start + BLOCK - 1) // BLOCK).to(tl.int32)
        part = (tiles + splits - 1) // splits
        first = (unit % splits) * part
        begin = start + first.to(tl.int64) * BLOCK
        for _ in range(first, tl.minimum(first + part, tiles)):
            at = begin + lanes
            begin += BLOCK
            inside = at < stop
            logp, old, sampling = _load_policies(logp_N, old_N, sampling_N, at, inside)
            if not SEQUENCE:
                ratio = tl.exp(_log_ratio(logp, old))
            if ADVANTAGE_OF_TOKEN:
                advantage = _load(advantage_X, at, inside)
                if FAMILY == VESPO:
                    phi = _vespo_phi(log_w, advantage, c0, c1, c2, c3)
                    phis += tl.where(inside, phi, 0.0)
            weight = zero + 1.0
            if OFF_POLICY:
                weight = tl.where(advantage >= 0, 1.0 + (near - near), near)
            if entropy_N is not None:
                entropy = _load(entropy_N, at, inside)
                entropies += entropy
                acting = tl.where(inside, 1.0, 0.0)
                if threshold_ptr is not None:
                    threshold = tl.load(threshold_ptr)  # minus itself: NaN, so that it shows, if it is one
                    acting = tl.where(entropy >= threshold, acting, 0.0) + (threshold - threshold)
                    acting += entropy - entropy
                    weight *= acting
                acting_entropies += entropy * acting
                actings += acting
            if ROLLOUT != OFF:
                if ROLLOUT == BY_TOKEN:
                    rollout = _rollout_weight(_known_gap(old - sampling), rollout_low, rollout_high, MASKS)
                    rollouts += tl.where(inside, rollout, 0.0)
                    rollout_minima = tl.minimum(rollout_minima, tl.where(inside, rollout, float("inf")))
                    rollout_maxima = tl.maximum(rollout_maxima, tl.where(inside, rollout, float("-inf")))
                if FAMILY != VESPO:
                    weight *= rollout
                gap = tl.abs(old - sampling)
                known = inside & (gap == gap)
                gaps += tl.where(known, gap, 0.0)
                knowns += tl.where(known, 1.0, 0.0)
                gap_maxima = tl.maximum(gap_maxima, tl.where(known, gap, 0.0))
            if CLIPS and not FLAG_OF_COMPLETION:
                low, high = _clip_flags(ratio, advantage, c0, c1, c2)
                lows += tl.where(inside, low, 0.0)
                highs += tl.where(inside, high, 0.0)

            loss, d_ratio, d_logp = _policy_loss(logp, ratio, advantage, weight, phi, c0, c1, c2, FAMILY)
            loss *= weight
            if ref_N is not None:
                kl, kl_d_ratio, kl_d_logp = _kl(logp, _load(ref_N, at, inside), ratio, beta, CORRECT_KL)
                kls += tl.where(inside, kl, 0.0)
                loss += beta * kl
                d_logp += kl_d_logp
                if CORRECT_KL:
                    d_ratio += kl_d_ratio
            losses += tl.where(inside, loss, 0.0) * share
            if d_logp_N is not None:
                if THROUGH_RATIO:
                    if SEQUENCE:
                        through_ratio += tl.where(inside, d_ratio, 0.0)
                    else:
                        d_logp += d_ratio * ratio
                if DIRECT or not SEQUENCE:
                    tl.store(d_logp_N + at, d_logp * share, mask=inside)

        if CLIPS:
            if FLAG_OF_COMPLETION:
                low, high = _clip_flags(ratio, advantage, c0, c1, c2)
                low_b, high_b = tl.max(low), tl.max(high)  # all lanes hold the same
                low_min = tl.minimum(low_min, low_b)
                high_max = tl.maximum(high_max, high_b)
            else:
                low_b, high_b = tl.sum(lows), tl.sum(highs)
                if clipped_2CB is not None:
                    at_b = clipped_2CB + (unit % splits) * completions + completion
                    tl.store(at_b, low_b)
                    tl.store(at_b + splits * completions, high_b)
                else:
                    low_min = tl.where(stop > start, tl.minimum(low_min, low_b / count), low_min)
                    high_max = tl.where(stop > start, tl.maximum(high_max, high_b / count), high_max)
            low_sum += low_b
            high_sum += high_b

        if d_logp_N is not None and SEQUENCE and THROUGH_RATIO:
            spread = ratio / count * tl.sum(through_ratio) * share
            tl.debug_barrier()  # what the second loop wrote is read here, perhaps by other threads
            begin = start
            for _ in range(0, tiles):
                at = begin + lanes
                begin += BLOCK
                inside = at < stop
                d_logp = spread
                if DIRECT:
                    d_logp += tl.load(d_logp_N + at, mask=inside, other=0.0)
                tl.store(d_logp_N + at, d_logp, mask=inside)

    own = sums_KP + program
    tl.store(own + LOSS * programs, tl.sum(losses))
    if ref_N is not None:
        tl.store(own + KL * programs, tl.sum(kls))
    if entropy_N is not None:
        tl.store(own + ENTROPY * programs, tl.sum(entropies))
        if entropy_scale_ptr is not None:
            tl.store(own + ACTING_ENTROPY * programs, tl.sum(acting_entropies))
            tl.store(own + ACTING * programs, tl.sum(actings))
    if FAMILY == VESPO and ADVANTAGE_OF_TOKEN:
        high_sum += tl.sum(phis)
    if FAMILY != SAPO:
        tl.store(own + LOW * programs, low_sum)
        tl.store(own + HIGH * programs, high_sum)
        tl.store(own + LOW_MIN * programs, low_min)
        tl.store(own + HIGH_MAX * programs, high_max)
    if ROLLOUT != OFF:
        if ROLLOUT == BY_TOKEN:
            rollout_sum += tl.sum(rollouts)
            rollout_min = tl.min(rollout_minima)
            rollout_max = tl.max(rollout_maxima)
        tl.store(own + GAP * programs, tl.sum(gaps))
        tl.store(own + KNOWN * programs, tl.sum(knowns))
        tl.store(own + GAP_MAX * programs, tl.max(gap_maxima))
        tl.store(own + WEIGHT * programs, rollout_sum)
        tl.store(own + WEIGHT_MIN * programs, rollout_min)
        tl.store(own + WEIGHT_MAX * programs, rollout_max)

    tl.debug_barrier()  # the program's sums stand before its arrival is counted
    if tl.atomic_add(arrived_ptr, 1, sem="acq_rel") == programs - 1:
        tl.store(arrived_ptr, 0)  # for the next launch
        _finish(
            loss_ptr, metrics_K, entropy_scale_ptr, sums_KP, clipped_2CB, bounds_B1,
            programs, completions, splits, tokens, flagged, entropy_coef, accumulation_steps,
            FAMILY, ref_N is not None, entropy_N is not None,
        )  # fmt: skip
        if ROLLOUT != OFF:
            _finish_rollout(metrics_K, sums_KP, programs, weights)


@triton.jit
def _backward_tile(
    tile, grad_ptr, d_logp_N, grad_logp_N, entropy_N, threshold_ptr, entropy_scale_ptr, grad_entropy_N,
    tokens, BLOCK: tl.constexpr,
):  # fmt: skip
    """One tile of both gradients: the incoming one times what the forward saved.

    Without `grad_logp_N` the saved vector becomes the gradient in place: nothing to do if 1 comes in.
    """
    at = tile.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < tokens
    grad = tl.load(grad_ptr)
    if d_logp_N is not None:
        if grad_logp_N is not None:
            tl.store(grad_logp_N + at, grad * tl.load(d_logp_N + at, mask=inside, other=0.0), mask=inside)
        elif grad != 1.0:
            tl.store(d_logp_N + at, grad * tl.load(d_logp_N + at, mask=inside, other=0.0), mask=inside)
    if grad_entropy_N is not None:
        grad_entropy = tl.full([BLOCK], 0.0, tl.float32) + grad * tl.load(entropy_scale_ptr)
        if threshold_ptr is not None:
            acting = _load(entropy_N, at, inside) >= tl.load(threshold_ptr)
            grad_entropy *= tl.where(acting, 1.0, 0.0)
        tl.store(grad_entropy_N + at, grad_entropy, mask=inside)


@triton.jit
def _backward_kernel(
    grad_ptr, d_logp_N, grad_logp_N, entropy_N, threshold_ptr, entropy_scale_ptr, grad_entropy_N, tokens,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients with respect to logp and entropy; a pointer is None where nobody asks for it."""
    _backward_tile(
        tl.program_id(0), grad_ptr, d_logp_N, grad_logp_N, entropy_N, threshold_ptr, entropy_scale_ptr,
        grad_entropy_N, tokens, BLOCK,
    )  # fmt: skip


# --- launchers
@functools.cache
def _arrival_counter(device: torch.device, stream: int) -> Tensor:
    """A zero in which the programs of a launch count themselves; the last sets it back.

    One a stream: launches on one stream follow each other.
    """
    return torch.zeros(1, dtype=torch.int32, device=device)


def _counter_of(device: torch.device) -> Tensor:
    """The counter of the stream that a launch goes to."""
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    return _arrival_counter(device, stream)


def _empty(device: torch.device, *shape: int) -> Tensor:
    """Memory for results."""
    return torch.empty(shape, dtype=torch.float32, device=device)


def _flat(tensor: Tensor | None) -> Tensor | None:
    """The tensor without its history, its entries side by side."""
    if tensor is None:
        return None
    tensor = tensor.detach() if tensor.requires_grad else tensor
    return tensor if tensor.is_contiguous() else tensor.contiguous()


def _divisor(call: SimpleNamespace, tokens: int, completions: int) -> tuple[float, Tensor | None]:
    """What the sum of the losses is divided by: a number, times max(1, n) of a tensor on the device if given.

    In grpo and sapo each completion is divided by its own length besides.
    """
    steps = call.gradient_accumulation_steps
    if call.loss_type in WINDOW_LOSSES:
        window = steps / call.steps_per_generation / call.num_processes
        items = tokens if call.num_items_in_batch is None else call.num_items_in_batch
        if isinstance(items, Tensor) and items.device == call.logp_N.device:
            return window, items
        return window * max(float(items), 1.0), None
    count = {"bnpo": tokens, "dr_grpo": completions * (call.max_completion_length or 0)}
    return float(count.get(call.loss_type, completions) * steps), None


def _family_numbers(call: SimpleNamespace) -> tuple[float, float, float, float]:
    """`c0` .. `c3` of the forward kernel."""
    high = call.epsilon if call.epsilon_high is None else call.epsilon_high
    if call.loss_type == "sapo":
        return float(call.sapo_temperature_pos), float(call.sapo_temperature_neg), 0.0, 0.0
    if call.loss_type == "vespo":
        numbers = (call.vespo_k_pos, call.vespo_lambda_pos, call.vespo_k_neg, call.vespo_lambda_neg)
        k_pos, lambda_pos, k_neg, lambda_neg = map(float, numbers)
        return k_pos, lambda_pos, k_neg, lambda_neg
    if call.loss_type == "cispo":
        return -torch.inf, float(high), torch.inf, 0.0
    return 1.0 - call.epsilon, 1.0 + high, torch.inf if call.delta is None else float(call.delta), 0.0


def _rollout_level(call: SimpleNamespace) -> int:
    """Whether the rollout correction is off, of tokens or of completions."""
    if not call.importance_sampling_correction:
        return OFF.value
    return (BY_TOKEN if call.importance_sampling_mode.startswith("token") else BY_COMPLETION).value


class _Plan(NamedTuple):
    """What follows from the options and the kinds of tensors alone: the kernel's constexpr arguments, its
    numbers but for those that count, where each metric will stand, and whether a program must hold all of a
    completion, because its tokens need sums over it."""

    flags: dict[str, Any]
    numbers: dict[str, float]
    slots: dict[str, int]
    needs_sums: bool


def _make_plan(call: SimpleNamespace) -> _Plan:
    """The plan of a checked call."""
    steps, rollout = call.gradient_accumulation_steps, _rollout_level(call)
    low, high = call.importance_sampling_clip_min, call.importance_sampling_clip_max
    flags = {
        "FAMILY": FAMILIES.get(call.loss_type, CLIPPED).value,
        "SEQUENCE": call.importance_sampling_level == "sequence",
        "ADVANTAGE_OF_TOKEN": call.advantage_B is None,
        "MEAN": call.loss_type in ("grpo", "sapo"),
        "CORRECT_KL": call.beta != 0 and bool(call.use_bias_correction_kl),
        "OFF_POLICY": call.off_policy_mask_threshold is not None,
        "ROLLOUT": rollout,
        "MASKS": call.importance_sampling_mode.endswith("mask"),
        "BLOCK": BLOCK,
    }
    c0, c1, c2, c3 = _family_numbers(call)
    numbers = {
        "accumulation_steps": float(1 if call.loss_type in WINDOW_LOSSES else steps),
        "entropy_coef": call.entropy_coef / steps,
        "beta": float(call.beta),
        "off_policy_threshold": float(call.off_policy_mask_threshold or 0.0),
        "rollout_low": -torch.inf if low is None else float(low),
        "rollout_high": torch.inf if high is None else float(high),
        "c0": c0,
        "c1": c1,
        "c2": c2,
        "c3": c3,
    }
    needs_sums = flags["SEQUENCE"] or flags["OFF_POLICY"] or call.loss_type == "vespo"
    return _Plan(flags, numbers, _metric_slots(call), needs_sums or rollout == BY_COMPLETION.value)


def _metric_slots(call: SimpleNamespace) -> dict[str, int]:
    """The metrics that the reference gives for such a call, and where the kernel writes them."""
    slots = dict(METRICS.get(call.loss_type, METRICS["clipped"]))
    slots |= METRICS["rollout"] if call.importance_sampling_correction else {}
    slots |= {"kl": KL} if call.beta != 0 else {}
    slots |= {"entropy": ENTROPY} if call.entropy_N is not None else {}
    slots |= {"policy_loss": LOSS} if call.entropy_coef != 0 else {}
    return {name: slot.value for name, slot in slots.items()}


TENSORS = ("logp_N", "old_logp_N", "advantage_B", "length_B", "advantage_N", "ref_logp_N", "sampling_logp_N")
TENSORS += ("entropy_N",)
OPTIONS = tuple(set(inspect.signature(reference.grpo_loss).parameters) - {*TENSORS, "num_items_in_batch"})
PLAIN = (str, int, float, bool, type(None))  # values that tell all by being equal
PLANS: dict[tuple[Any, ...], _Plan] = {}
MOST_PLANS = 256


def _plan(call: SimpleNamespace) -> _Plan:
    """The plan of a call; ValueError where its arguments do not fit. `call.length_B` is on the CPU.

    A call like an earlier one but for its sizes is not checked in full again: on a fast card that would take
    longer than the loss.
    """
    options = tuple([getattr(call, name) for name in OPTIONS])
    tensors = [getattr(call, name) for name in TENSORS]
    check_items(call.num_items_in_batch)
    for name, tensor in zip(TENSORS, tensors, strict=True):
        if tensor is not None:
            check_is_tensor(name, tensor)
    kinds = tuple([None if x is None else (x.dtype, x.dim(), x.device) for x in tensors])
    key = (options, kinds, call.num_items_in_batch is None)
    plain = all(type(x) in PLAIN for x in options)
    plan = PLANS.get(key) if plain else None
    if plan is None or not _sizes_fit(call):
        check_grpo_loss(call)
        plan = _make_plan(call)
        if plain:
            if len(PLANS) >= MOST_PLANS:
                PLANS.clear()
            PLANS[key] = plan
    return plan


def _sizes_fit(call: SimpleNamespace) -> bool:
    """Whether sizes and lengths agree, the kinds of tensors being right."""
    tokens, completions = call.logp_N.shape[0], call.length_B.shape[0]
    per_token = (call.old_logp_N, call.advantage_N, call.ref_logp_N, call.sampling_logp_N, call.entropy_N)
    if completions == 0 or any(x is not None and x.shape[0] != tokens for x in per_token):
        return False
    if call.advantage_B is not None and call.advantage_B.shape[0] != completions:
        return False
    return int(call.length_B.sum()) == tokens and int(call.length_B.min()) >= 0


def _room(arguments: dict[str, Any], needs_sums: bool) -> tuple[int, int]:
    """Registers of a thread, and how many programs a multiprocessor of 65536 then holds at once.

    The limits are above the need, so nothing spills; without one ptxas may spill to fit one program more.
    """
    scarce = (arguments["threshold_ptr"], arguments["entropy_scale_ptr"]) != (None, None)
    if scarce or arguments["ROLLOUT"] != OFF.value:
        return 168, 3
    return (96, 5) if needs_sums else (80, 6)


@functools.cache
def _processors(device: torch.device) -> int:
    """Multiprocessors of a card; 1 for the interpreter."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def _forward_arguments(call: SimpleNamespace, plan: _Plan, with_grad: bool) -> dict[str, Any]:
    """Every argument of the forward kernel but those that share the work out, results included."""
    tokens, completions, device = call.logp_N.shape[0], call.length_B.shape[0], call.logp_N.device
    flags = plan.flags
    divisor, items = _divisor(call, tokens, completions)
    bounds_B1 = torch.zeros(completions + 1, dtype=torch.int64)
    torch.cumsum(call.length_B, 0, dtype=torch.int64, out=bounds_B1[1:])
    entropy_N, threshold = _flat(call.entropy_N), None
    if entropy_N is not None and call.top_entropy_quantile < 1:
        threshold = torch.quantile(entropy_N.float(), 1 - call.top_entropy_quantile)
    of_completion = not flags["ADVANTAGE_OF_TOKEN"] and (flags["SEQUENCE"] or call.loss_type == "vespo")
    return {
        "logp_N": _flat(call.logp_N),
        "old_N": _flat(call.old_logp_N),
        "sampling_N": _flat(call.sampling_logp_N) if flags["ROLLOUT"] or flags["OFF_POLICY"] else None,
        "ref_N": _flat(call.ref_logp_N) if call.beta != 0 else None,
        "entropy_N": entropy_N,
        "advantage_X": _flat(call.advantage_N if call.advantage_B is None else call.advantage_B),
        "bounds_B1": bounds_B1.to(device, non_blocking=True),
        "threshold_ptr": threshold,
        "items_ptr": items,
        "d_logp_N": _empty(device, tokens) if with_grad else None,
        "entropy_scale_ptr": _empty(device) if call.entropy_coef != 0 else None,
        "loss_ptr": _empty(device),
        "metrics_K": _empty(device, SUMS),
        "arrived_ptr": _counter_of(device),
        "completions": completions,
        "divisor": divisor,
        "tokens": float(tokens),
        "flagged": float(completions if of_completion else tokens),
        "weights": float(completions if flags["ROLLOUT"] == BY_COMPLETION.value else tokens),
        **plan.numbers,
        **flags,
    }


def _shared_out(arguments: dict[str, Any], plan: _Plan, length_B: Tensor) -> dict[str, Any]:
    """The arguments with those that share the work out among as many programs as a card holds at once.

    Few completions are cut into parts, so that they keep it busy, unless their tokens need their sums.
    """
    device, completions, splits = arguments["logp_N"].device, arguments["completions"], 1
    registers, at_once = _room(arguments, plan.needs_sums)
    programs = at_once * _processors(device)
    if programs >= 2 * completions and not plan.needs_sums:
        splits = max(1, min(programs // completions, triton.cdiv(int(length_B.max()), BLOCK)))
    return arguments | {
        "sums_KP": _empty(device, SUMS, min(programs, completions * splits)),
        "clipped_2CB": _empty(device, 2, splits, completions) if splits > 1 else None,
        "splits": splits,
        "maxnreg": registers,
    }


def _launch_forward(arguments: dict[str, Any]) -> None:
    """Runs the forward kernel on the card that holds its tensors."""
    grid = (arguments["sums_KP"].shape[1],)
    with torch.cuda.device_of(arguments["logp_N"]):
        _forward_kernel[grid](**arguments, num_warps=NUM_WARPS, num_stages=NUM_STAGES)


def _backward_arguments(
    grad: Tensor, forward: dict[str, Any], logp_dtype: torch.dtype | None, entropy_dtype: torch.dtype | None
) -> dict[str, Any]:
    """Every argument of the backward kernel, results included; a dtype is None where nobody asks.

    forward: the arguments of the forward. In fp32 its `d_logp_N` becomes the gradient in place.
    """
    logp_N = forward["logp_N"]
    apart = logp_dtype not in (None, torch.float32)
    return {
        "grad_ptr": grad,
        "d_logp_N": None if logp_dtype is None else forward["d_logp_N"],
        "grad_logp_N": torch.empty_like(logp_N, dtype=logp_dtype) if apart else None,
        "entropy_N": forward["entropy_N"],
        "threshold_ptr": forward["threshold_ptr"],
        "entropy_scale_ptr": forward["entropy_scale_ptr"],
        "grad_entropy_N": None if entropy_dtype is None else torch.empty_like(logp_N, dtype=entropy_dtype),
        "tokens": len(logp_N),
        "BLOCK": BACKWARD_BLOCK,
    }


# --- gradient
class _GRPOLossFunction(torch.autograd.Function):
    """Loss of a launched forward as a function of logp and, through the bonus, of the entropy.

    In fp32 the saved d loss / d logp is given away as the gradient, untouched if 1 comes in. A second
    backward through the same loss makes it again, from the inputs as they are then.
    """

    @staticmethod
    def forward(ctx: Any, logp_N: Tensor, entropy_N: Tensor | None, arguments: dict[str, Any]) -> Tensor:
        _launch_forward(arguments)
        ctx.dtypes = (
            logp_N.dtype if ctx.needs_input_grad[0] else None,
            entropy_N.dtype if entropy_N is not None and ctx.needs_input_grad[1] else None,
        )
        # Not the loss: it holds this node.
        ctx.arguments = arguments | {"loss_ptr": None, "metrics_K": None}
        return arguments["loss_ptr"]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        logp_dtype, entropy_dtype = ctx.dtypes
        if logp_dtype is not None and ctx.arguments["d_logp_N"] is None:
            ctx.arguments |= {
                "d_logp_N": torch.empty_like(ctx.arguments["logp_N"], dtype=torch.float32),
                "loss_ptr": torch.empty_like(grad),
                "metrics_K": grad.new_empty(SUMS),
            }
            _launch_forward(ctx.arguments)
        arguments = _backward_arguments(grad, ctx.arguments, logp_dtype, entropy_dtype)
        grid = (triton.cdiv(arguments["tokens"], BACKWARD_BLOCK),)
        with torch.cuda.device_of(grad):
            _backward_kernel[grid](**arguments, num_warps=NUM_WARPS, num_stages=NUM_STAGES)
        if logp_dtype != torch.float32:
            return arguments["grad_logp_N"], arguments["grad_entropy_N"], None
        ctx.arguments["d_logp_N"] = None
        return arguments["d_logp_N"], arguments["grad_entropy_N"], None


# --- public
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
    """`reference.grpo_loss` by Triton kernels: same arguments, results and errors, fp32 maths.

    One launch, and one more for the backward; `top_entropy_quantile` adds those of torch.quantile. Nothing
    waits for the card if `length_B` is on the CPU and `num_items_in_batch` a number or on the card; a
    `length_B` on the card is fetched once, since its values are checked. A float64 `logp_N` and a call
    without tokens go to the reference.
    """
    options = dict(locals())
    call = SimpleNamespace(**options)
    check_is_tensor("length_B", length_B)
    call.length_B = length_B.cpu()
    plan = _plan(call)
    if logp_N.dtype == torch.float64 or len(logp_N) == 0:
        return reference.grpo_loss(**options)
    bonus_N = entropy_N if entropy_coef != 0 else None
    with_grad = torch.is_grad_enabled() and logp_N.requires_grad
    arguments = _shared_out(_forward_arguments(call, plan, with_grad), plan, call.length_B)
    if with_grad or (torch.is_grad_enabled() and bonus_N is not None and bonus_N.requires_grad):
        loss = _GRPOLossFunction.apply(logp_N, bonus_N, arguments)
    else:
        _launch_forward(arguments)
        loss = arguments["loss_ptr"]
    values = arguments["metrics_K"].unbind()
    return GRPOLoss(loss, {name: values[slot] for name, slot in plan.slots.items()})


# --- what is shipped
EVERYTHING = {
    "beta": 0.1, "entropy_coef": 0.1, "top_entropy_quantile": 0.5, "off_policy_mask_threshold": 0.1,
    "importance_sampling_correction": True, "importance_sampling_mode": "token_mask",
}  # fmt: skip
BY_SEQUENCE = EVERYTHING | {"importance_sampling_mode": "sequence_truncate", "use_bias_correction_kl": False}
SHIPPED: list[tuple[str, str, dict[str, Any]]] = [
    ("grpo", "token", {"beta": 0.1}),
    ("grpo", "sequence", EVERYTHING),
    ("bnpo", "token", {"top_entropy_quantile": 0.5, "entropy_coef": 0.1}),
    ("bnpo", "sequence", {}),
    ("dr_grpo", "token", EVERYTHING | {"importance_sampling_mode": "sequence_mask"}),
    ("dr_grpo", "sequence", {"off_policy_mask_threshold": 0.1, "delta": 2.0}),
    ("dapo", "token", {}),
    ("dapo", "sequence", BY_SEQUENCE),
    ("luspo", "token", {"beta": 0.1, "use_bias_correction_kl": False}),
    ("luspo", "sequence", {"beta": 0.1}),
    ("cispo", "token", {}),
    ("cispo", "sequence", EVERYTHING),
    ("sapo", "token", EVERYTHING | {"importance_sampling_mode": "token_truncate"}),
    ("sapo", "sequence", BY_SEQUENCE),
    ("vespo", "token", {}),
    ("vespo", "sequence", EVERYTHING),
]
TYPE_NAMES = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}
TYPE_NAMES |= {torch.int32: "*i32", torch.int64: "*i64"}


class LimitedCompilation(Compilation):
    """A kernel as it is shipped with at most `maxnreg` registers a thread."""

    maxnreg: int | None = None


def compilations(arch: int) -> list[Compilation]:
    """A kernel for each loss type and level, every option in some, and both backwards, as they are launched.

    Whole completions, completions in parts, either kind of advantage and every dtype take turns.
    """
    dtypes = [torch.float32, torch.float16] + [torch.bfloat16] * (arch >= 80)
    found = []
    for turn, (loss_type, level, options) in enumerate(SHIPPED):
        arguments = _example(loss_type, level, options, dtypes[turn % len(dtypes)], of_token=turn % 4 > 1)
        found.append(_compilation(f"{loss_type}-{level}", _forward_kernel, arguments))
    top_bonus = {"entropy_coef": 0.1, "top_entropy_quantile": 0.5}
    for dtype in dtypes:
        forward = _example("dapo", "token", top_bonus, dtype, of_token=False)
        for name, wanted in (("logp", (dtype, None)), ("entropy", (None, dtype))):
            arguments = _backward_arguments(torch.zeros(()), forward, *wanted)
            found.append(_compilation(f"backward-{name}-{dtype}", _backward_kernel, arguments))
    return found


def _example(
    loss_type: str, level: str, options: dict[str, Any], dtype: torch.dtype, of_token: bool
) -> dict[str, Any]:
    """The forward's arguments for a small call with all tensors; in parts where that may be."""
    x_N = torch.zeros(2 * BLOCK, dtype=dtype)
    given = dict.fromkeys(("logp_N", "old_logp_N", "ref_logp_N", "sampling_logp_N"), x_N)
    given |= {"entropy_N": x_N} if "entropy_coef" in options else {}
    given |= {"advantage_N": x_N, "advantage_B": None} if of_token else {"advantage_B": x_N[:1]}
    given |= {"length_B": torch.tensor([2 * BLOCK]), "num_items_in_batch": torch.tensor(9)}
    given |= {"loss_type": loss_type, "importance_sampling_level": level, "max_completion_length": 8}
    parameters = inspect.signature(grpo_loss).parameters.items()
    call = SimpleNamespace(**{name: x.default for name, x in parameters} | given | options)
    plan = _plan(call)
    return _shared_out(_forward_arguments(call, plan, with_grad=True), plan, call.length_B)


def _compilation(name: str, fn: Any, arguments: dict[str, Any]) -> Compilation:
    """A launch as a compilation: types instead of tensors and numbers, in the order of the parameters."""
    signature, constexprs = {}, {}
    for key in fn.arg_names:
        value = arguments[key]
        if value is None or key.isupper():
            signature[key], constexprs[key] = "constexpr", value
        elif isinstance(value, Tensor):
            signature[key] = TYPE_NAMES[value.dtype]
        else:
            signature[key] = "fp32" if isinstance(value, float) else "i64" if key == "tokens" else "i32"
    found = LimitedCompilation(name, fn, signature, constexprs, NUM_WARPS, NUM_STAGES)
    found.maxnreg = arguments.get("maxnreg")
    return found
