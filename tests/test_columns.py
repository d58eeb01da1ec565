"""The dataset that TRL's trainers read: its values, and images the same as those that evaluation sees."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import tiny
from PIL import Image

from lite_medrl.data.images import load_image
from lite_medrl.data.prompts import question_text
from lite_medrl.train.columns import FEATURES, encoded, to_dataset
from lite_medrl.types import ImageRef


def test_values_of_every_column() -> None:
    samples = tiny.samples()
    dataset = to_dataset(samples, instruction="Think.", system="Be brief.", with_completion=True)
    assert sorted(dataset.column_names) == sorted(FEATURES)
    assert dataset["id"][:] == [s.id for s in samples]
    row, sample = dataset[3], samples[3]
    text = question_text(sample.question, sample.options, "Think.")
    assert row["prompt"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": text},
    ]
    told = f"<think> it is {sample.answer} . </think><answer> {sample.answer} </answer>"
    assert row["completion"] == [{"role": "assistant", "content": told}]
    assert (row["answer"], row["options"], row["kind"]) == (sample.answer, list(sample.options), "colour")


def test_grpo_gets_no_completion_and_letters_on_request() -> None:
    samples = tiny.samples()[:2]
    assert "completion" not in to_dataset(samples, with_completion=False).column_names
    row = to_dataset(samples, letter=True, with_completion=True)[1]
    assert row["completion"][0]["content"].endswith(f"<answer> {samples[1].letter} </answer>")
    assert row["answer"] == samples[1].answer


def test_images_are_those_of_evaluation(tmp_path: Path) -> None:
    """Greyscale, with a palette, on its side, in a pack: RGB and upright, as `load_image` gives them."""
    grey = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8) * 5)
    exif = Image.Exif()
    exif[0x0112] = 6
    grey.save(tmp_path / "grey.png")
    grey.convert("P").save(tmp_path / "palette.png")
    grey.convert("RGB").save(tmp_path / "side.jpg", exif=exif)
    grey.convert("RGBA").save(tmp_path / "alpha.png")
    with zipfile.ZipFile(tmp_path / "pack.zip", "w") as pack:
        pack.write(tmp_path / "grey.png", "in/grey.png")
    names = ["grey.png", "palette.png", "side.jpg", "alpha.png"]
    refs = [ImageRef(str(tmp_path / name)) for name in names]
    refs.append(ImageRef(str(tmp_path / "pack.zip"), "in/grey.png"))
    sample = replace(tiny.samples()[0], images=tuple(refs))
    found = to_dataset([sample], with_completion=False)[0]["images"]
    for image, ref in zip(found, refs, strict=True):
        expected = load_image(ref)
        assert (image.mode, image.size) == ("RGB", expected.size), ref
        assert np.array_equal(np.asarray(image), np.asarray(expected)), ref
    assert found[2].size == (6, 8)


def test_files_that_need_care_are_those_of_evaluation(tmp_path: Path) -> None:
    """16 bits, transparency in every guise, print colours, on their side: pixel for pixel."""
    draw = np.random.default_rng(0)
    colours = Image.fromarray(draw.integers(0, 256, (6, 8, 4), dtype=np.uint8), "RGBA")
    deep = Image.fromarray(draw.integers(300, 4000, (6, 8), dtype=np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 8
    deep.save(tmp_path / "deep.png")
    deep.save(tmp_path / "deep.tif", exif=exif)
    colours.save(tmp_path / "clear.png", exif=exif)
    colours.save(tmp_path / "clear.webp", lossless=True)
    colours.convert("LA").save(tmp_path / "grey-clear.png")
    colours.convert("P").save(tmp_path / "palette-clear.png", transparency=3)
    colours.convert("RGB").save(
        tmp_path / "one-clear.png", transparency=colours.convert("RGB").getpixel((0, 0))
    )
    colours.convert("CMYK").save(tmp_path / "print.jpg", exif=exif)
    colours.convert("CMYK").save(tmp_path / "print.tif")
    colours.convert("RGB").save(tmp_path / "side.png", exif=exif)
    colours.convert("RGB").save(tmp_path / "side.webp", lossless=True, exif=exif)
    colours.convert("L").save(tmp_path / "side.tif", exif=exif)
    refs = [ImageRef(str(path)) for path in sorted(tmp_path.iterdir())]
    sample = replace(tiny.samples()[0], images=tuple(refs))
    found = to_dataset([sample], with_completion=False)[0]["images"]
    for image, ref in zip(found, refs, strict=True):
        assert np.array_equal(np.asarray(image), np.asarray(load_image(ref))), ref
    by_path = [Path(ref.path).name for ref in refs if encoded(ref)["path"]]
    assert by_path == ["print.jpg", "print.tif", "side.png", "side.webp"]


def test_files_travel_as_paths_and_members_as_bytes(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "pack.zip", "w") as pack:
        pack.writestr("a", b"bytes")
    assert encoded(ImageRef("x.png")) == {"bytes": None, "path": "x.png"}
    assert encoded(ImageRef(str(tmp_path / "pack.zip"), "a")) == {"bytes": b"bytes", "path": None}
