"""Which questions make up a benchmark? Its source, splits and parts, and how many questions it should have.

Any source can be evaluated; these are the ones with a name in the literature. `expected` are the published
numbers of questions with options: where a copy of the set differs, the results say so.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lite_medrl.data.same_images import Checked, checked_images
from lite_medrl.data.sources import OnError, Questions, Tally, load_samples
from lite_medrl.types import DataError, RecipeError, Sample

WHOLE = ""  # the part of a benchmark that has none


@dataclass(frozen=True, slots=True)
class Benchmark:
    """`in_parts`: each kind of question is a part with figures of its own; their plain mean is reported."""

    name: str
    title: str
    source: str
    splits: tuple[str, ...] = ("test",)
    questions: Questions = "all"
    in_parts: bool = False
    expected: Mapping[str, int] = field(default_factory=dict)

    def part(self, sample: Sample) -> str:
        """Which part a question belongs to."""
        return sample.kind if self.in_parts else WHOLE


SIX = {
    "pmc_vqa": 2000,
    "MMMU-medical": 170,
    "MedXpertQA-MM": 2000,
    "pathvqa_closed": 3362,
    "slake_closed": 416,
    "vqa_rad_closed": 272,
}
BENCHMARKS: dict[str, Benchmark] = {
    one.name: one
    for one in (
        Benchmark(
            "medvlthinker-6", "MedVLThinker's six benchmarks", "medvlthinker-eval", questions="closed",
            in_parts=True, expected=SIX,
        ),
        Benchmark("vqa-rad", "VQA-RAD", "vqa-rad", expected={WHOLE: 251}),
        Benchmark("slake", "SLAKE, English", "slake", expected={WHOLE: 355}),
        Benchmark("pathvqa", "PathVQA", "pathvqa", expected={WHOLE: 3362}),
        Benchmark("pmc-vqa", "PMC-VQA, test_clean", "pmc-vqa", ("test_clean",), expected={WHOLE: 2000}),
        Benchmark("pmc-vqa-2", "PMC-VQA, version 2", "pmc-vqa-2"),
        Benchmark("pmc-vqa-small", "PMC-VQA, mirror in Parquet", "pmc-vqa-small"),
        Benchmark("medxpertqa-mm", "MedXpertQA MM", "medxpertqa-mm", expected={WHOLE: 2000}),
        Benchmark(
            "mmmu-medical", "MMMU, five medical subjects", "mmmu-medical", ("validation", "dev"), "closed",
            expected={WHOLE: 170},
        ),
        Benchmark("omnimedvqa", "OmniMedVQA, open-access part", "omnimedvqa"),
        Benchmark("embedded", "Embedded pack", "embedded"),
    )
}  # fmt: skip


def benchmarks(text: str, *, split: str | None = None, questions: Questions | None = None) -> list[Benchmark]:
    """The benchmarks of a list with commas, each under a name of its own.

    Raises RecipeError for an empty name, or one benchmark twice.
    """
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise RecipeError(f"--benchmark: an empty name in {text!r}; write A,B")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise RecipeError(f"--benchmark: {twice[0]} is named twice")
    found = [benchmark(name, split=split, questions=questions) for name in names]
    short = Counter(one.name for one in found)
    return [one if short[one.name] == 1 else replace(one, name=one.source) for one in found]


def benchmark(name: str, *, split: str | None = None, questions: Questions | None = None) -> Benchmark:
    """A benchmark by its name (NAME:PATH where its files lie elsewhere), or any source under its own name."""
    known, colon, path = name.partition(":")
    short = Path(name).name if Path(name).exists() else name
    found = BENCHMARKS.get(known) or Benchmark(short, short, name)
    if known in BENCHMARKS and colon:
        found = replace(found, source=f"{found.source}:{path}")
    if split is not None and (split,) != found.splits:
        found = replace(found, name=f"{found.name}/{split}", splits=(split,), expected={})
    return replace(found, questions=questions) if questions else found


def questions_of(
    found: Benchmark, *, limit: int | None = None, on_error: OnError = "stop", tally: Tally | None = None
) -> Checked:
    """The questions with their images checked and equal ones under one name.

    With a limit as many are drawn by chance of each part (the same each time), in order. Raises DataError for
    a broken row or image (unless it is skipped and counted in `tally`), or where no question is left.
    """
    tally = tally if tally is not None else Tally()
    if limit is not None and limit < 1:
        raise RecipeError(f"--limit: must be 1 or more, got {limit}")
    reading = {"questions": found.questions, "on_error": on_error, "tally": tally}
    samples = [s for split in found.splits for s in load_samples(found.source, split, **reading)]
    check_ids(samples, found.name)
    if limit is not None:
        samples = drawn(found, samples, limit)
    return checked_images(samples, on_error=on_error, tally=tally)


def drawn(found: Benchmark, samples: Sequence[Sample], limit: int) -> list[Sample]:
    """At most `limit` questions of each part, drawn by chance, in order."""
    parts: dict[str, list[int]] = {}
    for place, sample in enumerate(samples):
        parts.setdefault(found.part(sample), []).append(place)
    chosen = {
        i for places in parts.values() for i in random.Random(0).sample(places, min(limit, len(places)))
    }
    return [sample for place, sample in enumerate(samples) if place in chosen]


def check_ids(samples: Sequence[Sample], name: str) -> None:
    """DataError for an id that two questions share (across splits; within one the reader looks)."""
    twice = [one for one, count in Counter(s.id for s in samples).items() if count > 1]
    if twice:
        raise DataError(f"{name}: the id {twice[0]!r} is in two splits; ids must differ to pair the answers")


def surprises(found: Benchmark, samples: Sequence[Sample], part: str = WHOLE) -> list[str]:
    """Where the number of a part's questions with options is not the published one, in words."""
    count = sum(bool(s.options) and found.part(s) == part for s in samples)
    number = found.expected.get(part, count)
    told = f"{part or found.name}: {count} questions with options, published are {number}"
    return [] if count == number else [told]
