"""Runs rows of prefix trees through a stock transformers model: the states that predict trained tokens come
back.

Three arguments that every model takes make a row a tree: token ids, position ids (depth along the path, or
the model's own M-RoPE positions of the path) and a prepared attention mask (a token sees its ancestors). The
model scatters the image features itself, and each row brings its images once. Which models may be treated so
is `pack_check`'s business.

Letters: R rows, T tokens of a row, N trained tokens, S distinct source states, D hidden, P prompts, B
completions, L tokens of a padded prompt.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor

from lite_medrl.model.prefix_tree import Chain, PrefixTree, Root, TreeTensors, prefix_trees, share, to_tensors
from lite_medrl.model.prompt_images import (
    Images,
    check_image_tokens,
    join_images,
    split_images,
    with_equal_images,
)
from lite_medrl.model.tree_mask import (
    attention_mask,
    device_of,
    is_dense,
    mask_rules,
    row_alone,
    row_blocks,
    row_multiple,
    use_tree_attention,
)


class States(NamedTuple):
    """What `grouped_logp` takes; trained tokens follow each other by the number of their completion."""

    hidden_SD: Tensor
    source_N: Tensor
    target_N: Tensor
    completion_N: Tensor


@dataclass(frozen=True, slots=True)
class Plan:
    """Rows to run, and the images of every root they come from.

    `separate_tokens` is what one row per completion would have, padding not counted.
    """

    trees: list[PrefixTree]
    images: list[Images]
    separate_tokens: int = 0

    @property
    def tokens(self) -> int:
        """Tokens that go through the network."""
        return sum(len(tree.token_T) for tree in self.trees)

    @property
    def saving(self) -> float:
        """How many times fewer tokens that is than one row per completion."""
        return self.separate_tokens / max(1, self.tokens)


def plan(
    config: Any,
    inputs: Mapping[str, Tensor],
    completions_B: Sequence[Sequence[int]],
    owner_B: Sequence[int],
    *,
    max_tokens: int,
    merge: bool = False,
    trained_B: Sequence[Sequence[bool]] | None = None,
    images_P: Sequence[Images] | None = None,
) -> Plan:
    """Rows for completions of P prompts; prompts with equal images share them where the template lets them.

    Args:
        inputs: left- or right-padded inputs of the P prompts, as a processor makes them.
        completions_B: token ids of the B completions; trained tokens come back in this order.
        owner_B: which prompt each completion belongs to.
        trained_B: which tokens of each completion carry loss; all, if left out.
        images_P: image tensors of each prompt; taken from `inputs` when left out.

    Raises:
        ValueError: as `prefix_trees` and `split_images`; an image token inside a completion.
    """
    image_token = config.image_token_id
    prompts = [ids[keep.bool()].tolist() for ids, keep in zip(*unpadded(inputs), strict=True)]
    if images_P is None:
        images_P = split_images(config, inputs)
    else:
        check_image_tokens(config, prompts, images_P)
    chains: list[list[Chain]] = [[] for _ in prompts]
    for b, (tokens, owner) in enumerate(zip(completions_B, owner_B, strict=True)):
        if image_token in tokens:
            raise ValueError(f"completion {b} holds the image token {image_token}; ban it while sampling")
        chains[owner].append(Chain(b, tuple(tokens), tuple(trained_B[b]) if trained_B else None))
    roots: list[Root] = []
    images: list[Images] = []
    for alike in with_equal_images(images_P):
        ends = [image_end(prompts[p], image_token) for p in alike]
        found = share([prompts[p] for p in alike], [chains[p] for p in alike], ends)
        roots += found
        images += [images_P[p] for p in alike[: len(found)]]
    separate = sum(len(prompts[p]) + len(c) for p, c in zip(owner_B, completions_B, strict=True))
    return Plan(prefix_trees(roots, max_tokens=max_tokens, merge=merge), images, separate)


def plan_labelled(config: Any, inputs: Mapping[str, Tensor], labels_BL: Tensor, *, max_tokens: int) -> Plan:
    """Rows for supervised data: each prompt ends before its first label, and its labelled tokens are trained.

    Args:
        inputs: padded inputs of whole rows, prompt and answer, as a collator makes them.
        labels_BL: token ids where loss applies, -100 elsewhere. Trained tokens come back row after row.

    Raises:
        ValueError: as `plan`; labels on or before a row's image tokens.
    """
    trained_BL = labels_BL != -100
    kept_BL = inputs.get("attention_mask", torch.ones_like(labels_BL)).bool()
    answer_BL = kept_BL & (trained_BL.cumsum(1) > 0)
    if (answer_BL & (inputs["input_ids"] == config.image_token_id)).any():
        row = int((answer_BL & (inputs["input_ids"] == config.image_token_id)).any(1).nonzero()[0])
        raise ValueError(f"row {row} has labels before the end of its images; train on completions only")
    rows = trained_BL.any(1).nonzero().squeeze(1).tolist()
    prompts = dict(inputs) | {"attention_mask": kept_BL & ~answer_BL}
    completions = [inputs["input_ids"][b][answer_BL[b]].tolist() for b in rows]
    trained = [trained_BL[b][answer_BL[b]].tolist() for b in rows]
    return plan(config, prompts, completions, rows, max_tokens=max_tokens, trained_B=trained)


def unpadded(inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask [P, L] on the CPU."""
    ids = inputs["input_ids"].cpu()
    return ids, inputs.get("attention_mask", torch.ones_like(ids)).cpu()


def image_end(tokens: Sequence[int], image_token: int) -> int:
    """Place after the last image token, 0 without one."""
    return max((t + 1 for t, token in enumerate(tokens) if token == image_token), default=0)


def packed_states(
    model: Any, trees: Sequence[PrefixTree], images: Sequence[Images], *, tokens_per_pass: int = 0
) -> States:
    """The states that predict the trained tokens of these rows, each computed once.

    Args:
        model: a model that `can_pack` allows, or a PeftModel around one.
        images: those of every root that the rows name.
        tokens_per_pass: rows go through the model together while they fill at most this many places,
            padding counted; at least one row goes at a time.
    """
    base = base_of(model)
    pad_token = int(base.config.image_token_id == 0)  # any but the image token
    hidden, source, target, completion = [], [], [], []
    for rows in passes(trees, tokens_per_pass, alone=row_alone(base)):
        tensors = to_tensors(rows, pad_token=pad_token, multiple=row_multiple(base), device=device_of(base))
        source.append(tensors.source_N + sum(map(len, hidden)))
        hidden.append(_forward(base, rows, tensors, [images[tree.root] for tree in rows]))
        target.append(tensors.target_N)
        completion.append(tensors.completion_N)
    return in_order(torch.cat(hidden), torch.cat(source), torch.cat(target), torch.cat(completion))


def _forward(
    base: Any, trees: Sequence[PrefixTree], tensors: TreeTensors, images: Sequence[Images]
) -> Tensor:
    """States [S, D] of one pass."""
    return tree_hidden(base, trees, tensors, images).flatten(0, 1)[tensors.state_S]


def tree_hidden(
    base: Any,
    trees: Sequence[PrefixTree],
    tensors: TreeTensors,
    images: Sequence[Images],
    *,
    cache: Any = None,
) -> Tensor:
    """States [R, T, D] of rows that go through the model together; keys and values stay in `cache`."""
    rules, blocks = mask_rules(base.config, tensors), row_blocks(base, tensors.end_RT)
    shape = tensors.token_RT.shape
    masks = {kind: attention_mask(base, rule, shape, blocks) for kind, rule in rules.items()}
    if any(not is_dense(mask) for mask in masks.values()):
        use_tree_attention(base)
    return base.model(
        input_ids=tensors.token_RT,
        attention_mask=masks if len(masks) > 1 else masks.popitem()[1],
        position_ids=positions(base, trees, tensors, images),
        past_key_values=cache,
        use_cache=cache is not None,
        **join_images(images),
    ).last_hidden_state


def base_of(model: Any) -> Any:
    """The transformers model inside a PeftModel."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def token_types(base: Any, ids_BL: Tensor) -> dict[str, Tensor]:
    """What some models want to know of each token besides its id: whether it is an image's."""
    wanted = inspect.signature(base.model.forward).parameters
    is_image_BL = (ids_BL == getattr(base.config, "image_token_id", None)).long()
    return {key: is_image_BL for key in ("token_type_ids", "mm_token_type_ids") if key in wanted}


def passes(
    trees: Sequence[PrefixTree], tokens_per_pass: int, *, alone: int | None = None
) -> Iterator[list[PrefixTree]]:
    """Rows in order, as many at a time as fill at most `tokens_per_pass` places (at least one).

    Rows of `alone` tokens or more share a pass with no other.
    """
    rows: list[PrefixTree] = []
    for tree in trees:
        width = max(len(row.token_T) for row in [*rows, tree])
        long = alone is not None and width >= alone
        if rows and (long or width * (len(rows) + 1) > tokens_per_pass):
            yield rows
            rows = []
        rows = [*rows, tree]
    yield rows


def in_order(hidden_SD: Tensor, source_N: Tensor, target_N: Tensor, completion_N: Tensor) -> States:
    """Trained tokens sorted by completion; those of one completion keep their order."""
    order_N = completion_N.argsort(stable=True)
    return States(hidden_SD, source_N[order_N], target_N[order_N], completion_N[order_N])


def positions(
    base: Any, trees: Sequence[PrefixTree], tensors: TreeTensors, images: Sequence[Images]
) -> Tensor:
    """Position ids along each token's own path: [R, T], or [3, R, T] of a model with M-RoPE.

    Below the root all is text, where M-RoPE counts on by one a token from where the root's images end.
    """
    if not hasattr(base.model, "get_rope_index"):
        return tensors.depth_RT
    position_3RT = tensors.depth_RT.repeat(3, 1, 1)
    for r, (tree, pictures) in enumerate(zip(trees, images, strict=True)):
        ids_1L = torch.tensor([tree.token_T[: tree.root_tokens]])
        if not ids_1L.numel():
            continue
        grid = pictures.get("image_grid_thw")
        found_31L, shift_11 = base.model.get_rope_index(
            input_ids=ids_1L,
            mm_token_type_ids=(ids_1L == base.config.image_token_id).int(),
            image_grid_thw=None if grid is None else grid.cpu(),
        )
        position_3RT[:, r, : len(tree.token_T)] += int(shift_11)
        position_3RT[:, r, : tree.root_tokens] = found_31L[:, 0].to(position_3RT.device)
    return position_3RT
