"""Rows of TRL's batches in groups: whose images are whose, slices, groups that take the place of others."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lite_medrl.train.batches import (
    grouped_rows,
    images_of_groups,
    live_groups,
    number_groups,
    replace_groups,
    split_rows,
    take_rows,
)

GRID = torch.tensor([[1, 1, 2], [1, 2, 2], [1, 1, 3], [1, 1, 1]])


def patches(found: list[Any]) -> list[list[float]]:
    return [one["pixel_values"].flatten().tolist() if one else [] for one in found]


def test_patches_of_qwens_kind_go_with_their_images() -> None:
    fields = {"image_grid_thw": GRID, "pixel_values": torch.arange(10.0)[:, None], "num_images": [2, 1, 1]}
    found = images_of_groups(fields, 3, 1)
    assert patches(found) == [[0, 1, 2, 3, 4, 5], [6, 7, 8], [9]]
    assert [one["image_grid_thw"].tolist() for one in found] == [GRID[:2].tolist(), [[1, 1, 3]], [[1, 1, 1]]]


def test_the_first_row_of_a_group_has_its_images_and_patches_may_be_there_once() -> None:
    grid = GRID[[0, 1, 0, 1, 2, 2]]  # two groups of two rows: two images each row, then one
    pixels = torch.cat([torch.arange(6.0), torch.arange(6.0), *[torch.arange(6.0, 9.0)] * 2])[:, None]
    fields: dict[str, Any] = {"image_grid_thw": grid, "pixel_values": pixels, "num_images": [2, 2, 1, 1]}
    expected = [[0, 1, 2, 3, 4, 5], [6, 7, 8]]
    assert patches(images_of_groups(fields, 4, 2)) == expected
    once = fields | {"image_grid_thw": GRID[:3], "pixel_values": torch.arange(9.0)[:, None]}
    assert patches(images_of_groups(once, 4, 2)) == expected


def test_entries_may_be_images_tiles_or_rows() -> None:
    pixels, sizes = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[4], [5], [6]])
    found = images_of_groups({"num_images": [2, 1], "pixel_values": pixels, "image_sizes": sizes}, 2, 1)
    assert patches(found) == [[1, 2], [3]]
    assert [one["image_sizes"].tolist() for one in found] == [[[4], [5]], [[6]]]
    tiles = {"num_images": [1, 1], "num_tiles": [3, 2], "pixel_values": torch.arange(5.0)[:, None]}
    assert patches(images_of_groups(tiles, 2, 1)) == [[0, 1, 2], [3, 4]]
    rows = {"num_images": [2, 1], "pixel_values": torch.arange(4.0).view(2, 2, 1, 1, 1)}
    assert [tuple(one["pixel_values"].shape) for one in images_of_groups(rows, 2, 1)] == [(1, 2, 1, 1, 1)] * 2
    assert patches(images_of_groups({"num_images": [0, 1], "pixel_values": pixels[:1]}, 2, 1)) == [[], [1]]
    assert images_of_groups({}, 4, 2) == [{}, {}]


def test_rows_of_tiles_are_rows_whatever_the_number_of_images() -> None:
    pixels = torch.arange(4.0).view(4, 1, 1, 1, 1)
    mask = torch.arange(4.0).view(4, 1, 1, 1)
    fields = {"num_images": [0, 0, 2, 2], "pixel_values": pixels, "pixel_attention_mask": mask}
    found = images_of_groups(fields, 4, 2)
    assert [one["pixel_values"].flatten().tolist() for one in found] == [[0.0], [2.0]]
    assert [one["pixel_attention_mask"].flatten().tolist() for one in found] == [[0.0], [2.0]]


def test_what_fits_nothing_is_named() -> None:
    with pytest.raises(
        ValueError, match="pixel_values has 3 entries, but the batch has 2 rows with 2 images"
    ):
        images_of_groups({"num_images": [1, 1], "pixel_values": torch.zeros(3, 1)}, 2, 1)
    with pytest.raises(NotImplementedError, match="image_position_ids"):
        images_of_groups({"image_position_ids": torch.zeros(1)}, 1, 1)


def batch(advantages: list[float], width: int, images: int, start: int = 0) -> dict[str, Any]:
    rows = len(advantages)
    ids = torch.arange(start, start + rows * width).view(rows, width)
    return number_groups(
        {
            "prompt_ids": ids,
            "prompt_mask": torch.ones_like(ids),
            "completion_ids": ids + 100,
            "completion_mask": torch.ones_like(ids),
            "advantages": torch.tensor(advantages),
            "pixel_values": torch.arange(float(images))[:, None] + start,
            "num_items_in_batch": torch.tensor(7),
        },
        rows // (images // 2),
    )


def test_slices_share_the_images_and_keep_the_numbers_of_their_groups() -> None:
    whole = batch([1.0, -1.0, 0.0, 0.0], 2, 4)
    assert whole["group_ids"].tolist() == [0, 0, 1, 1]
    assert patches(whole["images_G"]) == [[0], [2]]  # those of each group's first row
    assert live_groups(whole) == [True, False]
    first, second = split_rows(whole, 2)
    assert second["group_ids"].tolist() == [1, 1]
    assert second["images_G"] is whole["images_G"]
    assert int(second["num_items_in_batch"]) == 7
    prompts, completions, owner, images = grouped_rows(second, torch.tensor([False, True]))
    assert prompts["input_ids"].tolist() == [[6, 7]]
    assert (completions, owner, patches(images)) == ([[106, 107]], [0], [[2]])
    assert take_rows(first, torch.tensor([1]))["advantages"].tolist() == [-1.0]


def test_a_fresh_group_takes_the_place_of_a_silent_one() -> None:
    """Prompts grow on the left, completions on the right; nothing of the others changes."""
    old, fresh = batch([0.0, 0.0, 1.0, -1.0], 2, 4), batch([0.0, 0.0, 2.0, -2.0], 3, 4, start=50)
    found = replace_groups(old, [0], fresh, [1])
    assert found["prompt_ids"].tolist() == [[56, 57, 58], [59, 60, 61], [0, 4, 5], [0, 6, 7]]
    assert found["prompt_mask"].tolist() == [[1, 1, 1], [1, 1, 1], [0, 1, 1], [0, 1, 1]]
    assert found["completion_ids"].tolist()[1:3] == [[159, 160, 161], [104, 105, 0]]
    assert found["completion_mask"].sum(1).tolist() == [3, 3, 2, 2]
    assert found["advantages"].tolist() == [2.0, -2.0, 1.0, -1.0]
    assert patches(found["images_G"]) == [[52], [2]]
    assert found["group_ids"].tolist() == [0, 0, 1, 1]
    assert patches(old["images_G"]) == [[0], [2]]
