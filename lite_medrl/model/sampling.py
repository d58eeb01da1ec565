"""How one token is drawn: logits in, a token out, and its log-prob under the distribution that was sampled.

Names and meanings are transformers'; so is the order: repetition penalty, bans, temperature, top_k, top_p,
min_p. A token is found by inverting the distribution at a uniform number that each answer draws from a stream
of its own, so the layout of a batch does not change the samples.

Letters: R rows, V vocabulary, T tokens of an answer, L prompt tokens, P prompts, G answers to a prompt.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lite_medrl.types import RecipeError


@dataclass(frozen=True, slots=True)
class Sampling:
    """How answers are drawn; temperature 0 is greedy. An answer ends at the model's stop tokens and after any
    of the texts in `stop`, which it keeps.
    """

    max_new_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float | None = None
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()

    @property
    def truncates(self) -> bool:
        """Whether some tokens that are not banned cannot be drawn."""
        return self.top_k > 0 or self.top_p < 1.0 or bool(self.min_p)


class Drawn(NamedTuple):
    """One token a row int64 [R], and fp32 [R]: its log-prob as sampled, and in the model's own distribution.

    `logp_R` has neither bans, penalty nor truncation in it; it is at the sampling temperature (at 1 for
    temperature 0), as `score` computes it.
    """

    token_R: Tensor
    sampling_logp_R: Tensor
    logp_R: Tensor


def check(sampling: Sampling) -> None:
    """RecipeError naming the first option that has no meaning."""
    ranges = {
        "max_new_tokens": (sampling.max_new_tokens >= 1, "1 or more"),
        "temperature": (math.isfinite(sampling.temperature) and sampling.temperature >= 0, "0 or more"),
        "top_p": (0 < sampling.top_p <= 1, "above 0, at most 1"),
        "top_k": (sampling.top_k >= 0, "0 (off) or more"),
        "min_p": (0 <= (sampling.min_p or 0.0) <= 1, "between 0 and 1"),
        "repetition_penalty": (0 < sampling.repetition_penalty < math.inf, "above 0"),
    }
    for name, (fits, range_) in ranges.items():
        if not fits:
            raise RecipeError(f"{name}={getattr(sampling, name)!r}: must be {range_}")


def draw_tokens(
    logits_RV: Tensor,
    uniform_R: Tensor,
    sampling: Sampling,
    *,
    banned: Sequence[int] | Tensor = (),
    greedy_R: Tensor | None = None,
    seen_RV: Tensor | None = None,
) -> Drawn:
    """One token for each row of the model's logits (fp32).

    Args:
        banned: ids that are never drawn.
        greedy_R: rows that take the likeliest token whatever the temperature.
        seen_RV: what stands in each row already, for the repetition penalty.
    """
    scaled_RV = logits_RV / (sampling.temperature or 1.0)
    allowed_RV = scaled_RV if seen_RV is None else penalise(logits_RV, seen_RV, sampling.repetition_penalty)
    if seen_RV is not None:
        allowed_RV = allowed_RV / (sampling.temperature or 1.0)
    if len(banned):
        index_B = torch.as_tensor(banned, device=logits_RV.device)
        allowed_RV = allowed_RV.index_fill(1, index_B, -torch.inf)
    token_R, sampling_logp_R = draw(allowed_RV, uniform_R, sampling, greedy_R)
    own_R = scaled_RV.gather(1, token_R[:, None]).squeeze(1) - scaled_RV.logsumexp(-1)
    return Drawn(token_R, sampling_logp_R, own_R)


def draw(
    scaled_RV: Tensor, uniform_R: Tensor, sampling: Sampling, greedy_R: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One token per row by inverting the truncated distribution at `uniform_R` in [0, 1), and its log-prob
    there (fp32).

    Args:
        scaled_RV: logits, divided by the temperature already.
        greedy_R: rows that take the likeliest token; at temperature 0 all do.
    """
    if sampling.temperature == 0:
        token_R = scaled_RV.argmax(-1)
        return token_R, scaled_RV.log_softmax(-1).gather(1, token_R[:, None]).squeeze(1)
    logp_RV = scaled_RV.log_softmax(-1)
    if sampling.truncates:
        logp_RV = truncate(logp_RV, sampling).log_softmax(-1)
    cumulative_RV = logp_RV.double().exp().cumsum(-1)
    target_R1 = uniform_R[:, None] * cumulative_RV[:, -1:]
    token_R = (
        torch.searchsorted(cumulative_RV, target_R1, right=True).squeeze(1).clamp(max=scaled_RV.shape[1] - 1)
    )
    if greedy_R is not None:
        token_R = torch.where(greedy_R, scaled_RV.argmax(-1), token_R)
    return token_R, logp_RV.gather(1, token_R[:, None]).squeeze(1)


def truncate(logp_RV: Tensor, sampling: Sampling) -> Tensor:
    """Sets what top_k, top_p and min_p cut off to -inf, in transformers' order."""
    if sampling.top_k > 0:
        kth_R1 = logp_RV.topk(min(sampling.top_k, logp_RV.shape[1])).values[:, -1:]
        logp_RV = logp_RV.masked_fill(logp_RV < kth_R1, -torch.inf)
    if sampling.top_p < 1.0:
        sorted_RV, order_RV = logp_RV.log_softmax(-1).sort(-1, descending=True)
        before_RV = sorted_RV.exp().cumsum(-1) - sorted_RV.exp()
        cut_RV = torch.zeros_like(logp_RV, dtype=torch.bool).scatter(1, order_RV, before_RV >= sampling.top_p)
        logp_RV = logp_RV.masked_fill(cut_RV, -torch.inf)
    if sampling.min_p:
        floor_R1 = logp_RV.max(-1, keepdim=True).values + math.log(sampling.min_p)
        logp_RV = logp_RV.masked_fill(logp_RV < floor_R1, -torch.inf)
    return logp_RV


def penalise(logits_RV: Tensor, seen_RV: Tensor, penalty: float) -> Tensor:
    """Logits with those of tokens seen before made smaller (larger, for a penalty below 1), as in CTRL
    (Keskar et al. 2019, section 4.1).
    """
    less_RV = torch.where(logits_RV < 0, logits_RV * penalty, logits_RV / penalty)
    return torch.where(seen_RV, less_RV, logits_RV)


def seen_tokens(ids_PL: Tensor, mask_PL: Tensor, vocabulary: int) -> Tensor:
    """Which tokens stand in each prompt, bool [P, V]."""
    seen_PV = torch.zeros(len(ids_PL), vocabulary, dtype=torch.int8, device=ids_PL.device)
    # "amax" keeps a token that stands in the row and in its padding.
    return seen_PV.scatter_reduce(1, ids_PL, mask_PL.to(torch.int8), "amax").bool()


def uniforms(seed: int, step: int, keys_P: Iterable[int], answers: Iterable[int], length: int) -> Tensor:
    """Uniform numbers float64 [P * G, T]; each answer has the stream of its (seed, step, key, number)."""
    numbers = list(answers)
    rows = [np.random.default_rng([seed, step, key, g]).random(length) for key in keys_P for g in numbers]
    return torch.from_numpy(np.stack(rows))
