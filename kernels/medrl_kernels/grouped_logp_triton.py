"""`grouped_logp` in tiles: the logits of a tile are made by cuBLAS, folded by Triton and forgotten.

    l     = softcap * tanh((h W^T + b) * logit_scale / softcap) / temperature     (tanh only with a softcap)
    logp  = (l_target - l_pivot) - softplus(x),   x = logsumexp of all l but the pivot's, minus l_pivot
    H     = p_pivot softplus(x) + sum_j!=pivot p_j (lse - l_j)
    d logp / dh = kappa (f_t W_t - p_pivot f_pivot W_pivot - E),   E = sum_j!=pivot p_j f_j W_j
    f = 1 - tanh^2,  kappa = logit_scale / temperature

The pivot of a state is its likeliest target. It stays out of every sum, so a probability near 1 (the usual
case) loses no digits: 1 - p_pivot = sigmoid(x) exactly. With a frozen head, E is accumulated while the tile
is there, and the backward is a gather: 2 matrix products in all, 1 without gradient. An entropy whose
gradient is asked for makes the tiles again in the backward, 4 products in all; so does a head that wants its
own gradient: 4, as E then waits for the backward. One file, longer than the others: the kernels, their
launchers and the gradient are read together.

Read: h (S, D), W (V, D) once a chunk of rows. Saved: E (U, D) fp32 and some numbers a state. Beyond that a
chunk of states and a tile of products. Each chunk has `rows` rows, the last one filled up with zeros, and a
row's sums run over the same tiles in the same order: every product has the same shape whatever a call
holds, so a row's results are the same bits in a call of any size, as far as the library's product treats all
rows of a matrix alike.

`filter_eps`: with b <= lse (what the sums and the peak make so far) p_j = e^(l_j - lse) <= e^(l_j - b). A
block of c columns is left out of E only where every e^(l_j - b) < eps and their sum is at most
16 eps c / V. Blocks are disjoint: what a row loses is at most 16 eps in all, and since f <= 1 its dh / kappa
misses at most 16 eps max |W_j| times its summed incoming gradient. (Up to fp32 rounding; 16 is FILTER_MASS.)
Sources: the running logsumexp is Milakov & Gimelshein 2018 (arXiv 1805.02867); skipping blocks that cannot
matter is Wijmans et al. 2024 (arXiv 2411.09009), which has no bound on their sum and decides in the backward.

Letters: S states, U states in use, K targets that are not ignored (sorted by state), R rows of a chunk, C
columns of a tile, V vocabulary, D hidden size.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from medrl_kernels.configs import FILTER_MASS, Compilation, LogpConfig, logp_config
from medrl_kernels.dispatch import IGNORE_INDEX, capability_of
from medrl_kernels.reference import GroupedLogp

LOWEST = -3.0e38
SLACK = tl.constexpr(8.0)  # a tile may rise this far over the row's reference before the row is rescaled
PIVOT_D = {
    2: 512,
    4: 1024,
    0: 256,
}  # dimensions at a time, of so many bytes (0: states and head differ): no spills
NUM_STAGES = 2  # of every kernel but the filtered product: none of the others has a loop of matrix products
HALF_SCALE = 16.0  # on fp16 weights: e^SLACK times it is below 65504, and small ones stay normal numbers


# --- kernels
@triton.jit
def _logit(z, scale, cap, inv_temperature, SOFTCAP: tl.constexpr):
    """The logit of a product with the head, and f, its derivative but for kappa."""
    z = z * scale
    f = tl.zeros_like(z) + 1.0
    if SOFTCAP:
        a = tl.exp(-2.0 * tl.abs(z / cap))  # tanh |x| = (1 - a) / (1 + a)
        t = (1.0 - a) / (1.0 + a)
        f = 4.0 * a / ((1.0 + a) * (1.0 + a))
        z = tl.where(z < 0, -t, t) * cap
    return z * inv_temperature, f


@triton.jit
def _softplus(x):
    """log(1 + e^x) without overflow. log(u) e / (u - 1) with u = 1 + e rounded is log1p(e) to all digits."""
    e = tl.exp(-tl.abs(x))
    u = 1.0 + e
    exact = u - 1.0
    return tl.maximum(x, 0.0) + tl.where(
        exact == 0.0, e, tl.log(u) * (e / tl.where(exact == 0.0, 1.0, exact))
    )


@triton.jit
def _pivot_kernel(
    hidden_ptr, weight_ptr, bias_ptr, state_ptr, start_ptr, target_ptr, logit_ptr, f_ptr, pivot_ptr, peak_ptr,
    stride_h, stride_w, width, scale, cap, inv_temperature,
    HAS_BIAS: tl.constexpr, SOFTCAP: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Logit and f of every target of one state, and which of them is the pivot."""
    u = tl.program_id(0).to(tl.int64)
    row = hidden_ptr + tl.load(state_ptr + u) * stride_h
    begin, end = tl.load(start_ptr + u), tl.load(start_ptr + u + 1)
    cols = tl.arange(0, BLOCK_D)
    pivot = tl.load(target_ptr + begin)
    peak = tl.full((), float("-inf"), tl.float32)
    for k in range(begin, end):
        target = tl.load(target_ptr + k)
        total = tl.zeros((BLOCK_D,), tl.float32)
        for d in range(0, width, BLOCK_D):
            inside = d + cols < width
            h = tl.load(row + d + cols, mask=inside, other=0.0).to(tl.float32)
            w = tl.load(weight_ptr + target * stride_w + d + cols, mask=inside, other=0.0).to(tl.float32)
            total += h * w
        z = tl.sum(total, axis=0)
        if HAS_BIAS:
            z += tl.load(bias_ptr + target).to(tl.float32)
        logit, f = _logit(z, scale, cap, inv_temperature, SOFTCAP)
        tl.store(logit_ptr + k, logit)
        tl.store(f_ptr + k, f)
        better = (logit > peak) | (logit != logit)
        peak = tl.where(better, logit, peak)
        pivot = tl.where(better, target, pivot)
    tl.store(pivot_ptr + u, pivot)
    tl.store(peak_ptr + u, peak)


@triton.jit
def _fold_kernel(
    z_ptr, part_ptr, bias_ptr, pivot_ptr, peak_ptr, top_ptr, sum_ptr, moment_ptr, mean_ptr, live_ptr,
    stride_z, stride_part, first_row, first_col, vocabulary, width, scale, cap, inv_temperature, part_scale,
    log_eps, block_share, live_stride,
    HAS_BIAS: tl.constexpr, SOFTCAP: tl.constexpr, ENTROPY: tl.constexpr, PARTS: tl.constexpr,
    FILTER: tl.constexpr, FILTER_ROWS: tl.constexpr, FILTER_COLS: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Takes one row of a tile of products into the row's sums; writes its weights e^(l - top) f over it.

    The row's reference `top` moves only when a tile rises by more than SLACK over it, so E is rescaled a few
    times at most. With FILTER, a block of columns is marked live when one of its probabilities may reach eps,
    or their sum `block_share` a column, by a lower bound of lse.
    """
    r = tl.program_id(0).to(tl.int64)
    u = first_row + r
    cols = tl.arange(0, BLOCK_C)
    token = first_col + cols
    inside = token < vocabulary
    z = tl.load(z_ptr + r * stride_z + cols, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        z += tl.load(bias_ptr + token, mask=inside, other=0.0).to(tl.float32)
    logit, f = _logit(z, scale, cap, inv_temperature, SOFTCAP)
    logit = tl.where(inside & (token != tl.load(pivot_ptr + u)), logit, float("-inf"))
    top, total = tl.load(top_ptr + u), tl.load(sum_ptr + u)
    highest = tl.max(logit, axis=0)
    new_top = tl.where(highest <= top + SLACK, top, highest)
    shrink = tl.exp(top - new_top)
    part = tl.exp(logit - new_top)
    if ENTROPY:
        moment = shrink * (tl.load(moment_ptr + u) + total * (top - new_top))
        moment += tl.sum(tl.where(part > 0, part * (logit - new_top), 0.0), axis=0)
        tl.store(moment_ptr + u, moment)
    before = total
    total = total * shrink + tl.sum(part, axis=0)
    tl.store(top_ptr + u, new_top)
    tl.store(sum_ptr + u, total)
    if PARTS:
        tl.debug_barrier()  # the weights overwrite the products: nobody may still be reading
        if FILTER:
            BLOCKS: tl.constexpr = BLOCK_C // FILTER_COLS
            bound = new_top + tl.log(total)
            peak = tl.load(peak_ptr + u)
            bound = tl.maximum(bound, peak) + tl.log(1.0 + tl.exp(-tl.abs(bound - peak)))
            bound = tl.where(bound == bound, bound, float("-inf"))
            highest_b = tl.max(tl.reshape(logit, (BLOCKS, FILTER_COLS)), axis=1)
            sum_b = tl.sum(tl.reshape(part, (BLOCKS, FILTER_COLS)), axis=1) * tl.exp(new_top - bound)
            left_b = vocabulary - first_col - FILTER_COLS * tl.arange(0, BLOCKS)
            may_lose_b = block_share * tl.minimum(tl.maximum(left_b, 0), FILTER_COLS).to(tl.float32)
            dead = (highest_b < bound + log_eps) & (sum_b <= may_lose_b)  # neither, where one is not a number
            mark = live_ptr + (r // FILTER_ROWS) * live_stride + tl.arange(0, BLOCKS)
            tl.store(mark, tl.full((BLOCKS,), 1, tl.int8), mask=~dead)
        part = part * f * part_scale
        to = part_ptr + r * stride_part + cols
        tl.store(to, part.to(part_ptr.dtype.element_ty))
        if (shrink != 1.0) & (before > 0):
            dims = tl.arange(0, BLOCK_D)
            for d in range(0, width, BLOCK_D):
                here = mean_ptr + u * width + d + dims
                mean = tl.load(here, mask=d + dims < width, other=0.0)
                tl.store(here, mean * shrink, mask=d + dims < width)


@triton.jit
def _live_blocks_kernel(
    part_ptr, weight_ptr, mean_ptr, live_ptr, stride_part, stride_w, rows, first_row, columns, width,
    live_stride,
    FILTER_ROWS: tl.constexpr, FILTER_COLS: tl.constexpr, BLOCK_D: tl.constexpr, FULL_PRECISION: tl.constexpr,
):  # fmt: skip
    """E += weights @ W over the live blocks of FILTER_ROWS rows, for BLOCK_D of the hidden dimensions."""
    band = tl.program_id(0).to(tl.int64)
    r = band * FILTER_ROWS + tl.arange(0, FILTER_ROWS)
    d = tl.program_id(1).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    total = tl.zeros((FILTER_ROWS, BLOCK_D), tl.float32)
    found = 0
    for block in range(0, tl.cdiv(columns, FILTER_COLS)):
        if tl.load(live_ptr + band * live_stride + block) != 0:
            found += 1
            c = (block * FILTER_COLS + tl.arange(0, FILTER_COLS)).to(tl.int64)
            part = tl.load(
                part_ptr + r[:, None] * stride_part + c[None, :],
                mask=(r[:, None] < rows) & (c[None, :] < columns), other=0.0,
            )  # fmt: skip
            weight = tl.load(
                weight_ptr + c[:, None] * stride_w + d[None, :],
                mask=(c[:, None] < columns) & (d[None, :] < width), other=0.0,
            )  # fmt: skip
            if FULL_PRECISION:
                total = tl.dot(part, weight, total, input_precision="ieee")
            else:
                total = tl.dot(part, weight, total)
    if found > 0:
        to = mean_ptr + (first_row + r)[:, None] * width + d[None, :]
        inside = (r[:, None] < rows) & (d[None, :] < width)
        tl.store(to, tl.load(to, mask=inside, other=0.0) + total, mask=inside)


@triton.jit
def _finish_kernel(
    start_ptr, order_ptr, logit_ptr, peak_ptr, top_ptr, sum_ptr, moment_ptr, logp_ptr, entropy_ptr, over_ptr,
    lse_ptr, spread_ptr, factor_ptr, part_scale,
    ENTROPY: tl.constexpr,
):  # fmt: skip
    """logp (and entropy) of the targets of one state, its lse and lse - peak, and what E is multiplied by."""
    u = tl.program_id(0).to(tl.int64)
    peak, top, total = tl.load(peak_ptr + u), tl.load(top_ptr + u), tl.load(sum_ptr + u)
    others = top + tl.log(total)
    forbidden = peak == float("-inf")
    over = _softplus(tl.where(total == 0, float("-inf"), others - peak))
    over = tl.where(total == 0, (peak - peak), over)
    lse = tl.where(forbidden, others, peak + over)
    factor = tl.exp(top - lse)
    tl.store(over_ptr + u, over)
    tl.store(lse_ptr + u, lse)
    tl.store(factor_ptr + u, factor / part_scale)
    entropy = lse * 0.0
    if ENTROPY:
        own = tl.exp(-over)
        own = tl.where(forbidden | (own == 0.0), 0.0, own * over)
        entropy = own + factor * ((lse - top) * total - tl.load(moment_ptr + u))
        tl.store(spread_ptr + u, entropy)
    for k in range(tl.load(start_ptr + u), tl.load(start_ptr + u + 1)):
        n = tl.load(order_ptr + k)
        logit = tl.load(logit_ptr + k)
        logp = tl.where(forbidden, logit - lse, (logit - peak) - over)
        tl.store(logp_ptr + n, logp)
        if ENTROPY:
            tl.store(entropy_ptr + n, entropy)


@triton.jit
def _coefficient_kernel(
    start_ptr, order_ptr, target_ptr, pivot_ptr, f_ptr, over_ptr, spread_ptr,
    up_ptr, up_entropy_ptr, coefficient_ptr, mass_ptr, entropy_mass_ptr, stride_up, stride_up_entropy, kappa,
    HAS_UP: tl.constexpr, ENTROPY: tl.constexpr,
):  # fmt: skip
    """How much of each target's row of W goes into dh of one state, and its summed incoming gradients.

    The pivot's share is g (1 - p) - (G - g) p: 1 - p is taken from log p and keeps its digits at p near 1.
    """
    u = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(start_ptr + u), tl.load(start_ptr + u + 1)
    pivot = tl.load(pivot_ptr + u)
    mass = tl.zeros((), tl.float32)
    pivot_mass = tl.zeros((), tl.float32)
    entropy_mass = tl.zeros((), tl.float32)
    at = begin - 1
    for k in range(begin, end):
        n = tl.load(order_ptr + k)
        g = tl.load(up_ptr + n * stride_up).to(tl.float32) if HAS_UP else 0.0
        is_pivot = tl.load(target_ptr + k) == pivot
        mass += g
        pivot_mass += tl.where(is_pivot, g, 0.0)
        at = tl.where(is_pivot, k, at)
        if ENTROPY:
            entropy_mass += tl.load(up_entropy_ptr + n * stride_up_entropy).to(tl.float32)
        tl.store(coefficient_ptr + k, tl.where(is_pivot, 0.0, g * kappa * tl.load(f_ptr + k)))
    logp = -tl.load(over_ptr + u)
    p = tl.exp(logp)
    # 1 - e^x by its series near 0, where the plain difference would have no digits left.
    rest = tl.where(logp > -0.01, -logp * (1.0 + logp * (0.5 + logp * (1.0 / 6.0 + logp / 24.0))), 1.0 - p)
    share = pivot_mass * rest - (mass - pivot_mass) * p
    if ENTROPY:
        share -= tl.where(p == 0.0, 0.0, entropy_mass * p * (logp + tl.load(spread_ptr + u)))
    tl.store(coefficient_ptr + at, share * kappa * tl.load(f_ptr + at))
    tl.store(mass_ptr + u, mass)
    tl.store(entropy_mass_ptr + u, entropy_mass)


@triton.jit
def _gather_kernel(
    grad_ptr, weight_ptr, mean_ptr, state_ptr, start_ptr, target_ptr, coefficient_ptr, mass_ptr, factor_ptr,
    stride_grad, stride_w, width, kappa,
    RECOMPUTED: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """dh of one state: its targets' rows of W, less the mean row E (or plus what the tiles gave)."""
    u = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = d < width
    total = tl.load(mean_ptr + u * width + d, mask=inside, other=0.0)
    if RECOMPUTED:
        total = total * tl.load(factor_ptr)
    else:
        total = total * (-kappa * tl.load(mass_ptr + u) * tl.load(factor_ptr + u))
    for k in range(tl.load(start_ptr + u), tl.load(start_ptr + u + 1)):
        row = weight_ptr + tl.load(target_ptr + k) * stride_w
        total += tl.load(coefficient_ptr + k) * tl.load(row + d, mask=inside, other=0.0).to(tl.float32)
    to = grad_ptr + tl.load(state_ptr + u) * stride_grad + d
    tl.store(to, total.to(grad_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _dlogit_kernel(
    z_ptr, part_ptr, bias_ptr, pivot_ptr, lse_ptr, spread_ptr, mass_ptr, entropy_mass_ptr, magnify_ptr,
    stride_z, stride_part, first_row, first_col, vocabulary, scale, cap, inv_temperature, kappa,
    HAS_BIAS: tl.constexpr, SOFTCAP: tl.constexpr, ENTROPY: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """d loss / d product of one row of a tile, but for the pivot and the targets; over the products."""
    r = tl.program_id(0).to(tl.int64)
    u = first_row + r
    cols = tl.arange(0, BLOCK_C)
    token = first_col + cols
    inside = token < vocabulary
    z = tl.load(z_ptr + r * stride_z + cols, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        z += tl.load(bias_ptr + token, mask=inside, other=0.0).to(tl.float32)
    logit, f = _logit(z, scale, cap, inv_temperature, SOFTCAP)
    logp = tl.where(inside & (token != tl.load(pivot_ptr + u)), logit - tl.load(lse_ptr + u), float("-inf"))
    p = tl.exp(logp)
    grad = -p * tl.load(mass_ptr + u)
    if ENTROPY:
        spread = logp + tl.load(spread_ptr + u)
        grad -= tl.where(p == 0.0, 0.0, p * spread * tl.load(entropy_mass_ptr + u))
    grad = grad * f * (kappa * tl.load(magnify_ptr))
    tl.debug_barrier()  # the gradients overwrite the products: nobody may still be reading
    tl.store(part_ptr + r * stride_part + cols, grad.to(part_ptr.dtype.element_ty))


# --- launchers
class Shape(NamedTuple):
    """How a product becomes a logit."""

    scale: float
    cap: float
    inv_temperature: float
    softcapped: bool

    @property
    def kappa(self) -> float:
        """d logit / d product, but for f."""
        return self.scale * self.inv_temperature


class Targets(NamedTuple):
    """Targets that are not ignored, sorted by state: state u owns entries start_U1[u] to start_U1[u + 1]."""

    state_U: Tensor
    start_U1: Tensor
    order_K: Tensor
    target_K: Tensor


class Rows(NamedTuple):
    """What the forward knows of each state in use, fp32 (U,) but for pivot_U, and (K,) of its targets."""

    pivot_U: Tensor
    peak_U: Tensor
    top_U: Tensor
    sum_U: Tensor
    moment_U: Tensor
    logit_K: Tensor
    f_K: Tensor


class Known(NamedTuple):
    """What the backward knows of each state in use, (U,): spread is the entropy, the masses are the summed
    incoming gradients of its targets' logp and entropy."""

    pivot_U: Tensor
    lse_U: Tensor
    spread_U: Tensor
    mass_U: Tensor
    entropy_mass_U: Tensor


def sort_targets(target_N: Tensor, source_N: Tensor | None) -> Targets:
    """The targets to compute, by state."""
    order_K = (target_N != IGNORE_INDEX).nonzero().squeeze(1)
    if source_N is None:
        state_U, start_U1 = order_K, torch.arange(len(order_K) + 1, device=order_K.device)
    else:
        source_K, by_state = source_N[order_K].long().sort(stable=True)
        order_K = order_K[by_state]
        state_U, count_U = torch.unique_consecutive(source_K, return_counts=True)
        start_U1 = torch.cat([count_U.new_zeros(1), count_U.cumsum(0)])
    return Targets(state_U, start_U1, order_K, target_N[order_K].long())


def product(a_RD: Tensor, b_CD: Tensor, out_RC: Tensor) -> None:
    """out = a b^T in fp32, from operands of any one dtype."""
    if a_RD.dtype == torch.float32 or not a_RD.is_cuda:
        torch.mm(a_RD.float(), b_CD.float().t(), out=out_RC)
    else:
        torch.mm(a_RD, b_CD.t(), out_dtype=torch.float32, out=out_RC)


def accumulate(sum_RD: Tensor, a_RC: Tensor, b_CD: Tensor) -> None:
    """sum += a b in fp32, from operands of any one dtype."""
    if a_RC.dtype == torch.float32 or not a_RC.is_cuda:
        sum_RD.addmm_(a_RC.float(), b_CD.float())
    else:
        torch.addmm(sum_RD, a_RC, b_CD, out_dtype=torch.float32, out=sum_RD)


class Tiles:
    """The walk over chunks of rows and tiles of columns, with the one buffer that all of them share."""

    def __init__(self, hidden_SD: Tensor, state_U: Tensor, weight_VD: Tensor, config: LogpConfig) -> None:
        self.hidden_SD, self.state_U, self.weight_VD, self.config = hidden_SD, state_U, weight_VD, config
        self.dtype = torch.promote_types(hidden_SD.dtype, weight_VD.dtype)
        self.rows, self.width = config.rows, hidden_SD.shape[1]
        self.chunk_RD = hidden_SD.new_empty((self.rows, self.width), dtype=self.dtype)
        self.buffer_RC = hidden_SD.new_empty((self.rows, config.block_c), dtype=torch.float32)

    def zeros(self) -> Tensor:
        """fp32 zeros (U, D), with as many rows more as fill the last chunk."""
        rows = triton.cdiv(len(self.state_U), self.rows) * self.rows
        return self.hidden_SD.new_zeros((rows, self.width), dtype=torch.float32)

    def fill_chunk(self, first_row: int) -> int:
        """Brings the next states into the chunk, zeros behind them; returns how many there are."""
        state_R = self.state_U[first_row : first_row + self.rows]
        full = len(self.state_U) == len(self.hidden_SD)
        hidden_RD = self.hidden_SD[first_row : first_row + self.rows] if full else self.hidden_SD[state_R]
        self.chunk_RD[: len(state_R)] = hidden_RD
        self.chunk_RD[len(state_R) :] = 0
        return len(state_R)

    def __iter__(self) -> Any:
        """Yields (first_row, rows, first_col, weight_CD, z_RC, part_RC): the products of the chunk, in the
        first `rows` rows of which there are states, and where the weights of the same tile go (the same
        memory in the operands' dtype)."""
        z_RC = self.buffer_RC
        part_RC = z_RC.view(self.dtype)[:, : self.config.block_c]
        for first_row in range(0, len(self.state_U), self.rows):
            rows = self.fill_chunk(first_row)
            for first_col in range(0, len(self.weight_VD), self.config.block_c):
                weight_CD = self.weight_VD[first_col : first_col + self.config.block_c].to(self.dtype)
                product(self.chunk_RD, weight_CD, z_RC[:, : len(weight_CD)])
                yield first_row, rows, first_col, weight_CD, z_RC, part_RC


def find_pivots(
    hidden_SD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets: Targets, shape: Shape
) -> Rows:
    """Logits of the targets, the pivot of each state, and sums that start with it alone."""
    states, kept = len(targets.state_U), len(targets.target_K)
    new = hidden_SD.new_empty
    pivot_U = torch.empty_like(targets.state_U)
    peak_U, logit_K, f_K = (new(n, dtype=torch.float32) for n in (states, kept, kept))
    _pivot_kernel[(states,)](
        hidden_SD, weight_VD, weight_VD if bias_V is None else bias_V,
        targets.state_U, targets.start_U1, targets.target_K, logit_K, f_K, pivot_U, peak_U,
        hidden_SD.stride(0), weight_VD.stride(0), hidden_SD.shape[1], *shape[:3],
        HAS_BIAS=bias_V is not None, SOFTCAP=shape.softcapped,
        BLOCK_D=PIVOT_D[hidden_SD.element_size() if hidden_SD.dtype == weight_VD.dtype else 0], num_warps=8,
        num_stages=NUM_STAGES,
    )  # fmt: skip
    top_U = torch.full_like(peak_U, LOWEST)
    return Rows(pivot_U, peak_U, top_U, torch.zeros_like(peak_U), torch.zeros_like(peak_U), logit_K, f_K)


def fold(
    tiles: Tiles,
    rows: Rows,
    bias_V: Tensor | None,
    shape: Shape,
    mean_UD: Tensor | None,
    *,
    with_entropy: bool,
    filter_eps: float,
) -> float:
    """Takes every tile into the sums of `rows` and, with `mean_UD` (fp32, zeros), into E; returns the scale
    that E's weights carry."""  # fmt: skip
    config, width, vocabulary = tiles.config, tiles.width, len(tiles.weight_VD)
    part_scale = HALF_SCALE if tiles.dtype == torch.float16 else 1.0
    filtered = mean_UD is not None and filter_eps > 0 and config.filter_rows > 0
    bands = triton.cdiv(tiles.rows, max(1, config.filter_rows))
    block_d = filter_d(config, tiles.dtype == torch.float32)
    blocks = config.block_c // config.filter_cols
    live = torch.zeros((bands, blocks), dtype=torch.int8, device=tiles.hidden_SD.device) if filtered else None
    for first_row, count, first_col, weight_CD, z_RC, part_RC in tiles:
        if live is not None:
            live.zero_()
        _fold_kernel[(count,)](
            z_RC, part_RC, z_RC if bias_V is None else bias_V, rows.pivot_U, rows.peak_U, rows.top_U,
            rows.sum_U, rows.moment_U, rows.sum_U if mean_UD is None else mean_UD,
            rows.sum_U if live is None else live, z_RC.stride(0), part_RC.stride(0), first_row, first_col,
            vocabulary, width, *shape[:3], part_scale,
            math.log(filter_eps) if filter_eps > 0 else 0.0, FILTER_MASS * filter_eps / vocabulary, blocks,
            HAS_BIAS=bias_V is not None, SOFTCAP=shape.softcapped, ENTROPY=with_entropy,
            PARTS=mean_UD is not None, FILTER=filtered, FILTER_ROWS=config.filter_rows,
            FILTER_COLS=config.filter_cols, BLOCK_C=config.block_c, BLOCK_D=1024,
            num_warps=config.fold_warps, num_stages=NUM_STAGES,
        )  # fmt: skip
        if mean_UD is None:
            continue
        if live is None:
            mean_RD = mean_UD[first_row : first_row + tiles.rows]
            accumulate(mean_RD, part_RC[:, : len(weight_CD)], weight_CD)
            continue
        grid = (triton.cdiv(count, config.filter_rows), triton.cdiv(width, block_d))
        _live_blocks_kernel[grid](
            part_RC, weight_CD, mean_UD, live, part_RC.stride(0), weight_CD.stride(0), count,
            first_row, len(weight_CD), width, blocks, FILTER_ROWS=config.filter_rows,
            FILTER_COLS=config.filter_cols, BLOCK_D=block_d,
            FULL_PRECISION=tiles.dtype == torch.float32, num_warps=config.filter_warps,
            num_stages=config.filter_stages,
        )  # fmt: skip
    return part_scale


def filter_d(config: LogpConfig, full_precision: bool) -> int:
    """Hidden dimensions that a program of the filtered product sums: fp32 takes more room."""
    return max(16, config.filter_d // 4) if full_precision else config.filter_d


def remake(
    tiles: Tiles,
    known: Known,
    bias_V: Tensor | None,
    shape: Shape,
    grad_UD: Tensor,
    grad_weight_VD: Tensor | None,
    grad_bias_V: Tensor | None,
    *,
    with_entropy: bool,
) -> Tensor:
    """The backward of a head with gradient, or of an entropy: every tile again. Adds dh without the targets'
    own rows to grad_UD (fp32), and to dW and db; returns the factor that undoes dh's magnification."""
    largest = torch.maximum(known.mass_U.abs().max(), known.entropy_mass_U.abs().max())
    # fp16 gradients are brought near 1 by a power of two; the other dtypes have the range.
    half = tiles.dtype == torch.float16
    exponent = torch.where((largest > 0) & largest.isfinite(), largest, 1.0).log2().ceil().clamp(-100, 100)
    magnify = torch.exp2(6 - exponent) if half else torch.ones_like(exponent)
    for first_row, count, first_col, weight_CD, z_RC, part_RC in tiles:
        _dlogit_kernel[(count,)](
            z_RC, part_RC, z_RC if bias_V is None else bias_V, *known, magnify, z_RC.stride(0),
            part_RC.stride(0), first_row, first_col, len(tiles.weight_VD), *shape[:3], shape.kappa,
            HAS_BIAS=bias_V is not None, SOFTCAP=shape.softcapped, ENTROPY=with_entropy,
            BLOCK_C=tiles.config.block_c, num_warps=tiles.config.fold_warps, num_stages=NUM_STAGES,
        )  # fmt: skip
        part = part_RC[:, : len(weight_CD)]
        accumulate(grad_UD[first_row : first_row + tiles.rows], part, weight_CD)
        columns = slice(first_col, first_col + len(weight_CD))
        if grad_weight_VD is not None:
            accumulate(grad_weight_VD[columns], part.t(), tiles.chunk_RD)
        if grad_bias_V is not None:
            grad_bias_V[columns] += part[:count].sum(0, dtype=torch.float32)
    for grad in (grad_weight_VD, grad_bias_V):
        if grad is not None:
            grad.div_(magnify)
    return 1 / magnify


def add_own_rows(
    grad_weight_VD: Tensor, coefficient_K: Tensor, hidden_SD: Tensor, targets: Targets, rows: int
) -> None:
    """Adds what each target's logit gives its own row of the head to dW, `rows` targets at a time."""
    count_U = targets.start_U1.diff()
    state_K = targets.state_U.repeat_interleave(count_U, output_size=len(targets.target_K))
    for k in range(0, len(state_K), rows):
        here = slice(k, k + rows)
        own_RD = hidden_SD[state_K[here]].float().mul_(coefficient_K[here, None])
        grad_weight_VD.index_add_(0, targets.target_K[here], own_RD)


# --- autograd
class _GroupedLogp(torch.autograd.Function):
    """logp_N and entropy_N (fp32); gradients for hidden, weight and bias."""

    @staticmethod
    def forward(
        ctx: Any, hidden_SD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, target_N: Tensor,
        source_N: Tensor | None, shape: Shape, with_entropy: bool, filter_eps: float, config: LogpConfig,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        targets = sort_targets(target_N, source_N)
        logp_N = torch.zeros(len(target_N), dtype=torch.float32, device=hidden_SD.device)
        entropy_N = torch.zeros_like(logp_N) if with_entropy else logp_N.new_empty(0)
        ctx.set_materialize_grads(False)
        ctx.shape, ctx.config, ctx.with_entropy, ctx.spent = shape, config, with_entropy, False
        if len(targets.target_K) == 0:
            ctx.save_for_backward(hidden_SD, weight_VD, bias_V)
            ctx.empty = True
            return logp_N, entropy_N
        ctx.empty = False
        rows = find_pivots(hidden_SD, weight_VD, bias_V, targets, shape)
        tiles = Tiles(hidden_SD, targets.state_U, weight_VD, config)
        # E is kept only where it is the whole answer: a head with gradient makes its tiles again anyway.
        keep = ctx.needs_input_grad[0] and not ctx.needs_input_grad[1] and not ctx.needs_input_grad[2]
        mean_UD = tiles.zeros() if keep else None
        part_scale = fold(
            tiles, rows, bias_V, shape, mean_UD, with_entropy=with_entropy, filter_eps=filter_eps
        )
        over_U, lse_U, spread_U, factor_U = (torch.empty_like(rows.peak_U) for _ in range(4))
        _finish_kernel[(len(lse_U),)](
            targets.start_U1, targets.order_K, rows.logit_K, rows.peak_U, rows.top_U, rows.sum_U,
            rows.moment_U, logp_N, entropy_N, over_U, lse_U, spread_U, factor_U, part_scale,
            ENTROPY=with_entropy, num_warps=1, num_stages=NUM_STAGES,
        )  # fmt: skip
        ctx.save_for_backward(
            hidden_SD, weight_VD, bias_V, *targets, rows.pivot_U, rows.f_K, over_U, lse_U, spread_U, factor_U,
            mean_UD,
        )  # fmt: skip
        return logp_N, entropy_N

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, up_N: Tensor | None, up_entropy_N: Tensor | None) -> tuple[Tensor | None, ...]:
        with torch.cuda.device_of(ctx.saved_tensors[0]):
            return (*gradients(ctx, up_N, up_entropy_N), *(None,) * 6)


def gradients(ctx: Any, up_N: Tensor | None, up_entropy_N: Tensor | None) -> tuple[Tensor | None, ...]:
    """dh, dW and db; None where nobody asks."""
    if ctx.empty or (up_N is None and up_entropy_N is None):
        grads = [
            torch.zeros_like(x) if need and x is not None else None
            for x, need in zip(ctx.saved_tensors[:3], ctx.needs_input_grad[:3], strict=True)
        ]
        return tuple(grads)
    hidden_SD, weight_VD, bias_V, *rest = ctx.saved_tensors
    targets, rest = Targets(*rest[:4]), rest[4:]
    pivot_U, f_K, over_U, lse_U, spread_U, factor_U, mean_UD = rest
    shape: Shape = ctx.shape
    entropy = ctx.with_entropy and up_entropy_N is not None
    coefficient_K = torch.empty_like(f_K)
    mass_U, entropy_mass_U = torch.empty_like(lse_U), torch.empty_like(lse_U)
    up_N = None if up_N is None else up_N.float()
    dummy = lse_U
    _coefficient_kernel[(len(lse_U),)](
        targets.start_U1, targets.order_K, targets.target_K, pivot_U, f_K, over_U, spread_U,
        dummy if up_N is None else up_N, up_entropy_N if entropy else dummy, coefficient_K, mass_U,
        entropy_mass_U, 0 if up_N is None else up_N.stride(0), up_entropy_N.stride(0) if entropy else 0,
        shape.kappa, HAS_UP=up_N is not None, ENTROPY=entropy, num_warps=1, num_stages=NUM_STAGES,
    )  # fmt: skip
    grad_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if ctx.needs_input_grad[1] else None
    grad_bias_V = torch.zeros_like(bias_V, dtype=torch.float32) if ctx.needs_input_grad[2] else None
    recompute = mean_UD is None or entropy or ctx.spent
    if recompute:
        known = Known(pivot_U, lse_U, spread_U, mass_U, entropy_mass_U)
        tiles = Tiles(hidden_SD, targets.state_U, weight_VD, ctx.config)
        # E's memory, if there is one, takes the gradient: a second (U, D) would double what is held. A
        # later backward through this node makes its tiles again.
        ctx.spent = mean_UD is not None
        mean_UD = tiles.zeros() if mean_UD is None else mean_UD.data.zero_()
        factor_U = remake(
            tiles, known, bias_V, shape, mean_UD, grad_weight_VD, grad_bias_V, with_entropy=entropy
        )
        del tiles
    grad_hidden = None
    if ctx.needs_input_grad[0]:
        full = len(targets.state_U) == len(hidden_SD)
        grad_hidden = torch.empty_like(hidden_SD) if full else torch.zeros_like(hidden_SD)
        width = hidden_SD.shape[1]
        _gather_kernel[(len(lse_U), triton.cdiv(width, 1024))](
            grad_hidden, weight_VD, mean_UD, targets.state_U, targets.start_U1, targets.target_K,
            coefficient_K, mass_U, factor_U, grad_hidden.stride(0), weight_VD.stride(0), width,
            shape.kappa, RECOMPUTED=recompute, BLOCK_D=1024, num_warps=4, num_stages=NUM_STAGES,
        )  # fmt: skip
    if grad_weight_VD is not None:
        add_own_rows(grad_weight_VD, coefficient_K, hidden_SD, targets, ctx.config.rows)
        grad_weight_VD = grad_weight_VD.to(weight_VD.dtype)
    if grad_bias_V is not None:
        grad_bias_V.index_add_(0, targets.target_K, coefficient_K)
        grad_bias_V = grad_bias_V.to(bias_V.dtype)
    return grad_hidden, grad_weight_VD, grad_bias_V


# --- public
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
) -> GroupedLogp:
    """`reference.grouped_logp` by tiles; arguments are checked by the caller (`medrl_kernels.grouped_logp`).

    fp32, fp16 and bf16 (bf16 from compute capability 8.0). With `filter_eps` the gradient leaves out blocks
    of the vocabulary in which every probability is below it, and of a row's probability at most FILTER_MASS
    times it in all: a row of dh / kappa misses at most FILTER_MASS filter_eps max |W_j| times its incoming
    gradient. logp and entropy stay exact, and so does the gradient of an entropy or of the head.
    """
    shape = Shape(logit_scale, softcap or 1.0, 1.0 / temperature, softcap is not None)
    config = logp_config(capability_of(hidden_SD))
    with torch.cuda.device_of(hidden_SD):
        logp_N, entropy_N = _GroupedLogp.apply(
            hidden_SD.contiguous() if hidden_SD.stride(1) != 1 else hidden_SD,
            weight_VD.contiguous() if weight_VD.stride(1) != 1 else weight_VD,
            bias_V, target_N, source_N, shape, with_entropy, filter_eps, config,
        )  # fmt: skip
    return GroupedLogp(logp_N, entropy_N if with_entropy else None)


# --- ahead of time
def compilations(arch: int) -> list[Compilation]:
    """Every kernel as it is launched on an architecture: each dtype and each option that changes the code."""
    config = logp_config(arch)
    dtypes = ["fp16", "fp32"] if arch < 80 else ["bf16", "fp16", "fp32"]
    found = [
        compilation(_finish_kernel, "finish", {"ENTROPY": True}, 1),
        compilation(_coefficient_kernel, "coefficient", {"HAS_UP": True, "ENTROPY": True}, 1),
    ]
    every, none = ({"HAS_BIAS": x, "SOFTCAP": x} for x in (True, False))
    blocks = {"FILTER_ROWS": config.filter_rows, "FILTER_COLS": config.filter_cols}
    fold = blocks | {"BLOCK_C": config.block_c, "BLOCK_D": 1024}
    for x in dtypes:
        for other in dtypes:  # of the head, where states come in another
            name = x if other == x else f"{x}-{other}"
            width = {"BLOCK_D": PIVOT_D[0 if other != x else 4 if x == "fp32" else 2]}
            found.append(compilation(_pivot_kernel, f"pivot-{name}", every | width, 8, x, head=other))
            for recomputed in (False, True):
                flags = {"RECOMPUTED": recomputed, "BLOCK_D": 1024}
                name_of = f"gather-{name}{'-remade' * recomputed}"
                found.append(compilation(_gather_kernel, name_of, flags, 4, x, head=other))
        for name, flags in FOLDS.items():
            if not flags["FILTER"] or config.filter_rows > 0:
                head = "fp32" if name == "bias-fp32" else x
                made = compilation(
                    _fold_kernel, f"fold-{x}-{name}", flags | fold, config.fold_warps, x, head=head
                )
                found.append(made)
        for entropy, logit in ((True, every), (True, none), (False, none)):
            flags = logit | {"ENTROPY": entropy, "BLOCK_C": config.block_c}
            name = f"dlogit-{x}{'-options' * logit['SOFTCAP']}{'-entropy' * entropy}"
            found.append(compilation(_dlogit_kernel, name, flags, config.fold_warps, x))
        if config.filter_rows > 0:
            flags = blocks | {"BLOCK_D": filter_d(config, x == "fp32"), "FULL_PRECISION": x == "fp32"}
            found.append(
                compilation(
                    _live_blocks_kernel, f"blocks-{x}", flags, config.filter_warps, x, config.filter_stages
                )
            )
    return found


def fold_flags(options: bool, entropy: bool, parts: bool, filtered: bool) -> dict[str, bool]:
    """The options of the fold kernel that change its code."""
    flags = {"HAS_BIAS": options, "SOFTCAP": options, "ENTROPY": entropy}
    return flags | {"PARTS": parts, "FILTER": filtered}


FOLDS = {
    "options": fold_flags(True, True, True, False),
    "filter-options": fold_flags(True, True, True, True),
    "plain": fold_flags(False, False, True, False),
    "filter": fold_flags(False, False, True, True),
    "entropy": fold_flags(False, True, True, False),
    "without-gradient": fold_flags(False, False, False, False),
    "without-gradient-options": fold_flags(True, True, False, False),
    "without-gradient-entropy": fold_flags(False, True, False, False),
    "bias-fp32": fold_flags(True, False, True, False),
}
IN_DTYPE = ("hidden_ptr", "part_ptr", "grad_ptr")  # in that of the states
IN_HEADS = ("weight_ptr", "bias_ptr")  # in that of the head, the same unless told
IN_INT64 = ("state_ptr", "start_ptr", "order_ptr", "target_ptr", "pivot_ptr")
IN_FP32 = ("scale", "cap", "inv_temperature", "part_scale", "log_eps", "block_share", "kappa")


def compilation(
    fn: Any, name: str, constexprs: dict[str, Any], num_warps: int, dtype: str = "fp32",
    num_stages: int = NUM_STAGES, head: str | None = None,
) -> Compilation:  # fmt: skip
    """A kernel with the type of each argument, read off its name."""

    def type_of(argument: str) -> str:
        if argument in constexprs:
            return "constexpr"
        if argument.endswith("_ptr"):
            wide = "i64" if argument in IN_INT64 else "i8" if argument == "live_ptr" else "fp32"
            narrow = dtype if argument in IN_DTYPE else head or dtype if argument in IN_HEADS else wide
            return f"*{narrow}"
        return "fp32" if argument in IN_FP32 else "i32"

    return Compilation(
        f"grouped_logp/{name}", fn, {a: type_of(a) for a in fn.arg_names}, constexprs, num_warps, num_stages
    )
