"""One pass over the prompts: every distinct image and every distinct token of a prompt once.

Prompts that show one image share a row (`prefix_tree`), each a branch below it; afterwards the keys and
values on each prompt's own path are gathered. Models that cannot be packed run left-padded rows with their
own masks instead. Which models decode on what comes back says `why_not`.

Letters: P prompts, R rows of the pass, T tokens of a row, L tokens of a prompt, H heads, W width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from lite_medrl.model.head import head_logits
from lite_medrl.model.kv_cache import Prefix
from lite_medrl.model.load import text_model
from lite_medrl.model.pack_check import TEXT_MODELS, path_to, rope_types, why_separate
from lite_medrl.model.packed import base_of, passes, plan, positions, token_types, tree_hidden
from lite_medrl.model.prefix_tree import to_tensors
from lite_medrl.model.prompt_images import PER_IMAGE
from lite_medrl.model.score import MAX_TREE_TOKENS
from lite_medrl.model.tree_mask import device_of, row_multiple, use_tree_attention

# Text models with plain attention that may not share a row (their experts' load depends on the batch).
ROWS_ONLY = {"qwen2_moe", "qwen3_moe", "qwen3_vl_moe_text", "mixtral"}
LAYERS = {"full_attention", "sliding_attention"}


def why_not(config: Any, inputs: Mapping[str, Tensor] | None = None) -> str | None:
    """None if answers can grow on shared prompts, else what this model has that we do not treat."""
    text = config.get_text_config()
    if videos := [name for name in inputs or () if "video" in name]:
        return f"{videos[0]} among the inputs"
    if strange := sorted(set(getattr(text, "layer_types", None) or LAYERS) - LAYERS):
        return f"layers of kind {strange[0]}"
    if text.model_type not in TEXT_MODELS | ROWS_ONLY:
        return f"{text.model_type} as its text model"
    if kinds := {"dynamic", "longrope"} & rope_types(text):
        return f"{min(kinds)} rotary positions, which depend on the longest row"
    return None


def replaced(base: Any) -> str | None:
    """None if the layers attend by transformers' code, which hands on keys and values as they come."""
    text: Any = text_model(base)
    attention = getattr(text.layers[0], "self_attn", None)
    where = getattr(type(attention).forward, "__module__", "") if attention is not None else ""
    if where.startswith("transformers.") and "forward" not in attention.__dict__:
        return None
    return f"attention by {where or 'unknown code'}"


def prefill(model: Any, inputs: Mapping[str, Tensor]) -> Prefix:
    """Keys, values and first logits of every prompt.

    Args:
        inputs: left-padded inputs of the P prompts, as a processor makes them.
    """
    base = base_of(model)
    return rows_prefill(base, inputs) if why_separate(base) else tree_prefill(base, inputs)


def tree_prefill(base: Any, inputs: Mapping[str, Tensor]) -> Prefix:
    """Prompts as branches of trees; the state of a prompt's last token predicts the first of its answers."""
    use_tree_attention(base)
    count, some_token = len(inputs["input_ids"]), int(base.config.image_token_id == 0)
    longest = int(inputs["attention_mask"].sum(1).max())
    # A completion of one token takes no place in a row; it names the prompt and where it ends.
    made = plan(
        base.config, inputs, [[some_token]] * count, range(count), max_tokens=max(MAX_TREE_TOKENS, longest)
    )
    found: list[tuple[int, Any]] = []
    for trees in passes(made.trees, MAX_TREE_TOKENS):
        cache: Any = DynamicCache()
        images = [made.images[tree.root] for tree in trees]
        tensors = to_tensors(trees, pad_token=some_token, multiple=row_multiple(base), device=device_of(base))
        hidden_RTD = tree_hidden(base, trees, tensors, images, cache=cache)
        position_RT = positions(base, trees, tensors, images)
        position_RT = position_RT if position_RT.ndim == 2 else position_RT[0]
        ends = [
            (r, n, s) for r, t in enumerate(trees) for n, s in zip(t.completion_N, t.source_N, strict=True)
        ]
        row_P = torch.tensor([r for r, _, _ in ends], device=hidden_RTD.device)
        last_P = torch.tensor([s for _, _, s in ends], device=hidden_RTD.device)
        paths = [torch.tensor(path_to(trees[r], s), device=hidden_RTD.device) for r, _, s in ends]
        prefix = gather(base, cache, hidden_RTD, row_P, paths, position_RT[row_P, last_P] + 1)
        found += [(n, (prefix, i)) for i, (_, n, _) in enumerate(ends)]
    return join([place for _, place in sorted(found, key=lambda pair: pair[0])])


def rows_prefill(base: Any, inputs: Mapping[str, Tensor]) -> Prefix:
    """Prompts as left-padded rows, masked by the model itself."""
    ids_PL, mask_PL = inputs["input_ids"], inputs["attention_mask"]
    images = {key: inputs[key] for key in PER_IMAGE if inputs.get(key) is not None}
    types = token_types(base, ids_PL)
    if hasattr(base.model, "get_rope_index"):
        position, _ = base.model.get_rope_index(
            input_ids=ids_PL,
            mm_token_type_ids=(ids_PL == base.config.image_token_id).int(),
            image_grid_thw=images.get("image_grid_thw"),
            attention_mask=mask_PL,
        )
    else:
        position = (mask_PL.cumsum(1) - 1).clamp(min=0)
    cache: Any = DynamicCache()
    hidden_PLD = base.model(
        input_ids=ids_PL,
        attention_mask=mask_PL,
        position_ids=position,
        past_key_values=cache,
        use_cache=True,
        **types,
        **images,
    ).last_hidden_state
    last_P = (position if position.ndim == 2 else position.amax(0))[:, -1]
    paths = [row.nonzero().squeeze(1) for row in mask_PL]
    return gather(base, cache, hidden_PLD, torch.arange(len(paths), device=ids_PL.device), paths, last_P + 1)


def gather(
    base: Any, cache: Any, hidden_RTD: Tensor, row_P: Tensor, paths: list[Tensor], position_P: Tensor
) -> Prefix:
    """What lies on each prompt's path, filled up on the right; the cache is emptied layer by layer."""
    path_PL = pad_sequence(paths, batch_first=True)
    length_P = torch.tensor([len(path) for path in paths], device=path_PL.device)
    layers = []
    for layer in cache.layers:
        states = (layer.keys, layer.values)
        layers.append(tuple(x[row_P[:, None], :, path_PL].transpose(1, 2).contiguous() for x in states))
        layer.keys = layer.values = None
    last_P = torch.stack([path[-1] for path in paths])
    return Prefix(layers, length_P, position_P, head_logits(base, hidden_RTD[row_P, last_P]))


def join(places: list[tuple[Prefix, int]]) -> Prefix:
    """One prefix from prompts of several passes, in this order."""
    parts = list({id(prefix): prefix for prefix, _ in places}.values())
    if len(parts) == 1:
        order = torch.tensor([i for _, i in places], device=parts[0].length_P.device)
        if order.tolist() != list(range(len(order))):
            parts[0].reorder(order)
        return parts[0]
    longest = max(prefix.layers[0][0].shape[2] for prefix in parts)
    layers = []
    for number in range(len(parts[0].layers)):
        rows = ([prefix.layers[number][kind][i] for prefix, i in places] for kind in (0, 1))
        layers.append(tuple(torch.stack([fill(row, longest) for row in kind]) for kind in rows))
        for prefix in parts:
            prefix.layers[number] = layers[number]  # its own goes
    names = ("length_P", "position_P", "logits_PV")
    others = (torch.stack([getattr(prefix, name)[i] for prefix, i in places]) for name in names)
    return Prefix(layers, *others)


def fill(x_HLW: Tensor, length: int) -> Tensor:
    """Zeros behind the last token, up to `length`."""
    return torch.nn.functional.pad(x_HLW, (0, 0, 0, length - x_HLW.shape[1]))
