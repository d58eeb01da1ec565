"""A processor that is handed every prompt G times in a row, and looks at one copy of each, once.

TRL processes the images of a group before it samples, and again, once per completion, before it trains.
Wrapped in this, its own code gets what it expects back: the images that were processed for sampling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import BatchFeature

from lite_medrl.train.batches import IMAGE_KEYS, UNKNOWN_KEYS

PER_ROW = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")

# Counted by tiles, of which nobody says here how many a prompt has.
TILED = ("spatial_shapes", "num_patches")


class OncePerGroup:
    """Calls the processor for one row of every group, and repeats what comes back; all else is the
    processor's.

    Image tensors of Qwen's kind (patches laid end to end) stay as they are, once a group.
    """

    def __init__(self, processor: Any, size: int) -> None:
        self._processor, self._size = processor, size
        self._kept: dict[str, Tensor] = {}
        self._rows = 0

    def keep(self, fields: Mapping[str, Any], rows: int) -> None:
        """What the processor made of one row of each of `rows` groups; the next call takes its images from
        there. Fields that are not known here are left to the processor.
        """
        if not any(fields.get(key) is not None for key in UNKNOWN_KEYS):
            self._kept = {key: as_tensor(fields[key]) for key in IMAGE_KEYS if fields.get(key) is not None}
            self._rows = rows

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processor, name)

    def __call__(self, *args: Any, images: Any = None, text: Any = None, **options: Any) -> Any:
        """The processor's output for all rows; images alone, where they were kept."""
        size = self._size
        if args or images is None or len(images) != len(text) or len(text) % size or not alike(text, size):
            return self._processor(*args, images=images, text=text, **options)
        found: Any = BatchFeature(dict(self._kept))
        if not self._kept or self._rows != len(text) // size:
            found = self._processor(images=images[::size], text=text[::size], **options)
        counts = [len(row) if row else 0 for row in images[::size]]
        repeated = {key: repeat(key, value, found, counts, size) for key, value in found.items()}
        if any(value is None for value in repeated.values()):
            return self._processor(images=images, text=text, **options)
        for key, value in repeated.items():
            found[key] = value
        return found


def as_tensor(value: Any) -> Tensor:
    """A tensor from a tensor, an array, or a list of arrays of one shape."""
    return value if isinstance(value, Tensor) else torch.from_numpy(np.asarray(value))


def alike(text: Sequence[str], size: int) -> bool:
    """Whether every `size` rows are one prompt."""
    return all(len(set(text[i : i + size])) == 1 for i in range(0, len(text), size))


def repeat(key: str, value: Any, found: Any, counts: Sequence[int], size: int) -> Tensor | None:
    """The tensor for all rows; None if its entries are neither rows nor images."""
    if not isinstance(value, Tensor) or any(name in found for name in TILED):
        return None
    if "image_grid_thw" in found and key in ("pixel_values", "image_grid_thw"):
        return value
    # Idefics3's tiles lie row by row; other images one after the other, or else nobody says whose they are.
    by_row = key in PER_ROW or found["pixel_values"].ndim == 5
    if by_row and len(value) == len(counts):
        return value.repeat_interleave(size, 0)
    if not by_row and len(value) == sum(counts):
        parts = value.split(list(counts))
        return torch.cat([part for part in parts for _ in range(size)])
    return None
