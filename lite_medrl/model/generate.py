"""Draws G answers for each prompt: one prefill per prompt, keys and values copied to its G rows, finished
rows dropped.

Every row owns its random numbers, drawn from (seed, step, prompt key, g), so batch layout does not change the
samples. Each token comes with the log-prob of the distribution that was really sampled. Image, pad and other
special tokens are banned. Models whose positions are not a plain count (M-RoPE) or whose cache is not plain
go through transformers' own generate; the choice is logged.

Letters: P prompts, G completions of a prompt, R rows = P x G, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from lite_medrl.model.encode import special_ids, stop_ids
from lite_medrl.types import Completion

log = logging.getLogger(__name__)

# Families whose position ids are 0, 1, 2, ... along the text and whose layers all keep a plain cache.
PLAIN_POSITIONS = {"llava", "llava_next", "smolvlm", "idefics3", "internvl"}


@dataclass(frozen=True, slots=True)
class Sampling:
    """How answers are drawn; temperature 0 is greedy. Names and meanings are transformers'."""

    max_new_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float | None = None


class RoomyLayer(DynamicLayer):
    """A cache layer that grows by a block of positions at a time; stock ones copy themselves every token."""

    room = 32
    keys: Any
    values: Any
    buffers: Any = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends [R, heads, n, width] states in place; returns views of all states so far."""
        if not self.is_initialized or self.get_seq_length() == 0:
            return super().update(key_states, value_states)
        old, new = self.get_seq_length(), key_states.shape[-2]
        buffers = self.buffers
        if buffers is None or buffers[0].shape[0] != key_states.shape[0] or buffers[0].shape[-2] < old + new:
            shape = (*self.keys.shape[:2], old + new + self.room, self.keys.shape[-1])
            buffers = (self.keys.new_empty(shape), self.values.new_empty(shape))
            buffers[0][..., :old, :], buffers[1][..., :old, :] = self.keys, self.values
            self.buffers = buffers
        buffers[0][..., old : old + new, :], buffers[1][..., old : old + new, :] = key_states, value_states
        self.keys, self.values = buffers[0][..., : old + new, :], buffers[1][..., : old + new, :]
        return self.keys, self.values

    def select(self, rows_R: torch.Tensor) -> None:
        """Keeps (or repeats) rows."""
        self.keys, self.values = self.keys[rows_R], self.values[rows_R]
        self.buffers = None


def has_plain_positions(model: Any) -> bool:
    """Whether prompts of this model can be shared through an ordinary key-value cache."""
    text = model.config.get_text_config()
    plain_layers = {"full_attention"} >= set(getattr(text, "layer_types", None) or ["full_attention"])
    return model.config.model_type in PLAIN_POSITIONS and plain_layers


def positions(mask_PL: torch.Tensor) -> torch.Tensor:
    """Position ids that count real tokens only, so that left padding does not shift them."""
    return (mask_PL.cumsum(1) - 1).clamp(min=0)


@torch.no_grad()
def generate(
    model: Any,
    processor: Any,
    inputs: dict[str, torch.Tensor],
    *,
    num_generations: int,
    sampling: Sampling,
    seed: int = 0,
    step: int = 0,
    keys_P: Sequence[int] | None = None,
    greedy_first: bool = False,
) -> list[list[Completion]]:
    """G completions for each of P prompts.

    Args:
        inputs: left-padded model inputs of the P prompts (`encode_prompts`).
        keys_P: a number that names each prompt in the random streams; 0, 1, .. when left out.
        greedy_first: the first completion of every prompt takes the likeliest tokens (diagnose needs both
            kinds).

    Returns:
        P lists of G completions; token ids include the end token.
    """
    was_training = model.training
    model.eval()
    try:
        if has_plain_positions(model):
            rows = _decode(
                model, processor, inputs, num_generations, sampling, (seed, step), keys_P, greedy_first
            )
        else:
            rows = _hf_generate(model, processor, inputs, num_generations, sampling, seed, step)
            if greedy_first:
                greedy = Sampling(sampling.max_new_tokens, temperature=0.0)
                rows[::num_generations] = _hf_generate(model, processor, inputs, 1, greedy, seed, step)
    finally:
        model.train(was_training)
    return [rows[i : i + num_generations] for i in range(0, len(rows), num_generations)]


def _decode(
    model: Any,
    processor: Any,
    inputs: dict[str, torch.Tensor],
    num_generations: int,
    sampling: Sampling,
    seed_step: tuple[int, int],
    keys_P: Sequence[int] | None,
    greedy_first: bool,
) -> list[Completion]:
    count = inputs["input_ids"].shape[0]
    device = inputs["input_ids"].device
    text_config = model.config.get_text_config()
    cache: Any = DynamicCache(config=text_config)
    cache.layers = [RoomyLayer() for _ in range(text_config.num_hidden_layers)]
    mask_PL = inputs["attention_mask"]
    output = model(
        **inputs, position_ids=positions(mask_PL), past_key_values=cache, use_cache=True, logits_to_keep=1
    )
    repeat_R = torch.arange(count, device=device).repeat_interleave(num_generations)
    for layer in cache.layers:
        layer.select(repeat_R)
    mask_RL, logits_RV = mask_PL[repeat_R], output.logits[:, -1].float()[repeat_R]
    uniform_RT = _uniforms(seed_step, keys_P or range(count), num_generations, sampling.max_new_tokens).to(
        device
    )
    banned, stops = special_ids(processor), torch.tensor(stop_ids(processor, model), device=device)
    alive_R = torch.arange(len(repeat_R), device=device)
    tokens: list[list[int]] = [[] for _ in repeat_R]
    logps: list[list[float]] = [[] for _ in repeat_R]
    position_R = mask_RL.sum(1)
    greedy_R = (torch.arange(len(repeat_R), device=device) % num_generations == 0) & greedy_first
    for t in range(sampling.max_new_tokens):
        logits_RV[:, banned] = -torch.inf
        token_R, logp_R = draw(logits_RV, uniform_RT[alive_R, t], sampling, greedy_R[alive_R])
        for row, token, logp in zip(alive_R.tolist(), token_R.tolist(), logp_R.tolist(), strict=True):
            tokens[row].append(token)
            logps[row].append(logp)
        going_R = ~torch.isin(token_R, stops)
        if t + 1 == sampling.max_new_tokens or not going_R.any():
            break
        if not going_R.all():
            keep_R = going_R.nonzero().squeeze(1)
            for layer in cache.layers:
                layer.select(keep_R)
            alive_R, mask_RL, token_R, position_R = (
                x[keep_R] for x in (alive_R, mask_RL, token_R, position_R)
            )
        mask_RL = torch.cat([mask_RL, mask_RL.new_ones(len(mask_RL), 1)], 1)
        output = model(
            input_ids=token_R[:, None],
            attention_mask=mask_RL,
            position_ids=position_R[:, None],
            past_key_values=cache,
            use_cache=True,
        )
        logits_RV, position_R = output.logits[:, -1].float(), position_R + 1
    return completions_of(processor, tokens, logps, set(stops.tolist()))


def completions_of(
    processor: Any, tokens: Sequence[list[int]], logps: Sequence[list[float]], stops: set[int]
) -> list[Completion]:
    """Completions with decoded text; a row that did not end by itself is "length"."""
    texts = processor.tokenizer.batch_decode([[t for t in row if t not in stops] for row in tokens])
    return [
        Completion(tuple(row), text, tuple(logp), "stop" if row and row[-1] in stops else "length")
        for row, text, logp in zip(tokens, texts, logps, strict=True)
    ]


def draw(
    logits_RV: torch.Tensor, uniform_R: torch.Tensor, sampling: Sampling, greedy_R: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token per row by inverting the distribution at `uniform_R` in [0, 1), and its log-prob there
    (fp32).

    Rows that are True in `greedy_R`, or all at temperature 0, take the likeliest token.
    """
    if sampling.temperature == 0:
        token_R = logits_RV.argmax(-1)
        return token_R, logits_RV.log_softmax(-1).gather(1, token_R[:, None]).squeeze(1)
    logp_RV = truncate((logits_RV / sampling.temperature).log_softmax(-1), sampling).log_softmax(-1)
    cumulative_RV = logp_RV.double().exp().cumsum(-1)
    target_R1 = uniform_R[:, None] * cumulative_RV[:, -1:]
    token_R = (
        torch.searchsorted(cumulative_RV, target_R1, right=True).squeeze(1).clamp(max=logits_RV.shape[1] - 1)
    )
    if greedy_R is not None:
        token_R = torch.where(greedy_R, logits_RV.argmax(-1), token_R)
    return token_R, logp_RV.gather(1, token_R[:, None]).squeeze(1)


def truncate(logp_RV: torch.Tensor, sampling: Sampling) -> torch.Tensor:
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
        floor_R1 = logp_RV.max(-1, keepdim=True).values + float(np.log(sampling.min_p))
        logp_RV = logp_RV.masked_fill(logp_RV < floor_R1, -torch.inf)
    return logp_RV


def _uniforms(
    seed_step: tuple[int, int], keys_P: Sequence[int], num_generations: int, length: int
) -> torch.Tensor:
    """Uniform numbers float64 [P * G, length], row (p, g) from its own stream."""
    rows = [
        np.random.default_rng([*seed_step, key, g]).random(length)
        for key in keys_P
        for g in range(num_generations)
    ]
    return torch.from_numpy(np.stack(rows))


def _hf_generate(
    model: Any,
    processor: Any,
    inputs: dict[str, torch.Tensor],
    num_generations: int,
    sampling: Sampling,
    seed: int,
    step: int,
) -> list[Completion]:
    log.info(
        "%s: answers are drawn by transformers' generate (positions or cache are not plain)",
        model.config.model_type,
    )
    torch.manual_seed(hash((seed, step)) % 2**31)
    stops = stop_ids(processor, model)
    options = {name: getattr(sampling, name) for name in ("temperature", "top_p", "top_k", "min_p")}
    output = model.generate(
        **inputs,
        do_sample=sampling.temperature > 0,
        num_return_sequences=num_generations,
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=stops,
        pad_token_id=processor.tokenizer.pad_token_id,
        suppress_tokens=special_ids(processor),
        repetition_penalty=1.0,  # the model's own default would count otherwise
        output_logits=False,
        output_scores=True,
        return_dict_in_generate=True,
        **(options if sampling.temperature > 0 else {}),
    )
    new_RT = output.sequences[:, inputs["input_ids"].shape[1] :]
    logp_RT = (
        torch.stack([s.float().log_softmax(-1) for s in output.scores], 1)
        .gather(2, new_RT[..., None])
        .squeeze(2)
    )
    tokens, logps = [], []
    for row, row_logps in zip(new_RT.tolist(), logp_RT.tolist(), strict=True):
        end = next((i + 1 for i, token in enumerate(row) if token in stops), len(row))
        tokens.append(row[:end])
        logps.append(row_logps[:end])
    return completions_of(processor, tokens, logps, set(stops))
