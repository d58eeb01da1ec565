"""Keys and values while answers grow: those of a prompt once for all its answers, and each answer's own
beside.

A stock model calls `update` with the keys of one new token a row and hands what comes back to its attention
function; ours (`attend`) takes it as two parts, so a prompt is neither stored nor read once per answer. All
buffers are allocated before the first token and written in place: nothing grows, and a CUDA graph may be
replayed over them. Other caches are left alone, so the model's prefill is as ever.

Letters: P prompts, G places for answers to a prompt, R rows (answers that grow), H key-value heads, Q query
heads of one of them, L prompt tokens (filled up on the right), T tokens of an answer, K = L + T, W width of a
head.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AttentionInterface, Cache
from transformers.cache_utils import CacheLayerMixin

from lite_medrl.model.load import text_model

ATTENTION = "shared_prompts"  # our name among transformers' attention functions


@dataclass
class Prefix:
    """What the prefill leaves behind: for each layer keys and values [P, H, L, W], and where answers go on.

    `length_P` counts a prompt's tokens, `position_P` is the position id of its answers' first token (another
    number only with M-RoPE); `logits_PV` are the fp32 logits of that token.
    """

    layers: list[tuple[Tensor, Tensor]]
    length_P: Tensor
    position_P: Tensor
    logits_PV: Tensor

    def reorder(self, prompts_P: Tensor) -> None:
        """The prompts in this order; one layer at a time, so that there are no two of the whole."""
        for number, (keys, values) in enumerate(self.layers):
            self.layers[number] = (keys[prompts_P], values[prompts_P])
        self.length_P, self.position_P = self.length_P[prompts_P], self.position_P[prompts_P]
        self.logits_PV = self.logits_PV[prompts_P]


class Cells(NamedTuple):
    """Where rows lie in the grid [P, G] of prompts and their answers: int64 [R] and [P * G].

    A cell without a row points at any. Both are None where row r is cell r.
    """

    places: int
    cell_R: Tensor | None = None
    row_C: Tensor | None = None

    def to_grid(self, x_R: Tensor) -> Tensor:
        """Rows as [P, G, ...]."""
        x_C = x_R if self.row_C is None else x_R[self.row_C]
        return x_C.unflatten(0, (-1, self.places))

    def to_rows(self, x_PG: Tensor) -> Tensor:
        """The grid's cells as rows again."""
        x_C = x_PG.flatten(0, 1)
        return x_C if self.cell_R is None else x_C[self.cell_R]


class Part(NamedTuple):
    """Keys (or values) of one layer in two parts, as they go through the model to `attend`."""

    prompt_PHLW: Tensor
    own_RHTW: Tensor
    cells: Cells


class SharedLayer(CacheLayerMixin):
    """Cache layer whose first part is a prompt's and read by all its answers.

    `at_1` is the column (int64 [1]) that every row's next token goes to; `read` columns are seen by
    attention.
    """

    is_sliding = False

    def __init__(
        self, prompt: tuple[Tensor, Tensor], shape: tuple[int, int], at_1: Tensor, cells: Cells
    ) -> None:
        super().__init__()
        rows, columns = shape
        heads = prompt[0].shape[1]
        self.prompt, self.cells, self.at_1, self.read = prompt, cells, at_1, columns
        # Zeros, because a weight of 0 does not silence a NaN that an old value may be.
        self.own = [x.new_zeros(rows, heads, columns, x.shape[-1]) for x in prompt]
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Writes [R, H, 1, W] states; returns keys and values as a `Part` each."""
        for own, new in zip(self.own, (key_states, value_states), strict=True):
            own.index_copy_(2, self.at_1, new)
        parts = zip(self.prompt, self.own, strict=True)
        keys, values = (Part(prompt, own[:, :, : self.read], self.cells) for prompt, own in parts)
        return keys, values

    def keep(self, rows_R: Tensor, columns: int, cells: Cells) -> None:
        """Moves these rows to the front, as far as they are written, and forgets the others."""
        for i, own in enumerate(self.own):
            own[: len(rows_R), :, :columns] = own[rows_R, :, :columns]
            self.own[i] = own[: len(rows_R)]
        self.cells = cells

    def keep_prompts(self, prompts_P: Tensor) -> None:
        """Moves these prompts to the front, over those that have no more answers."""
        for x in self.prompt:
            x[: len(prompts_P)] = x[prompts_P]
        keys, values = self.prompt
        self.prompt = (keys[: len(prompts_P)], values[: len(prompts_P)])

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the buffers exist."""

    def get_seq_length(self) -> int:
        """Columns that attention reads. (Positions and masks are prepared, so nothing is counted from it.)"""
        return self.prompt[0].shape[-2] + self.read

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Width and offset of a mask."""
        return self.get_seq_length(), 0

    def get_max_length(self) -> int:
        """Columns that there are."""
        return self.prompt[0].shape[-2] + self.own[0].shape[-2]


def shared_cache(prefix: Prefix, shape: tuple[int, int], at_1: Tensor, cells: Cells) -> Any:
    """A cache of `SharedLayer`s with room for (rows, tokens) = `shape`."""
    return Cache(layers=[SharedLayer(layer, shape, at_1, cells) for layer in prefix.layers])


def attend(
    module: Any,
    query: Tensor,
    keys: Part,
    values: Part,
    mask_R11K: Tensor,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention of one new token a row over its prompt's part and its own: [R, 1, heads, W].

    One softmax over both parts, in fp32; the prompt's part is a product of all answers' queries at once.
    """
    assert options.get("softcap") is None, "no soft cap on attention scores"
    rows, _, _, width = query.shape
    heads, length = keys.prompt_PHLW.shape[1:3]
    query_RHQW = query.reshape(rows, heads, -1, width) * (width**-0.5 if scaling is None else scaling)
    seen_RHQL = _spread(keys, _product(_gathered(keys, query_RHQW), keys.prompt_PHLW.mT))
    own_RHQT = _product(query_RHQW, keys.own_RHTW.mT)
    weight_RHQK = (torch.cat([seen_RHQL, own_RHQT], -1) + mask_R11K).softmax(-1).to(values.own_RHTW.dtype)
    seen_RHQW = _spread(values, _gathered(values, weight_RHQK[..., :length]) @ values.prompt_PHLW)
    output_RHQW = seen_RHQW + weight_RHQK[..., length:] @ values.own_RHTW
    return output_RHQW.reshape(rows, 1, -1, width), None


def _gathered(part: Part, x_RHQX: Tensor) -> Tensor:
    """Rows under their prompts: [P, H, G * Q, X]."""
    return part.cells.to_grid(x_RHQX).transpose(1, 2).flatten(2, 3)


def _spread(part: Part, x_PHCX: Tensor) -> Tensor:
    """[P, H, G * Q, X] as rows again: [R, H, Q, X]."""
    return part.cells.to_rows(x_PHCX.unflatten(2, (part.cells.places, -1)).transpose(1, 2))


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in fp32 (or more): 16-bit scores would round what softmax takes the exponent of."""
    if not a.is_cuda or a.dtype not in (torch.float16, torch.bfloat16):
        return a @ b if a.dtype not in (torch.float16, torch.bfloat16) else a.float() @ b.float()
    product = torch.bmm(a.flatten(0, 1), b.flatten(0, 1), out_dtype=torch.float32)
    return product.unflatten(0, a.shape[:2])


@contextmanager
def shared_attention(base: Any) -> Iterator[None]:
    """The text model attends through `attend` in here, and as before afterwards."""
    text: Any = text_model(base)
    before = text.config._attn_implementation
    AttentionInterface.register(ATTENTION, attend)
    text.config._attn_implementation = ATTENTION
    try:
        yield
    finally:
        text.config._attn_implementation = before
