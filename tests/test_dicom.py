"""DICOM: one frame, in a window, pixels only; what cannot be read is named with its reason."""

from __future__ import annotations

import builtins
import json
import logging
import random
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lite_medrl.data import dicom
from lite_medrl.data.images import load_image, read_bytes
from lite_medrl.data.sets.fields import Pictures
from lite_medrl.data.sources import check_images, load_samples
from lite_medrl.types import DataError, ImageRef

pydicom = pytest.importorskip("pydicom")

GREY = np.arange(12, dtype=np.int16).reshape(3, 4) * 100  # 0 to 1100
EXPLICIT, JPEG = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.50"


def written(path: Path, pixels: np.ndarray | None, syntax: str = EXPLICIT, **tags: Any) -> Path:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import RLELossless, SecondaryCaptureImageStorage, generate_uid

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = EXPLICIT
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = (
        SecondaryCaptureImageStorage,
        generate_uid(),
    )
    data = Dataset()
    data.file_meta = meta
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.PatientName, data.Modality = "Name^Of^Patient", "CT"
    if pixels is not None:
        colours = pixels.dtype == np.uint8
        frames = pixels.shape[0] if pixels.ndim == (4 if colours else 3) else 0
        data.Rows, data.Columns = pixels.shape[bool(frames) :][:2]
        data.SamplesPerPixel, data.PhotometricInterpretation = (3, "RGB") if colours else (1, "MONOCHROME2")
        data.BitsAllocated = data.BitsStored = 8 * pixels.dtype.itemsize
        data.HighBit, data.PixelRepresentation = data.BitsStored - 1, int(pixels.dtype.kind == "i")
        if colours:
            data.PlanarConfiguration = 0
        if frames:
            data.NumberOfFrames = frames
        data.PixelData = pixels.tobytes()
    for name, value in tags.items():
        setattr(data, name, value)
    if syntax == "rle":
        data.compress(RLELossless, generate_instance_uid=False)
    elif syntax != EXPLICIT:
        meta.TransferSyntaxUID, data.PixelData = syntax, encapsulate([data.PixelData])
        data["PixelData"].is_undefined_length = True
    pydicom.dcmwrite(path, data, enforce_file_format=True)
    return path


def grey_of(path: Path, member: str = "frame=1") -> np.ndarray:
    image = load_image(ImageRef(str(path), member))
    assert image.mode == "RGB"
    assert not image.info
    return np.asarray(image)[..., 0]


def test_without_a_window_the_frame_is_spread(tmp_path: Path) -> None:
    found = grey_of(written(tmp_path / "a.dcm", GREY))
    assert np.abs(found - GREY.astype(float) * 255 / 1100).max() <= 0.51


def test_the_window_of_the_header_and_a_given_one(tmp_path: Path) -> None:
    """PS3.3 C.11.2.1.2.1: 40/400 in Hounsfield units goes from black at -159.5 to white at 239.5."""
    path = written(tmp_path / "a.dcm", GREY, WindowCenter=[40, 7], WindowWidth=[400, 9], RescaleSlope=1,
                   RescaleIntercept=-500)  # fmt: skip
    hounsfield = GREY.astype(float) - 500
    wanted = np.clip((hounsfield - 39.5) / 399 + 0.5, 0, 1) * 255
    assert np.abs(grey_of(path) - wanted).max() <= 0.5
    assert grey_of(path).min() == 0
    assert grey_of(path).max() == 255
    given = np.clip((hounsfield - 99.5) / 999 + 0.5, 0, 1) * 255
    assert np.abs(grey_of(path, "frame=1&window=100,1000") - given).max() <= 0.5


def test_monochrome1_is_inverted(tmp_path: Path) -> None:
    plain = grey_of(written(tmp_path / "a.dcm", GREY))
    other = grey_of(written(tmp_path / "b.dcm", GREY, PhotometricInterpretation="MONOCHROME1"))
    assert np.array_equal(other, 255 - plain)


def test_a_chosen_frame_and_rle(tmp_path: Path) -> None:
    frames = np.stack([GREY, GREY[::-1], np.roll(GREY, 1)])
    for syntax in (EXPLICIT, "rle"):
        path = written(tmp_path / f"{syntax}.dcm", frames, syntax)
        for number, frame in enumerate(frames, 1):
            error = np.abs(grey_of(path, f"frame={number}") - frame.astype(float) * 255 / 1100).max()
            assert error <= 0.51, (syntax, number)


def test_colours(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    path = written(tmp_path / "a.dcm", pixels)
    assert np.array_equal(np.asarray(load_image(ImageRef(str(path), "frame=1"))), pixels)


def test_a_row_names_frame_and_window(tmp_path: Path) -> None:
    written(tmp_path / "ct.dcm", np.stack([GREY, GREY * 2]))
    row = (
        '{"id": "q", "image": "ct.dcm", "frame": 2, "window": [1000, 500.5], "question": "?", "options": [], '
        '"answer": "x"}'
    )
    (tmp_path / "rows.jsonl").write_text(row)
    (sample,) = load_samples(str(tmp_path / "rows.jsonl"), "train", questions="open")
    assert sample.images == (ImageRef(str(tmp_path / "ct.dcm"), "frame=2&window=1000,500.5"),)
    assert load_image(sample.images[0]).size == (4, 3)
    for key, value, told in [
        ("frame", "0", '"frame" must be a whole number from 1, got 0'),
        ("window", "[40]", r'"window" must be \[centre, width\] with a width above 0, got \[40\]'),
        ("window", "[40, 0]", '"window" must be'),
    ]:
        bad = (
            row.replace('"frame": 2', f'"{key}": {value}')
            if key == "frame"
            else row.replace("[1000, 500.5]", value)
        )
        (tmp_path / "rows.jsonl").write_text(bad)
        with pytest.raises(DataError, match=rf"rows\.jsonl:1: {told}"):
            load_samples(str(tmp_path / "rows.jsonl"), "train", questions="open")


def test_named_sources_show_the_first_frame(tmp_path: Path) -> None:
    """In LLaVA's conversations, and in a set's folder; in an archive it is a fault that says what to do."""
    written(tmp_path / "ct.dcm", np.stack([GREY, GREY[::-1]]))
    turns = [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "X."}]
    row = {"id": 1, "image": "ct.dcm", "conversations": turns}
    (tmp_path / "talk.jsonl").write_text(json.dumps(row))
    (sample,) = load_samples(f"llava:{tmp_path}/talk.jsonl", "train", questions="open")
    assert sample.images == (ImageRef(str(tmp_path / "ct.dcm"), "frame=1"),)
    check_images([sample])
    assert (
        np.abs(np.asarray(load_image(sample.images[0]))[..., 0] - GREY.astype(float) * 255 / 1100).max()
        <= 0.51
    )
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as pack:
        pack.write(tmp_path / "ct.dcm", "images/ct.dcm")
    pictures = Pictures(tmp_path / "images", (tmp_path / "images.zip",))
    with pytest.raises(
        DataError, match=r"images\.zip: DICOM is not read from archives; unpack it to .*images$"
    ):
        pictures.ref("ct.dcm")


def test_only_pixels_leave(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = written(tmp_path / "a.dcm", GREY, BurnedInAnnotation="YES")
    dicom._warned.clear()
    with caplog.at_level(logging.WARNING):
        data = read_bytes(ImageRef(str(path), "frame=1"))
        read_bytes(ImageRef(str(path), "frame=1"))
    assert b"Patient" in path.read_bytes()
    assert b"Patient" not in data
    assert data.startswith(b"\x89PNG")
    assert [r.getMessage() for r in caplog.records] == [
        "DICOM: a header says that text is burned in; pixels are used as they are, "
        "look at them before you share anything"
    ]


def torn(path: Path) -> None:
    path.write_bytes(written(path, GREY).read_bytes()[:-9])


BAD: dict[str, tuple[Any, str]] = {
    "no pixels": (lambda p: written(p, None), r"the DICOM file has no pixels \(a report or a directory\?\)"),
    "no pixels, with a size": (
        lambda p: written(p, None, Rows=3, Columns=4, PhotometricInterpretation="MONOCHROME2"),
        r"the DICOM file has no pixels",
    ),
    "compressed": (
        lambda p: written(p, GREY, JPEG),
        r"transfer syntax 1\.2\.840\.10008\.1\.2\.4\.50 is not read \(only uncompressed and RLE\); convert",
    ),
    "huge": (
        lambda p: written(p, GREY, Rows=60000, Columns=60000),
        r"60000 x 60000 x 1 frames is over 40 megapixels",
    ),
    "many frames": (
        lambda p: written(p, GREY, Rows=6000, Columns=6000, NumberOfFrames=99),
        r"6000 x 6000 x 99 frames is over",
    ),
    "palette": (
        lambda p: written(p, GREY, PhotometricInterpretation="PALETTE COLOR"),
        r"colours as PALETTE COLOR are not read; export the frame as PNG",
    ),
    "torn": (torn, r"its pixels cannot be decoded|cannot be read as DICOM"),
    "no DICOM": (lambda p: p.write_bytes(b"no"), r"is not DICOM; give it the name of its own format"),
    "missing": (lambda p: None, r"no such file; check the path in the row"),
}


@pytest.mark.parametrize("fault", BAD)
def test_files_that_cannot_be_used(tmp_path: Path, fault: str) -> None:
    make, told = BAD[fault]
    make(tmp_path / "scan.dcm")
    with pytest.raises(DataError, match=rf"^image .*scan\.dcm:frame=1: .*({told})"):
        load_image(ImageRef(str(tmp_path / "scan.dcm"), "frame=1"))


@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_refused_or_shown(tmp_path: Path) -> None:
    """Any byte changed, any end cut off: an image or a DataError."""
    draw = random.Random(0)
    path = written(tmp_path / "a.dcm", np.stack([GREY, GREY]), "rle", WindowCenter=40, WindowWidth=400)
    whole, refused = path.read_bytes(), 0
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            data[draw.randrange(128, len(data))] = draw.randrange(256)
        path.write_bytes(data[: draw.randrange(len(data))] if draw.random() < 0.2 else data)
        try:
            assert load_image(ImageRef(str(path), "frame=1")).mode == "RGB"
        except DataError:
            refused += 1
    assert 100 < refused < 400


def test_a_deflated_file_is_refused_before_it_is_inflated(tmp_path: Path) -> None:
    """2 MB of zeros behind a few kB: memory stays below what inflating them would take."""
    path = written(tmp_path / "a.dcm", np.zeros((1024, 1024), np.int16))
    data = pydicom.dcmread(path)
    data.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    pydicom.dcmwrite(path, data, enforce_file_format=True)
    assert path.stat().st_size < 10_000
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"transfer syntax 1\.2\.840\.10008\.1\.2\.1\.99 is not read"):
            load_image(ImageRef(str(path), "frame=1"))
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_a_frame_that_is_not_there(tmp_path: Path) -> None:
    path = written(tmp_path / "a.dcm", GREY)
    with pytest.raises(DataError, match=r'the file has frames 1 to 1; set "frame" to one of them'):
        load_image(ImageRef(str(path), "frame=2"))


def test_dicom_under_another_name_is_told_apart(tmp_path: Path) -> None:
    path = written(tmp_path / "a.dcm", GREY).rename(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: is DICOM; give the file a name that ends in \.dcm"):
        load_image(ImageRef(str(path)))


def test_without_pydicom_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == "pydicom":
            raise ImportError(name)
        return real(name, *rest)

    path = written(tmp_path / "a.dcm", GREY)
    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(DataError, match=r"needs pydicom; install it with: pip install 'lite-medrl\[dicom\]'"):
        load_image(ImageRef(str(path), "frame=1"))
