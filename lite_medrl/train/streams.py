"""Which random numbers a prompt's answers are drawn with: a number made of the prompt itself.

So an answer depends on seed, step, prompt and its place among the answers to it, and on nothing else in the
batch.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from lite_medrl.model.prompt_images import Images
from lite_medrl.train.batches import images_of_groups


def prompt_keys(prompt_ids: Sequence[Sequence[int]], images_P: Sequence[Images]) -> list[int]:
    """A number below 2^32 for each prompt, from its tokens and its images (their shapes and sums)."""
    return [
        zlib.crc32(repr((list(ids), marks(images))).encode())
        for ids, images in zip(prompt_ids, images_P, strict=True)
    ]


def marks(images: Images) -> list[tuple[str, tuple[int, ...], float]]:
    """What tells one prompt's image tensors from another's, without keeping them."""
    return [(name, tuple(x.shape), float(x.double().sum())) for name, x in sorted(images.items())]


def images_of_prompts(fields: Mapping[str, Any], images: Sequence[Any] | None, prompts: int) -> list[Images]:
    """Image tensors of each prompt; none where nobody knows whose tiles are whose."""
    count = [len(row) if row else 0 for row in images] if images else None
    try:
        tensors = {key: value for key, value in fields.items() if isinstance(value, Tensor)}
        return images_of_groups(tensors | {"num_images": count}, prompts, 1)
    except (ValueError, NotImplementedError):
        return [{} for _ in range(prompts)]
