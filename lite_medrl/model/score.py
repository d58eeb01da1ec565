"""Log-probs of given completions, with what they share computed once.

Prompts that show the same images, and their completions, become rows of prefix trees (`model.packed`); only
the states that predict trained tokens reach the head, through `medrl_kernels.grouped_logp`. A model that
cannot be packed (`pack_check`), or a batch in which nothing is shared, runs as one padded row per completion;
results are the same. Every pass over completions goes through here: policy, old policy, reference.

Letters: P prompts, B completions, L prompt tokens (left padded), C completion tokens (right padded), N
trained tokens in the packed order of the kernels (completion after completion), S source states, D hidden.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lite_medrl.model.pack_check import FAMILIES, packable_plan
from lite_medrl.model.packed import Plan, States, base_of, packed_states, plan, token_types
from lite_medrl.model.prompt_images import Images, as_weights, check_image_tokens, join_images, split_images
from medrl_kernels import GroupedLogp, grouped_logp

PrefixTreeMode = Literal["auto", "required", "off"]
# Tokens of one row, and of the rows that go through the network together.
MAX_TREE_TOKENS = 8192
# Below this saving a plain row without a mask of ours is quicker.
LEAST_SAVING = 1.1


class Scored(NamedTuple):
    """Log-probs and entropies float32 [N], completion after completion, and the tokens that it took.

    `tokens` went through the network (without padding); one row per completion would have been
    `separate_tokens`.
    """

    logp_N: Tensor
    entropy_N: Tensor | None
    tokens: int
    separate_tokens: int


def score(
    model: Any,
    inputs: Mapping[str, Tensor],
    completions_B: Sequence[Sequence[int]],
    owner_B: Sequence[int],
    *,
    images_P: Sequence[Images] | None = None,
    temperature: float = 1.0,
    with_entropy: bool = False,
    prefix_tree: PrefixTreeMode = "auto",
    max_tree_tokens: int = MAX_TREE_TOKENS,
    rows_per_pass: int | None = None,
) -> Scored:
    """Log-probs (and entropies) of every completion token.

    Args:
        inputs: left-padded inputs of the P prompts.
        completions_B: token ids of the B completions, none empty.
        owner_B: which prompt each completion belongs to.
        images_P: image tensors of each prompt; taken from `inputs` when left out.
        prefix_tree: "auto" packs where the model allows it, "required" raises where it does not, "off" never.
        max_tree_tokens: tokens that a row may have, and that go through the network together.
        rows_per_pass: how many separate rows go through the network together; all, if left out.

    Raises:
        ValueError: image tokens that do not match the images, a completion that does not fit
            `max_tree_tokens`. ModelError: "required", and the model cannot be packed.
    """
    base = base_of(model)
    config, inputs = base.config, as_weights(base, inputs)
    if images_P is None:
        sees = getattr(config, "image_token_id", None) is not None
        images_P = split_images(config, inputs) if sees else [{} for _ in inputs["input_ids"]]
    images_P = [as_weights(base, images) for images in images_P]

    def make() -> Plan:
        return plan(
            config,
            inputs,
            completions_B,
            owner_B,
            images_P=images_P,
            max_tokens=max_tree_tokens,
            merge=True,
        )

    made = None if prefix_tree == "off" else packable_plan(model, make, required=prefix_tree == "required")
    if made is not None and (prefix_tree == "required" or made.saving >= LEAST_SAVING):
        states = packed_states(model, made.trees, made.images, tokens_per_pass=max_tree_tokens)
        tokens = made.tokens
    else:
        check_counts(config, inputs, images_P)
        states = separate_rows(model, inputs, images_P, completions_B, owner_B, rows_per_pass)
        tokens = separate_tokens(inputs, completions_B, owner_B)
    found = head_logp(model, states, temperature=temperature, with_entropy=with_entropy)
    return Scored(*found, tokens, separate_tokens(inputs, completions_B, owner_B))


def head_logp(
    model: Any, states: States, *, temperature: float = 1.0, with_entropy: bool = False
) -> GroupedLogp:
    """The model's own head, bias and softcap over these states."""
    base = base_of(model)
    head, text = base.get_output_embeddings(), base.config.get_text_config()
    return grouped_logp(
        states.hidden_SD,
        head.weight,
        states.target_N,
        states.source_N,
        temperature=temperature,
        bias_V=head.bias,
        softcap=getattr(text, "final_logit_softcapping", None),
        with_entropy=with_entropy,
    )


def separate_tokens(
    inputs: Mapping[str, Tensor], completions_B: Sequence[Sequence[int]], owner_B: Sequence[int]
) -> int:
    """Tokens of one row per completion, without padding."""
    length_P = inputs["attention_mask"].sum(1).tolist()
    return sum(length_P[p] + len(c) for p, c in zip(owner_B, completions_B, strict=True))


def check_counts(config: Any, inputs: Mapping[str, Tensor], images_P: Sequence[Images]) -> None:
    """ValueError naming a prompt whose image tokens do not match its images, for the families we know."""
    if config.model_type in FAMILIES:
        rows = zip(inputs["input_ids"], inputs["attention_mask"].bool(), strict=True)
        check_image_tokens(config, [ids[keep].tolist() for ids, keep in rows], images_P)


def separate_rows(
    model: Any,
    inputs: Mapping[str, Tensor],
    images_P: Sequence[Images],
    completions_B: Sequence[Sequence[int]],
    owner_B: Sequence[int],
    rows_per_pass: int | None = None,
) -> States:
    """Each completion as its own row behind a copy of its prompt, padded to the longest of its pass."""
    size = rows_per_pass or len(owner_B)
    parts = [
        one_pass(model, inputs, images_P, completions_B[i : i + size], owner_B[i : i + size])
        for i in range(0, len(owner_B), size)
    ]
    hidden_ND = torch.cat([part.hidden_SD for part in parts])
    completion_N = torch.cat([part.completion_N + i * size for i, part in enumerate(parts)])
    source_N = torch.arange(len(hidden_ND), device=hidden_ND.device)
    return States(hidden_ND, source_N, torch.cat([part.target_N for part in parts]), completion_N)


def one_pass(
    model: Any,
    inputs: Mapping[str, Tensor],
    images_P: Sequence[Images],
    completions_B: Sequence[Sequence[int]],
    owner_B: Sequence[int],
) -> States:
    """These rows side by side."""
    base = base_of(model)
    owner = torch.tensor(list(owner_B), device=inputs["input_ids"].device)
    ids_B = [torch.tensor(list(c), device=owner.device) for c in completions_B]
    completion_BC = pad_sequence(ids_B, batch_first=True)
    lengths_B = torch.tensor([len(i) for i in ids_B], device=owner.device)
    valid_BC = torch.arange(completion_BC.shape[1], device=owner.device) < lengths_B[:, None]
    prompt_BL, mask_BL = inputs["input_ids"][owner], inputs["attention_mask"][owner]
    ids_BT = torch.cat([prompt_BL, completion_BC], 1)
    hidden_BTD = base.model(
        input_ids=ids_BT,
        attention_mask=torch.cat([mask_BL, valid_BC.to(mask_BL.dtype)], 1),
        use_cache=False,
        **token_types(base, ids_BT),
        **join_images([images_P[p] for p in owner_B]),
    ).last_hidden_state
    hidden_ND = hidden_BTD[:, prompt_BL.shape[1] - 1 : -1][valid_BC]
    source_N = torch.arange(len(hidden_ND), device=hidden_ND.device)
    completion_N = torch.arange(len(ids_B), device=owner.device).repeat_interleave(lengths_B)
    return States(hidden_ND, source_N, torch.cat(ids_B), completion_N)
