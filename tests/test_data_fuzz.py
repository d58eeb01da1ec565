"""Whatever stands in a file or a row, it becomes samples, counted faults or a DataError, and nothing else."""

from __future__ import annotations

import json
import random
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lite_medrl.data.images import load_image
from lite_medrl.data.rows import FIELDS, faults_of, image_faults, refs_of, sample_of
from lite_medrl.data.sets import registry
from lite_medrl.data.sets.fields import FieldMap, Pictures, Place, options_of
from lite_medrl.data.sets.own import OWN, OWN_CELLS
from lite_medrl.data.sources import Tally, iter_samples
from lite_medrl.types import DataError, ImageRef

DEEP = ("{" * 3000, "[" * 9000)
DIGITS = "9" * 5000  # Python turns no more than 4,300 into a number
NAMES = ("a\x00.png", "\ud800.png", "a.dcm")  # no file has one of the first two
ROW = '{"id": %s, "image": %s, "question": "?", "options": [], "answer": "", "conversations": ' + (
    '[{"from": "human", "value": "?"}, {"from": "gpt", "value": "Yes"}]}'
)
ROWS = [
    ROW % pair for pair in ((DIGITS, '"a"'), (1, DIGITS), (1, 5), (1, json.dumps("a\0")), (1, '"\\ud800"'))
]
SHAPES = (
    *ROWS,
    f"[{ROWS[0]},",
    f"1,{DIGITS},[{DIGITS}]\n",
    '{"id": 1, "image": "a.png"}',
    "[",
    '[{"a": 1},',
    "id,image\n",
    '"',
    "\ufeff",
    "PAR1",
    *DEEP,
)
BYTES = st.one_of(
    st.binary(max_size=200),
    st.lists(st.sampled_from([shape.encode() for shape in SHAPES] + [b"\xff", b"\n", b"\x00", b","])).map(
        b"".join
    ),
)


@pytest.mark.parametrize("end", [".jsonl", ".json", ".csv", ".tsv", ".parquet"])
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=BYTES)
def test_any_bytes_in_any_file(tmp_path: Path, end: str, data: bytes) -> None:
    path = tmp_path / f"rows{end}"
    path.write_bytes(data)
    for source in (str(path), f"llava:{path}"):
        tally = Tally()
        told = str(path)
        try:
            assert list(iter_samples(source, on_error="skip", tally=tally)) == []
        except DataError as error:
            told = str(error)
        assert str(path) in told


def rows_of(path: Path) -> None:
    list(iter_samples(str(path), on_error="skip"))


def image_of(path: Path) -> None:
    load_image(ImageRef(str(path), "image/3" if path.suffix == ".parquet" else "x/3"))


def test_damaged_parquet_and_npz_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes changed anywhere: samples, faults, images or a DataError."""
    monkeypatch.setenv("LITE_MEDRL_DATA", str(tmp_path / "cache"))
    draw = random.Random(0)
    rows = [
        {"id": f"q{i}", "image": b"x" * 50, "question": "?", "options": ["a", "b"], "answer": "a"}
        for i in range(40)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=7)
    np.savez_compressed(tmp_path / "a.npz", x=np.arange(2000, dtype=np.uint8).reshape(20, 10, 10))
    damaged = 0
    for name in ("a.parquet", "a.npz"):
        whole = (tmp_path / name).read_bytes()
        for i in range(150):
            data = bytearray(whole)
            for _ in range(draw.randint(1, 5)):
                data[draw.randrange(len(data))] = draw.randrange(256)
            path = tmp_path / f"{i}-{name}"
            path.write_bytes(data)
            for read in (rows_of, image_of):
                try:
                    read(path)
                except DataError:
                    damaged += 1
            path.unlink()
    assert damaged > 200
    assert not list((tmp_path / "cache").rglob(".*"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 9) | st.floats() | st.text(max_size=4)
    | st.sampled_from(["A", DIGITS, f"[{DIGITS}]", *NAMES]),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from("ABCDx"), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip
MAPS = {"own": OWN} | {name: one.fields for name, one in registry.SETS.items()}


@pytest.mark.parametrize("name", MAPS)
@settings(max_examples=150)
@given(data=st.data())
def test_any_values_in_any_row(name: str, data: st.DataObject) -> None:
    fields: FieldMap = MAPS[name]
    cells = st.text(max_size=8) if name in ("pmc-vqa", "pmc-vqa-2", "pmc-vqa-8k") else JSON
    wanted = dict.fromkeys(fields.required, cells)
    tells(
        fields, data.draw(st.fixed_dictionaries(wanted, optional=dict.fromkeys(fields.optional, cells))), name
    )


CELLS = st.text(max_size=8) | st.sampled_from([DIGITS, f"[{DIGITS}]", *NAMES])


@settings(max_examples=150)
@given(row=st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS, CELLS)))
def test_any_cells_of_a_csv_row(row: dict[str, str]) -> None:
    tells(OWN_CELLS, row, "own")


def tells(fields: FieldMap, row: dict[str, Any], name: str) -> None:
    """The row by its map: samples, faults or a DataError."""
    try:
        found = fields.convert(row, Place(name, "train", 1, Pictures(Path("images"))))
    except DataError:
        return
    for values in found:
        if not (image_faults(values) or faults_of(values)):
            sample = sample_of(values | {"images": refs_of(values, Path())})
            json.dumps(asdict(sample), ensure_ascii=False).encode()
            for ref in sample.images:
                with pytest.raises(DataError):
                    load_image(ref)
            assert sample.answer in sample.options or not sample.options


@given(value=st.one_of(JSON, JSON.map(json.dumps), JSON.map(repr), st.text()))
def test_any_options(value: Any) -> None:
    with suppress(DataError):
        assert all(isinstance(option, str) for option in options_of(value))
