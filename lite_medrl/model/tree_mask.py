"""The attention mask of a prefix tree, from one rule for each kind of layer.

The rule becomes a FlexAttention block mask on CUDA cards from Ampere on, and elsewhere masks for SDPA: a
dense one, or for a long row one per block of the tree (`tree_blocks`).
A token sees its ancestors. A sliding window looks back along the path, so it compares depths rather than
places in the row; Gemma-3 lets the tokens of one image see each other both ways.

Letters: R rows, T tokens of a row.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lite_medrl.model.load import text_model
from lite_medrl.model.prefix_tree import TreeTensors
from lite_medrl.model.tree_blocks import (
    ROW,
    Block,
    BlockedMask,
    blocked_attention,
    blocked_mask,
    worth_cutting,
)

log = logging.getLogger(__name__)

MaskRule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # (row, head, query, key) -> may it see?

ATTENTION = "prefix_tree"  # our name among transformers' attention functions
FLEX_BLOCK = 128


def mask_rules(config: Any, tensors: TreeTensors) -> dict[str, MaskRule]:
    """The mask of each kind of layer as a function of (row, head, query, key)."""
    text = config.get_text_config()
    end_RT, depth_RT = tensors.end_RT, tensors.depth_RT
    window = int(getattr(text, "sliding_window", None) or 0)
    image_RT = image_numbers(tensors.token_RT == config.image_token_id)
    both_ways = config.model_type == "gemma3"  # tokens of one image see each other, later ones too

    def full(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = (key <= query) & (query < end_RT[row, key])
        if both_ways:
            image = image_RT[row, query]
            seen = seen | ((image >= 0) & (image == image_RT[row, key]))
        return seen

    def sliding(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        near = depth_RT[row, key] > depth_RT[row, query] - window
        return near & full(row, head, query, key)

    rules = {"full_attention": full, "sliding_attention": sliding}
    return {kind: rules[kind] for kind in layer_kinds(config)}


def layer_kinds(config: Any) -> list[str]:
    """Kinds of layers that want a mask; where there is one kind only, the model takes the mask itself."""
    text = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or [])
    if not kinds:  # one mask for all layers, as in Mistral
        return ["sliding_attention" if getattr(text, "sliding_window", None) else "full_attention"]
    return sorted(kinds | {"full_attention"})


def image_numbers(is_image_RT: Tensor) -> Tensor:
    """Which image of its row each token belongs to, counting unbroken runs; -1 for text."""
    first_RT = is_image_RT & ~F.pad(is_image_RT, (1, 0))[:, :-1]
    return torch.where(is_image_RT, first_RT.cumsum(1) - 1, -1)


def attention_mask(
    base: Any, rule: MaskRule, shape: Sequence[int], blocks: Sequence[Block] | None = None
) -> Tensor | BlockMask:
    """A mask that the model's attention takes as it is; `blocks` are those of a row that is worth cutting."""
    rows, width = shape
    device = device_of(base)
    if blocks is not None:
        return blocked_mask(rule, blocks, device, mask_dtype(base))
    if choose_attention(device) == "flex":
        return create_block_mask(rule, rows, None, width, width, device=device, BLOCK_SIZE=FLEX_BLOCK)
    return dense_mask(rule, rows, width, device, mask_dtype(base))


def dense_mask(rule: MaskRule, rows: int, width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """[R, 1, T, T]: 0 where the query sees the key, -inf elsewhere; every token sees itself."""
    row, query, key = (torch.arange(n, device=device) for n in (rows, width, width))
    seen = rule(row[:, None, None], row.new_zeros(()), query[:, None], key)
    return torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill(~seen, -torch.inf)[:, None]


def mask_dtype(base: Any) -> torch.dtype:
    """The dtype of queries, which an additive mask has to have."""
    weight = base.get_input_embeddings().weight
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


def device_of(base: Any) -> torch.device:
    """Where token ids have to be."""
    return base.get_input_embeddings().weight.device


@functools.cache
def choose_attention(device: torch.device) -> str:
    """ "flex" on CUDA cards from Ampere on where triton is installed, else "dense"; chosen once, logged."""
    if device.type != "cuda":
        choice, why = "dense", "no CUDA card"
    elif torch.cuda.get_device_capability(device)[0] < 8:
        choice, why = "dense", "FlexAttention needs an Ampere card or a later one"
    elif find_spec("triton") is None:
        choice, why = "dense", "triton is not installed"
    else:
        choice, why = "flex", "block masks skip what no token sees"
    log.info("prefix trees on %s: %s attention mask (%s)", device, choice, why)
    return choice


def row_blocks(base: Any, end_RT: Tensor) -> list[Block] | None:
    """Blocks of a single row where they save enough and FlexAttention does not do it."""
    if len(end_RT) > 1 or choose_attention(device_of(base)) == "flex" or not takes_blocks(base):
        return None
    return worth_cutting(end_RT[0].tolist())


def takes_blocks(base: Any) -> bool:
    """Whether the text model's attention may be replaced: SDPA, or ours already."""
    text: Any = text_model(base)
    return text.config._attn_implementation in ("sdpa", ATTENTION)


def use_tree_attention(base: Any) -> None:
    """Gives the text model an attention that takes block masks besides ordinary masks.

    It stays, because gradient checkpointing runs the layers again after the forward pass is over; without a
    block mask it is SDPA, so generation is as before.
    """
    text: Any = text_model(base)
    if text.config._attn_implementation != ATTENTION:
        AttentionInterface.register(ATTENTION, tree_attention)
        AttentionMaskInterface.register(ATTENTION, sdpa_mask)
        text.set_attn_implementation(ATTENTION)


def tree_attention(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any) -> Any:
    """transformers' FlexAttention for a block mask, its SDPA for any other, of a long row block by block."""
    if isinstance(mask, BlockedMask):
        return blocked_attention(module, query, key, value, mask, options)
    attend: Any = flex_attention_forward if isinstance(mask, BlockMask) else sdpa_attention_forward
    return attend(module, query, key, value, mask, **options)


def row_multiple(base: Any) -> int:
    """Rows are padded to a multiple of this: whole blocks, or what SDPA's kernels want of a mask."""
    device = device_of(base)
    if choose_attention(device) == "flex":
        return FLEX_BLOCK
    return 8 if device.type == "cuda" else 1


def row_alone(base: Any) -> int | None:
    """Rows this long are cut into blocks, one at a time; None where FlexAttention takes rows together."""
    return None if choose_attention(device_of(base)) == "flex" or not takes_blocks(base) else ROW


def is_dense(mask: Any) -> bool:
    """Whether stock attention understands a mask."""
    return not isinstance(mask, (BlockMask, BlockedMask))
