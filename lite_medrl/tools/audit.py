"""`data audit`: overlap, duplicates, priors, and what is scored without looking, in numbers and in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from lite_medrl.data import audit as measure
from lite_medrl.data.sets import registry
from lite_medrl.data.sources import OnError, Tally, load_samples, with_good_images
from lite_medrl.measure.statistics import wilson_ci
from lite_medrl.types import DataError, Sample


def audit(
    source: str, *, train: str = "train", test: str = "test", on_error: OnError = "stop"
) -> dict[str, Any]:
    """All measurements of a source; open questions count where they can.

    Raises:
        DataError: a split that is not there and, unless they are skipped, rows or images with a fault.
    """
    tallies = {train: Tally(), test: Tally()}
    splits = {
        split: usable(
            load_samples(source, split, questions="all", on_error=on_error, tally=tallies[split]),
            tallies[split],
            on_error,
        )
        for split in (train, test)
    }
    both = [s for samples in splits.values() for s in samples]
    hashes = measure.look_at(both)
    scored = measure.guesses(splits[train], splits[test])
    return {
        "source": source,
        "train": train,
        "test": test,
        "questions": {split: len(samples) for split, samples in splits.items()},
        "open_questions": {split: sum(not s.options for s in samples) for split, samples in splits.items()},
        "images": measure.shared_images(splits[train], splits[test], hashes),
        "subjects": measure.shared_subjects(splits[train], splits[test]),
        "duplicates": measure.asked_twice(both, hashes),
        "answers": {split: measure.answer_priors(samples) for split, samples in splits.items()},
        "letters": {split: measure.letter_balance(samples) for split, samples in splits.items()},
        "baselines": {name: accuracy(values) for name, values in scored.items() if values},
        "terms": terms(both),
        "left_out": {split: tally.to_json() for split, tally in tallies.items()},
    }


def usable(samples: list[Sample], tally: Tally, on_error: OnError) -> list[Sample]:
    """The samples, without those whose images cannot be opened where these are skipped."""
    return with_good_images(samples, tally) if on_error == "skip" else samples


def accuracy(values: Sequence[float]) -> dict[str, Any]:
    """Mean with Wilson's 95 % interval and n; chance has no interval, it is known."""
    mean, n = sum(values) / len(values), len(values)
    known = any(value not in (0.0, 1.0) for value in values)
    return {"acc": mean, "ci95": None if known else list(wilson_ci(round(sum(values)), n)), "n": n}


def terms(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """Licence and access terms of every source that a sample names."""
    counts = Counter((s.source, s.licence) for s in samples)
    return [
        {"source": source, "licence": licence, "access": access_of(source), "questions": count}
        for (source, licence), count in counts.most_common()
    ]


def access_of(source: str) -> str:
    """The access terms of a named set; of other sources we know none."""
    name = source.partition("/")[0]
    try:
        return registry.licence_of(name)[1] if registry.is_named(name) else "see its publisher"
    except DataError:
        return "see its publisher"


def describe(report: dict[str, Any]) -> str:
    """The report for a person."""
    train, test, images, twice = (report[key] for key in ("train", "test", "images", "duplicates"))
    count = report["questions"]
    lines = [
        f"{report['source']}: {count[train]} questions in {train}, {count[test]} in {test}",
        f"images of {test} that {train} shows too: {images['same_pixels']} of {images['test_images']} "
        f"with the same pixels, {images['alike']} more look alike (up to {images['max_distance']} of 63 bits "
        f"apart); {images['test_questions']} of {count[test]} questions show one",
        *(f"  {pair['test']} ~ {pair['train']} ({pair['distance']} bits)" for pair in images["examples"][:3]),
        subjects(report["subjects"], train, test),
        f"questions asked again about the same image: {twice['extra']} in {twice['groups']} groups, "
        f"{twice['across_splits']} in both splits, {twice['different_answers']} with different answers",
        *(f"  {', '.join(names)}" for names in twice["examples"][:3]),
    ]
    for split in (train, test):
        told = ", ".join(f"{row['answer']} {row['share']:.1%}" for row in report["answers"][split][:5])
        lines.append(f"answers in {split}: {told}")
        told = ", ".join(
            f"{letter} {row['count']} (even: {row['even']:.0f})"
            for letter, row in report["letters"][split].items()
        )
        lines.append(f"gold letters in {split}: {told or 'none, all questions are open'}")
    lines.append(f"right in {test} without the image, learned from {train}:")
    lines += [f"  {name:<10}{scored(row)}" for name, row in report["baselines"].items()]
    lines.append("licences and terms:")
    lines += [
        f"  {row['source']}: {row['licence']}; access: {row['access']} ({row['questions']} questions)"
        for row in report["terms"]
    ]
    return "\n".join([*lines, *skipped(report["left_out"])])


def subjects(found: dict[str, int], train: str, test: str) -> str:
    """How many patients or papers stand in both splits."""
    if not found["test"]:
        return "subjects: the rows name none, so nobody can tell whether a patient stands in both splits"
    return f"subjects in {train} {found['train']}, in {test} {found['test']}, in both {found['both']}"


def scored(row: dict[str, Any]) -> str:
    """An accuracy with its interval."""
    if row["ci95"] is None:
        return f"{row['acc']:.3f}"
    low, high = row["ci95"]
    return f"{row['acc']:.3f} [{low:.3f}, {high:.3f}], n = {row['n']}"


def skipped(left_out: dict[str, Any]) -> list[str]:
    """Rows that were left out for a fault, and fields that nothing reads."""
    lines = []
    for split, tally in left_out.items():
        if tally["skipped"]:
            lines.append(f"left out of {split}: {tally['skipped']} rows with a fault, the first of them:")
            lines += [f"  {fault}" for fault in tally["faults"][:3]]
    unknown = sorted({name for tally in left_out.values() for name in tally["unknown_fields"]})
    return [*lines, f"fields that nothing reads: {', '.join(unknown)}"] if unknown else lines
