"""Grows answers token by token on prompts that went through the model once; ended answers leave the batch.

All buffers are static: the rows' tokens and positions, the caches (`kv_cache`), the column that is written. A
step is a stock forward over them, replayed as a CUDA graph where there is a card. Rows that ended are cut off
in steps: on a CPU as soon as an eighth of the rows is idle; on a card when the grid of prompts and answers
fits half the rows, since its step takes nearly as long for 64 rows as for 32, and needs a new graph.

Letters: P prompts, G answers of a prompt, R rows still in the batch, V vocabulary, L prompt tokens, T answer
tokens, K = L + T keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lite_medrl.model.decode_graph import replayed
from lite_medrl.model.head import head_logits
from lite_medrl.model.kv_cache import Cells, Prefix, shared_cache
from lite_medrl.model.sampling import Sampling, draw_tokens
from lite_medrl.model.stops import Growing
from lite_medrl.model.tree_mask import layer_kinds

READ_BLOCK = 64  # a recorded step reads a multiple of so many of an answer's columns


@dataclass(frozen=True)
class Chance:
    """What decides the draws of R = P * G rows, prompt after prompt."""

    sampling: Sampling
    uniform_RT: Tensor
    banned: Tensor
    greedy_R: Tensor | None = None
    seen_PV: Tensor | None = None


def decode(base: Any, prefix: Prefix, answers: Sequence[Growing], chance: Chance) -> Iterator[list[int]]:
    """Draws a token for every answer that goes on, until all are over; yields which ones got one.

    Args:
        prefix: with more than one prompt it is used up, because those that end make room for the others.
        answers: G for each prompt of the prefix, prompt after prompt; they grow in place.
    """
    batch = Batch(base, prefix, len(answers) // len(prefix.length_P), max(a.limit for a in answers))
    try:
        yield from drawn_in(batch, prefix, answers, chance)
    finally:
        batch.graph = None  # it holds the batch, which would hold its caches until Python looks for circles


def drawn_in(batch: Batch, prefix: Prefix, answers: Sequence[Growing], chance: Chance) -> Iterator[list[int]]:
    """`decode` in a batch that has been laid out."""
    seen_RV = None if chance.seen_PV is None else chance.seen_PV[batch.prompt_R]
    logits_RV = prefix.logits_PV[batch.prompt_R]
    while True:
        drawn = draw_tokens(
            logits_RV,
            chance.uniform_RT[batch.name_R, batch.column],
            chance.sampling,
            banned=chance.banned,
            greedy_R=None if chance.greedy_R is None else chance.greedy_R[batch.name_R],
            seen_RV=seen_RV,
        )
        grown = grow(answers, batch, drawn.token_R, drawn.sampling_logp_R, drawn.logp_R)
        yield grown
        if not batch.alive:
            return
        batch.token_R1.copy_(drawn.token_R[:, None])
        if seen_RV is not None:
            seen_RV.scatter_(1, drawn.token_R[:, None], True)
        kept = batch.shrink()
        if kept is not None and seen_RV is not None:
            seen_RV = seen_RV[kept]
        logits_RV = batch.step()


def grow(
    answers: Sequence[Growing], batch: Batch, token_R: Tensor, sampling_logp_R: Tensor, logp_R: Tensor
) -> list[int]:
    """Gives each answer that goes on its token, and notes which of them go on; FloatingPointError for NaN."""
    values = torch.stack([sampling_logp_R, logp_R], 1)
    if not bool(values.isfinite().all()):
        raise FloatingPointError("the model's logits are not finite while answers are drawn")
    rows = list(zip(batch.names, token_R.tolist(), values.tolist(), strict=True))
    grown = [name for name, _, _ in rows if name in batch.alive]
    batch.alive = {n for n, token, logps in rows if n in batch.alive and answers[n].add(token, *logps)}
    return grown


class Batch:
    """The rows that are decoded together, and everything that a step reads and writes."""

    def __init__(self, base: Any, prefix: Prefix, places: int, length: int) -> None:
        device = prefix.length_P.device
        self.base, self.prompts, self.config = base, len(prefix.length_P), base.config
        self.graph = replayed(self.forward, device)
        self.name_R = torch.arange(len(prefix.length_P) * places, device=device)
        self.prompt_R = self.name_R // places
        self.alive = set(range(len(self.name_R)))
        self.names: list[int] = self.name_R.tolist()
        self.token_R1 = torch.zeros_like(self.name_R)[:, None]
        self.depth_R, self.position_R = prefix.length_P[self.prompt_R], prefix.position_P[self.prompt_R]
        self.column, self.at_1 = 0, torch.zeros(1, dtype=torch.long, device=device)
        self.columns = max(1, length - 1)  # nothing reads the keys of an answer's last token
        self.cache = shared_cache(prefix, (len(self.name_R), self.columns), self.at_1, Cells(places))
        self.of_prompt = self.prompt_R.tolist()

    def step(self) -> Tensor:
        """Logits fp32 [R, V] after the tokens in `token_R1`, which go to the next column."""
        self.at_1.fill_(self.column)
        block = READ_BLOCK if self.graph else 1
        read = min(self.columns, (self.column // block + 1) * block)
        for layer in self.cache.layers:
            layer.read = read
        logits_RV = self.graph((len(self.names), read)) if self.graph else self.forward()
        self.column += 1
        return logits_RV

    def forward(self) -> Tensor:
        """One stock forward over the buffers as they are."""
        position_R1 = (self.position_R + self.at_1)[:, None]
        m_rope = hasattr(self.base.model, "get_rope_index")
        hidden_R1D = self.base.model(
            input_ids=self.token_R1,
            attention_mask=self.masks(),
            position_ids=position_R1.expand(3, -1, -1) if m_rope else position_R1,
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state
        return head_logits(self.base, hidden_R1D[:, -1])

    def masks(self) -> Any:
        """The additive mask [R, 1, 1, K] of each kind of layer; the mask itself where there is one kind."""
        layer = self.cache.layers[0]
        length, read = layer.prompt[0].shape[2], layer.read
        prompt_L = torch.arange(length, device=self.at_1.device)
        own_T = torch.arange(read, device=self.at_1.device)
        depth_R1 = self.depth_R[:, None]
        there_RK = torch.cat([prompt_L < depth_R1, (own_T <= self.at_1).expand(len(depth_R1), -1)], 1)
        masks = {}
        for kind in layer_kinds(self.config):
            seen_RK = there_RK
            if kind == "sliding_attention":
                key_RK = torch.cat([prompt_L.expand(len(depth_R1), -1), depth_R1 + own_T], 1)
                window = int(self.config.get_text_config().sliding_window)
                seen_RK = there_RK & (key_RK > depth_R1 + self.at_1 - window)
            hidden_RK = torch.zeros(seen_RK.shape, device=seen_RK.device).masked_fill(~seen_RK, -torch.inf)
            masks[kind] = hidden_RK[:, None, None]
        return masks if len(masks) > 1 else masks.popitem()[1]

    def shrink(self) -> Tensor | None:
        """Cuts off rows that ended, if it is worth it; returns the rows that stay, int64, or None."""
        alive = [row for row, name in enumerate(self.names) if name in self.alive]
        if self.graph:
            kept, cells = regular(self.of_prompt, alive)
            worth = 2 * len(kept) <= len(self.names)
        else:
            kept, cells = alive, None
            worth = 8 * (len(self.names) - len(kept)) >= len(self.names)
        if not worth:
            return None
        kept_R = torch.tensor(kept, device=self.at_1.device)
        prompts = list(dict.fromkeys(self.of_prompt[row] for row in kept))
        fewer = len(prompts) < self.prompts and (2 * len(prompts) <= self.prompts or self.graph is not None)
        if fewer:
            self.drop_prompts(prompts)
        place = {prompt: p for p, prompt in enumerate(prompts)} if fewer else None
        self.of_prompt = [place[self.of_prompt[r]] if place else self.of_prompt[r] for r in kept]
        cells = cells or ragged(self.of_prompt, self.prompts, kept_R.device)
        for layer in self.cache.layers:
            layer.keep(kept_R, self.column, cells)
        for name in ("name_R", "prompt_R", "token_R1", "depth_R", "position_R"):
            setattr(self, name, getattr(self, name)[kept_R])
        self.names = [self.names[row] for row in kept]
        return kept_R

    def drop_prompts(self, prompts: Sequence[int]) -> None:
        """Keeps the keys and values of these prompts only."""
        kept_P, self.prompts = torch.tensor(prompts, device=self.at_1.device), len(prompts)
        for layer in self.cache.layers:
            layer.keep_prompts(kept_P)


def regular(of_prompt: Sequence[int], alive: Sequence[int]) -> tuple[list[int], Cells]:
    """As many rows of each prompt that goes on as the one with the most needs: rows that go on, then idle
    ones.
    """
    on = set(alive)
    rows: dict[int, list[int]] = {of_prompt[row]: [] for row in alive}
    for row in sorted(range(len(of_prompt)), key=lambda row: row not in on):
        if of_prompt[row] in rows:
            rows[of_prompt[row]].append(row)
    places = max(sum(row in on for row in found) for found in rows.values())
    return [row for prompt in sorted(rows) for row in rows[prompt][:places]], Cells(places)


def ragged(of_prompt: Sequence[int], prompts: int, device: torch.device) -> Cells:
    """Cells of rows that are sorted by prompt, any number of each."""
    place: list[int] = []
    for row, prompt in enumerate(of_prompt):
        place.append(place[-1] + 1 if row and of_prompt[row - 1] == prompt else 0)
    places = max(place) + 1
    if len(of_prompt) == prompts * places:
        return Cells(places)
    cell = [prompt * places + p for prompt, p in zip(of_prompt, place, strict=True)]
    row_C = torch.zeros(prompts * places, dtype=torch.long, device=device)
    row_C[cell] = torch.arange(len(cell), device=device)
    return Cells(places, torch.tensor(cell, device=device), row_C)
