"""Samples from a JSONL file and from the embedded pack; every fault names its file, line and remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lite_medrl.data.sources import check_images, embedded_samples, load_samples
from lite_medrl.types import DataError, ImageRef, Sample

ROW: dict[str, Any] = {
    "id": "q1", "image": "a.png", "question": "Which plane?", "options": ["axial", "coronal", "sagittal"],
    "answer": "coronal",
}  # fmt: skip


def write(folder: Path, *rows: dict[str, Any] | str) -> Path:
    path = folder / "rows.jsonl"
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def only(folder: Path, row: dict[str, Any]) -> Sample:
    (sample,) = load_samples(str(write(folder, row)), "train")
    return sample


def test_a_row_becomes_a_sample(tmp_path: Path) -> None:
    full = ROW | {
        "images": ["b/1.png", "2.png"], "kind": "plane", "modality": "CT", "source": "us", "licence": "CC0",
        "reasoning": "the cut is from side to side .", "subject": "s7",
    }  # fmt: skip
    assert only(tmp_path, full) == Sample(
        id="q1",
        images=(ImageRef(str(tmp_path / "b/1.png")), ImageRef(str(tmp_path / "2.png"))),
        question="Which plane?",
        options=("axial", "coronal", "sagittal"),
        answer="coronal",
        kind="plane",
        modality="CT",
        source="us",
        licence="CC0",
        split="train",
        reasoning="the cut is from side to side .",
        subject="s7",
    )


def test_what_is_left_out_is_unknown(tmp_path: Path) -> None:
    sample = only(tmp_path, ROW)
    assert sample.images == (ImageRef(str(tmp_path / "a.png")),)
    assert (sample.kind, sample.modality, sample.source, sample.licence) == ("unknown",) * 4
    assert (sample.split, sample.reasoning, sample.subject) == ("train", None, None)


def test_an_answer_may_be_a_letter_or_a_number(tmp_path: Path) -> None:
    assert only(tmp_path, ROW | {"answer": "C"}).answer == "sagittal"
    assert only(tmp_path, ROW | {"answer": "C"}).letter == "C"
    counts = only(tmp_path, ROW | {"id": 7, "options": [1, 2, 3], "answer": 2})
    assert (counts.id, counts.options, counts.answer, counts.letter) == ("7", ("1", "2", "3"), "2", "B")
    blood = only(tmp_path, ROW | {"options": ["B", "A", "AB"], "answer": "B"})
    assert (blood.answer, blood.letter) == ("B", "A")  # an option's text goes before a letter


@pytest.mark.parametrize("answer", ["oblique", "D", "AB", "b", "Coronal", "None"])
def test_a_gold_answer_that_is_no_option(tmp_path: Path, answer: Any) -> None:
    path = write(tmp_path, ROW | {"id": "q0"}, "", ROW | {"answer": answer})
    with pytest.raises(DataError) as caught:
        load_samples(str(path), "train")
    assert str(caught.value) == (
        f"{path}:3: gold answer {str(answer)!r} is not among the options ['axial', 'coronal', 'sagittal']; "
        "fix the row or drop it"
    )


def test_lines_end_at_newlines_only(tmp_path: Path) -> None:
    """U+2028, U+0085 and a form feed may stand inside a JSON text."""
    question = "left\u2028or\u0085right\u2029 ?"
    path = write(tmp_path, ROW | {"question": question}, ROW | {"id": "q2"})
    first, second = load_samples(str(path), "train")
    assert (first.question, second.id) == (question, "q2")
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert load_samples(str(path), "train") == [first, second]


FAULTS: dict[str, tuple[Any, str]] = {
    "not JSON": ("{'id': 1}", r":2: not JSON: Expecting property name.* at column 2$"),
    "not an object": ("[1]", r":2: expected an object, got list"),
    "no question": (
        {k: v for k, v in ROW.items() if k != "question"},
        r":2: missing question; a row needs id, ",
    ),
    "no answer": ({k: v for k, v in ROW.items() if k != "answer"}, r":2: missing answer"),
    "no image": (
        {k: v for k, v in ROW.items() if k != "image"},
        r':2: "images" must be a list of file names',
    ),
    "image a number": (ROW | {"image": 3}, r':2: "images" must be a list .*, got 3'),
    "images empty": (ROW | {"images": []}, r':2: "images" must be a list .*, got \[\]'),
    "one option": (
        ROW | {"options": ["axial"]},
        r":2: options must be a list of 2 to 10 texts, got \['axial'\]",
    ),
    "options a text": (ROW | {"options": "axial"}, r":2: options must be a list of 2 to 10 texts"),
    "eleven options": (ROW | {"options": list("abcdefghijk"), "answer": "a"}, r":2: options must be a list"),
    "an option twice": (ROW | {"options": ["x", "y", "x"], "answer": "y"}, r":2: an option stands twice"),
    "options that read alike": (
        ROW | {"options": ["axial", "axial ", "x"], "answer": "x"},
        r":2: an option stands twice in \['axial', 'axial ', 'x'\]",
    ),
    "an option null": (
        ROW | {"options": ["axial", None], "answer": "axial"},
        r':2: nothing stands under "options", got None; fill it in or drop the row',
    ),
    "an option empty": (ROW | {"options": ["axial", ""]}, r":2: nothing stands under \"options\", got ''"),
    "an option a list": (
        ROW | {"options": ["axial", ["x"]]},
        r":2: no text stands under \"options\", got \[",
    ),
    "answer null": (
        ROW | {"options": ["None", "axial"], "answer": None},
        r':2: nothing stands under "answer", got None',
    ),
    "answer null, open": (ROW | {"options": [], "answer": None}, r":2: an open question needs an answer"),
    "answer an object": (ROW | {"options": [], "answer": {"a": 1}}, r':2: no text stands under "answer"'),
    "answer empty": (ROW | {"answer": ""}, r":2: nothing stands under \"answer\", got ''"),
    "id null": (ROW | {"id": None}, r':2: nothing stands under "id", got None'),
    "id empty": (ROW | {"id": " "}, r':2: nothing stands under "id", got'),
    "question null": (ROW | {"question": None}, r':2: nothing stands under "question", got None'),
    "question no number": (ROW | {"question": float("nan")}, r':2: nothing stands under "question", got nan'),
    "reasoning a list": (ROW | {"reasoning": ["so"]}, r":2: \"reasoning\" must be a text, got \['so'\]"),
    "half a character": (
        json.dumps(ROW | {"question": "\ud800?"}),
        r':2: half a character .* stands under "question"',
    ),
    "half a character in a name": (
        json.dumps(ROW | {"image": "\ud800.png"}),
        r":2: the image name '\\ud800.png' is empty",
    ),
    "NUL in a name": (ROW | {"images": ["a.png", "a\x00.png"]}, r":2: the image name 'a\\x00.png' is empty"),
    "a number of 5,000 digits": (
        json.dumps(ROW)[:-1] + f', "frame": {"9" * 5000}}}',
        r":2: a whole number has thousands of digits; write it as a text",
    ),
    "same id": (ROW | {"id": "q0"}, r":2: id 'q0' stands in row 1 already; use unique ids"),
    "same id in another split": (ROW | {"id": "q0", "split": "test"}, r":2: id 'q0' stands in row 1 already"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_name_file_line_and_remedy(tmp_path: Path, fault: str) -> None:
    row, message = FAULTS[fault]
    path = write(tmp_path, ROW | {"id": "q0"}, row)
    with pytest.raises(DataError, match=message) as caught:
        load_samples(str(path), "train")
    assert str(caught.value).startswith(str(path))


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"none\.jsonl: no such file; give 'embedded' or the path of a \.jsonl"
    ):
        load_samples(str(tmp_path / "none.jsonl"), "train")
    for text in ("", "\n \n"):
        with pytest.raises(DataError, match="the data set is empty; it needs at least one row"):
            load_samples(str(write(tmp_path, text)), "train")
    path = write(tmp_path, ROW, ROW | {"id": "q2", "split": "dev"}, ROW | {"id": "q3", "split": "dev"})
    with pytest.raises(DataError, match=r"no sample in split 'test'; the file has dev \(2\), train \(1\)"):
        load_samples(str(path), "test")
    with pytest.raises(DataError, match=r"no sample in split 'dev' and kinds organ, plane"):
        load_samples(str(path), "dev", kinds=["organ", "plane"])


def test_a_file_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"id": "caf\xe9"}')
    with pytest.raises(DataError, match=r"rows\.jsonl:1: not UTF-8 at byte 11 of the row; save"):
        load_samples(str(path), "train")


def test_kinds_and_splits_choose_rows_in_file_order(tmp_path: Path) -> None:
    made = [("a", "train", "x"), ("b", "test", "x"), ("c", "train", "y"), ("d", "train", "x")]
    rows = [ROW | {"id": i, "split": split, "kind": kind} for i, split, kind in made]
    path = str(write(tmp_path, *rows))
    assert [s.id for s in load_samples(path, "train")] == ["a", "c", "d"]
    assert [s.id for s in load_samples(path, "train", kinds=["x"])] == ["a", "d"]


def test_the_embedded_pack_joins_questions_with_their_images() -> None:
    samples = embedded_samples()
    assert {s.split for s in samples} == {"train", "validation", "test"}
    for sample in samples:
        assert sample.answer in sample.options
        assert "unknown" not in (sample.kind, sample.modality, sample.source, sample.licence)
        assert sample.reasoning
        assert sample.images[0].member
    assert load_samples("embedded", "test") == [s for s in samples if s.split == "test"]


def test_images_are_checked_once_each_and_named_by_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"")
    rows = [ROW | {"id": f"q{i}", "image": name} for i, name in enumerate(["a.png", "a.png", "b.png"])]
    samples = load_samples(str(write(tmp_path, *rows)), "train")
    opened: list[str] = []
    from lite_medrl.data import sources

    real = sources.load_image
    monkeypatch.setattr(sources, "load_image", lambda ref: opened.append(Path(ref.path).name) or real(ref))
    check_images(samples[:2])
    assert opened == ["a.png"]
    with pytest.raises(
        DataError, match=r"rows\.jsonl:3: sample q2: image .*b\.png: the file is empty \(0 bytes\)"
    ):
        check_images(samples)
