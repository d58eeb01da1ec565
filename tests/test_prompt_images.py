"""Images of a batch are given to their prompts, or the prompt that does not match them is named."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_vlms import IMAGE, MAKERS, batch, image_tokens, make_case, make_images, make_qwen3_vl

from lite_medrl.model.packed import plan
from lite_medrl.model.prompt_images import split_images, with_equal_images


def test_bad_images_name_the_prompt() -> None:
    case = make_case("llava")
    image = image_tokens("llava", 0)
    images = [make_images("llava", [n]) for n in range(3)]

    def split(prompts: list[list[int]], config: Any = case.model.config, found: Any = images) -> Any:
        return split_images(config, batch(case, prompts, found))

    assert [len(one["pixel_values"]) for one in split([image, image + image])] == [1, 2]
    with pytest.raises(
        ValueError, match="prompt 1 holds 3 image tokens, but its images make 4; was it truncated"
    ):
        split([image, image[2:], image])
    with pytest.raises(
        ValueError, match=r"3 images came, but prompts with \[4, 0, 4\] image tokens hold 2 of them"
    ):
        split([image, [1], image])
    with pytest.raises(ValueError, match="prompt 0 holds 4 image tokens, but its images make 0"):
        split([image], found=[{}])
    qwen = make_qwen3_vl().config
    found = [make_images("qwen3_vl", [0]), make_images("qwen3_vl", [2])]
    good = [image_tokens("qwen3_vl", 0), image_tokens("qwen3_vl", 2)]
    assert [one["image_grid_thw"].tolist() for one in split(good, qwen, found)] == [[[1, 4, 4]], [[1, 2, 6]]]
    with pytest.raises(ValueError, match="prompt 1 holds 2 image tokens, but its images make 3"):
        split([good[0], good[1][2:]], qwen, found)
    smol = MAKERS["smolvlm"]().config
    tiles = [make_images("smolvlm", [0]), make_images("smolvlm", [1, 2])]
    assert [one["pixel_values"].shape[1] for one in split([image, image * 2], smol, tiles)] == [
        2,
        2,
    ]  # one is blank
    with pytest.raises(ValueError, match="prompt 0 holds 8 image tokens, but its images make 4"):
        split([image * 2, image * 2], smol, tiles)
    with pytest.raises(ValueError, match="completion 1 holds the image token 60; ban it"):
        plan(case.model.config, batch(case, [image], images[:1]), [[1], [2, IMAGE]], [0, 0], max_tokens=50)


def test_equal_images_are_found() -> None:
    a, b = make_images("llava", [0]), make_images("llava", [1])
    swapped = {"pixel_values": a["pixel_values"].flip(1)}  # the same numbers in another order
    assert with_equal_images([a, b, {}, dict(a), swapped, {}]) == [[0, 3], [1], [2], [4], [5]]
