"""MedMNIST's arrays as questions: classes become lettered options, ChestMNIST's labels yes/no questions.

The options of a row are shuffled by a seed that depends on set, split and row, not on the size in pixels, so
28 and 224 pixels ask the same. Of more than ten classes (the organ sets have eleven) the row's own and nine
others stand. The class names in the file are never used: the labels are numbers.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from lite_medrl.data.cache import has_md5
from lite_medrl.data.rows import Fault
from lite_medrl.data.sets.arrays import stored
from lite_medrl.data.sets.fields import YES_NO, FieldMap, Place, Values
from lite_medrl.data.sets.medmnist_facts import SIZES, SUBSETS, Subset
from lite_medrl.data.sets.tables import Row
from lite_medrl.types import LETTERS, DataError, ImageRef

SPLITS = {"train": "train", "validation": "val", "test": "test"}
SEED = 0


def subset_of(name: str) -> tuple[Subset, int] | None:
    """The subset and the size of NAME or NAME@SIZE; None for another name, DataError for another size."""
    stem, _, size = name.partition("@")
    subset = SUBSETS.get(stem)
    if subset is None:
        return None
    if size and size not in map(str, SIZES):
        raise DataError(f"{name}: MedMNIST comes in {', '.join(map(str, SIZES))} pixels; write {stem}@224")
    return subset, int(size or 28)


def checked_file(path: Path, subset: Subset, size: int) -> Path:
    """The same path; DataError where it is missing or not the published file."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; fetch it: lite-medrl data fetch {subset.name}@{size}")
    if not has_md5(path, subset.md5[size]):
        raise DataError(
            f"{path}: its MD5 is not the published one of {subset.file(size)}; download it again, "
            "or make questions of your own arrays into a .jsonl file"
        )
    return path


@dataclass(frozen=True)
class Arrays:
    """The rows of one split of an .npz file: the label and where the image lies."""

    path: Path
    split: str

    def rows(self) -> Iterator[Row | Fault]:
        for at in range(len(labels(str(self.path), SPLITS[self.split]))):
            yield Row(at, at, self.read(at))

    def read(self, at: int) -> Values:
        key = SPLITS[self.split]
        label = labels(str(self.path), key)[at]
        return {"image": ImageRef(str(self.path), f"{key}_images/{at}"), "label": label.tolist()}


@lru_cache(maxsize=8)
def labels(path: str, key: str) -> np.ndarray:
    """Labels [N, L] of a split, as many as it has images."""
    found = np.array(stored(path, f"{key}_labels").all())
    images = stored(path, f"{key}_images")
    if found.ndim != 2 or len(found) != images.shape[0]:
        raise DataError(f"{path}: labels {found.shape} do not fit images {images.shape}; download it again")
    return found


def field_map(subset: Subset) -> FieldMap:
    """The map of a subset's rows."""
    ask = labels_asked if subset.many else class_asked

    def convert(values: Values, place: Place) -> list[Values]:
        return ask(subset, values, place)

    return FieldMap(("image", "label"), convert)


def class_asked(subset: Subset, values: Values, place: Place) -> list[Values]:
    """One question: which class?"""
    (label,) = values["label"]
    if not 0 <= label < len(subset.classes):
        raise DataError(
            f"label {label} is none of the {len(subset.classes)} classes; download the file again"
        )
    draw = random.Random(f"{SEED}/{subset.name}/{place.split}/{place.number}")
    right = subset.classes[label]
    others = [name for name in subset.classes if name != right]
    options = [right, *draw.sample(others, min(len(others), len(LETTERS) - 1))]
    draw.shuffle(options)
    return [base(subset, values, place) | {"question": subset.question, "options": options, "answer": right}]


def labels_asked(subset: Subset, values: Values, place: Place) -> list[Values]:
    """A yes/no question for every label."""
    found = []
    for name, label in zip(subset.classes, values["label"], strict=True):
        row: dict[str, Any] = {
            "id": place.id(place.number, name.replace(" ", "-")),
            "question": subset.question.format(finding=name),
            "options": list(YES_NO),
            "answer": YES_NO[0] if label else YES_NO[1],
            "kind": name,
        }
        found.append(base(subset, values, place) | row)
    return found


def base(subset: Subset, values: Values, place: Place) -> Values:
    """What all questions about an image share."""
    return {
        "id": place.id(),
        "images": [values["image"]],
        "kind": "class",
        "modality": subset.modality,
        "licence": subset.licence,
    }
