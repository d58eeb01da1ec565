"""Overlap, duplicates, priors and the baselines that need no image, on rows made to show each of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from lite_medrl.cli import main
from lite_medrl.data.audit import (
    MAX_DISTANCE,
    answer_priors,
    asked_twice,
    guesses,
    letter_balance,
    look_at,
    look_hash,
    seen,
    shared_images,
    shared_subjects,
)
from lite_medrl.data.images import load_image
from lite_medrl.data.sources import embedded_samples, load_samples
from lite_medrl.types import ImageRef, Sample

REPO = Path(__file__).parents[1]


def smooth(seed: int, size: int = 64) -> Image.Image:
    """A picture of soft blobs: like a scan, it keeps its look when it is resized."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6), dtype=np.uint8)
    return Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC).convert("RGB")


def sample(name: str, image: str, question: str, answer: str, split: str = "train", **options: Any) -> Sample:
    choices = options.pop("options", ("yes", "no"))
    return Sample(
        name, (ImageRef(image),), question, choices, answer, "k", "CT", "s", "CC0", split, **options
    )


def test_the_perceptual_hash_survives_small_changes_and_tells_pictures_apart() -> None:
    image = smooth(1)
    for changed in (image.resize((48, 48)), ImageEnhance.Brightness(image).enhance(0.9), smooth(1, 80)):
        assert (look_hash(image) ^ look_hash(changed)).bit_count() <= MAX_DISTANCE
        assert seen(image).pixels != seen(changed).pixels
    distances = [
        (look_hash(smooth(i)) ^ look_hash(smooth(j))).bit_count() for i in range(6) for j in range(i)
    ]
    assert min(distances) > MAX_DISTANCE
    assert look_hash(image) < 2**63
    assert seen(image) == seen(image.copy())


def test_the_threshold_is_the_measured_one() -> None:
    """Nearly all changed copies lie within it, and few pairs of other images."""
    stored = json.loads((REPO / "docs" / "results" / "data_look_hash.json").read_text())
    assert stored["max_distance"] == MAX_DISTANCE
    assert stored["copies_within"][str(MAX_DISTANCE)] > 0.99
    assert stored["other_pairs_within"][str(MAX_DISTANCE)] < 0.002


def test_images_of_both_splits(tmp_path: Path) -> None:
    smooth(1).save(tmp_path / "a.png")
    smooth(1).save(tmp_path / "copy.bmp")  # the same pixels in another file
    smooth(1).resize((50, 50)).save(tmp_path / "like.png")
    smooth(2).save(tmp_path / "b.png")
    smooth(3).save(tmp_path / "c.png")
    at = {name: str(tmp_path / name) for name in ("a.png", "copy.bmp", "like.png", "b.png", "c.png")}
    train = [sample("t1", at["a.png"], "?", "yes"), sample("t2", at["b.png"], "?", "no")]
    test = [
        sample("e1", at["copy.bmp"], "?", "yes", "test"), sample("e2", at["copy.bmp"], "??", "no", "test"),
        sample("e3", at["like.png"], "?", "no", "test"), sample("e4", at["c.png"], "?", "no", "test"),
    ]  # fmt: skip
    found = shared_images(train, test, look_at([*train, *test]))
    distance = found["examples"][1]["distance"]  # type: ignore[index]
    assert found == {
        "train_images": 2, "test_images": 3, "same_pixels": 1, "alike": 1, "max_distance": MAX_DISTANCE,
        "test_questions": 3, "examples": [
            {"test": "e1", "train": "t1", "distance": 0}, {"test": "e3", "train": "t1", "distance": distance},
        ],
    }  # fmt: skip
    assert 0 <= distance <= MAX_DISTANCE


def test_each_image_is_opened_once() -> None:
    opened: list[ImageRef] = []

    def count(ref: ImageRef) -> Image.Image:
        opened.append(ref)
        return smooth(1)

    look_at([sample("a", "x", "?", "yes"), sample("b", "x", "?", "no"), sample("c", "y", "?", "no")], count)
    assert [ref.path for ref in opened] == ["x", "y"]


def test_questions_asked_again(tmp_path: Path) -> None:
    smooth(1).save(tmp_path / "a.png")
    smooth(2).save(tmp_path / "b.png")
    a, b = str(tmp_path / "a.png"), str(tmp_path / "b.png")
    rows = [
        sample("1", a, "Is it  CT?", "yes"), sample("2", a, "is it CT", "yes", options=("no", "yes")),
        sample("3", a, "Is it MR?", "no"), sample("4", a, "Is it MR?", "yes", "test"),
        sample("5", b, "Is it CT?", "yes"), sample("6", a, "Is it CT?", "yes", options=("yes", "maybe")),
    ]  # fmt: skip
    train, test = [s for s in rows if s.split == "train"], [s for s in rows if s.split == "test"]
    assert asked_twice(train, test, look_at(rows)) == {
        "groups": 2, "extra": 2, "across_splits": 1, "different_answers": 1,
        "examples": [["3", "4"], ["1", "2"]],
    }  # fmt: skip


def test_priors_letters_and_subjects() -> None:
    rows = [
        sample("1", "x", "?", "Yes", options=("Yes", "No"), subject="p1"),
        sample("2", "x", "?", "yes.", options=(), subject="p2"),
        sample("3", "x", "?", "c", options=("a", "b", "c", "d")),
    ]
    assert answer_priors(rows, most=1) == [{"answer": "yes", "count": 2, "share": 2 / 3}]
    assert letter_balance(rows) == {
        "A": {"count": 1, "even": 0.75}, "B": {"count": 0, "even": 0.75},
        "C": {"count": 1, "even": 0.25}, "D": {"count": 0, "even": 0.25},
    }  # fmt: skip
    other = [sample("4", "x", "?", "yes", subject="p2"), sample("5", "x", "?", "yes", subject="p3")]
    assert shared_subjects(rows, other) == {"train": 2, "test": 2, "both": 1}


def test_guesses_without_the_image() -> None:
    three = ("liver", "spleen", "lung")
    train = [
        *[sample(f"a{i}", "x", "Which organ?", "lung", options=three) for i in range(5)],
        *[sample(f"b{i}", "x", "Where is the cyst?", "liver", options=three) for i in range(2)],
        sample("c", "x", "Is it CT?", "no"),
    ]
    test = [
        sample("1", "x", "which organ", "lung", options=three),
        sample("2", "x", "Where is the cyst?", "liver", options=three),
        sample(
            "3", "x", "Where is the cyst?", "spleen", options=("spleen", "lung")
        ),  # its options: as majority
        sample("4", "x", "Something new?", "no"),
        sample("5", "x", "Free?", "free text", options=()),
    ]
    assert guesses(train, test) == {
        "chance": [1 / 3, 1 / 3, 1 / 2, 1 / 2],
        "letter": [1, 0, 1, 0],  # C is commonest; where there is none, A
        "majority": [1, 0, 0, 1],
        "text_only": [1, 1, 0, 1],
    }


def rows_file(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_command_audits_and_stops_or_skips(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    smooth(1).save(tmp_path / "a.png")
    smooth(2).save(tmp_path / "b.png")
    row = {"question": "Is it?", "options": ["yes", "no"], "answer": "no", "licence": "CC0", "source": "ours"}
    rows = [
        row | {"id": "1", "image": "a.png"}, row | {"id": "2", "image": "b.png", "answer": "yes"},
        row | {"id": "3", "image": "a.png"}, row | {"id": "4", "image": "a.png", "split": "test"},
        row | {"id": "5", "image": "gone.png", "split": "test"},
    ]  # fmt: skip
    path = rows_file(tmp_path, *rows)
    assert main(["data", "audit", str(path)]) == 2
    assert "gone.png: no such file" in capfd.readouterr().err
    assert main(["data", "audit", str(path), "--on-error", "skip", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert (found["images"]["same_pixels"], found["images"]["test_questions"]) == (1, 1)
    assert (found["duplicates"]["across_splits"], found["duplicates"]["extra"]) == (1, 2)
    assert found["baselines"]["majority"]["acc"] == 1
    assert found["baselines"]["majority"]["ci95"][1] == pytest.approx(1)
    assert found["baselines"]["chance"] == {"acc": 0.5, "ci95": None, "n": 1}
    assert found["terms"] == [
        {"source": "ours", "licence": "CC0", "access": "see its publisher", "questions": 4}
    ]
    assert found["left_out"]["test"]["skipped"] == 1
    assert main(["data", "audit", str(path), "--on-error", "skip"]) == 0
    told = capfd.readouterr().out
    assert "images of test that train shows too: 1 of 1 with the same pixels, 0 more look alike" in told
    assert "gold letters in train: A 1 (even: 2), B 2 (even: 2)" in told
    assert "  ours: CC0; access: see its publisher (4 questions)" in told
    assert "left out of test: 1 rows with a fault, the first of them:" in told


def test_convert_writes_rows_that_read_the_same(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    smooth(1).save(tmp_path / "a.png")
    smooth(1).save(tmp_path / "same.bmp")
    row = {"question": "Is it?", "options": ["yes", "no"], "answer": "no", "kind": "k", "subject": "p"}
    path = rows_file(
        tmp_path, row | {"id": "1", "image": "a.png", "reasoning": "r"},
        row | {"id": "2", "images": ["same.bmp", "a.png"], "options": [], "answer": "free", "split": "test"},
        row | {"id": "3", "image": "gone.png"},
    )  # fmt: skip
    out = tmp_path / "out"
    assert main(["data", "convert", str(path)]) == 2
    assert main(["data", "convert", str(path), "-o", str(out)]) == 2
    assert "sample 3: image" in capfd.readouterr().err
    assert not out.exists()
    assert main(["data", "convert", str(path), "-o", str(out), "--on-error", "skip", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert (found["questions"], found["images"], found["left_out"]["skipped"]) == (
        {"train": 1, "test": 1},
        1,
        1,
    )
    for split in ("train", "test"):
        (before,) = load_samples(str(path), split, questions="all")[:1]
        (after,) = load_samples(str(out), split, questions="all")
        for name in ("id", "question", "options", "answer", "split", "kind", "subject", "reasoning"):
            assert getattr(after, name) == getattr(before, name)
        pairs = zip(before.images, after.images, strict=True)
        assert all(load_image(a).tobytes() == load_image(b).tobytes() for a, b in pairs)
    assert sorted(p.name for p in out.iterdir()) == ["images", "test.jsonl", "train.jsonl"]
    assert main(["data", "convert", str(path), "-o", str(out)]) == 2
    assert "is there already and not empty" in capfd.readouterr().err
    line = ["data", "convert", str(path), "-o", str(tmp_path / "talk"), "--format", "sharegpt"]
    assert main([*line, "--on-error", "skip", "--split", "test"]) == 0
    (talk,) = json.loads((tmp_path / "talk" / "test.json").read_text())
    assert talk["messages"][0]["content"].startswith("<image><image>Is it?\n")
    assert talk["messages"][1] == {"role": "assistant", "content": "<answer> free </answer>"}
    info = json.loads((tmp_path / "talk" / "dataset_info.json").read_text())
    assert info["lite_medrl_test"]["file_name"] == "test.json"
    (again,) = load_samples(f"llava:{tmp_path / 'talk' / 'test.json'}", "train", questions="open")
    assert again.answer == "<answer> free </answer>"


def test_inspect_shows_a_row_as_it_is_trained(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    row = embedded_samples()[5]
    png = tmp_path / "deep" / "thumb.png"
    line = ["data", "inspect", "--row", row.id, "--thumbnail", str(png)]
    assert main([*line, "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    trained = "".join(s["text"] for s in found["segments"] if s["trained"])
    wanted = f"<think> {row.reasoning} </think><answer> {row.answer} </answer><|end|>"
    assert trained.replace(" ", "") == wanted.replace(" ", "")  # the tokenizer's decoder drops some spaces
    (image,) = (s for s in found["segments"] if s["image"])
    assert image["tokens"] == found["image_tokens"] > 1
    assert image["text"] == f"[{found['image_tokens']} image tokens]"
    assert sum(s["tokens"] for s in found["segments"]) == found["tokens"]
    asked = "".join(s["text"] for s in found["segments"] if not s["trained"])
    assert row.question.replace(" ", "") in asked.replace(" ", "")
    assert max(Image.open(png).size) <= 256
    assert main(line) == 0
    told = capfd.readouterr().out.splitlines()
    assert f" train | {trained}" in told
    assert f"{found['trained_tokens']} trained by SFT" in told[0]
    assert told[-1] == f"thumbnail: {png}"
    assert "\033" not in "".join(told)
    from lite_medrl.tools.look import describe

    assert f"\033[32m{trained}\033[0m" in describe(found, colour=True)
    assert main(["data", "inspect", "--row", "nobody"]) == 2
    assert "no row that can be used has the id 'nobody'" in capfd.readouterr().err
    assert main(["data", "inspect", "--row", row.id, "--model", str(tmp_path / "none")]) == 2
    assert "--model: no processor for" in capfd.readouterr().err


def test_inspect_may_pass_over_faults(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    smooth(1).save(tmp_path / "a.png")
    row = {"image": "a.png", "question": "Is it?", "options": ["yes", "no"], "answer": "no", "colour": "red"}
    path = rows_file(tmp_path, row | {"id": "1"}, row | {"id": "2", "answer": "maybe"})
    assert main(["data", "inspect", str(path), "--json"]) == 2
    assert main(["data", "inspect", str(path), "--on-error", "skip"]) == 0
    assert "fields that nothing reads: colour" in capfd.readouterr().out
    assert main(["data", "inspect", str(path), "--on-error", "skip"]) == 0
    told = capfd.readouterr().out.splitlines()
    assert "    options: yes | no" in told
    assert f"    images: {tmp_path}/a.png" in told
    assert "    subject:" in told  # nothing is known: no None
    assert main(["data", "inspect", str(path), "--on-error", "skip", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert (found["rows"], found["questions"], found["skipped"], found["unknown_fields"]) == (
        2,
        1,
        1,
        ["colour"],
    )


def test_data_list_names_sets_with_their_terms(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LITE_MEDRL_DATA", str(tmp_path))
    (tmp_path / "slake").mkdir()
    assert main(["data", "list", "--json"]) == 0
    sets = {one["name"]: one for one in json.loads(capfd.readouterr().out)["sets"]}
    assert sets["slake"]["here"]
    assert not sets["vqa-rad"]["here"]
    assert (sets["dermamnist"]["licence"], sets["vqa-rad"]["licence"]) == ("CC-BY-NC-4.0", "CC0-1.0")
    assert main(["data", "list"]) == 0
    told = capfd.readouterr().out
    assert "* slake             SLAKE, English; CC-BY-4.0; open; train, validation, test" in told
    assert main(["data", "fetch", "slaek"]) == 2
    assert "did you mean 'slake'?" in capfd.readouterr().err


@pytest.mark.slow
def test_memory_stays_under_two_gib_over_100_000_rows() -> None:
    """The stored figure decodes every image; here one in a thousand, so that the test stays short."""
    stored = json.loads((REPO / "docs" / "results" / "data_memory.json").read_text())
    assert stored["rows"] == 100_000
    assert {way["way"] for way in stored["ways"]} == {"stream", "view", "list", "nothing"}
    assert all(way["peak_rss_gib"] < stored["limit_gib"] == 2 for way in stored["ways"])
    line = [
        sys.executable,
        str(REPO / "examples" / "measure_data.py"),
        "memory",
        "--decoded",
        "1000",
        "--print",
    ]
    path = os.pathsep.join([str(REPO), str(REPO / "kernels")])
    done = subprocess.run(
        line, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": path}
    )
    for way in json.loads(done.stdout)["ways"]:
        assert way["peak_rss_gib"] < 2, way
        assert way["questions"] == (0 if way["way"] == "nothing" else 100_000)
