"""Batches of a rollout: rows in groups, the images of each group once, slices, and silent groups replaced.

TRL hands out one row per completion with a copy of its prompt's images each. Here a batch has `group_ids`
int64 [B], and `images_G`, the image tensors of every group, which slices share. All functions are pure.

Letters: B rows (completions), G groups, C completion tokens, L prompt tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lite_medrl.model.prompt_images import Images

Batch = dict[str, Any]

# Image tensors of a batch, and lists that say how many of their entries belong to each row.
IMAGE_KEYS = ("pixel_values", "image_grid_thw", "pixel_attention_mask", "image_sizes", "spatial_shapes")
COUNT_KEYS = ("num_images", "num_tiles")
# What the model is told of each token besides its id; made anew where it is needed (`packed.token_types`).
TOKEN_KEYS = ("token_type_ids", "mm_token_type_ids")
UNKNOWN_KEYS = ("image_position_ids",)
LEFT_PADDED = ("prompt_ids", "prompt_mask")


def number_groups(batch: Mapping[str, Any], size: int) -> Batch:
    """The batch with `group_ids` and `images_G` instead of image tensors per row; every `size` rows are one
    group.
    """
    rows = len(batch["prompt_ids"])
    images_G = images_of_groups(batch, rows, size)
    dropped = {*IMAGE_KEYS, *COUNT_KEYS, *TOKEN_KEYS}
    kept = {key: value for key, value in batch.items() if key not in dropped}
    ids = torch.arange(rows, device=batch["prompt_ids"].device) // size
    return {**kept, "group_ids": ids, "images_G": images_G}


def images_of_groups(fields: Mapping[str, Any], rows: int, size: int) -> list[Images]:
    """Image tensors of every `size`-th row.

    Args:
        fields: TRL's image tensors, with `num_images` (and `num_tiles`) of each row where it knows them.
            Patches of Qwen's kind may be there for each group only once.

    Raises:
        NotImplementedError: tensors whose rows nobody knows how to find. ValueError: tensors that are neither
            one entry an image, a tile nor a row.
    """
    if unknown := [key for key in UNKNOWN_KEYS if fields.get(key) is not None]:
        raise NotImplementedError(f"models with {', '.join(unknown)} are not supported yet")
    tensors = {key: fields[key] for key in IMAGE_KEYS if fields.get(key) is not None}
    if "pixel_values" not in tensors:
        return [{} for _ in range(rows // size)]
    images_B = list(fields.get("num_images") or [1] * rows)
    grid = tensors.get("image_grid_thw")
    if grid is not None:
        if len(grid) == sum(images_B[::size]) != sum(images_B):  # each group's images once
            images_B, size = images_B[::size], 1
        tensors["pixel_values"] = tensors["pixel_values"].split(grid.prod(1).tolist())
    found: list[dict[str, Tensor]] = [{} for _ in range(0, len(images_B), size)]
    for key, value in tensors.items():
        for group, row in enumerate(range(0, len(images_B), size)):
            first, last = entries(key, value, row, images_B, fields.get("num_tiles"))
            if last > first:
                part = value[first:last]
                found[group][key] = part if isinstance(part, Tensor) else torch.cat(list(part))
    return list(found)


def entries(
    key: str, value: Any, row: int, images_B: Sequence[int], tiles_B: Sequence[int] | None
) -> tuple[int, int]:
    """First and last of the entries of an image tensor that belong to a row."""
    each = [1] * len(images_B)  # Idefics3's tiles [rows, tiles, C, H, W] and their masks lie row by row
    by_row = isinstance(value, Tensor) and value.ndim >= 4 + (key == "pixel_values")
    for count_B in (each,) if by_row else (images_B, tiles_B, each):
        if count_B is not None and len(value) == sum(count_B):
            first = sum(count_B[:row])
            return first, first + count_B[row]
    raise ValueError(
        f"{key} has {len(value)} entries, but the batch has {len(images_B)} rows with {sum(images_B)} images"
        f"{f' and {sum(tiles_B)} tiles' if tiles_B else ''}"
    )


def split_rows(batch: Batch, parts: int) -> list[Batch]:
    """The batch in `parts` equal slices of rows, in order."""
    size = len(batch["prompt_ids"]) // parts
    return [take_rows(batch, torch.arange(i * size, (i + 1) * size)) for i in range(parts)]


def take_rows(batch: Batch, rows_R: Tensor) -> Batch:
    """The given rows of every tensor; scalars and the images of the groups stay as they are."""
    rows = len(batch["prompt_ids"])
    return {
        key: value[rows_R.to(value.device)]
        if isinstance(value, Tensor) and value.ndim and len(value) == rows
        else value
        for key, value in batch.items()
    }


def rewarded_alike(advantage_B: Tensor, size: int) -> Tensor:
    """Rows [B] whose whole group got one advantage, so one reward: their distance to the mean is rounding.

    Eight rewards of 0.2 have a mean of 0.20000002 in fp32; TRL's test for a spread of zero fails on that.
    """
    if size < 2:
        return torch.zeros_like(advantage_B, dtype=torch.bool)
    group_GS = advantage_B.view(-1, size)
    return (group_GS == group_GS[:, :1]).all(1).repeat_interleave(size)


def replace_groups(batch: Batch, old_K: Sequence[int], fresh: Batch, new_K: Sequence[int]) -> Batch:
    """Groups `old_K` of the batch replaced by groups `new_K` of another, padded to the wider of the two."""
    size = len(batch["prompt_ids"]) // len(batch["images_G"])
    where_R, which_R = (
        torch.tensor([k * size + i for k in groups for i in range(size)], dtype=torch.long)
        for groups in (old_K, new_K)
    )
    images_G = list(batch["images_G"])
    for old, new in zip(old_K, new_K, strict=True):
        images_G[old] = fresh["images_G"][new]
    replaced: Batch = {"group_ids": batch["group_ids"], "images_G": images_G}
    for key, value in batch.items():
        if key in replaced:
            continue
        if not (isinstance(value, Tensor) and value.ndim and len(value) == len(batch["prompt_ids"])):
            replaced[key] = value
            continue
        mine, theirs = same_width(value, fresh[key], left=key in LEFT_PADDED)
        mine = mine.clone()
        mine[where_R.to(mine.device)] = theirs[which_R.to(theirs.device)]
        replaced[key] = mine
    return replaced


def same_width(a: Tensor, b: Tensor, *, left: bool) -> tuple[Tensor, Tensor]:
    """Both padded with zeros to the wider one's width (what is padded is masked)."""
    if a.ndim < 2:
        return a, b
    width = max(a.shape[1], b.shape[1])

    def pad(x: Tensor) -> Tensor:
        room = width - x.shape[1]
        return F.pad(x, (room, 0) if left else (0, room))

    return pad(a), pad(b)


def live_groups(batch: Batch) -> list[bool]:
    """Which groups have an advantage that is not zero."""
    size = len(batch["prompt_ids"]) // len(batch["images_G"])
    advantage_BX = batch["advantages"].view(len(batch["prompt_ids"]), -1)
    return (advantage_BX != 0).any(1).view(-1, size).any(1).tolist()


def grouped_rows(
    batch: Batch, keep_B: Tensor
) -> tuple[dict[str, Tensor], list[list[int]], list[int], list[Images]]:
    """What `score` takes: inputs of the distinct prompts, the kept completions, whose they are, and the
    prompts' images.
    """
    rows = keep_B.nonzero().squeeze(1)
    group_R = batch["group_ids"][rows].tolist()
    first_of = {g: r for r, g in reversed(list(zip(rows.tolist(), group_R, strict=True)))}
    order = list(dict.fromkeys(group_R))
    heads = torch.tensor([first_of[g] for g in order], device=rows.device)
    prompt = {"input_ids": batch["prompt_ids"][heads], "attention_mask": batch["prompt_mask"][heads]}
    ids, mask = batch["completion_ids"][rows], batch["completion_mask"][rows].bool()
    completions = [row[keep].tolist() for row, keep in zip(ids, mask, strict=True)]
    place = {g: p for p, g in enumerate(order)}
    return prompt, completions, [place[g] for g in group_R], [batch["images_G"][g] for g in order]
