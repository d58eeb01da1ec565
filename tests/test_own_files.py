"""One's own rows in CSV, TSV, Parquet and folders; every fault has its place and its reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lite_medrl.data.check import check
from lite_medrl.data.images import load_image
from lite_medrl.data.sources import (
    SampleView,
    Tally,
    check_images,
    iter_samples,
    load_samples,
    with_good_images,
)
from lite_medrl.types import DataError, ImageRef

HEAD = "id,image,question,options,answer,split\n"


def csv_file(folder: Path, *lines: str, head: str = HEAD, name: str = "rows.csv") -> str:
    (folder / name).write_text(head + "\n".join(lines) + "\n", encoding="utf-8")
    return str(folder / name)


def test_a_csv_row_becomes_a_sample(tmp_path: Path) -> None:
    source = csv_file(
        tmp_path,
        'q1,a.png,"Which, of\nthese two, é?",liver|left kidney,B,train',
        '"q2",a.png,Which?,"[""a|b"", ""c""]",c,',
        "",
        "q3,a.png,Free?,,an answer,test",
    )
    first, second = load_samples(source, "train")
    assert (first.options, first.answer, first.question) == (
        ("liver", "left kidney"), "left kidney", "Which, of\nthese two, é?",
    )  # fmt: skip
    assert first.images == (ImageRef(str(tmp_path / "a.png")),)
    assert (second.options, second.answer, second.split) == (("a|b", "c"), "c", "train")
    assert list(SampleView(source, "train")) == [first, second]
    (free,) = load_samples(source, "test", questions="open")
    assert (free.options, free.answer) == ((), "an answer")
    tabs = csv_file(
        tmp_path, "q1\ta.png\tWhich?\ta|b\ta\ttest", head=HEAD.replace(",", "\t"), name="rows.tsv"
    )
    assert load_samples(tabs, "test")[0].options == ("a", "b")


def test_csv_with_a_byte_order_mark_and_frames(tmp_path: Path) -> None:
    head = "\ufeffid,image,question,options,answer,frame,window\n"
    source = csv_file(tmp_path, "q1,ct.dcm,Which?,a|b,a,3,40|400", "q2,ct.dcm,Which?,a|b,a,x,", head=head)
    tally = Tally()
    (only,) = load_samples(source, "train", on_error="skip", tally=tally)
    assert only.images[0].member == "frame=3&window=40,400"
    assert SampleView(source, "train", on_error="skip")[0] == only
    assert [str(f) for f in tally.faults] == [f"{source}:3: \"frame\" must be a whole number from 1, got 'x'"]


SHORT = "id,image,question,options\n"
CSV_FAULTS = {
    "a column missing": (["q,a.png,?,a"], SHORT, r":1: missing column answer; rename .* add it$"),
    "a field too many": (["q,a.png,?,a|b,a,train,x"], HEAD, r":2: 7 fields under 6 columns; a quote or a"),
    "a field missing": (["q,a.png,?,a|b"], HEAD, r":2: 4 fields under 6 columns"),
    "options repeat": (["q,a.png,?,a|b|a,a,train"], HEAD, r":2: an option stands twice in \['a', 'b', 'a'\]"),
    "gold outside": (
        ["q,a.png,?,a|b,C,train"],
        HEAD,
        r":2: gold answer 'C' is not among the options \['a', ",
    ),
    "broken list": (['q,a.png,?,"[""a"", b]",a,train'], HEAD, r":2: options begins like a JSON list and is"),
    "digits in a list": ([f"q,a.png,?,[{'9' * 5000}],a,train"], HEAD, r":2: options begins like a JSON list"),
    "a frame of digits": (
        [f"q,a.dcm,?,a|b,a,{'9' * 5000}"],
        HEAD.replace("split", "frame"),
        r':2: "frame" must be a whole number from 1',
    ),
    "NUL in a name": (["q,a\x00.png,?,a|b,a,train"], HEAD, r":2: the image name 'a\\x00.png' is empty"),
    "an empty id": ([",a.png,?,a|b,a,train"], HEAD, r":2: nothing stands under \"id\", got ''"),
    "an open quote": (
        ['q,a.png,"?,a|b,a,train', "q"],
        HEAD,
        r":2: lines 2 to 3 are lost: cannot be read on: une",
    ),
    "a column twice": (["q"], "id,id\n", r":1: column id stands twice; rename one"),
    "nothing": ([], "", r": the data set is empty; it needs a line of column names and rows"),
}


@pytest.mark.parametrize("fault", CSV_FAULTS)
def test_faults_of_a_csv_file(tmp_path: Path, fault: str) -> None:
    lines, head, told = CSV_FAULTS[fault]
    source = csv_file(tmp_path, *lines, head=head)
    with pytest.raises(DataError, match=rf"^{source}{told}"):
        load_samples(source, "train")


def test_a_csv_file_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes(HEAD.encode() + b"q1,a.png,caf\xe9?,a|b,a,train\n")
    with pytest.raises(DataError, match=r"rows\.csv:2: not UTF-8 at byte 12 of the row"):
        load_samples(str(tmp_path / "rows.csv"), "train")


def skipping(source: str) -> tuple[list[str], Tally]:
    """The ids that are left of any split, and what was left out."""
    tally = Tally()
    return [s.id for s in iter_samples(source, questions="all", on_error="skip", tally=tally)], tally


def test_a_csv_file_goes_on_after_a_row_that_cannot_be_read(tmp_path: Path) -> None:
    def good(i: int) -> bytes:
        return f"q{i},a.png,?,a|b,a,train\n".encode()

    caf, torn = b'q2,a.png,"one\ncaf\xe9",a|b,a,train\n', b'q4,a.png,"?"x,a|b,a,train\n'
    path = tmp_path / "rows.csv"
    path.write_bytes(HEAD.encode() + good(1) + caf + good(3) + torn + good(5) + good(6))
    ids, tally = skipping(str(path))
    assert ids == ["q1", "q3", "q5", "q6"]
    assert [s.id for s in SampleView(str(path), "train", on_error="skip")] == ids
    assert [str(fault)[len(str(path)) :] for fault in tally.faults] == [
        ":3: not UTF-8 at byte 17 of the row; save the file as UTF-8",
        ":6: cannot be read on: ',' expected after '\"'; repair the row",
    ]
    assert (tally.rows, tally.skipped) == (6, 2)
    path.write_bytes(HEAD.encode() + good(1) + b'q2,a.png,"?,a|b,a,train\n' + good(3) + good(4))
    ids, tally = skipping(str(path))
    assert ids == ["q1"]
    assert str(tally.faults[0]).startswith(f"{path}:3: lines 3 to 5 are lost: cannot be read on")
    assert (tally.rows, tally.skipped) == (4, 3)


def test_a_json_list_goes_on_or_stops(tmp_path: Path) -> None:
    """After a row that is no UTF-8 it goes on; after what is no JSON nothing can be found, skip or not."""
    turn = [{"from": "human", "value": "é?"}, {"from": "gpt", "value": "X."}]
    rows = [json.dumps({"id": i, "image": "a.png", "conversations": turn}, ensure_ascii=False).encode()
            for i in range(4)]  # fmt: skip
    path = tmp_path / "talk.json"
    path.write_bytes(b"[" + b",".join([rows[0], rows[1].replace(b"X", b"\xe9"), *rows[2:]]) + b"]")
    ids, tally = skipping(f"llava:{path}")
    assert ids == [f"llava-train-{i}-1" for i in (0, 2, 3)]
    assert [s.id for s in SampleView(f"llava:{path}", "train", questions="open", on_error="skip")] == ids
    assert str(tally.faults[0]).startswith(f"{path}:2: not UTF-8 at byte ")
    assert (tally.rows, tally.skipped) == (4, 1)
    path.write_bytes(b"[" + b",".join([rows[0], rows[1], b"{'id': 2}", rows[3]]) + b"]")
    with pytest.raises(
        DataError, match=r"talk\.json:3: not a JSON list of objects: .* all rows from here on"
    ):
        skipping(f"llava:{path}")
    assert (check(f"llava:{path}").rows, check(f"llava:{path}").faults[-1].row) == (3, 3)


def test_a_parquet_file_goes_on_after_a_group_that_cannot_be_read(tmp_path: Path) -> None:
    rows = [ROW | {"id": f"q{i}", "question": f"What is {i}?" + "x" * 50} for i in range(9)]
    path = tmp_path / "rows.parquet"
    pq.write_table(
        pa.Table.from_pylist(rows), path, row_group_size=3, compression="gzip", use_dictionary=False
    )
    column = pq.ParquetFile(path).metadata.row_group(1).column(2)
    assert column.path_in_schema == "question"
    data = bytearray(path.read_bytes())
    end = column.data_page_offset + column.total_compressed_size
    data[end - 20 : end] = bytes(20)
    path.write_bytes(data)
    ids, tally = skipping(str(path))
    assert ids == ["q0", "q1", "q2", "q6", "q7", "q8"]
    assert str(tally.faults[0]).startswith(f"{path}:4: cannot be read on after row 3, so 3 rows are lost (")
    assert (tally.rows, tally.skipped) == (9, 3)
    with pytest.raises(DataError, match=r"rows\.parquet:4: cannot be read on after row 3"):
        load_samples(str(path), "train")


def test_a_number_of_5000_digits_in_a_json_list(tmp_path: Path) -> None:
    turn = [{"from": "human", "value": "?"}, {"from": "gpt", "value": "X."}]
    rows = [json.dumps({"id": i, "image": "a.png", "conversations": turn}) for i in range(3)]
    rows[1] = rows[1].replace('"id": 1', f'"id": {"9" * 5000}')
    (tmp_path / "talk.json").write_text(f"[{','.join(rows)}]")
    ids, tally = skipping(f"llava:{tmp_path}/talk.json")
    assert ids == ["llava-train-0-1", "llava-train-2-1"]
    assert str(tally.faults[0]).startswith(f"{tmp_path}/talk.json:2: a whole number has thousands of digits")


CONVERSATION_FAULTS = {
    "image a number": ({"image": 5}, r'"image" must be a file name or a list of them, got 5'),
    "image a dict": ({"image": {"a": 1}}, r'"image" must be a file name or a list of them, got {'),
    "NUL in a name": ({"image": "a\x00.png"}, r"the image name 'a\\x00.png' is empty or holds"),
    "half a character in a name": ({"image": ["\ud800"]}, r"the image name '\\ud800' is empty or holds"),
    "a turn null": (
        {"conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": None}]},
        r"a turn must name who says which text",
    ),
}


@pytest.mark.parametrize("fault", CONVERSATION_FAULTS)
def test_faults_of_a_conversation(tmp_path: Path, fault: str) -> None:
    changed, told = CONVERSATION_FAULTS[fault]
    turns = [{"from": "human", "value": "?"}, {"from": "gpt", "value": "X."}]
    row = {"id": 1, "image": "a.png", "conversations": turns} | changed
    path = jsonl(tmp_path / "talk.jsonl", row)
    with pytest.raises(DataError, match=rf"^{path}:1: {told}"):
        load_samples(f"llava:{path}", "train", questions="all")


def test_a_parquet_row_that_is_not_utf8_is_left_out_alone(tmp_path: Path) -> None:
    rows = [ROW | {"id": f"q{i}", "question": "cafX?" if i == 1 else "?"} for i in range(4)]
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, compression="none", write_statistics=False)
    path.write_bytes(path.read_bytes().replace(b"cafX", b"caf\xe9"))
    ids, tally = skipping(str(path))
    assert ids == ["q0", "q2", "q3"]
    assert str(tally.faults[0]).startswith(f"{path}:2: cannot be read (")
    assert (tally.rows, tally.skipped) == (4, 1)


def test_a_parquet_file_with_its_images_inside(tmp_path: Path) -> None:
    colours = [(i * 20, 0, 0) for i in range(9)]
    cells = []
    for colour in colours:
        Image.new("RGB", (4, 4), colour).save(tmp_path / "x.png")
        cells.append((tmp_path / "x.png").read_bytes())
    table = pa.table({
        "id": [f"q{i}" for i in range(9)], "image": pa.array(cells, pa.binary()), "question": ["Which?"] * 9,
        "options": [["a", "b"]] * 9, "answer": ["b"] * 9, "split": ["train", "test", "train"] * 3,
    })  # fmt: skip
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=2)
    source = str(tmp_path / "rows.parquet")
    samples = load_samples(source, "train")
    assert [s.id for s in samples] == ["q0", "q2", "q3", "q5", "q6", "q8"]
    assert [load_image(s.images[0]).getpixel((0, 0)) for s in samples] == [
        colours[int(s.id[1])] for s in samples
    ]
    assert list(SampleView(source, "train")) == samples
    for member, told in [
        ("image/99", "lies past the end"),
        ("answer/0", "no column of images"),
        ("image/x", "no col"),
    ]:
        with pytest.raises(DataError, match=told):
            load_image(ImageRef(source, member))
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match=r"torn\.parquet: cannot be read as Parquet"):
        load_samples(str(tmp_path / "torn.parquet"), "train")


def jsonl(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


ROW = {"id": "q1", "image": "a.png", "question": "?", "options": ["a", "b"], "answer": "a"}


def test_a_folder_of_files_named_after_their_splits(tmp_path: Path) -> None:
    jsonl(tmp_path / "train.jsonl", ROW, ROW | {"id": "q2"})
    csv_file(tmp_path, "q3,a.png,?,a|b,a", head="id,image,question,options,answer\n", name="val.csv")
    jsonl(tmp_path / "test.jsonl", ROW | {"id": "q4"}, ROW | {"id": "q5", "split": "extra"})
    for split, ids in {"train": ["q1", "q2"], "validation": ["q3"], "test": ["q4"], "extra": ["q5"]}.items():
        assert [s.id for s in load_samples(str(tmp_path), split)] == ids
        assert [s.id for s in SampleView(str(tmp_path), split)] == ids
    jsonl(tmp_path / "more.jsonl", ROW | {"id": "q4"})
    with pytest.raises(DataError, match=r"test\.jsonl:1: id 'q4' stands in row .*more\.jsonl:1 already"):
        load_samples(str(tmp_path), "train")
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match=r"none: holds no \.jsonl, \.csv, \.tsv, \.parquet file; put one"):
        load_samples(str(tmp_path / "none"), "train")
    (tmp_path / "rows.xlsx").touch()
    with pytest.raises(DataError, match=r"rows\.xlsx: rows are read from \.jsonl, \.json, \.csv"):
        load_samples(str(tmp_path / "rows.xlsx"), "train")


def test_skipped_rows_and_images_are_counted(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    path = jsonl(
        tmp_path / "rows.jsonl", ROW, ROW | {"id": "q2", "answer": "c", "options": ["a", "a"]},
        ROW | {"id": "q3", "image": "bad.png"}, ROW | {"id": "q4", "images": ["a.png", "bad.png"]},
        ROW | {"id": "q5", "extra": 1},
    )  # fmt: skip
    tally = Tally()
    samples = with_good_images(load_samples(str(path), "train", on_error="skip", tally=tally), tally)
    assert [s.id for s in samples] == ["q1", "q5"]
    found = tally.to_json()
    assert (found["rows"], found["skipped"], found["unknown_fields"]) == (5, 3, ["extra"])
    assert found["faults"][0].startswith(f"{path}:2: gold answer 'c' is not among the options")
    assert found["faults"][2].startswith(f"{path}:3: sample q3: image {tmp_path}/bad.png: cannot be read")
    assert found["faults"][3].startswith(f"{path}:4: sample q4: image {tmp_path}/bad.png: cannot be read")
    checked = check(str(path))
    assert [s.id for s in checked.samples] == ["q1", "q5"]
    assert (checked.rows, len(checked.faults), checked.unknown_fields) == (5, 3, ("extra",))
    with pytest.raises(
        DataError, match=r"no sample in split 'train'; the file has no rows; 1 of 1 rows skipped"
    ):
        load_samples(str(jsonl(tmp_path / "b.jsonl", ROW | {"answer": "x"})), "train", on_error="skip")


def test_a_split_of_broken_images_is_no_split(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    path = jsonl(tmp_path / "rows.jsonl", ROW, ROW | {"id": "q2"})
    samples = load_samples(str(path), "train")
    with pytest.raises(
        DataError, match=rf"left in split 'train': .* each of the 2 .*; the first: {path}:1: sample q1: image"
    ):
        with_good_images(samples, Tally())
    with pytest.raises(DataError, match=rf"^{path}:1: sample q1: image .*a\.png: cannot be read"):
        check_images(SampleView(str(path), "train"))


def test_open_questions_are_left_out_and_counted(tmp_path: Path) -> None:
    path = str(jsonl(tmp_path / "rows.jsonl", ROW, ROW | {"id": "q2", "options": [], "answer": "free text"}))
    tally = Tally()
    assert [s.id for s in load_samples(path, "train", tally=tally)] == ["q1"]
    assert tally.other_questions == 1
    assert [s.id for s in load_samples(path, "train", questions="open")] == ["q2"]
    assert len(load_samples(path, "train", questions="all")) == 2
    only = str(jsonl(tmp_path / "open.jsonl", ROW | {"options": []}))
    with pytest.raises(DataError, match=r"the file has train \(1\); 1 open questions left out"):
        load_samples(only, "train")
    with pytest.raises(DataError, match="an open question needs an answer"):
        load_samples(str(jsonl(tmp_path / "none.jsonl", ROW | {"options": [], "answer": " "})), "train")
