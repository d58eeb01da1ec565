"""The order in which rows are drawn when those of one image are to stay together.

Images are shuffled, and so are the rows of each; the rows of an image follow each other, so that a batch
holds them and the prefix tree computes their image once.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

from datasets import Dataset, Features, Image, List
from torch.utils.data import Sampler

COLUMNS = ("images", "image")


class ImageOrder(Sampler[int]):
    """Draws what `places` draws, from rows put in the order of their images anew for every epoch.

    The order depends on seed and epoch alone, so that a run that is resumed in a later epoch goes on alike.
    """

    def __init__(self, places: Any, image_I: Sequence[Hashable], seed: int) -> None:
        self.places, self.image_I, self.seed, self.epoch = places, image_I, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """What transformers' Trainer calls before each epoch."""
        self.epoch = epoch
        if hasattr(self.places, "set_epoch"):
            self.places.set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        order = by_image(self.image_I, random.Random(f"{self.seed} {self.epoch}"))
        self.epoch += 1
        return (order[place] for place in self.places)

    def __len__(self) -> int:
        return len(self.places)


def by_image(image_I: Sequence[Hashable], rng: random.Random) -> list[int]:
    """Row numbers, shuffled, with the rows of one image after each other."""
    rows: dict[Hashable, list[int]] = {}
    for i, image in enumerate(image_I):
        rows.setdefault(image, []).append(i)
    groups = list(rows.values())
    rng.shuffle(groups)
    for group in groups:
        rng.shuffle(group)
    return [i for group in groups for i in group]


def images_of_rows(dataset: Any) -> list[Hashable]:
    """What tells the images of each row from those of another: paths, or digests of the encoded bytes.

    Raises:
        ValueError: a dataset without a column of images, or one that can only be streamed.
    """
    columns = [name for name in COLUMNS if name in (getattr(dataset, "column_names", None) or [])]
    if not isinstance(dataset, Dataset) or not columns:
        raise ValueError(
            "group_by_image needs a datasets.Dataset with a column `images` or `image`; "
            f"came {type(dataset).__name__} with {getattr(dataset, 'column_names', None)}"
        )
    name = columns[0]
    features = Features({name: undecoded(dataset.features[name])})
    rows: Any = dataset.select_columns([name]).cast(features)
    return [key(row[name]) for row in rows]


def undecoded(feature: Any) -> Any:
    """The same feature, but images stay as they are stored."""
    if isinstance(feature, Image):
        return Image(decode=False)
    if isinstance(feature, List) and isinstance(feature.feature, Image):
        return List(Image(decode=False))
    raise ValueError(f"group_by_image needs images of type datasets.Image, came {feature}")


def key(stored: Any) -> Hashable:
    """Of one image or a list of them as stored."""
    if isinstance(stored, list):
        return tuple(key(one) for one in stored)
    if stored is None:
        return None
    if stored["bytes"] is None:
        return stored["path"]
    return hashlib.sha256(stored["bytes"]).digest()
