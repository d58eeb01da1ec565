"""Which images belong to which prompt of a batch, and which prompts show the same ones.

Processors lay the images of a batch end to end (Qwen-VL even their patches), or prompt by prompt with blank
ones for filling (Idefics3, SmolVLM). The image tokens of each prompt say where one prompt's images stop.

Letters: P prompts, I images (or tiles of them).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Images = Mapping[str, Tensor]  # the image tensors of one prompt, as the model's processor makes them

PER_IMAGE = ("pixel_values", "image_grid_thw", "pixel_attention_mask", "image_sizes", "spatial_shapes")


def split_images(config: Any, inputs: Mapping[str, Tensor]) -> list[Images]:
    """The image tensors of each prompt.

    Raises:
        ValueError: a prompt whose image tokens do not match its images; it names the prompt.
    """
    tokens_P = (inputs["input_ids"] == config.image_token_id).sum(1).tolist()
    tensors = {key: inputs[key] for key in PER_IMAGE if inputs.get(key) is not None}
    pixels = tensors.get("pixel_values")
    if pixels is not None and pixels.ndim == 5:  # Idefics3, SmolVLM: [P, tiles, C, H, W]
        for p, tokens in enumerate(tokens_P):
            images_of(p, tokens, [tokens_of_tiles(config, pixels[p])])
        return [{key: value[p : p + 1] for key, value in tensors.items()} for p in range(len(tokens_P))]
    grid = tensors.get("image_grid_thw")
    if pixels is None:
        tokens_I, parts = [], {}
    elif grid is None:
        tokens_I = [tokens_per_image(config, tokens_P, len(pixels))] * len(pixels)
        parts = {key: value.split(1) for key, value in tensors.items()}
    else:
        tokens_I = [n // config.vision_config.spatial_merge_size**2 for n in grid.prod(1).tolist()]
        parts = {"pixel_values": pixels.split(grid.prod(1).tolist()), "image_grid_thw": grid.split(1)}
    images_P: list[Images] = []
    first = 0
    for p, tokens in enumerate(tokens_P):
        last = first + images_of(p, tokens, tokens_I[first:])
        images_P.append({key: torch.cat(part[first:last]) for key, part in parts.items() if last > first})
        first = last
    if first < len(tokens_I):
        raise ValueError(
            f"{len(tokens_I)} images came, but prompts with {tokens_P} image tokens hold {first} of them"
        )
    return images_P


def check_image_tokens(config: Any, prompts: Sequence[Sequence[int]], images_P: Sequence[Images]) -> None:
    """ValueError naming the first prompt whose image tokens do not match its images."""
    tokens_P = [sum(token == config.image_token_id for token in prompt) for prompt in prompts]
    count = sum(len(images["pixel_values"]) for images in images_P if "pixel_values" in images)
    usual = tokens_per_image(config, tokens_P, count) if count else 0
    for p, (tokens, images) in enumerate(zip(tokens_P, images_P, strict=True)):
        if "pixel_values" not in images:
            made = 0
        elif images["pixel_values"].ndim == 5:
            made = tokens_of_tiles(config, images["pixel_values"][0])
        elif "image_grid_thw" in images:
            made = int(images["image_grid_thw"].prod(1).sum()) // config.vision_config.spatial_merge_size**2
        else:
            made = usual * len(images["pixel_values"])
        if tokens != made:
            raise ValueError(
                f"prompt {p} holds {tokens} image tokens, but its images make {made}; was it truncated?"
            )


def images_of(p: int, tokens: int, tokens_I: Sequence[int]) -> int:
    """How many of the next images make up the image tokens of prompt p."""
    total = count = 0
    while total < tokens and count < len(tokens_I):
        total, count = total + tokens_I[count], count + 1
    if total != tokens:
        raise ValueError(
            f"prompt {p} holds {tokens} image tokens, but its images make {total}; was it truncated?"
        )
    return count


def tokens_per_image(config: Any, tokens_P: Sequence[int], images: int) -> int:
    """Tokens of an image where all have as many: what the config declares, if a prompt agrees with it."""
    declared = getattr(config, "mm_tokens_per_image", None) or getattr(config, "image_seq_length", None)
    if declared and any(tokens and tokens % declared == 0 for tokens in tokens_P):
        return declared
    return max(1, round(sum(tokens_P) / images))


def tokens_of_tiles(config: Any, tiles: Tensor) -> int:
    """Image tokens that Idefics3's tiles [n, C, H, W] make; tiles of zeros are filling."""
    height, width = (size // config.vision_config.patch_size for size in tiles.shape[-2:])
    return height * width // config.scale_factor**2 * int(tiles.flatten(1).any(1).sum())


def with_equal_images(images_P: Sequence[Images]) -> list[list[int]]:
    """Prompts whose images are equal, together; a prompt without images stays alone."""
    found: list[list[int]] = []
    keys: dict[int, Any] = {}  # shapes and sums tell most images apart without comparing them
    for p, images in enumerate(images_P):
        keys[p] = [(name, tuple(x.shape), float(x.sum(dtype=torch.float64))) for name, x in images.items()]
        for alike in found:
            other = images_P[alike[0]]
            if images and keys[p] == keys[alike[0]] and all(torch.equal(images[k], other[k]) for k in images):
                alike.append(p)
                break
        else:
            found.append([p])
    return found


def as_weights(base: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, those of numbers (pixels) in the dtype of the model's first weight, its tower's.

    Processors make fp32, and not every tower casts what it is shown (Segformer does not).
    """
    return {
        key: value.to(base.dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
        for key, value in tensors.items()
    }


def join_images(images: Sequence[Images]) -> dict[str, Tensor]:
    """The images of several rows as one batch."""
    joined = {}
    for name in dict.fromkeys(name for one in images for name in one):
        values = [one[name] for one in images if name in one]
        if values[0].ndim == 5 or name == "pixel_attention_mask":  # Idefics3: fill up with blank tiles
            most = max(value.shape[1] for value in values)
            room = [0, 0] * (values[0].ndim - 2)
            values = [F.pad(value, [*room, 0, most - value.shape[1]]) for value in values]
        joined[name] = torch.cat(values)
    return joined
