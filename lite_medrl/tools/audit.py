"""`data audit`: overlap, duplicates, priors, and what is scored without looking, in one source or two."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from lite_medrl.data import audit as measure
from lite_medrl.data.sets import registry
from lite_medrl.data.sources import OnError, Tally, iter_samples, load_samples, with_good_images
from lite_medrl.measure.statistics import wilson_ci
from lite_medrl.types import DataError, ImageRef, Sample

WHAT_NEEDS_BOTH = ("images", "subjects", "asked_in_both", "across_splits", "letter", "majority", "text_only")


def audit(
    source: str,
    *,
    against: str | None = None,
    train: str | None = None,
    test: str | None = None,
    on_error: OnError = "stop",
) -> dict[str, Any]:
    """All measurements between two splits; open questions count where they can.

    Args:
        against: the source of the test split; None takes both from `source`.
        train, test: None is the split of that name; if one source lacks it, the other is measured alone.

    Returns:
        JSON by the sides "train" and "test", whatever the splits are called. Where one side is missing, what
        needs both is None and named in `not_measured`.

    Raises:
        DataError: a split that is not there and, unless they are skipped, rows or images with a fault.
    """
    places = sides(source, against, train, test)
    tallies = {side: Tally() for side in places}
    found = {
        side: usable(
            load_samples(where, split, questions="all", on_error=on_error, tally=tallies[side]),
            tallies[side],
            on_error,
        )
        for side, (where, split) in places.items()
    }
    both = [s for samples in found.values() for s in samples]
    hashes = measure.look_at(both)
    return {
        "source": source,
        "against": against,
        "train": places["train"][1] if "train" in places else None,
        "test": places["test"][1] if "test" in places else None,
        "questions": {side: len(samples) for side, samples in found.items()},
        "open_questions": {side: sum(not s.options for s in samples) for side, samples in found.items()},
        **between(found.get("train", []), found.get("test", []), hashes),
        "answers": {side: measure.answer_priors(samples) for side, samples in found.items()},
        "letters": {side: measure.letter_balance(samples) for side, samples in found.items()},
        "terms": terms(both),
        "left_out": {side: tally.to_json() for side, tally in tallies.items()},
    }


def sides(
    source: str, against: str | None, train: str | None, test: str | None
) -> dict[str, tuple[str, str]]:
    """Source and split of each side that is asked for or there."""
    named = {"train": (source, train), "test": (against or source, test)}
    wanted = {side: (where, split or side) for side, (where, split) in named.items()}
    if wanted["train"] == wanted["test"]:
        raise DataError(f"{source}: --train and --test both name split {train or 'train'!r}; name two splits")
    there = {
        side: place
        for side, place in wanted.items()
        if against is not None or named[side][1] is not None or has(*place)
    }
    return there or wanted


def has(source: str, split: str) -> bool:
    """Whether the source has that split; of rows of one's own, whether one of them can be used."""
    if registry.is_named(source):
        return split in registry.splits_of(registry.name_and_path(source)[0])
    return any(True for _ in iter_samples(source, split, questions="all", on_error="skip"))


def between(
    train: Sequence[Sample], test: Sequence[Sample], hashes: Mapping[ImageRef, measure.Seen]
) -> dict[str, Any]:
    """What both sides share, questions asked again, and guesses; with one side, what can be had of it."""
    twice = measure.asked_twice(train, test, hashes)
    scored = measure.guesses(train if test else [], test or train)
    found = {
        "images": measure.shared_images(train, test, hashes),
        "subjects": measure.shared_subjects(train, test),
        "asked_in_both": measure.shared_questions(train, test, hashes),
        "duplicates": twice,
        "baselines": {name: accuracy(values) for name, values in scored.items() if values},
        "not_measured": [],
    }
    if train and test:
        return found
    alone = dict.fromkeys(("images", "subjects", "asked_in_both"))
    return found | alone | {"duplicates": twice | {"across_splits": None}, "not_measured": [*WHAT_NEEDS_BOTH]}


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
    names = names_of(report)
    lines = [*counted(report), *overlap(report, names), repeated(report["duplicates"])]
    lines += [f"  {', '.join(ids)}" for ids in report["duplicates"]["examples"][:3]]
    for side, name in names.items():
        told = ", ".join(f"{row['answer']} {row['share']:.1%}" for row in report["answers"][side][:5])
        lines.append(f"answers in {name}: {told}")
        told = ", ".join(
            f"{letter} {row['count']} (even: {row['even']:.0f})"
            for letter, row in report["letters"][side].items()
        )
        lines.append(f"gold letters in {name}: {told or 'none, all questions are open'}")
    learned = f", learned from {names['train']}" if len(names) == 2 else ""
    lines.append(f"right in {[*names.values()][-1]} without the image{learned}:")
    lines += [f"  {name:<10}{scored(row)}" for name, row in report["baselines"].items()]
    lines.append("licences and terms:")
    lines += [
        f"  {row['source']}: {row['licence']}; access: {row['access']} ({row['questions']} questions)"
        for row in report["terms"]
    ]
    left_out = {name: report["left_out"][side] for side, name in names.items()}
    return "\n".join([*lines, *skipped(left_out)])


def names_of(report: dict[str, Any]) -> dict[str, str]:
    """What each side is called: its split, with its source where there are two."""
    splits = {side: report[side] for side in report["questions"]}
    if report["against"] is None:
        return splits
    return {
        "train": f"{report['source']} ({splits['train']})",
        "test": f"{report['against']} ({splits['test']})",
    }


def counted(report: dict[str, Any]) -> list[str]:
    """How many questions each side has."""
    told = {side: f"{count} questions in {report[side]}" for side, count in report["questions"].items()}
    if report["against"] is None:
        return [f"{report['source']}: {', '.join(told.values())}"]
    return [f"{report['source']}: {told['train']}", f"{report['against']}: {told['test']}"]


def overlap(report: dict[str, Any], names: dict[str, str]) -> list[str]:
    """What both sides show and ask, or why nobody can tell."""
    if report["not_measured"]:
        return [alone(report["source"], report["train"])]
    train, test, images, asked = names["train"], names["test"], report["images"], report["asked_in_both"]
    by_name = (
        ", by name: two sources may call different subjects the same" if report["subjects"]["both"] else ""
    )
    return [
        f"images of {test} that {train} shows too: {images['same_pixels']} of {images['test_images']} "
        f"with the same pixels, {images['alike']} more look alike (up to {images['max_distance']} of 63 bits "
        f"apart); {images['test_questions']} of {report['questions']['test']} questions show one",
        *(f"  {pair['test']} ~ {pair['train']} ({pair['distance']} bits)" for pair in images["examples"][:3]),
        f"questions of {test} that {train} asks too, options aside: {asked['same_pixels']} about the same "
        f"pixels, {asked['alike']} more about images that look alike",
        *(f"  {pair['test']} ~ {pair['train']} ({pair['distance']} bits)" for pair in asked["examples"][:3]),
        subjects(report["subjects"], train, test) + (by_name if report["against"] else ""),
    ]


def alone(source: str, train: str | None) -> str:
    """What needs two splits, and how to give the other one."""
    other = f"lite-medrl data audit TRAINING_SOURCE --against {source}"
    if train is not None:
        other = f"lite-medrl data audit {source} --against BENCHMARK"
    return (
        "left out, since it needs two splits: images, subjects and questions in both, and the guesses "
        f"letter, majority and text_only; to have them: {other}, or name a split by --train or --test"
    )


def repeated(twice: dict[str, Any]) -> str:
    """How many questions are asked again."""
    across = "" if twice["across_splits"] is None else f"{twice['across_splits']} in both splits, "
    return (
        f"questions asked again about the same image: {twice['extra']} in {twice['groups']} groups, "
        f"{across}{twice['different_answers']} with different answers"
    )


def subjects(found: dict[str, int], train: str, test: str) -> str:
    """How many patients or papers stand in both splits."""
    nameless = " and ".join(name for side, name in (("train", train), ("test", test)) if not found[side])
    if nameless:
        return (
            f"subjects: the rows of {nameless} name none, so nobody can tell whether a patient stands in both"
        )
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
