"""`data convert`: any source as a folder of one's own rows, or as conversations for LLaMA-Factory.

Images are written as PNG files named by their pixels: once each, without metadata, whatever they were before.
The folder appears whole or not at all.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TextIO

from lite_medrl.data.audit import seen
from lite_medrl.data.images import load_image, png
from lite_medrl.data.prompts import INSTRUCTION, question_text, target_text
from lite_medrl.data.sources import OnError, Questions, Tally, image_fault, iter_samples
from lite_medrl.types import DataError, ImageRef, Sample

Format = Literal["jsonl", "sharegpt"]
TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}


@dataclass
class Writer:
    """The files of a conversion as they grow: one of rows a split, and the images."""

    folder: Path
    row_of: Callable[[Sample, list[str]], dict[str, Any]]
    names: dict[ImageRef, str] = field(default_factory=dict)
    open: dict[str, TextIO] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    def write(self, sample: Sample) -> None:
        """One sample. DataError for an image that cannot be used; then nothing of the sample is written."""
        images = [self.image(ref) for ref in sample.images]
        split = "".join(c if c.isalnum() else "_" for c in sample.split)
        if split not in self.open:
            self.open[split] = (self.folder / f"{split}.jsonl").open("w", encoding="utf-8")
        self.open[split].write(json.dumps(self.row_of(sample, images), ensure_ascii=False) + "\n")
        self.counts[sample.split] += 1

    def image(self, ref: ImageRef) -> str:
        """The name of an image in the folder, written where it is new."""
        if ref not in self.names:
            image = load_image(ref)
            name = f"images/{seen(image).pixels}.png"
            if not (self.folder / name).exists():
                (self.folder / name).write_bytes(png(image))
            self.names[ref] = name
        return self.names[ref]

    def close(self) -> None:
        for file in self.open.values():
            file.close()


def convert(
    source: str,
    folder: Path,
    *,
    split: str | None = None,
    form: Format = "jsonl",
    questions: Questions = "all",
    on_error: OnError = "stop",
) -> dict[str, Any]:
    """Writes the source into a new folder; returns counts and how to name it in a recipe.

    Raises:
        DataError: a folder that holds something, and unless they are skipped, rows and images that cannot be
            used.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder}: is there already and not empty; give the name of a new folder")
    half = folder.with_name(f".{folder.name}.half")
    shutil.rmtree(half, ignore_errors=True)
    (half / "images").mkdir(parents=True)
    writer, tally = Writer(half, own_row if form == "jsonl" else conversation_row), Tally()
    try:
        for sample in iter_samples(source, split, questions=questions, on_error=on_error, tally=tally):
            try:
                writer.write(sample)
            except DataError as error:
                fault = image_fault(sample, str(error))
                if on_error == "stop":
                    raise DataError(str(fault)) from error
                tally.faults.append(fault)
        writer.close()
        if not writer.counts:
            raise DataError(f"{source}: nothing to convert; {tally.skipped} rows were skipped for a fault")
        if form == "sharegpt":
            as_lists(half, list(writer.open))
        if folder.exists():
            folder.rmdir()
        half.replace(folder)
    finally:
        writer.close()
        shutil.rmtree(half, ignore_errors=True)
    return {
        "source": source,
        "folder": str(folder),
        "format": form,
        "questions": dict(writer.counts),
        "images": len(set(writer.names.values())),
        "left_out": tally.to_json(),
    }


def own_row(sample: Sample, images: list[str]) -> dict[str, Any]:
    """A row in the README's format."""
    row = {
        "id": sample.id, "images": images, "question": sample.question, "options": list(sample.options),
        "answer": sample.answer, "split": sample.split, "kind": sample.kind, "modality": sample.modality,
        "source": sample.source, "licence": sample.licence, "subject": sample.subject,
        "reasoning": sample.reasoning,
    }  # fmt: skip
    return {key: value for key, value in row.items() if value is not None}


def conversation_row(sample: Sample, images: list[str]) -> dict[str, Any]:
    """A pair of turns, worded as our own prompt."""
    text = question_text(sample.question, sample.options, INSTRUCTION)
    turns = [
        {"role": "user", "content": "<image>" * len(images) + text},
        {"role": "assistant", "content": target_text(sample)},
    ]
    return {"id": sample.id, "messages": turns, "images": images}


def as_lists(folder: Path, splits: list[str]) -> None:
    """Rewrites the rows as JSON lists, and names them in dataset_info.json."""
    for split in splits:
        lines = folder / f"{split}.jsonl"
        with (
            lines.open(encoding="utf-8") as rows,
            (folder / f"{split}.json").open("w", encoding="utf-8") as out,
        ):
            for number, row in enumerate(rows):
                out.write((",\n" if number else "[\n") + row.rstrip("\n"))
            out.write("\n]\n")
        lines.unlink()
    columns = {"messages": "messages", "images": "images"}
    info = {
        f"lite_medrl_{split}": {
            "file_name": f"{split}.json", "formatting": "sharegpt", "columns": columns, "tags": TAGS
        }
        for split in splits
    }  # fmt: skip
    (folder / "dataset_info.json").write_text(json.dumps(info, indent=2) + "\n")


def describe(report: dict[str, Any]) -> str:
    """The report for a person."""
    told = ", ".join(f"{name} {count}" for name, count in report["questions"].items())
    left = report["left_out"]
    lines = [f"{report['folder']}: {told}; {report['images']} images"]
    if left["skipped"]:
        lines += [
            f"left out for a fault: {left['skipped']} rows",
            *(f"  {fault}" for fault in left["faults"][:3]),
        ]
    if report["format"] == "jsonl":
        lines.append(f"in a recipe: data.source: {report['folder']}")
    return "\n".join(lines)
