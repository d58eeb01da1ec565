"""`data audit --against`: training rows against another source's test split; and a source with one split."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from test_audit import sample, smooth
from test_sets import MEDVL, parquet

from lite_medrl.cli import main
from lite_medrl.data.audit import MAX_DISTANCE, asked_twice, guesses, look_at, shared_questions
from lite_medrl.types import ImageRef, Sample


def audited(capfd: pytest.CaptureFixture[str], *words: str) -> tuple[dict[str, Any], str]:
    """What the verb says as JSON, and in words."""
    assert main(["data", "audit", *words, "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert main(["data", "audit", *words]) == 0
    return found, capfd.readouterr().out


@pytest.fixture
def mine(tmp_path: Path) -> str:
    """Rows of one's own, all in train: a picture of the benchmark's, one that it has smaller, a new one."""
    for number in (1, 2, 3):
        smooth(number).save(tmp_path / f"{number}.bmp")
    row = {"options": ["Yes", "No"], "source": "ours", "licence": "CC0", "subject": "p"}
    rows = [
        row | {"id": "m1", "image": "1.bmp", "question": "Is it CT?", "answer": "Yes"},
        row | {"id": "m2", "image": "2.bmp", "question": "Is it MRI?", "answer": "No"},
        row | {"id": "m3", "image": "3.bmp", "question": "Is it MRI?", "answer": "No"},
    ]
    path = tmp_path / "my.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def cell_of(image: Image.Image, path: Path) -> dict[str, Any]:
    image.save(path)
    return {"bytes": path.read_bytes(), "path": None}


@pytest.fixture
def benchmark(tmp_path: Path) -> str:
    """A set that has a test split only: pictures 1 and 2 (the latter smaller), and 9."""
    folder = tmp_path / "bench"
    row = {"question": "is it CT", "dataset_name": "vqa_rad_closed", "dataset_index": 1}
    rows = [
        row | {"images": [cell_of(smooth(1), tmp_path / "a.png")], "options": '{"A": "No", "B": "Yes"}',
               "answer_label": "B", "answer": "Yes"},
        row | {"images": [cell_of(smooth(2).resize((50, 50)), tmp_path / "b.png")], "question": "Is it MRI?",
               "options": '{"A": "MRI it is", "B": "No"}', "answer_label": "B", "answer": "No",
               "dataset_index": 2},
        row | {"images": [cell_of(smooth(9), tmp_path / "c.png")], "question": "Is it MRI?",
               "options": '{"A": "Yes", "B": "No"}', "answer_label": "A", "answer": "Yes",
               "dataset_index": 3},
    ]  # fmt: skip
    parquet(folder / "data" / "test-00000-of-00001.parquet", rows, MEDVL)
    return f"medvlthinker-eval:{folder}"


def test_training_rows_against_a_benchmark(
    mine: str, benchmark: str, capfd: pytest.CaptureFixture[str]
) -> None:
    found, told = audited(capfd, mine, "--against", benchmark)
    assert (found["source"], found["against"], found["train"], found["test"]) == (
        mine, benchmark, "train", "test"
    )  # fmt: skip
    assert found["questions"] == {"train": 3, "test": 3}
    names = [f"medvlthinker-eval-test-vqa_rad_closed-{number}" for number in (1, 2, 3)]
    images, asked = found["images"], found["asked_in_both"]
    assert [images[name] for name in ("train_images", "test_images", "same_pixels", "alike")] == [3, 3, 1, 1]
    assert (asked["same_pixels"], asked["alike"]) == (1, 1)
    for pairs in (images["examples"], asked["examples"]):
        assert [(pair["test"], pair["train"]) for pair in pairs] == [(names[0], "m1"), (names[1], "m2")]
    assert found["duplicates"] == {
        "groups": 1, "extra": 1, "across_splits": 1, "different_answers": 0, "examples": [["m1", names[0]]],
    }  # fmt: skip
    assert {name: row["acc"] for name, row in found["baselines"].items()} == {
        "chance": 0.5, "letter": 2 / 3, "majority": pytest.approx(1 / 3), "text_only": pytest.approx(2 / 3),
    }  # fmt: skip
    assert found["answers"]["test"][0] == {"answer": "yes", "count": 2, "share": 2 / 3}
    assert found["letters"]["train"]["B"] == {"count": 2, "even": 1.5}
    assert [row["source"] for row in found["terms"]] == ["ours", "medvlthinker-eval/vqa_rad_closed"]
    assert found["not_measured"] == []
    train, test = f"{mine} (train)", f"{benchmark} (test)"
    lines = told.splitlines()
    assert lines[:2] == [f"{mine}: 3 questions in train", f"{benchmark}: 3 questions in test"]
    assert f"images of {test} that {train} shows too: 1 of 3 with the same pixels, 1 more look alike" in told
    assert (
        f"questions of {test} that {train} asks too, options aside: 1 about the same pixels, 1 more about "
        "images that look alike"
    ) in lines
    assert f"right in {test} without the image, learned from {train}:" in lines
    assert f"subjects: the rows of {test} name none" in told
    assert f"answers in {train}: no 66.7%, yes 33.3%" in lines


def test_both_sources_must_have_their_split(
    mine: str, benchmark: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "audit", benchmark, "--against", mine]) == 2
    assert "no split 'train'; the set has test" in capfd.readouterr().err
    assert main(["data", "audit", mine, "--against", mine]) == 2
    assert "no sample in split 'test'; the file has train (3)" in capfd.readouterr().err
    assert main(["data", "audit", mine, "--against", mine, "--test", "train"]) == 2
    assert "--train and --test both name split 'train'" in capfd.readouterr().err


def test_splits_of_one_name_are_two_sides(
    mine: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The other rows are in train too; what stands in both is told by the side, not by the split's name."""
    (tmp_path / "other.jsonl").write_text(Path(mine).read_text().splitlines()[0].replace("m1", "x1") + "\n")
    other = str(tmp_path / "other.jsonl")
    found, told = audited(capfd, mine, "--against", other, "--test", "train")
    assert found["questions"] == {"train": 3, "test": 1}
    assert (found["duplicates"]["across_splits"], found["subjects"]["both"]) == (1, 1)
    assert (
        f"subjects in {mine} (train) 1, in {other} (train) 1, in both 1, by name: two sources may call "
        "different subjects the same"
    ) in told


def test_a_source_with_a_test_split_only(benchmark: str, capfd: pytest.CaptureFixture[str]) -> None:
    found, told = audited(capfd, benchmark)
    assert (found["train"], found["test"], found["questions"]) == (None, "test", {"test": 3})
    assert found["images"] is found["subjects"] is found["asked_in_both"] is None
    assert found["duplicates"]["across_splits"] is None
    assert found["baselines"] == {"chance": {"acc": 0.5, "ci95": None, "n": 3}}
    assert found["not_measured"] == [
        "images", "subjects", "asked_in_both", "across_splits", "letter", "majority", "text_only",
    ]  # fmt: skip
    lines = told.splitlines()
    assert lines[0] == f"{benchmark}: 3 questions in test"
    assert lines[1].startswith("left out, since it needs two splits: images, subjects and questions in both")
    assert f"lite-medrl data audit TRAINING_SOURCE --against {benchmark}" in lines[1]
    assert "questions asked again about the same image: 0 in 0 groups, 0 with different answers" in lines
    assert "right in test without the image:" in lines
    assert "gold letters in test: A 1 (even: 2), B 2 (even: 2)" in lines


def test_a_source_with_a_train_split_only(mine: str, capfd: pytest.CaptureFixture[str]) -> None:
    found, told = audited(capfd, mine)
    assert (found["train"], found["test"], found["questions"]) == ("train", None, {"train": 3})
    assert found["baselines"] == {"chance": {"acc": 0.5, "ci95": None, "n": 3}}
    assert f"lite-medrl data audit {mine} --against BENCHMARK" in told
    assert "gold letters in train: A 1 (even: 2), B 2 (even: 2)" in told


def test_a_split_that_is_named_must_be_there(mine: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "audit", mine, "--test", "tset"]) == 2
    assert "no sample in split 'tset'; the file has train (3)" in capfd.readouterr().err
    assert main(["data", "audit", mine, "--train", "validation"]) == 2
    assert "no sample in split 'validation'" in capfd.readouterr().err


def test_rows_with_a_fault_stop_or_are_counted_on_their_side(
    mine: str, benchmark: str, capfd: pytest.CaptureFixture[str]
) -> None:
    row = json.loads(Path(mine).read_text().splitlines()[0])
    with Path(mine).open("a") as file:
        file.write(json.dumps(row | {"id": "m4", "image": "gone.png"}) + "\n")
    assert main(["data", "audit", mine, "--against", benchmark]) == 2
    assert "gone.png: no such file" in capfd.readouterr().err
    found, told = audited(capfd, mine, "--against", benchmark, "--on-error", "skip")
    assert (found["left_out"]["train"]["skipped"], found["left_out"]["test"]["skipped"]) == (1, 0)
    assert f"left out of {mine} (train): 1 rows with a fault" in told


def pictures(ref: ImageRef) -> Image.Image:
    """A picture by its number; "7s" is number 7, smaller."""
    image = smooth(int(ref.path.rstrip("s")))
    return image.resize((50, 50)) if ref.path.endswith("s") else image


def asking(name: str, images: str, question: str, *options: str) -> Sample:
    first = sample(name, "0", question, options[0] if options else "free", options=options)
    refs = tuple(ImageRef(path) for path in images.split())
    return Sample(**{field: getattr(first, field) for field in first.__slots__} | {"images": refs})


def test_questions_of_both_sides() -> None:
    train = [
        asking("t1", "1 2", "Any change?", "yes", "no"), asking("t2", "3", "Any mass?", "yes", "no"),
        asking("t3", "3", "any  mass", "left", "right"), asking("t4", "4", "Any mass?"),
    ]  # fmt: skip
    test = [
        asking("e1", "1 2", "any change", "a", "b"),  # the same, whatever the options
        asking("e2", "2 1", "any change"),  # the images in another order
        asking("e3", "1", "any change"),  # one image less
        asking("e4", "1s 2", "any change"),  # one of them smaller
        asking("e5", "3s", "Any mass?"), asking("e6", "3", "any mass"), asking("e7", "3", "Another?"),
        asking("e8", "9", "Any mass?"), asking("e9", "1 9", "any change"),  # one of two is the same
    ]  # fmt: skip
    hashes = look_at([*train, *test], pictures)
    found = shared_questions(train, test, hashes)
    far = [pair.pop("distance") for pair in found["examples"]]  # type: ignore[attr-defined]
    assert found == {
        "same_pixels": 2, "alike": 2,
        "examples": [
            {"test": "e1", "train": "t1"}, {"test": "e6", "train": "t2"},
            {"test": "e4", "train": "t1"}, {"test": "e5", "train": "t2"},
        ],
    }  # fmt: skip
    assert far[:2] == [0, 0]
    assert all(0 <= distance <= MAX_DISTANCE for distance in far)
    assert shared_questions([], test, hashes) == {"same_pixels": 0, "alike": 0, "examples": []}
    assert asked_twice([], train, hashes)["across_splits"] == 0


def test_without_training_questions_there_is_chance_only() -> None:
    assert guesses([], [sample("1", "x", "?", "yes")]) == {"chance": [0.5]}
