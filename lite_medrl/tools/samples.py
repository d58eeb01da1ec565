"""What is in a data source: its questions by split, kind, modality and licence, one in full, its faults."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lite_medrl.data.check import check
from lite_medrl.data.rows import Fault, rows_lost
from lite_medrl.data.sets import registry
from lite_medrl.data.sets.medmnist_facts import SUBSETS
from lite_medrl.data.sources import OnError, embedded_samples
from lite_medrl.sections import Data
from lite_medrl.types import Sample

MOST_FAULTS = 20  # printed; --json has all
SPLIT_KEYS = ("train_split", "validation_split", "test_split")


def inspect(source: str = "embedded", *, on_error: OnError = "stop") -> dict[str, Any]:
    """Counts of the questions that can be used, the first of them, every fault, fields that nothing reads,
    and the splits that a recipe would miss.

    `on_error` is what a run would do about faults; `stops` says whether one of them ends it.
    Raises DataError where the file cannot be read at all.
    """
    found = check(source)
    unskippable = any(fault.lost is None for fault in found.faults)
    return {
        "source": source,
        "rows": found.rows,
        **count(found.samples),
        "sample": shown(found.samples[0]) if found.samples else None,
        "missing_splits": missing_splits(found.samples),
        "unknown_fields": list(found.unknown_fields),
        "skipped": rows_lost(found.faults),
        "on_error": on_error,
        "stops": bool(found.faults) and (on_error == "stop" or unskippable or not found.samples),
        "faults": [asdict(fault) for fault in found.faults],
    }


def missing_splits(samples: Sequence[Sample]) -> dict[str, str]:
    """The splits that a recipe asks for by default and that hold no sample, by the recipe's key."""
    have = {sample.split for sample in samples}
    wanted = {f"data.{name}": getattr(Data(), name) for name in SPLIT_KEYS}
    return {key: split for key, split in wanted.items() if split not in have}


def catalogue() -> dict[str, Any]:
    """The sources that travel with the package, with their counts, and the published sets by name."""
    return {
        "sources": [{"source": "embedded", **count(embedded_samples())}],
        "sets": [entry(name) for name in registry.names()],
    }


def fetched(name: str, folder: Path | None) -> dict[str, Any]:
    """A named set, fetched into the folder or the cache."""
    from lite_medrl.data.fetch import fetch

    return fetch(name, folder)


def entry(name: str) -> dict[str, Any]:
    """What is known of a named set, and whether it has been fetched."""
    licence, access = registry.licence_of(name)
    one, subset = registry.SETS.get(name), SUBSETS.get(name)
    note = one.note if one else "sizes 28, 64, 128, 224: " + f"{name}@224" if subset else ""
    here = registry.place_of(name).exists() if subset or (one and one.hub) else False
    return {
        "name": name,
        "title": one.title if one else f"MedMNIST, {subset.modality if subset else ''}",
        "licence": licence,
        "access": access,
        "splits": list(registry.splits_of(name)),
        "hub": one.hub if one else "",
        "note": note,
        "here": here,
    }


def count(samples: Sequence[Sample]) -> dict[str, Any]:
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
    letter = sample.letter if sample.options else None
    told = {name: value for name, value in asdict(sample).items() if name != "place"}
    return {**told, "images": [str(image) for image in sample.images], "letter": letter}


def describe(report: dict[str, Any]) -> str:
    """A report of `inspect` or `catalogue` for a person."""
    if "sources" in report:
        return "\n".join([*(describe(source) for source in report["sources"]), *named(report["sets"])])
    lines = [f"{report['source']}: {report['questions']} questions about {report['images']} images"]
    for key in ("split", "kind", "modality", "licence", "options"):
        lines.append(f"  by {key}: " + ", ".join(f"{name} {n}" for name, n in report[f"by_{key}"].items()))
    if report.get("sample"):
        values = report["sample"].items()
        lines += ["  one of them:", *(f"    {key}: {plain(value)}".rstrip() for key, value in values)]
    if report.get("unknown_fields"):
        lines.append(f"fields that nothing reads: {', '.join(report['unknown_fields'])}")
    return "\n".join([*lines, *warnings(report), *faults(report)])


def plain(value: Any) -> str:
    """A value of a row as text: a list's parts between bars, nothing where there is none."""
    if value is None:
        return ""
    return " | ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def named(sets: Sequence[dict[str, Any]]) -> list[str]:
    """A line a named set, its note below it."""
    lines = ["sets by name (* is fetched; lite-medrl data fetch NAME, or NAME:PATH for files of your own):"]
    for one in sets:
        splits = ", ".join(one["splits"])
        mark = "*" if one["here"] else " "
        lines.append(f"{mark} {one['name']:<18}{one['title']}; {one['licence']}; {one['access']}; {splits}")
        lines += [f"{'':<20}{one['note']}"] if one["note"] else []
    return lines


def warnings(report: dict[str, Any]) -> list[str]:
    """A line a split that a recipe would miss."""
    return [
        f"warning: no question that can be used in split {split!r}, which a run needs; give rows that split, "
        f"or name another in the recipe by {key}"
        for key, split in report.get("missing_splits", {}).items()
    ]


def faults(report: dict[str, Any]) -> list[str]:
    """The first faults, each with file and row, and how many more there are."""
    found, rows = [Fault(**fault) for fault in report.get("faults", [])], report.get("rows", 0)
    if not found:
        return []
    source, left = report["source"], len(found) - MOST_FAULTS
    lines = [f"{len(found)} fault{'s' * (len(found) > 1)} in {rows} rows; {consequence(report)}:"]
    for fault in found[:MOST_FAULTS]:
        at = fault.place or source
        lines.append(f"  {at}: {fault.what}")
    return [*lines, f"  and {left} more; --json lists all"] if left > 0 else lines


def consequence(report: dict[str, Any]) -> str:
    """What a run does about the faults."""
    if report["on_error"] == "stop":
        return "a run stops at the first that it meets"
    if not report["questions"]:
        return "nothing is left that a run could use, although it skips them (data.on_error=skip)"
    if report["stops"]:
        return "a run stops, although it skips what it can (data.on_error=skip): a file cannot be read on"
    rows = report["skipped"]
    return f"a run with data.on_error=skip goes on without {rows} row{'s' * (rows > 1)}"
