"""Every image comes in RGB or not at all; an image that cannot be used is named, with what to do."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lite_medrl.data.images import FORMATS, MAX_PIXELS, decode, load_image, read_bytes
from lite_medrl.types import DataError, ImageRef

PIXELS = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3) * 2


def packed(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def huge_png(width: int, height: int) -> bytes:
    """A PNG that says it is this large, and holds no pixels."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("kind", FORMATS)
def test_each_format_gives_the_same_pixels(tmp_path: Path, kind: str) -> None:
    exact = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}
    path = tmp_path / "image"
    path.write_bytes(packed(Image.fromarray(PIXELS), kind, **exact.get(kind, {})))
    image = load_image(ImageRef(str(path)))
    assert (image.mode, image.size) == ("RGB", (7, 5))
    error = np.abs(np.asarray(image).astype(int) - PIXELS).max()
    assert error <= (6 if kind == "JPEG" else 0)


def test_greyscale_palette_and_alpha_become_rgb() -> None:
    grey = Image.fromarray(PIXELS[..., 0])
    for image in (grey, grey.convert("P"), grey.convert("LA"), grey.convert("RGBA")):
        found = np.asarray(decode(packed(image, "PNG"), "x"))
        assert np.array_equal(found, np.repeat(PIXELS[..., :1], 3, 2))


@pytest.mark.parametrize(("kind", "low", "high"), [("PNG", 0, 65535), ("TIFF", 100, 4195), ("PNG", 7, 7)])
def test_sixteen_bits_are_spread_from_darkest_to_brightest(kind: str, low: int, high: int) -> None:
    """Pillow alone would cut them off at 255, which leaves a white image."""
    deep = np.linspace(low, high, 35).round().reshape(5, 7).astype(np.uint16)
    image = decode(packed(Image.fromarray(deep), kind), "x")
    wanted = np.rint((deep.astype(float) - low) * 255 / max(high - low, 1))
    assert image.mode == "RGB"
    assert np.abs(np.asarray(image)[..., 0] - wanted).max() <= (1 if high > low else 0)
    assert np.asarray(image).max() == (255 if high > low else 0)


def test_greyscale_of_fractions_is_refused() -> None:
    deep = np.linspace(0, 1, 35).reshape(5, 7).astype(np.float32)
    with pytest.raises(DataError, match=r"image x: F greyscale \(fractions\).*choose a window"):
        decode(packed(Image.fromarray(deep), "TIFF"), "x")


def test_what_is_transparent_is_white() -> None:
    clear = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    clear.putpixel((1, 0), (10, 20, 30, 255))
    assert np.asarray(decode(packed(clear, "PNG"), "x")).tolist() == [[[255, 255, 255], [10, 20, 30]]]
    palette = Image.new("P", (2, 1), 1)
    palette.putpalette([10, 20, 30, 0, 0, 0])
    palette.putpixel((1, 0), 0)
    found = decode(packed(palette, "PNG", transparency=1), "x")
    assert np.asarray(found).tolist() == [[[255, 255, 255], [10, 20, 30]]]


def test_bytes_are_such_that_any_reader_shows_the_same(tmp_path: Path) -> None:
    """Training hands them to a reader of its own, which knows neither windows nor what lies under glass."""
    deep = np.linspace(0, 4095, 35).reshape(5, 7).astype(np.uint16)
    clear = Image.new("RGBA", (7, 5), (0, 0, 0, 0))
    with zipfile.ZipFile(tmp_path / "pack.zip", "w") as pack:
        for name, image in {
            "deep": Image.fromarray(deep),
            "clear": clear,
            "plain": Image.fromarray(PIXELS),
        }.items():
            pack.writestr(name, packed(image, "PNG"))
    for name in ("deep", "clear", "plain"):
        ref = ImageRef(str(tmp_path / "pack.zip"), name)
        shown = Image.open(io.BytesIO(read_bytes(ref))).convert("RGB")
        assert shown.tobytes() == load_image(ref).tobytes()
    assert read_bytes(ImageRef(str(tmp_path / "pack.zip"), "plain")) == packed(Image.fromarray(PIXELS), "PNG")


def test_print_colours_become_rgb() -> None:
    cyan = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    found = np.asarray(decode(packed(cyan, "JPEG", quality=100), "x"))[0, 0]
    assert np.abs(found.astype(int) - [0, 255, 255]).max() <= 6


def test_an_image_is_turned_as_its_camera_says() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the top of the scene is on the right
    turned = decode(packed(Image.fromarray(PIXELS), "PNG", exif=exif), "x")
    assert np.array_equal(np.asarray(turned), np.rot90(PIXELS, -1))


def test_nothing_but_pixels_is_kept() -> None:
    exif = Image.Exif()
    exif[0x010E] = "name of a patient"
    image = decode(packed(Image.fromarray(PIXELS), "PNG", exif=exif), "x")
    assert not image.info
    assert not image.getexif()
    assert b"patient" not in packed(image, "PNG")


def test_a_member_of_a_zip_pack(tmp_path: Path) -> None:
    path = tmp_path / "pack.zip"
    with zipfile.ZipFile(path, "w") as pack:
        pack.writestr("a/b.png", packed(Image.fromarray(PIXELS), "PNG"))
    assert np.array_equal(np.asarray(load_image(ImageRef(str(path), "a/b.png"))), PIXELS)
    with pytest.raises(DataError, match=r"image .*pack\.zip:c\.png: no such file"):
        load_image(ImageRef(str(path), "c.png"))
    with zipfile.ZipFile(tmp_path / "bad.zip", "w", zipfile.ZIP_DEFLATED) as bad:
        bad.writestr("noise.png", b"not an image")
        bad.writestr("torn.png", bytes(range(256)) * 20)
    with pytest.raises(
        DataError, match=r"^image .*bad\.zip:noise\.png: cannot be read as .* image file; exp"
    ):
        load_image(ImageRef(str(tmp_path / "bad.zip"), "noise.png"))
    data = bytearray((tmp_path / "bad.zip").read_bytes())
    start = data.index(b"torn.png") + len(b"torn.png")
    data[start : start + 20] = b"\xff" * 20  # its compressed bytes
    (tmp_path / "torn.zip").write_bytes(data)
    with pytest.raises(
        DataError, match=r"^image .*torn\.zip:torn\.png: Error -3 .*; copy or download the arch"
    ):
        load_image(ImageRef(str(tmp_path / "torn.zip"), "torn.png"))
    (tmp_path / "broken.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"image .*broken\.zip:b\.png: File is not a zip file"):
        load_image(ImageRef(str(tmp_path / "broken.zip"), "b.png"))


@pytest.mark.parametrize("name", ["a\x00.png", "\ud800.png"])
def test_a_name_that_no_file_can_have(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"^image .*: cannot be opened \(.*\); check the path"):
        load_image(ImageRef(str(tmp_path / name)))


def test_missing_and_folder(tmp_path: Path) -> None:
    for name in ("nothing.png", "."):
        with pytest.raises(DataError, match=r"^image .*: no such file; check the path in the row$"):
            load_image(ImageRef(str(tmp_path / name)))


BAD = {
    "empty": (b"", r"the file is empty \(0 bytes\)"),
    "noise": (
        b"not an image",
        r"cannot be read as PNG, JPEG, WEBP, BMP, TIFF: cannot identify image file; export it again$",
    ),
    "cut short": (packed(Image.effect_noise((64, 64), 50), "PNG")[:900], r"cannot be read as"),
    "another format": (packed(Image.fromarray(PIXELS), "GIF"), r"cannot be read as"),
    "a file that runs programs": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", r"cannot be read as"),
    "40 Mpx and a column": (huge_png(8001, 5000), r"8001 x 5000 is over 40 megapixels; shrink it"),
    "what Pillow only warns of": (
        huge_png(10_000, 10_000),
        r"10000 x 10000 is over 40 megapixels; shrink it",
    ),
    "a bomb": (huge_png(60_000, 60_000), r"over 40 megapixels; shrink it"),
}


@pytest.mark.parametrize("fault", BAD)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_files_that_cannot_be_used(tmp_path: Path, fault: str) -> None:
    data, message = BAD[fault]
    path = tmp_path / "scan.png"
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"^image .*scan\.png: .*{message}") as caught:
        load_image(ImageRef(str(path)))
    assert "BytesIO" not in str(caught.value)


def test_just_under_the_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_PIXELS == 8000 * 5000
    with pytest.raises(DataError, match="cannot be read"):  # the size passes, the pixels are missing
        decode(huge_png(8000, 5000), "x")
    monkeypatch.setattr("lite_medrl.data.images.MAX_BYTES", 10_000_000)
    path = tmp_path / "large.png"
    with path.open("wb") as file:
        file.truncate(10_000_001)
    with pytest.raises(DataError, match=r"large\.png: over 10 MB"):
        read_bytes(ImageRef(str(path)))
