"""MedMNIST's .npz files become questions: classes as seeded options, labels as yes/no, arrays by the row."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lite_medrl.data.cache import md5_of
from lite_medrl.data.images import load_image, read_bytes
from lite_medrl.data.sets import arrays, medmnist
from lite_medrl.data.sets.medmnist_facts import SIZES, SUBSETS
from lite_medrl.data.sources import SampleView, load_samples
from lite_medrl.types import DataError, ImageRef

ROWS = {"train": 40, "val": 6, "test": 8}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LITE_MEDRL_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache"


def published(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch, *, size: int = 28, **options: Any
) -> str:
    """A file in the set's schema that counts as the published one; returns the source."""
    subset, draw, lots = SUBSETS[name], np.random.default_rng(0), np.random.default_rng(1)
    colours = () if name in ("pneumoniamnist", "chestmnist", "organamnist") else (3,)
    made = {}
    for split, rows in ROWS.items():
        made[f"{split}_images"] = draw.integers(0, 256, (rows, size, size, *colours), dtype=np.uint8)
        width, top = (len(subset.classes), 2) if subset.many else (1, len(subset.classes))
        made[f"{split}_labels"] = lots.integers(0, top, (rows, width), dtype=np.uint8)
    path = folder / subset.file(size)
    save = np.savez if options.get("plain") else np.savez_compressed
    save(path, **made)
    known = replace(subset, md5={**subset.md5, size: md5_of(path)})
    monkeypatch.setitem(SUBSETS, name, known)
    return f"{name}@{size}:{path}"


@pytest.mark.parametrize("plain", [True, False])
def test_classes_become_options_in_a_seeded_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path, plain: bool
) -> None:
    source = published(tmp_path, "bloodmnist", monkeypatch, plain=plain)
    samples = load_samples(source, "train")
    stored = np.load(source.partition(":")[2], allow_pickle=False)
    classes = SUBSETS["bloodmnist"].classes
    assert len(samples) == 40
    for i, sample in enumerate(samples):
        assert sample.id == f"bloodmnist@28-train-{i}"
        assert sample.answer == classes[stored["train_labels"][i, 0]]
        assert sorted(sample.options) == sorted(classes)
        assert np.array_equal(np.asarray(load_image(sample.images[0])), stored["train_images"][i])
    assert len({s.options for s in samples}) > 30
    assert {s.letter for s in samples} == set("ABCDEFGH")
    first = samples[0]
    assert (first.question, first.modality) == (
        "Which blood cell does this microscopy image show?",
        "blood microscopy",
    )
    assert (first.licence, first.source, first.split) == ("CC-BY-4.0", "bloodmnist@28", "train")
    assert list(SampleView(source, "train")) == samples
    assert len(load_samples(source, "validation")) == 6
    assert (cache / "arrays").is_dir() is not plain  # a compressed array is unpacked once, a plain one mapped
    large = published(tmp_path, "bloodmnist", monkeypatch, size=64, plain=True)
    assert [s.options for s in load_samples(large, "test")] == [
        s.options for s in load_samples(source, "test")
    ]


def test_grey_images_come_in_rgb_and_as_png(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = published(tmp_path, "pneumoniamnist", monkeypatch)
    sample = load_samples(source, "test")[3]
    image = load_image(sample.images[0])
    assert (image.mode, image.size) == ("RGB", (28, 28))
    assert set(sample.options) == {"normal lungs", "pneumonia"}
    assert read_bytes(sample.images[0]).startswith(b"\x89PNG")


def test_eleven_organs_fit_into_ten_letters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = load_samples(published(tmp_path, "organamnist", monkeypatch), "train")
    assert {len(s.options) for s in samples} == {10}
    assert len({option for s in samples for option in s.options}) == 11
    assert "left kidney" in {option for s in samples for option in s.options}


def test_labels_of_chestmnist_are_asked_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = published(tmp_path, "chestmnist", monkeypatch)
    samples = load_samples(source, "test")
    stored = np.load(source.partition(":")[2], allow_pickle=False)["test_labels"]
    assert len(samples) == 8 * 14
    answers = np.array([s.answer == "Yes" for s in samples]).reshape(8, 14)
    assert np.array_equal(answers, stored.astype(bool))
    assert samples[12].question == "Does this chest X-ray show pleural thickening?"
    assert (samples[12].id, samples[12].kind) == (
        "chestmnist@28-test-0-pleural-thickening",
        "pleural thickening",
    )
    assert SampleView(source, "test")[27] == samples[27]


def test_another_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = published(tmp_path, "breastmnist", monkeypatch)
    path = Path(source.partition(":")[2])
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(
        DataError, match=r"breastmnist\.npz: its MD5 is not the published one of breastmnist\.npz"
    ):
        load_samples(source, "test")


def npz(path: Path, **members: bytes | np.ndarray) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in members.items():
            if isinstance(value, bytes):
                archive.writestr(f"{name}.npy", value)
            else:
                with archive.open(f"{name}.npy", "w") as out:
                    np.lib.format.write_array(out, value, allow_pickle=True)
    return path


TORN = (
    b"\x93NUMPY\x01\x00v\x00{'descr': '|u1', 'fortran_order': False, 'shape': (9, 4, 4), }".ljust(128) + b"x"
)


def test_arrays_that_cannot_be_used(tmp_path: Path) -> None:
    path = npz(
        tmp_path / "a.npz", objects=np.array([print, None], dtype=object), fractions=np.zeros((2, 3, 3)),
        torn=TORN,
        good=np.arange(18, dtype=np.uint8).reshape(2, 3, 3),
    )  # fmt: skip
    for name, told in {
        "objects": r"a\.npz:objects: holds Python objects",
        "fractions": r"a\.npz:fractions/0: expected uint8 \[N, H, W\]",
        "torn": r"a\.npz:torn: 129 bytes where its header says 272",
        "missing": r"a\.npz: has no array 'missing'; it is not a file of this set",
    }.items():
        with pytest.raises(DataError, match=told):
            load_image(ImageRef(str(path), f"{name}/0"))
    assert load_image(ImageRef(str(path), "good/1")).getpixel((0, 0)) == (9, 9, 9)
    for row in ("2", "-1", "x"):
        with pytest.raises(DataError, match=r"good/.*: the array has rows 0 to 1"):
            load_image(ImageRef(str(path), f"good/{row}"))
    (tmp_path / "b.npz").write_bytes(b"no zip")
    with pytest.raises(DataError, match=r"b\.npz: cannot be read as \.npz .*; download it again"):
        arrays.stored(str(tmp_path / "b.npz"), "x")


def test_facts_cover_twelve_sets_in_four_sizes() -> None:
    assert len(SUBSETS) == 12
    for subset in SUBSETS.values():
        assert set(subset.md5) == set(SIZES)
        assert all(len(md5) == 32 for md5 in subset.md5.values())
        assert len(set(subset.classes)) == len(subset.classes)
        assert set(subset.rows) == set(medmnist.SPLITS)
        assert ("{finding}" in subset.question) is subset.many
    assert [s.name for s in SUBSETS.values() if s.licence != "CC-BY-4.0"] == ["dermamnist"]
