"""Rows out of JSONL, JSON, CSV, TSV and Parquet files, one at a time, and any of them again by its place.

A table never holds more than one row (Parquet: one batch of rows, without the images, which stay in the file
as ImageRefs). `Row.at` is a byte offset, or a row number in Parquet; it is all that a lazy view keeps.
After a row that cannot be read the next ones are; a Fault counts the rows that are lost with it.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from lite_medrl.data.rows import Fault
from lite_medrl.types import DataError, ImageRef

BATCH_ROWS = 256
CHUNK_BYTES = 1 << 16
MAX_FIELD_CHARS = 10_000_000
BOM = b"\xef\xbb\xbf"
JSON_SPACE = " \t\r\n"
LONG = "a whole number has thousands of digits; write it as a text, or drop the row"


@dataclass(frozen=True, slots=True)
class Row:
    """A row's number (the line it begins in, or its rank in the file), where to read it again, its values."""

    number: int
    at: int
    values: dict[str, Any]


class Table(Protocol):
    """What all readers can do."""

    @property
    def path(self) -> Path:
        """The file."""
        ...

    def rows(self) -> Iterator[Row | Fault]:
        """Every row in file order; a row that cannot be read is a Fault."""
        ...

    def read(self, at: int) -> dict[str, Any]:
        """The values of the row at that place."""
        ...


def open_table(path: Path) -> Table:
    """The reader for a file, by the end of its name. DataError for a missing file or another kind."""
    readers: dict[str, Any] = {
        ".jsonl": JsonLines, ".json": JsonList, ".csv": Csv, ".tsv": Csv, ".parquet": Parquet,
    }  # fmt: skip
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: rows are read from {', '.join(readers)}; convert the file to one of them")
    if not path.is_file():
        raise DataError(f"{path}: no such file; give 'embedded' or the path of a .jsonl file")
    return reader(path)


def text_of(data: bytes) -> str:
    """UTF-8 text; DataError, without its place, where it is none."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 at byte {error.start} of the row; save the file as UTF-8") from error


def object_of(text: str) -> dict[str, Any]:
    """The JSON object in a text; DataError, without its place, where there is none."""
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        told = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
        raise DataError(f"not JSON: {told}") from error
    except ValueError as error:  # Python's limit on digits
        raise DataError(LONG) from error
    if not isinstance(value, dict):
        raise DataError(f"expected an object, got {type(value).__name__}")
    return value


@dataclass(frozen=True)
class JsonLines:
    """One object a line. A newline alone ends a line: JSON may hold U+2028 or U+0085."""

    path: Path

    def rows(self) -> Iterator[Row | Fault]:
        at = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                start, at = at, at + len(line)
                if number == 1 and line.startswith(BOM):
                    start, line = len(BOM), line[len(BOM) :]
                if not line.strip():
                    continue
                try:
                    yield Row(number, start, object_of(text_of(line)))
                except DataError as error:
                    yield Fault(number, None, str(error), str(self.path))

    def read(self, at: int) -> dict[str, Any]:
        with self.path.open("rb") as file:
            file.seek(at)
            return object_of(text_of(file.readline()))


@dataclass(frozen=True)
class JsonList:
    """A JSON list of objects, read in pieces: the file may be larger than memory."""

    path: Path

    def rows(self) -> Iterator[Row | Fault]:
        number = 0
        try:
            for number, (at, value) in enumerate(self._values(), 1):
                if isinstance(value, dict):
                    yield Row(number, at, value)
                    continue
                told = value if isinstance(value, DataError) else f"expected an object, got {kind_of(value)}"
                yield Fault(number, None, str(told), str(self.path))
        except DataError as error:
            yield Fault(number + 1, None, str(error), str(self.path), lost=None)

    def _values(self) -> Iterator[tuple[int, Any]]:
        """Every element, or the DataError that it is, with its byte offset.

        DataError where the list is no list or breaks off: what comes after cannot be found.
        """
        at = 0
        with self.path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            text = file.read(CHUNK_BYTES)
            if text.startswith("\ufeff"):
                at, text = len(BOM), text[1:]
            opening, first = "[", True
            while True:
                body = text.lstrip(JSON_SPACE)
                at, text = at + len(text) - len(body), body
                if text[:1] == opening or (not first and text[:1] == "]"):
                    ends, at, text = text[0] == "]", at + 1, text[1:]
                    if ends:
                        return
                    opening, first = ",", False
                    continue
                if text and not first:
                    try:
                        value, end = element(text)
                    except json.JSONDecodeError:
                        pass
                    except RecursionError as error:
                        raise DataError(f"lists too deep in each other at byte {at}; repair it") from error
                    else:
                        data = text[:end].encode(errors="surrogateescape")
                        yield at, value if text.isascii() else checked(value, data)
                        at, text = at + len(data), text[end:]
                        continue
                if not (more := file.read(max(CHUNK_BYTES, len(text)))):
                    raise DataError(
                        f"not a JSON list of objects: it cannot be read on from byte {at}, so all rows from "
                        "here on are lost; repair it, or save one object a line as .jsonl"
                    )
                text += more

    def read(self, at: int) -> dict[str, Any]:
        size = CHUNK_BYTES
        with self.path.open("rb") as file:
            while True:
                file.seek(at)
                data = file.read(size)
                try:
                    return json.JSONDecoder().raw_decode(data.decode("utf-8", errors="ignore"))[0]
                except json.JSONDecodeError:
                    if len(data) < size:
                        raise
                    size *= 4


def element(text: str) -> tuple[Any, int]:
    """The JSON value (a DataError: its number is too long) that a text begins with, and where it ends."""
    try:
        return json.JSONDecoder().raw_decode(text)
    except json.JSONDecodeError:
        raise
    except ValueError:  # Python's limit on digits
        return DataError(LONG), json.JSONDecoder(parse_int=float).raw_decode(text)[1]


def checked(value: Any, data: bytes) -> Any:
    """The value, or the DataError that its bytes are no UTF-8."""
    try:
        text_of(data)
    except DataError as error:
        return error
    return value


def kind_of(value: Any) -> str:
    """What a value is, in a message."""
    return type(value).__name__


@dataclass(frozen=True)
class Csv:
    """Comma- or tab-separated rows under one line of names."""

    path: Path

    @property
    def delimiter(self) -> str:
        return "\t" if self.path.suffix.lower() == ".tsv" else ","

    def columns(self) -> list[str]:
        """The names in the first line; DataError where there are none, or one twice."""
        with self.path.open("rb") as file:
            for cells in self._first(file):
                names = [cell.strip() for cell in cells]
                if not any(names):
                    break
                if twice := sorted({name for name in names if names.count(name) > 1}):
                    raise DataError(f"{self.path}:1: column {', '.join(twice)} stands twice; rename one")
                return names
        raise DataError(f"{self.path}: the data set is empty; it needs a line of column names and rows")

    def _first(self, file: Any) -> Iterator[list[str]]:
        """The first record, if there is one."""
        for record in islice(self._records(file, 0), 1):
            if isinstance(record, Fault):
                raise DataError(f"{self.path}:1: the column names cannot be read: {record.what}")
            yield record[2]

    def rows(self) -> Iterator[Row | Fault]:
        names = self.columns()
        with self.path.open("rb") as file:
            for record in self._records(file, 0):
                if isinstance(record, Fault):
                    yield record
                    continue
                number, at, cells = record
                if at == 0 or not any(cells):
                    continue
                if len(cells) == len(names):
                    yield Row(number, at, dict(zip(names, cells, strict=True)))
                    continue
                told = (
                    f"{len(cells)} fields under {len(names)} columns; a quote or a separator is missing "
                    "or one too many"
                )
                yield Fault(number, None, told, str(self.path))

    def _records(self, file: Any, start: int) -> Iterator[tuple[int, int, list[str]] | Fault]:
        """(line, offset, cells) of every record from an offset on; a Fault for one that cannot be read."""
        csv.field_size_limit(MAX_FIELD_CHARS)
        at, number, end, last = start, 1, start, 0
        no_text: list[str] = []

        def lines() -> Iterator[str]:
            nonlocal end, last
            for line in file:
                end, last = end + len(line), last + 1
                text = line.removeprefix(BOM) if end == len(line) else line
                try:
                    yield text.decode("utf-8")
                except UnicodeDecodeError as error:
                    place = end - len(text) - at + error.start
                    no_text.append(f"not UTF-8 at byte {place} of the row; save the file as UTF-8")
                    yield text.decode("utf-8", errors="replace")

        reader = csv.reader(lines(), delimiter=self.delimiter, strict=True)
        while True:
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                lost = f"lines {number} to {last} are lost: " if last > number else ""
                told = f"{lost}cannot be read on: {error}; repair the row"
                yield Fault(number, None, told, str(self.path), last - number + 1)
            else:
                told = no_text[0] if no_text else None
                yield Fault(number, None, told, str(self.path)) if told else (number, at, cells)
            no_text.clear()
            at, number = end, last + 1

    def read(self, at: int) -> dict[str, Any]:
        names = header(str(self.path), self.path.stat().st_mtime_ns)
        with self.path.open("rb") as file:
            file.seek(at)
            record = next(self._records(file, at), None)
        if record is None or isinstance(record, Fault) or len(record[2]) != len(names):
            raise DataError(f"{self.path}: no row at byte {at}; the file has changed, read it anew")
        return dict(zip(names, record[2], strict=True))


@lru_cache(maxsize=16)
def header(path: str, _changed: int) -> tuple[str, ...]:
    """The column names of a CSV file, as it was last changed."""
    return tuple(Csv(Path(path)).columns())


@dataclass(frozen=True)
class Parquet:
    """Rows of a Parquet file; a column of images comes as ImageRefs, whose bytes are read when asked for."""

    path: Path

    def rows(self) -> Iterator[Row | Fault]:
        file = parquet_file(str(self.path))
        start = 0
        for group in range(file.metadata.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            yield from self._group(file, group, start, size)
            start += size

    def _group(self, file: Any, group: int, start: int, size: int) -> Iterator[Row | Fault]:
        """The rows of one row group; where it cannot be read on, the rest of it is one Fault."""
        import pyarrow as pa

        leaves, pictures = leaves_of(file)
        at = start
        try:
            for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=leaves):
                for values in each(batch):
                    if isinstance(values, dict):
                        yield Row(at + 1, at, with_refs(values, pictures, str(self.path), at))
                    else:
                        told = f"cannot be read ({first_line(values)}); repair the row"
                        yield Fault(at + 1, None, told, str(self.path))
                    at += 1
        except (pa.ArrowException, OSError) as error:
            lost = max(start + size - at, 1)
            told = (
                f"cannot be read on after row {at}, so {lost} row{'s are' if lost > 1 else ' is'} lost "
                f"({first_line(error)}); copy or download it again"
            )
            yield Fault(at + 1, None, told, str(self.path), lost)

    def read(self, at: int) -> dict[str, Any]:
        file = parquet_file(str(self.path))
        leaves, pictures = leaves_of(file)
        group, row = group_of(file, at)
        values = part(str(self.path), group, tuple(leaves)).slice(row, 1).to_pylist()[0]
        return with_refs(values, pictures, str(self.path), at)


def each(batch: Any) -> Iterator[dict[str, Any] | Exception]:
    """The rows of a batch; the error in place of one whose values cannot be had."""
    try:
        yield from batch.to_pylist()
        return
    except (ValueError, OverflowError):  # no UTF-8, or a date that Python has not: in which row?
        pass
    for place in range(batch.num_rows):
        try:
            yield batch.slice(place, 1).to_pylist()[0]
        except (ValueError, OverflowError) as error:
            yield error


@lru_cache(maxsize=8)
def parquet_file(path: str) -> Any:
    """An open file; DataError where it is none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path, memory_map=True)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({error}); copy or download it again") from error


def leaves_of(file: Any) -> tuple[list[str], dict[str, str]]:
    """The leaf columns to read for the values, and for each column of images its leaf of bytes.

    An image is a struct with "bytes" (as Hugging Face writes it), a list of such, or plain binary.
    """
    leaves, pictures = [], {}
    for i in range(len(file.schema)):
        column = file.schema.column(i)
        top, _, rest = column.path.partition(".")
        is_binary = column.physical_type == "BYTE_ARRAY" and str(column.logical_type.type) == "NONE"
        if is_binary and (not rest or rest.rpartition(".")[2] == "bytes"):
            pictures[top] = column.path
        else:
            leaves.append(column.path)
    plain = [path for top, path in pictures.items() if path == top]
    return leaves + plain, pictures


def with_refs(values: dict[str, Any], pictures: dict[str, str], path: str, at: int) -> dict[str, Any]:
    """The row with an ImageRef, a list of them or None in each column of images."""
    for name in pictures:
        value = values.get(name)
        if isinstance(value, list):
            values[name] = [ImageRef(path, f"{name}/{at}/{i}") for i in range(len(value))]
        else:
            values[name] = None if value is None else ImageRef(path, f"{name}/{at}")
    return values


def group_of(file: Any, at: int) -> tuple[int, int]:
    """The row group that a row lies in, and its place there."""
    for group in range(file.metadata.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if at < rows:
            return group, at
        at -= rows
    raise DataError(f"row {at} lies past the end of the Parquet file; it has changed, read it anew")


@lru_cache(maxsize=2)
def part(path: str, group: int, leaves: tuple[str, ...]) -> Any:
    """Some columns of one row group, kept because neighbours are asked for next."""
    import pyarrow as pa

    try:
        return parquet_file(path).read_row_group(group, columns=list(leaves))
    except (pa.ArrowException, OSError) as error:
        told = f"{path}: row group {group} cannot be read ({first_line(error)}); copy or download it again"
        raise DataError(told) from error


def first_line(error: BaseException) -> str:
    """An error in one line."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def cell_bytes(ref: ImageRef) -> bytes:
    """The bytes of an image in a Parquet file: COLUMN/ROW or COLUMN/ROW/PLACE."""
    name, row, *place = (ref.member or "").split("/")
    file = parquet_file(ref.path)
    leaf = leaves_of(file)[1].get(name)
    if leaf is None or not row.isdigit():
        raise DataError(f"image {ref}: the file has no column of images of that name; check the row")
    group, row_there = group_of(file, int(row))
    value = part(ref.path, group, (leaf,)).column(name)[row_there].as_py()
    for step in place:
        value = value[int(step)] if isinstance(value, list) and int(step) < len(value) else None
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes):
        raise DataError(f"image {ref}: the cell holds no bytes; download the file again with its images")
    return data
