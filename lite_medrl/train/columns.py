"""From samples to the `datasets.Dataset` that TRL's trainers take: prompt, completion, images and reward
columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Image, List, Value

from lite_medrl.data.images import is_plain, read_bytes
from lite_medrl.data.prompts import INSTRUCTION, conversation
from lite_medrl.types import ImageRef, Sample

MESSAGES = List({"role": Value("string"), "content": Value("string")})
FEATURES = {
    "prompt": MESSAGES,
    "completion": MESSAGES,
    "images": List(Image(mode="RGB")),  # as `load_image` gives them to evaluation
    "id": Value("string"),
    "answer": Value("string"),
    "options": List(Value("string")),
    "kind": Value("string"),
}


def to_dataset(
    samples: Sequence[Sample],
    *,
    instruction: str = INSTRUCTION,
    system: str | None = None,
    letter: bool = False,
    with_completion: bool,
) -> Dataset:
    """One row a sample. Images travel as bytes, but files as paths where TRL's reading shows what
    `load_image` does; both are decoded when a row is read.
    """
    rows = [
        conversation(s, instruction, system, letter=letter) | {"images": [encoded(ref) for ref in s.images]}
        for s in samples
    ]
    dataset = Dataset.from_list(rows, features=Features(FEATURES))
    return dataset if with_completion else dataset.remove_columns("completion")


def encoded(ref: ImageRef) -> dict[str, Any]:
    """What the Image feature stores; the feature itself turns an image upright and converts it to RGB."""
    if ref.member is None and is_plain(Path(ref.path)):
        return {"bytes": None, "path": ref.path}
    return {"bytes": read_bytes(ref), "path": None}
