"""One measurement is one CSV row: its columns, how it is written and read, and the table a person sees."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

GREEN = "ok"


@dataclass(frozen=True)
class Row:
    """A measurement. Times, memory and rates are None unless `check` is "ok": a wrong answer has no speed."""

    op: str
    impl: str
    direction: str
    case: str
    """What the inputs are like: the policy behind the hidden states, the loss and its options."""
    shape: str
    dtype: str
    p50_ms: float | None = None
    p20_ms: float | None = None
    p80_ms: float | None = None
    """Time on the device (CUDA events, cold cache), or of the call on a CPU."""
    wall_ms: float | None = None
    """Median on the host's clock, launches and synchronisation included; CUDA only."""
    repeats: int | None = None
    peak_mib: float | None = None
    """Most memory above the inputs; CUDA only."""
    launches: int | None = None
    """Kernels launched by one call; CUDA only."""
    rate: float | None = None
    rate_unit: str = ""
    ceiling_share: float | None = None
    """Rate over that of the measured ceiling: a bare matrix product of this shape, or a device copy."""
    error: str = ""
    """Error of each output over the largest one allowed, so 1 is the limit."""
    check: str = GREEN
    device: str = ""
    versions: str = ""
    commit: str = ""
    date: str = ""


COLUMNS = tuple(field.name for field in fields(Row))
NUMBERS = {"p50_ms", "p20_ms", "p80_ms", "wall_ms", "peak_mib", "rate", "ceiling_share"}
COUNTS = {"repeats", "launches"}
KEY = ("op", "impl", "direction", "case", "shape", "dtype", "device")


class Spread(NamedTuple):
    """Median and the two percentiles around it."""

    p50: float
    p20: float
    p80: float


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of the sorted values lie, interpolated. ValueError without values."""
    if not values:
        raise ValueError("no values to take a percentile of")
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low, high = math.floor(place), math.ceil(place)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def spread(values: Sequence[float]) -> Spread:
    """p50, p20 and p80 of repeated measurements."""
    return Spread(percentile(values, 0.5), percentile(values, 0.2), percentile(values, 0.8))


def as_text(value: object) -> str:
    """A cell: nothing for None, five significant digits for a float."""
    if value is None:
        return ""
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def append(path: Path, rows: Iterable[Row]) -> None:
    """Add rows to a CSV file, with a header if it is new. ValueError if the file has other columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists() or path.stat().st_size == 0
    if not new:
        with path.open(encoding="utf-8", newline="") as file:
            found = tuple(next(csv.reader(file)))
        if found != COLUMNS:
            raise ValueError(f"{path} has the columns {found}, not {COLUMNS}: move it away or migrate it")
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if new:
            writer.writerow(COLUMNS)
        writer.writerows([as_text(value) for value in asdict(row).values()] for row in rows)


def read(path: Path) -> list[Row]:
    """The rows of a CSV file that `append` wrote."""
    with path.open(encoding="utf-8", newline="") as file:
        return [
            Row(**{name: from_text(name, text) for name, text in line.items()})
            for line in csv.DictReader(file)
        ]


def from_text(name: str, text: str) -> Any:
    """What a cell of the column `name` stood for."""
    if name in NUMBERS:
        return float(text) if text else None
    if name in COUNTS:
        return int(text) if text else None
    return text


def latest(rows: Iterable[Row]) -> list[Row]:
    """The last row of each measurement that was made more than once."""
    return list({tuple(getattr(row, name) for name in KEY): row for row in rows}.values())


def table(rows: Sequence[Row]) -> str:
    """The rows for a terminal, a block for each thing measured, the fastest first."""
    blocks: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        blocks.setdefault((row.op, row.direction, row.case, row.shape, row.dtype), []).append(row)
    lines = []
    for (op, direction, case, shape, dtype), block in blocks.items():
        lines.append(f"{op}  {direction}  {shape} {dtype}  {case}")
        lines += [f"  {line_of(row)}" for row in sorted(block, key=lambda row: row.p50_ms or math.inf)]
    return "\n".join(lines)


def line_of(row: Row) -> str:
    """One implementation's line in the table."""
    if row.p50_ms is None:
        return f"{row.impl:<22} {row.check}"
    parts = [f"{row.impl:<22} {row.p50_ms:9.3f} ms [{row.p20_ms:.3f}, {row.p80_ms:.3f}]"]
    parts += [f"{row.rate:8.4g} {row.rate_unit}"] if row.rate is not None else []
    parts += [f"{row.ceiling_share:.0%} of the ceiling"] if row.ceiling_share is not None else []
    parts += [f"{row.peak_mib:.0f} MiB"] if row.peak_mib is not None else []
    parts += [f"{row.launches} launches"] if row.launches is not None else []
    return "  ".join(parts)
