"""What is wrong with a data set? Every fault in one pass, where `load_samples` stops at the first.

A row may have several faults; an image that several rows show is opened once and reported at the first one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from lite_medrl.data.images import load_image
from lite_medrl.data.parts import parts_of
from lite_medrl.data.rows import Fault
from lite_medrl.data.sources import Entry, Tally, entries
from lite_medrl.types import DataError, ImageRef, Sample


@dataclass(frozen=True, slots=True)
class Check:
    """How many rows there are, the samples that can be used, all faults in order, fields nobody reads."""

    rows: int
    samples: tuple[Sample, ...]
    faults: tuple[Fault, ...]
    unknown_fields: tuple[str, ...] = ()


def check(source: str) -> Check:
    """All rows read and all images opened. Raises DataError where the file is missing."""
    tally = Tally()
    found = list(entries(parts_of(source, None), source, tally))
    if not found:
        return Check(0, (), (Fault(None, None, "the data set is empty; it needs at least one row"),))
    broken = broken_images(found)
    in_rows = [(order, fault) for order, entry in enumerate(found) for fault in entry.found]
    faults = in_rows + list(broken.values())
    bad = {order for order, _ in faults}
    usable = [
        entry.sample
        for order, entry in enumerate(found)
        if entry.sample and order not in bad and not broken.keys() & entry.refs
    ]
    in_order = tuple(fault for _, fault in sorted(faults, key=lambda pair: pair[0]))
    return Check(tally.rows, tuple(usable), in_order, tuple(sorted(tally.unknown_fields)))


def broken_images(found: Sequence[Entry]) -> dict[ImageRef, tuple[int, Fault]]:
    """Every image that cannot be used, with the first row that shows it and how many others do."""
    shown: dict[ImageRef, list[int]] = defaultdict(list)
    for order, entry in enumerate(found):
        for ref in dict.fromkeys(entry.refs):
            shown[ref].append(order)
    faults = {}
    for ref, (first, *others) in shown.items():
        try:
            load_image(ref)
        except DataError as error:
            entry = found[first]
            named = f"sample {entry.id}: " if entry.id is not None else ""
            more = f" ({len(others)} more row{'s show' if others[1:] else ' shows'} it)" if others else ""
            faults[ref] = (first, Fault(entry.number, entry.id, f"{named}{error}{more}", entry.file))
    return faults
