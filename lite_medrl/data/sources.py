"""Where samples come from: the embedded pack, files of one's own, and published sets by name.

A source is "embedded"; the path of a .jsonl, .json, .csv, .tsv or .parquet file, or of a folder of them; NAME
or NAME:PATH of a set in `lite_medrl.data.sets.registry` (pneumoniamnist@224:/data/pneumoniamnist_224.npz).
Rows are streamed and checked at the door; an error names the file, the row, what came and what to do.
"""

from __future__ import annotations

import logging
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, overload

from lite_medrl.data.images import load_image
from lite_medrl.data.parts import parts_of
from lite_medrl.data.rows import Fault, faults_of, image_faults, refs_of, rows_lost, sample_of, strangers
from lite_medrl.data.sets import registry
from lite_medrl.data.sets.fields import Place, Values
from lite_medrl.data.sets.registry import Part
from lite_medrl.data.sets.tables import Csv, Parquet, Row, parquet_file
from lite_medrl.types import DataError, ImageRef, Sample

OnError = Literal["stop", "skip"]
Questions = Literal["closed", "open", "all"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Entry:
    """A row as it was read: its sample, or what is wrong; `at` and `sub` find it again in its part."""

    part: int
    number: int | None
    at: int
    sub: int
    id: str | None
    faults: tuple[str, ...]
    refs: tuple[ImageRef, ...]
    sample: Sample | None
    file: str
    split: str | None = None
    lost: int | None = 1

    @property
    def found(self) -> list[Fault]:
        """The faults with the place of the row."""
        return [Fault(self.number, self.id, what, self.file, self.lost) for what in self.faults]


@dataclass
class Tally:
    """What a reading left out, and why: faults that were skipped, questions of the other sort, fields."""

    rows: int = 0
    faults: list[Fault] = field(default_factory=list)
    other_questions: int = 0
    unknown_fields: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)

    @property
    def skipped(self) -> int:
        """Rows that were left out because of a fault."""
        return rows_lost(self.faults)

    def to_json(self) -> dict[str, Any]:
        """For results.json: the counts, and the first reasons."""
        return {
            "rows": self.rows,
            "skipped": self.skipped,
            "other_questions": self.other_questions,
            "unknown_fields": sorted(self.unknown_fields),
            "faults": [str(fault) for fault in self.faults[:20]],
        }


def load_samples(
    source: str,
    split: str,
    *,
    kinds: Sequence[str] | None = None,
    questions: Questions = "closed",
    on_error: OnError = "stop",
    tally: Tally | None = None,
) -> list[Sample]:
    """All samples of one split of a source, in file order (rows without "split" belong to "train").

    Args:
        source: see the top of this file.
        kinds: keep only these question kinds.
        questions: those with options ("closed"), those without ("open"), or "all".
        on_error: stop at the first faulty row, or skip it (but for a list that cannot be read on).
        tally: takes the counts of what was left out.

    Raises:
        DataError: missing file, empty result, and unless it is skipped a broken row, a duplicate id, a gold
            answer not among the options.
    """
    tally = tally if tally is not None else Tally()
    chosen = list(
        iter_samples(source, split, kinds=kinds, questions=questions, on_error=on_error, tally=tally)
    )
    if not chosen:
        raise nothing_left(source, split, kinds, questions, tally)
    if tally.skipped or tally.other_questions:
        log.info("%s, %s: %s", source, split, left_out(tally, questions))
    return chosen


def left_out(tally: Tally, questions: Questions) -> str:
    """What a reading left out, in words."""
    told = [f"{tally.skipped} of {tally.rows} rows skipped for a fault"] if tally.skipped else []
    if tally.other_questions:
        other = "open" if questions == "closed" else "closed"
        told.append(f"{tally.other_questions} {other} questions left out")
    return ", ".join(told) or "nothing left out"


def nothing_left(
    source: str, split: str, kinds: Sequence[str] | None, questions: Questions, tally: Tally
) -> DataError:
    """Why a split came out empty."""
    if not tally.rows:
        return DataError(f"{source}: the data set is empty; it needs at least one row")
    have = ", ".join(f"{name} ({count})" for name, count in sorted(tally.splits.items()))
    wanted = f" and kinds {', '.join(kinds)}" if kinds else ""
    left = f"; {left_out(tally, questions)}" if tally.skipped or tally.other_questions else ""
    return DataError(
        f"{source}: no sample in split {split!r}{wanted}; the file has {have or 'no rows'}{left}"
    )


def iter_samples(
    source: str,
    split: str | None = None,
    *,
    kinds: Sequence[str] | None = None,
    questions: Questions = "closed",
    on_error: OnError = "stop",
    tally: Tally | None = None,
) -> Iterator[Sample]:
    """The samples of a source one by one, holding none; arguments and errors as in `load_samples`.

    Args:
        split: None takes all splits.
    """
    tally = tally if tally is not None else Tally()
    for entry in chosen_entries(source, split, kinds, questions, on_error, tally):
        if entry.sample:
            yield entry.sample


def chosen_entries(
    source: str,
    split: str | None,
    kinds: Sequence[str] | None,
    questions: Questions,
    on_error: OnError,
    tally: Tally,
) -> Iterator[Entry]:
    """The entries whose samples are wanted; faults stop it or are tallied."""
    for entry in entries(parts_of(source, split), source, tally):
        if not entry.sample:
            if on_error == "stop" or entry.lost is None:
                raise DataError(str(entry.found[0]))
            if None in (split, entry.split) or entry.split == split:
                tally.faults += entry.found
            continue
        sample = entry.sample
        tally.splits[sample.split] += 1
        if split not in (None, sample.split) or not (kinds is None or sample.kind in kinds):
            continue
        if questions != "all" and bool(sample.options) is (questions == "open"):
            tally.other_questions += 1
            continue
        yield entry


def entries(parts: Sequence[Part], source: str, tally: Tally) -> Iterator[Entry]:
    """Every row of the parts as it is read, with its faults; an id that came before is one."""
    seen: dict[int, tuple[str, int | None]] = {}
    for index, part in enumerate(parts):
        for entry in entries_of(part, index, source, tally):
            tally.rows += 0 if entry.sub else entry.lost or 1
            if entry.id is None:
                yield entry
                continue
            key = hash(entry.id)
            before = seen.setdefault(key, (entry.file, entry.number))
            if before == (entry.file, entry.number):
                yield entry
                continue
            at = before[1] if before[0] == entry.file else ":".join(map(str, before))
            told = f"id {entry.id!r} stands in row {at} already; use unique ids"
            yield faulty(entry, (*entry.faults, told))


def faulty(entry: Entry, faults: tuple[str, ...]) -> Entry:
    """The entry with these faults, and so without a sample."""
    return replace(entry, faults=faults, sample=None)


def entries_of(part: Part, index: int, source: str, tally: Tally) -> Iterator[Entry]:
    """The rows of one table. A column that is missing is one fault of the file, not one of every row."""
    file = str(part.table.path)
    if missing := missing_columns(part):
        told = f"missing column {', '.join(missing)}; rename the file's columns or add {them(missing)}"
        yield Entry(index, 1, 0, 0, None, (told,), (), None, file)
        return
    known = frozenset(part.fields.known)
    for row in part.table.rows():
        if isinstance(row, Fault):
            yield Entry(index, row.row, 0, 0, None, (row.what,), (), None, file, lost=row.lost)
        elif part.only is None or row.number in part.only:
            tally.unknown_fields.update(strangers(row.values, known))
            yield from entries_of_row(part, index, row, source, file)


def them(names: Sequence[str]) -> str:
    """How a sentence goes on about one name or several."""
    return "them" if names[1:] else "it"


def missing_columns(part: Part) -> list[str]:
    """Required fields that a CSV or Parquet file has no column for."""
    if isinstance(part.table, Csv):
        have = part.table.columns()
    elif isinstance(part.table, Parquet):
        have = parquet_file(str(part.table.path)).schema_arrow.names
    else:
        return []
    return [name for name in part.fields.required if name not in have]


def entries_of_row(part: Part, index: int, row: Row, source: str, file: str) -> Iterator[Entry]:
    """A row's questions; usually one."""
    try:
        found = converted(part, row, source)
    except DataError as error:
        name = row.values.get("id")
        yield Entry(
            index, row.number, row.at, 0, None if name is None else str(name), (str(error),), (), None, file
        )
        return
    for sub, values in enumerate(found):
        nameless, others = image_faults(values), faults_of(values)
        refs = () if nameless else tuple(refs_of(values, part.table.path.parent))
        name = None if values.get("id") is None else str(values["id"])
        faults = (*nameless, *others)
        sample = None if faults else sample_of(values | {"images": refs}, (file, row.number))
        split = str(values.get("split") or part.split)
        yield Entry(index, row.number, row.at, sub, name, faults, refs, sample, file, split)


def converted(part: Part, row: Row, source: str) -> list[Values]:
    """The row by the set's field map, with what all rows of the set share."""
    name = registry.name_and_path(source)[0] if registry.is_named(source) else Path(source).stem
    place = Place(name, part.split, part.first + row.number, part.images)
    found = part.fields.convert(row.values, place)
    if not registry.is_named(source):
        return found
    shared = {"source": name, "licence": registry.licence_of(name)[0], "split": part.split}
    if one := registry.SETS.get(name):
        shared["modality"] = one.modality
    return [shared | values for values in found]


def embedded_samples() -> list[Sample]:
    """All samples of the embedded pack."""
    return list(iter_samples("embedded"))


class SampleView(Sequence[Sample]):
    """The samples of one split, read from their files when they are asked for.

    It keeps 20 bytes a sample. Arguments and errors as in `load_samples`; `tally` says what was left out.
    """

    def __init__(
        self,
        source: str,
        split: str,
        *,
        kinds: Sequence[str] | None = None,
        questions: Questions = "closed",
        on_error: OnError = "stop",
    ) -> None:
        self.source, self.tally = source, Tally()
        self.parts = parts_of(source, split)
        self._part, self._sub = array("H"), array("H")
        self._at, self._number = array("q"), array("q")
        for entry in chosen_entries(source, split, kinds, questions, on_error, self.tally):
            self._part.append(entry.part)
            self._sub.append(entry.sub)
            self._at.append(entry.at)
            self._number.append(entry.number or 0)
        if not self._at:
            raise nothing_left(source, split, kinds, questions, self.tally)

    def __len__(self) -> int:
        return len(self._at)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        part = self.parts[self._part[index]]
        row = Row(self._number[index], self._at[index], part.table.read(self._at[index]))
        values = converted(part, row, self.source)[self._sub[index]]
        images = refs_of(values, part.table.path.parent)
        return sample_of(values | {"images": images}, (str(part.table.path), row.number))


def check_images(samples: Sequence[Sample]) -> None:
    """Opens every distinct image once; DataError names the row and sample whose image cannot be used."""
    for sample, _, what in broken_images(samples):
        raise DataError(str(image_fault(sample, what)))


def with_good_images(samples: Sequence[Sample], tally: Tally) -> list[Sample]:
    """The samples whose images can all be used; the others are tallied as skipped.

    Raises:
        DataError: none is left.
    """
    broken = {ref: what for _, ref, what in broken_images(samples)}
    kept, faults = [], []
    for sample in samples:
        if told := [broken[ref] for ref in sample.images if ref in broken]:
            faults.append(image_fault(sample, told[0]))
        else:
            kept.append(sample)
    if faults and not kept:
        raise DataError(
            f"no sample is left in split {samples[0].split!r}: an image of each of the {len(faults)} cannot "
            f"be used; the first: {faults[0]}"
        )
    tally.faults += faults
    return kept


def image_fault(sample: Sample, what: str) -> Fault:
    """An image that cannot be used, with the row where it is known, and the sample."""
    file, row = sample.place
    return Fault(row, sample.id, f"sample {sample.id}: {what}", file)


def broken_images(samples: Sequence[Sample]) -> Iterator[tuple[Sample, ImageRef, str]]:
    """Every image that cannot be used, with the first sample that shows it and why; each is opened once."""
    seen: set[ImageRef] = set()
    for sample in samples:
        for ref in sample.images:
            if ref in seen:
                continue
            seen.add(ref)
            try:
                load_image(ref)
            except DataError as error:
                yield sample, ref, str(error)
