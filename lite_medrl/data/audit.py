"""What is wrong with a data set? Every fault in one pass, where `load_samples` stops at the first.

A row may have several faults; an image that several rows show is opened once and reported at the first one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lite_medrl.data.images import load_image
from lite_medrl.data.sources import (
    embedded_samples,
    faults_of,
    image_faults,
    numbered_lines,
    object_of,
    refs_of,
    sample_of,
)
from lite_medrl.types import DataError, ImageRef, Sample


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the file; `sample` is None where it has faults, `refs` are the images that it names."""

    number: int
    id: str | None
    faults: tuple[str, ...]
    refs: tuple[ImageRef, ...]
    sample: Sample | None


@dataclass(frozen=True, slots=True)
class Fault:
    """`what` came and what to do about it, in which row (None: in the file as a whole)."""

    row: int | None
    id: str | None
    what: str


@dataclass(frozen=True, slots=True)
class Audit:
    """How many rows there are, the samples of those that can be used, and all faults in file order."""

    rows: int
    samples: tuple[Sample, ...]
    faults: tuple[Fault, ...]


def audit(source: str) -> Audit:
    """All rows read and all images opened. Raises DataError where the file is missing or not UTF-8."""
    rows = embedded_rows() if source == "embedded" else jsonl_rows(Path(source))
    if not rows:
        return Audit(0, (), (Fault(None, None, "the data set is empty; it needs at least one row"),))
    broken = broken_images(rows)
    found = [Fault(row.number, row.id, told) for row in rows for told in row.faults]
    found += [*twice(rows), *broken.values()]
    bad = {fault.row for fault in found}
    usable = [
        row.sample for row in rows if row.sample and row.number not in bad and not broken.keys() & row.refs
    ]
    return Audit(len(rows), tuple(usable), tuple(sorted(found, key=lambda fault: fault.row or 0)))


def embedded_rows() -> list[Row]:
    """The pack's questions, whose rows are checked when they are read."""
    return [Row(n, s.id, (), s.images, s) for n, s in enumerate(embedded_samples(), 1)]


def jsonl_rows(path: Path) -> list[Row]:
    """Every line of a file that holds something."""
    return [row_of(line, n, path) for n, line in numbered_lines(path)]


def row_of(line: str, number: int, path: Path) -> Row:
    """One line, with all that is wrong with it by itself."""
    try:
        row = object_of(line)
    except DataError as error:
        return Row(number, None, (str(error),), (), None)
    nameless, others = image_faults(row), faults_of(row)
    refs = () if nameless else tuple(refs_of(row, path))
    name = str(row["id"]) if "id" in row else None
    good = not (nameless or others)
    return Row(
        number, name, (*nameless, *others), refs, sample_of(row | {"images": refs}, "") if good else None
    )


def twice(rows: Sequence[Row]) -> Iterator[Fault]:
    """Rows whose id stands in an earlier row."""
    first: dict[str, int] = {}
    for row in rows:
        if row.id is None:
            continue
        if row.id in first:
            told = f"id {row.id!r} stands in row {first[row.id]} already; use unique ids"
            yield Fault(row.number, row.id, told)
        first.setdefault(row.id, row.number)


def broken_images(rows: Sequence[Row]) -> dict[ImageRef, Fault]:
    """Every image that cannot be used, with the first row that shows it and how many others do."""
    shown: dict[ImageRef, list[Row]] = defaultdict(list)
    for row in rows:
        for ref in dict.fromkeys(row.refs):
            shown[ref].append(row)
    found = {}
    for ref, (first, *others) in shown.items():
        try:
            load_image(ref)
        except DataError as error:
            named = f"sample {first.id}: " if first.id is not None else ""
            more = f" ({len(others)} more row{'s show' if others[1:] else ' shows'} it)" if others else ""
            found[ref] = Fault(first.number, first.id, f"{named}{error}{more}")
    return found
