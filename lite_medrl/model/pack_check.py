"""May a model be packed? A table answers from its config, and a check on its first rows from its numbers.

What mixes tokens by any other way than an attention mask leaks between the branches of a row: recurrent and
convolutional layers, and whatever depends on the rest of a batch. The table refuses what it does not know;
the check compares log-probs of a few completions with rows of their own, computed as transformers does.

Letters: N trained tokens, S source states, D hidden, L tokens of one row.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lite_medrl.model.packed import Plan, States, base_of, in_order, packed_states, token_types
from lite_medrl.model.prefix_tree import PrefixTree
from lite_medrl.model.prompt_images import Images
from lite_medrl.model.tree_mask import ATTENTION, device_of, mask_dtype
from lite_medrl.types import ModelError
from medrl_kernels import grouped_logp

log = logging.getLogger(__name__)

# Largest difference between log-probs that rounding explains, by dtype of the model.
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.5}

# Families whose packed rows are tested against separate ones, and text models found inside them.
FAMILIES = {"llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "gemma3", "smolvlm", "idefics3", "internvl"}
TEXT_MODELS = {
    *("llama", "mistral", "qwen2", "qwen3", "gemma3_text"),
    *("qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text"),
}
CONVOLUTIONS = "short convolutions mix neighbouring tokens of a row"
MIXERS = {
    "linear_attention": "linear attention carries a state from token to token of a row",
    "conv": CONVOLUTIONS,
    "chunked_attention": "chunks of attention are cut by place in the row",
}
ATTENTIONS = ("sdpa", "eager", ATTENTION)


def can_pack(config: Any) -> str | None:
    """None if a model of this config may be packed, else the reason why it may not."""
    text = config.get_text_config()
    if text.model_type.startswith("lfm2"):  # newer versions call its convolutions linear attention
        return f"{config.model_type}: {CONVOLUTIONS}"
    for kind in getattr(text, "layer_types", None) or []:
        if kind not in ("full_attention", "sliding_attention"):
            return f"{config.model_type}: {MIXERS.get(kind, f'layers of kind {kind} are not attention')}"
    if any(getattr(text, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts")):
        return f"{config.model_type}: the load of its experts depends on which tokens share a batch"
    if config.model_type not in FAMILIES:
        return f"{config.model_type}: not among the families that packing is tested on"
    if getattr(getattr(config, "vision_config", None), "model_type", "") == "pixtral":
        return f"{config.model_type}: packing is not tested with Pixtral's images of any size"
    if text.model_type not in TEXT_MODELS:
        return f"{config.model_type}: packing is not tested with {text.model_type} as its text model"
    if kinds := {"dynamic", "longrope"} & rope_types(text):
        return f"{config.model_type}: {min(kinds)} rotary positions depend on the longest row of a batch"
    attention = getattr(text, "_attn_implementation", None) or "sdpa"
    if attention not in ATTENTIONS:
        return f"attn_implementation={attention} takes no mask of ours; load the model with 'sdpa'"
    return None


def rope_types(text: Any) -> set[str]:
    """Kinds of rotary positions in a text config; some have one per kind of layer."""
    given = getattr(text, "rope_parameters", None) or {}
    nested = [value for value in given.values() if isinstance(value, dict)] or [given]
    return {value.get("rope_type", "default") for value in nested}


def packable_plan(model: Any, make: Callable[[], Plan], *, required: bool = False) -> Plan | None:
    """What `make` plans, or None if this model has to run separate rows.

    The table is asked once a model, the check on the first plan that branches (another cannot leak); the
    answer is logged and remembered.

    Raises:
        ModelError: `required`, and the model cannot be packed.
    """
    base = base_of(model)
    made = None
    reason = _REASONS[base] if base in _REASONS else can_pack(base.config)
    if base not in _REASONS:
        made = None if reason else make()
        branches = made is not None and any(len(set(tree.completion_N)) > 1 for tree in made.trees)
        if made is not None and branches:
            reason = disagreement(model, made)
        if reason or branches:
            _REASONS[base] = reason
            told = f"separate rows: {reason}" if reason else "prefix trees: answers to one image share a row"
            log.info("%s", told)
    if reason and required:
        raise ModelError(f"packing was asked for, but is not possible: {reason}")
    return None if reason else made or make()


def why_separate(base: Any) -> str | None:
    """Why this model (not a PeftModel) has to run separate rows, as far as known; None if it need not."""
    return _REASONS.get(base) or can_pack(base.config)


def require_packable(model: Any) -> None:
    """ModelError if a model of this kind cannot be packed: what a trainer asks before it draws anything."""
    if reason := can_pack(base_of(model).config):
        raise ModelError(f"packing was asked for, but is not possible: {reason}")


_REASONS: WeakKeyDictionary[nn.Module, str | None] = WeakKeyDictionary()  # None: may be packed


def disagreement(model: Any, made: Plan) -> str | None:
    """None if packed rows and separate ones agree on the log-probs of a few completions."""
    config = base_of(model).config
    limit = TOLERANCE[mask_dtype(base_of(model))]
    found = self_check(model, made.trees, made.images)
    if found <= limit:
        return None
    return (
        f"{config.model_type}: packed log-probs differ from separate ones by {found:.2g}, more than {limit:g}"
    )


def separate_states(model: Any, trees: Sequence[PrefixTree], images: Sequence[Images]) -> States:
    """What `packed_states` returns, with one unpadded row for every completion and the model's own masks."""
    base = base_of(model)
    device = device_of(base)
    hidden, target, completion = [], [], []
    for tree in trees:
        for number in dict.fromkeys(tree.completion_N):
            mine = [n for n, found in enumerate(tree.completion_N) if found == number]
            path = path_to(tree, tree.source_N[mine[-1]])
            places = [tree.depth_T[tree.source_N[n]] for n in mine]
            ids_1L = torch.tensor([[tree.token_T[t] for t in path]], device=device)
            hidden.append(_plain_forward(base, ids_1L, images[tree.root])[0, places])
            target += [tree.target_N[n] for n in mine]
            completion += [number] * len(mine)
    source_N = torch.arange(len(target), device=device)
    target_N, completion_N = (torch.tensor(values, device=device) for values in (target, completion))
    return in_order(torch.cat(hidden), source_N, target_N, completion_N)


def _plain_forward(base: Any, ids_1L: Tensor, images: Images) -> Tensor:
    """States [1, L, D] of one row as transformers computes them by itself."""
    return base.model(
        input_ids=ids_1L,
        attention_mask=torch.ones_like(ids_1L),
        use_cache=False,
        **token_types(base, ids_1L),
        **images,
    ).last_hidden_state


def path_to(tree: PrefixTree, place: int) -> list[int]:
    """Places from the start of the row down to a token, the token included."""
    path = [place]
    while (above := tree.parent_T[path[-1]]) >= 0:
        path.append(above)
    return path[::-1]


@torch.no_grad()
def self_check(
    model: Any, trees: Sequence[PrefixTree], images: Sequence[Images], *, completions: int = 4
) -> float:
    """Largest difference between log-probs of packed and of separate rows, over a few completions.

    Dropout is off meanwhile. Compare with `TOLERANCE[model.dtype]`, and run separate rows if it is larger.

    Args:
        completions: how many of the longest row's completions are computed both ways, first to last.
    """
    tree = max(trees, key=lambda tree: len(tree.token_T))
    numbers = list(dict.fromkeys(tree.completion_N))
    step = max(1, len(numbers) // max(1, completions - 1))
    chosen = {*numbers[::step][: completions - 1], numbers[-1]}
    base, modes = base_of(model), {module: module.training for module in model.modules()}
    model.eval()
    try:
        packed = packed_states(model, [tree], images)
        separate = separate_states(model, [only(tree, chosen)], images)
    finally:
        for module, mode in modes.items():
            module.training = mode
    keep_N = torch.isin(packed.completion_N, separate.completion_N)
    difference_N = _logp(base, packed)[keep_N] - _logp(base, separate)
    return float(difference_N.abs().max())


def only(tree: PrefixTree, completions: set[int]) -> PrefixTree:
    """The row with the trained tokens of some completions alone."""
    keep = [n for n, number in enumerate(tree.completion_N) if number in completions]
    names = ("source_N", "target_N", "completion_N", "index_N")
    return replace(tree, **{name: tuple(getattr(tree, name)[n] for n in keep) for name in names})


def _logp(base: Any, states: States) -> Tensor:
    """Log-probs at temperature 1."""
    head, text = base.get_output_embeddings(), base.config.get_text_config()
    softcap = getattr(text, "final_logit_softcapping", None)
    return grouped_logp(
        states.hidden_SD, head.weight, states.target_N, states.source_N, bias_V=head.bias, softcap=softcap
    ).logp_N
