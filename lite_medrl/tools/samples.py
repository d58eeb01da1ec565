"""What is in a data source: its questions by split, kind, modality and licence, and one of them in full."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lite_medrl.data.sources import check_images, embedded_samples, jsonl_samples
from lite_medrl.types import Sample


def inspect(source: str = "embedded") -> dict[str, Any]:
    """Counts of a source after every row was checked and every image opened, and its first sample.

    Raises DataError for a row or an image that cannot be used.
    """
    samples = embedded_samples() if source == "embedded" else jsonl_samples(Path(source))
    check_images(samples)
    return {"source": source, **count(samples), "sample": shown(samples[0])}


def catalogue() -> dict[str, Any]:
    """The sources that travel with the package, with their counts; a .jsonl file is a source too."""
    return {"sources": [{"source": "embedded", **count(embedded_samples())}]}


def count(samples: list[Sample]) -> dict[str, Any]:
    """Questions and distinct images; questions by split, kind, modality, licence and number of options."""
    return {
        "questions": len(samples),
        "images": len({image for sample in samples for image in sample.images}),
        "by_split": tally(sample.split for sample in samples),
        "by_kind": tally(sample.kind for sample in samples),
        "by_modality": tally(sample.modality for sample in samples),
        "by_licence": tally(sample.licence for sample in samples),
        "by_options": tally(str(len(sample.options)) for sample in samples),
    }


def tally(names: Iterable[str]) -> dict[str, int]:
    """How often each name comes, the most frequent first."""
    return dict(Counter(names).most_common())


def shown(sample: Sample) -> dict[str, Any]:
    """A sample as plain JSON, with the letter of its gold option."""
    return {**asdict(sample), "images": [str(image) for image in sample.images], "letter": sample.letter}


def describe(report: dict[str, Any]) -> str:
    """A report of `inspect` or `catalogue` for a person."""
    if "sources" in report:
        return "\n".join(describe(source) for source in report["sources"])
    lines = [f"{report['source']}: {report['questions']} questions about {report['images']} images"]
    for key in ("split", "kind", "modality", "licence", "options"):
        lines.append(f"  by {key}: " + ", ".join(f"{name} {n}" for name, n in report[f"by_{key}"].items()))
    if "sample" in report:
        lines += ["  one of them:", *(f"    {key}: {value}" for key, value in report["sample"].items())]
    return "\n".join(lines)
