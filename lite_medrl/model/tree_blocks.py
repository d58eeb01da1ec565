"""Attention of one long row without the pairs that no token sees, where there is no FlexAttention.

A dense mask makes SDPA compute every pair of a row, though a completion sees nothing of its neighbours. Here
the row is cut where the tree branches: a block of queries (a stem, or some neighbouring subtrees) meets the
stems above it and itself. With four questions of eight answers about one image a row of T tokens then costs
about T^2 / 5 instead of T^2. Each block goes through transformers' own SDPA.

Letters: T tokens of a row, Q queries of a block, K its keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward

# Subtrees smaller than this share a block; rows shorter than ROW, or of which more than COST of the pairs
# would stay, keep their dense mask (docs/LOG.md).
LEAST, ROW, COST = 48, 512, 0.45


@dataclass(frozen=True, slots=True)
class Block:
    """Queries [first, last) of a row, which see themselves and the blocks `above` (by number)."""

    first: int
    last: int
    above: tuple[int, ...]


class BlockedMask(Tensor):
    """Stands for a mask [1, 1, T, T] where transformers expects one; it has no cells, only blocks."""

    blocks: tuple[Block, ...]
    masks: tuple[Tensor, ...]  # [1, 1, Q, K] of each block


def cut(end_T: Sequence[int], *, least: int = LEAST) -> list[Block]:
    """Blocks of a row in order: stems between branchings, and below them subtrees, small ones together."""
    blocks: list[Block] = []

    def below(first: int, last: int, above: tuple[int, ...]) -> None:
        """Cuts the neighbouring subtrees that fill [first, last)."""
        for start, stop in joined(list(siblings(end_T, first, last)), least):
            stem = stem_end(end_T, start, stop)
            if stop - stem < 2 * least or stem == start:
                blocks.append(Block(start, stop, above))
            else:
                blocks.append(Block(start, stem, above))
                below(stem, stop, (*above, len(blocks) - 1))

    below(0, len(end_T), ())
    return blocks


def siblings(end_T: Sequence[int], first: int, last: int) -> Iterator[tuple[int, int]]:
    """The subtrees that follow each other from `first` to `last`."""
    while first < last:
        yield first, end_T[first]
        first = end_T[first]


def joined(spans: Sequence[tuple[int, int]], least: int) -> list[tuple[int, int]]:
    """Neighbouring spans put together until each has `least` tokens."""
    found: list[tuple[int, int]] = []
    for start, stop in spans:
        if found and (found[-1][1] - found[-1][0] < least or stop - start < least):
            found[-1] = (found[-1][0], stop)
        else:
            found.append((start, stop))
    return found


def stem_end(end_T: Sequence[int], first: int, last: int) -> int:
    """Where the path from `first` branches; `first` itself if [first, last) holds several subtrees."""
    stem = first
    while stem < last and end_T[stem] == last:
        stem += 1
    return stem


def keys_of(blocks: Sequence[Block], block: Block) -> list[int]:
    """Places of the tokens that a block meets."""
    spans = [blocks[b] for b in block.above] + [block]
    return [t for span in spans for t in range(span.first, span.last)]


def share_of_pairs(blocks: Sequence[Block]) -> float:
    """How many of the T^2 pairs the blocks compute."""
    pairs = sum((b.last - b.first) * len(keys_of(blocks, b)) for b in blocks)
    return pairs / max(1, blocks[-1].last) ** 2


def worth_cutting(end_T: Sequence[int]) -> list[Block] | None:
    """The blocks of a row, or None where its dense mask serves as well."""
    if len(end_T) < ROW:
        return None
    blocks = cut(end_T)
    return blocks if share_of_pairs(blocks) <= COST else None


def blocked_mask(rule: Any, blocks: Sequence[Block], device: torch.device, dtype: torch.dtype) -> BlockedMask:
    """The masks of all blocks of one row; `rule` as in `tree_mask`."""
    zero = torch.zeros((), dtype=torch.long, device=device)
    masks = []
    for block in blocks:
        query = torch.arange(block.first, block.last, device=device)
        seen_QK = rule(zero, zero, query[:, None], torch.tensor(keys_of(blocks, block), device=device))
        mask_QK = torch.zeros(seen_QK.shape, dtype=dtype, device=device).masked_fill(~seen_QK, -torch.inf)
        masks.append(mask_QK[None, None])
    made = torch.empty(1, 1, blocks[-1].last, 0, dtype=dtype, device=device).as_subclass(BlockedMask)
    made.blocks, made.masks = tuple(blocks), tuple(masks)
    return made


def blocked_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: BlockedMask, options: Mapping[str, Any]
) -> tuple[Tensor, None]:
    """transformers' SDPA, block by block: [1, heads, T, width] -> [1, T, heads, width]."""
    ends = [0, *(block.last for block in mask.blocks)]
    sizes = [b - a for a, b in pairwise(ends)]
    queries, keys, values = (x.split(sizes, dim=2) for x in (query, key, value))
    found = []
    for number, (block, mask_QK) in enumerate(zip(mask.blocks, mask.masks, strict=True)):
        seen = (*block.above, number)
        k, v = (torch.cat([x[b] for b in seen], dim=2) for x in (keys, values))
        found.append(sdpa_attention_forward(module, queries[number], k, v, mask_QK, **options)[0])
    return torch.cat(found, dim=1), None
