"""Which tables make a source? The embedded pack, files of one's own, or a named set."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from lite_medrl.data.rows import FIELDS
from lite_medrl.data.sets import registry
from lite_medrl.data.sets.fields import FieldMap, Place, Values
from lite_medrl.data.sets.own import OWN, OWN_CELLS
from lite_medrl.data.sets.registry import Part
from lite_medrl.data.sets.tables import JsonLines, open_table
from lite_medrl.types import DataError, ImageRef

EMBEDDED = Path(__file__).parent / "embedded"
FILES = (".jsonl", ".csv", ".tsv", ".parquet")  # that make a folder a source
SPLIT_NAMES = {"val": "validation", "valid": "validation", "dev": "validation"}


def parts_of(source: str, split: str | None) -> list[Part]:
    """The tables of a source that may hold rows of the split."""
    if source == "embedded":
        return [Part(JsonLines(EMBEDDED / "questions.jsonl"), "train", embedded_map())]
    if registry.is_named(source):
        have = registry.splits_of(registry.name_and_path(source)[0])
        if split is not None and split not in have:
            raise DataError(f"{source}: no split {split!r}; the set has {', '.join(have)}")
        return registry.parts_of(source, split)
    path = Path(source)
    if path.is_dir():
        files = [file for file in sorted(path.iterdir()) if file.suffix.lower() in FILES]
        if not files:
            raise DataError(
                f"{source}: holds no {', '.join(FILES)} file; put one with the rows beside the images"
            )
        return [own_part(file, split_of(file)) for file in files]
    if not path.suffix and not path.exists():
        raise DataError(
            f"{source}: no such file; give 'embedded' or the path of a .jsonl file, or the name of a set "
            f"(lite-medrl data list){registry.nearest(source)}"
        )
    return [own_part(path, "train")]


def own_part(path: Path, split: str) -> Part:
    """A file in the README's format."""
    return Part(open_table(path), split, OWN_CELLS if path.suffix.lower() in (".csv", ".tsv") else OWN)


def split_of(path: Path) -> str:
    """The split that a file of a folder is named after: test.jsonl, train-00000-of-00002.parquet."""
    stem = path.stem.partition("-")[0].partition("_")[0]
    name = SPLIT_NAMES.get(stem, stem)
    return name if name in ("train", "validation", "test") else "train"


@cache
def embedded_map() -> FieldMap:
    """The pack's questions joined with their images' source, modality and licence."""
    images = {row["id"]: row for row in read_jsonl(EMBEDDED / "images.jsonl")}
    pack = str(EMBEDDED / "images.zip")

    def convert(values: Values, place: Place) -> list[Values]:
        image = images[values["image"]]
        shared = {key: image[key] for key in ("modality", "source", "licence", "subject") if key in image}
        return [{**shared, **values, "images": [ImageRef(pack, image["file"])]}]

    return FieldMap((), convert, (*FIELDS, "fact"))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """One object a line; empty lines are skipped."""
    with path.open(encoding="utf-8", newline="\n") as file:
        return [json.loads(line) for line in file if line.strip()]
