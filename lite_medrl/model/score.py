"""Log-probs of given completions: the prompt passes through the network once, its completions read its cache.

The states that predict trained tokens are the prompt's last state (it serves the first token of all its
completions) and every completion token but the last; only these reach the head, through
`medrl_kernels.grouped_logp`. Gradients flow through the cached keys and values. Models that cannot share a
prompt this way are scored as separate rows; results are the same.

Letters: P prompts, B completions, L prompt tokens (left padded), C completion tokens (right padded), N
trained tokens in the packed order of the kernels (completion after completion), S source states, D hidden, V
vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from lite_medrl.model.generate import has_plain_positions, positions
from medrl_kernels import GroupedLogp, grouped_logp

log = logging.getLogger(__name__)
# Model inputs that hold one value per token rather than per image; a separate row extends them over its
# completion.
PER_TOKEN = ("token_type_ids", "mm_token_type_ids")
PER_IMAGE = ("pixel_values", "pixel_attention_mask", "image_sizes", "image_grid_thw")


def score(
    model: Any,
    inputs: dict[str, torch.Tensor],
    completions_B: Sequence[Sequence[int]],
    owner_B: Sequence[int],
    *,
    temperature: float = 1.0,
    with_entropy: bool = False,
) -> GroupedLogp:
    """Log-probs (and entropies) of every completion token, packed.

    Args:
        inputs: left-padded inputs of the P prompts.
        completions_B: token ids of the B completions, none empty.
        owner_B: which prompt each completion belongs to.

    Returns:
        logp_N and entropy_N, float32, in the order of `completions_B`.
    """
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    ids_B = [torch.tensor(list(c), device=inputs["input_ids"].device) for c in completions_B]
    if has_plain_positions(base) and not getattr(base, "is_gradient_checkpointing", False):
        hidden_SD, source_N = _shared(base, inputs, ids_B, owner_B)
    else:
        hidden_SD, source_N = _separate(base, inputs, ids_B, owner_B)
    head, text = base.get_output_embeddings(), base.config.get_text_config()
    return grouped_logp(
        hidden_SD,
        head.weight,
        torch.cat(ids_B),
        source_N,
        temperature=temperature,
        bias_V=head.bias,
        softcap=getattr(text, "final_logit_softcapping", None),
        with_entropy=with_entropy,
    )


def _shared(
    base: Any, inputs: dict[str, torch.Tensor], ids_B: Sequence[torch.Tensor], owner_B: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Source states [S, D] (P prompt ends, then the fed completion tokens) and source_N."""
    device = inputs["input_ids"].device
    owner = torch.tensor(list(owner_B), device=device)
    cache: Any = DynamicCache(config=base.config.get_text_config())
    prompt_PLD = base.model(
        **inputs, position_ids=positions(inputs["attention_mask"]), past_key_values=cache, use_cache=True
    ).last_hidden_state
    lengths_B = torch.tensor([len(i) for i in ids_B], device=device)
    source = [owner.new_tensor([])]
    states = [prompt_PLD[:, -1]]
    if lengths_B.max() > 1:
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys[owner], layer.values[owner]
        fed_BC = pad_sequence([i[:-1] for i in ids_B], batch_first=True)
        valid_BC = torch.arange(fed_BC.shape[1], device=device) < (lengths_B - 1)[:, None]
        mask_BL = inputs["attention_mask"][owner]
        position_BC = mask_BL.sum(1, keepdim=True) + torch.arange(fed_BC.shape[1], device=device)
        hidden_BCD = base.model(
            input_ids=fed_BC,
            attention_mask=torch.cat([mask_BL, valid_BC.to(mask_BL.dtype)], 1),
            position_ids=position_BC,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        states.append(hidden_BCD[valid_BC])
    first = len(prompt_PLD)
    for prompt, length in zip(owner_B, lengths_B.tolist(), strict=True):
        source += [owner.new_tensor([prompt]), torch.arange(first, first + length - 1, device=device)]
        first += length - 1
    return torch.cat(states), torch.cat(source)


def _separate(
    base: Any, inputs: dict[str, torch.Tensor], ids_B: Sequence[torch.Tensor], owner_B: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each completion as its own row behind a copy of its prompt; states [N, D] and source_N = 0 .. N-1."""
    owner = torch.tensor(list(owner_B), device=inputs["input_ids"].device)
    completion_BC = pad_sequence(list(ids_B), batch_first=True)
    lengths_B = torch.tensor([len(i) for i in ids_B], device=owner.device)
    valid_BC = torch.arange(completion_BC.shape[1], device=owner.device) < lengths_B[:, None]
    rows = repeat_rows(inputs, owner)
    width = rows["input_ids"].shape[1]
    rows["input_ids"] = torch.cat([rows["input_ids"], completion_BC], 1)
    rows["attention_mask"] = torch.cat([rows["attention_mask"], valid_BC.to(rows["attention_mask"].dtype)], 1)
    for key in PER_TOKEN:
        if key in rows:
            rows[key] = torch.cat([rows[key], torch.zeros_like(completion_BC)], 1)
    hidden_BCD = base.model(**rows, use_cache=False).last_hidden_state[:, width - 1 : -1]
    return hidden_BCD[valid_BC], torch.arange(int(lengths_B.sum()), device=owner.device)


def repeat_rows(inputs: dict[str, torch.Tensor], owner_B: torch.Tensor) -> dict[str, torch.Tensor]:
    """Copies each prompt's tensors to its completions; Qwen-style patches are regrouped by image."""
    images = {key: value for key, value in inputs.items() if key in PER_IMAGE}
    grid, prompts = images.get("image_grid_thw"), len(inputs["input_ids"])
    count = len(images.get("pixel_values", ())) if grid is None else len(grid)
    if count % prompts:
        raise ValueError("prompts with different numbers of images cannot be scored as separate rows yet")
    per_prompt = count // prompts
    image_B = (owner_B[:, None] * per_prompt + torch.arange(per_prompt, device=owner_B.device)).flatten()
    rows = {key: value[owner_B] for key, value in inputs.items() if key not in images}
    if grid is None:
        return rows | {key: value[image_B] for key, value in images.items()}
    patches = images["pixel_values"].split(grid.prod(1).tolist())
    return rows | {
        "pixel_values": torch.cat([patches[i] for i in image_B.tolist()]),
        "image_grid_thw": grid[image_B],
    }
