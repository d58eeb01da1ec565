"""Rows of one's own: the README's fields, in JSONL, CSV, TSV or Parquet beside a folder of images.

A cell of a CSV file is text: options and windows stand in it as JSON, or with | between them.
"""

from __future__ import annotations

import json
from typing import Any

from lite_medrl.data.rows import FIELDS, REQUIRED
from lite_medrl.data.sets.fields import FieldMap, Place, Values
from lite_medrl.types import DataError

MOST_SHOWN = 200  # characters of a cell in a message


def own_row(values: Values, place: Place) -> list[Values]:
    """The row itself; a row without a split belongs to the one that its file is named after."""
    return [{**values, "split": values.get("split") or place.split}]


def own_cells(values: Values, place: Place) -> list[Values]:
    """A row of text cells; an empty cell is as good as none."""
    row: Values = {key: cell for key, cell in values.items() if cell != "" or key in REQUIRED}
    for key in ("options", "images", "window"):
        if key in row:
            row[key] = listed(row[key], key)
    if "frame" in row:
        row["frame"] = whole(row["frame"])
    return own_row(row, place)


def listed(cell: str, key: str) -> list[Any]:
    """A list out of ["a", "b"] or a|b; an empty cell is an empty list."""
    if cell.lstrip().startswith("["):
        try:
            return list(json.loads(cell))
        except (ValueError, RecursionError) as error:  # ValueError: also Python's limit on digits
            told = error.msg if isinstance(error, json.JSONDecodeError) else error
            raise DataError(
                f"{key} begins like a JSON list and is none: {told}; got {cell[:MOST_SHOWN]!r}"
            ) from error
    parts = [part.strip() for part in cell.split("|")] if cell.strip() else []
    return [number(part) for part in parts] if key == "window" else parts


def number(cell: str) -> Any:
    """A number, or the text as it is, which the row's check then refuses."""
    try:
        return float(cell)
    except ValueError:
        return cell


def whole(cell: str) -> Any:
    """A whole number, or the text as it is, which the row's check then refuses."""
    return int(cell) if cell.isdecimal() and len(cell) < MOST_SHOWN else cell


OWN = FieldMap(required=(), optional=FIELDS, convert=own_row)
OWN_CELLS = FieldMap(required=REQUIRED, optional=FIELDS, convert=own_cells)
