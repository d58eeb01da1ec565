"""A processor that looks at one copy of each prompt hands back what it would for all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from transformers import BatchFeature

from lite_medrl.train.once import OncePerGroup

TEXT = ["<image>what is it ?", "<image>which colour ?"]


class Counting:
    """A processor with made-up tensors; it notes how many prompts it saw."""

    def __init__(self, **fields: Any) -> None:
        self.fields, self.seen, self.name = fields, [], "counting"

    def __call__(self, *, images: Any, text: Any, **options: Any) -> BatchFeature:
        self.seen.append(len(text))
        return BatchFeature({key: make(images, text) for key, make in self.fields.items()})


def rows(images: Any, text: Any) -> torch.Tensor:
    return torch.tensor([[len(t), len(i or [])] for t, i in zip(text, images, strict=True)])


def per_image(images: Any, text: Any) -> torch.Tensor:
    return torch.tensor([[float(x)] for row in images for x in row or []])


def test_the_real_processor_gives_the_same_for_less() -> None:
    processor = tiny.make_processor()
    images = [[Image.new("RGB", (tiny.SIZE, tiny.SIZE), c)] for c in ("red", "blue") for _ in range(3)]
    text = [t for t in TEXT for _ in range(3)]
    options = {"padding": True, "return_tensors": "pt"}
    expected = processor(images=images, text=text, **options)
    found = OncePerGroup(processor, 3)(images=images, text=text, **options)
    assert type(found) is type(expected)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


def test_images_rows_and_patches_are_repeated_as_they_lie() -> None:
    processor = Counting(input_ids=rows, pixel_values=per_image)
    images, text = [[1, 2], [1, 2], None, None, [3], [3]], ["a", "a", "bb", "bb", "c", "c"]
    found = OncePerGroup(processor, 2)(images=images, text=text)
    assert processor.seen == [3]
    assert found["input_ids"].tolist() == rows(images, text).tolist()
    assert found["pixel_values"].tolist() == per_image(images, text).tolist()
    qwen = Counting(input_ids=rows, pixel_values=per_image, image_grid_thw=per_image)
    found = OncePerGroup(qwen, 2)(images=images, text=text)
    assert found["pixel_values"].flatten().tolist() == [1, 2, 3]  # once a group
    assert OncePerGroup(qwen, 2).name == "counting"


def test_images_that_were_kept_are_not_processed_again() -> None:
    processor = Counting(input_ids=rows, pixel_values=per_image)
    once = OncePerGroup(processor, 2)
    fields: Any = {"pixel_values": [np.array([4.0]), np.array([5.0])], "input_ids": [[1], [2]]}
    once.keep(fields, 2)
    found = once(images=[[1], [1], [2], [2]], text=["a", "a", "b", "b"])
    assert processor.seen == []
    assert {key: value.tolist() for key, value in found.items()} == {
        "pixel_values": [[4.0], [4.0], [5.0], [5.0]]
    }


def test_what_was_kept_of_other_prompts_or_is_not_known_is_not_used() -> None:
    processor = Counting(input_ids=rows, pixel_values=per_image)
    once = OncePerGroup(processor, 2)
    once.keep({"pixel_values": [np.array([4.0])]}, 1)
    found = once(images=[[1], [1], [2], [2]], text=["a", "a", "b", "b"])
    assert found["pixel_values"].flatten().tolist() == [1, 1, 2, 2]
    once = OncePerGroup(processor, 2)
    once.keep({"pixel_values": [np.array([4.0])], "image_position_ids": [[0]]}, 1)
    assert once(images=[[1], [1]], text=["a", "a"])["pixel_values"].flatten().tolist() == [1, 1]
    assert processor.seen == [2, 1]


def test_tiles_are_never_taken_for_rows() -> None:
    """One image of three tiles and two prompts without images: three entries, but not one a row."""
    tiles = Counting(
        input_ids=rows, pixel_values=lambda images, text: torch.zeros(3 * len(text) // 3, 3, 2, 2)
    )
    found = OncePerGroup(tiles, 2)(images=[[1], [1], None, None, None, None], text=list("aabbcc"))
    assert tiles.seen == [3, 6]
    assert len(found["pixel_values"]) == 6


@pytest.mark.parametrize("case", ["tiles", "not alike", "uneven"])
def test_where_copies_cannot_be_told_all_rows_are_processed(case: str) -> None:
    tiles = Counting(input_ids=rows, pixel_values=lambda images, text: torch.zeros(len(text) * 3, 1))
    images, text = [[1]] * 4, ["a", "a", "b", "b" if case != "not alike" else "c"]
    if case == "uneven":
        images, text = images[:3], text[:3]
    found = OncePerGroup(tiles, 2)(images=images, text=text)
    assert tiles.seen == ([2, 4] if case == "tiles" else [len(text)])
    assert len(found["pixel_values"]) == 3 * len(text)
