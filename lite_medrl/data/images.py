"""Opens one image, from a file or from a part of one, and treats it as hostile.

Only five formats (and DICOM, .npz arrays and Parquet cells, which have files of their own), a cap on bytes
and on pixels before anything is decoded, turned upright by its EXIF tag, then no metadata kept.
Greyscale of 16 bits is spread from its own darkest to its own brightest value; what is transparent is shown
on white.
"""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from lite_medrl.types import DataError, ImageRef

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
MAX_PIXELS = 40_000_000
MAX_BYTES = 100_000_000
DEEP = ("I;16", "I;16L", "I;16B", "I;16N", "I")  # greyscale of over 8 bits, as whole numbers
ORIENTATION = 0x0112  # EXIF
UNNAMED = re.compile(r"\s*<_io\.BytesIO[^>]*>")  # what Pillow calls the file: it sees bytes only


def load_image(ref: ImageRef) -> Image.Image:
    """The image in RGB, pixels only.

    Raises:
        DataError: missing, empty, corrupt, of another format, over 100 MB or over 40 megapixels.
    """
    match part_of(ref):
        case "array":
            from lite_medrl.data.sets.arrays import picture

            return picture(ref)
        case "dicom":
            from lite_medrl.data.dicom import picture

            return picture(ref)
    return decode(raw_bytes(ref), str(ref))


def part_of(ref: ImageRef) -> str:
    """What the reference points at: "file", "zip", "cell" (Parquet), "array" (.npz) or "dicom"."""
    if ref.member is None:
        return "file"
    if ref.member.startswith("frame="):
        return "dicom"
    return {".parquet": "cell", ".npz": "array"}.get(Path(ref.path).suffix.lower(), "zip")


def read_bytes(ref: ImageRef) -> bytes:
    """Bytes of an image file that any reader shows as `load_image` does.

    As they are stored, or a PNG of what is stored as an array, as DICOM, in 16 bits or with transparency.
    """
    if part_of(ref) in ("array", "dicom"):
        return png(load_image(ref))
    data = raw_bytes(ref)
    return data if is_plain(data) else png(decode(data, str(ref)))


def raw_bytes(ref: ImageRef) -> bytes:
    """Bytes of an image file as they are stored."""
    if part_of(ref) == "cell":
        from lite_medrl.data.sets.tables import cell_bytes

        return cell_bytes(ref)
    return stored_bytes(ref)


def is_plain(data: bytes | Path) -> bool:
    """Whether a plain conversion to RGB shows the image as `load_image` does; true for what is no image.

    Of a path only the header is read.
    """
    try:
        with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data, formats=FORMATS) as image:
            # Pillow turns a TIFF upright by itself, and `datasets` does so once more.
            turned_twice = image.format == "TIFF" and image.getexif().get(ORIENTATION, 1) != 1
            return not (turned_twice or image.mode in DEEP or is_clear(image))
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError):
        return True  # whoever decodes it says what is wrong


def is_clear(image: Image.Image) -> bool:
    """Whether something of the image may be transparent."""
    return image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info


def png(image: Image.Image) -> bytes:
    """The image as a PNG file without metadata."""
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def stored_bytes(ref: ImageRef) -> bytes:
    """Bytes of a file or of a member of a zip pack."""
    try:
        if ref.member is not None:
            archive = pack(ref.path)
            if archive.getinfo(ref.member).file_size > MAX_BYTES:
                raise DataError(
                    f"image {ref}: over {MAX_BYTES // 1_000_000} MB; convert it to a smaller file"
                )
            return archive.read(ref.member)
        if Path(ref.path).stat().st_size > MAX_BYTES:
            raise DataError(f"image {ref}: over {MAX_BYTES // 1_000_000} MB; convert it to a smaller file")
        return Path(ref.path).read_bytes()
    except (FileNotFoundError, KeyError, IsADirectoryError) as error:
        raise DataError(f"image {ref}: no such file; check the path in the row") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # RuntimeError: encrypted
        raise DataError(f"image {ref}: {error}; copy or download the archive again") from error
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        if isinstance(error, DataError):
            raise
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(
            f"image {ref}: cannot be opened ({why}); check the path and its permissions"
        ) from error


@lru_cache(maxsize=4)
def pack(path: str) -> zipfile.ZipFile:
    """An open zip pack; kept open because an evaluation reads it hundreds of times."""
    return zipfile.ZipFile(path)


def decode(data: bytes, name: str) -> Image.Image:
    """RGB image from bytes; the size is checked before the pixels are decoded."""
    if data[128:132] == b"DICM":
        raise DataError(f"image {name}: is DICOM; give the file a name that ends in .dcm")
    if not data:
        raise DataError(f"image {name}: the file is empty (0 bytes); copy or export it again")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise DataError(
                    f"image {name}: {width} x {height} is over {MAX_PIXELS // 10**6} megapixels; shrink it"
                )
            if image.mode == "F":
                raise DataError(
                    f"image {name}: F greyscale (fractions) can be shown in many ways; "
                    "choose a window and save 8 bits"
                )
            upright = in_rgb(ImageOps.exif_transpose(image))
            return Image.frombytes("RGB", upright.size, upright.tobytes())
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(f"image {name}: over {MAX_PIXELS // 10**6} megapixels; shrink it") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        why = UNNAMED.sub("", str(error))
        raise DataError(
            f"image {name}: cannot be read as {', '.join(FORMATS)}: {why}; export it again"
        ) from error


def in_rgb(image: Image.Image) -> Image.Image:
    """Any mode as RGB: deep greyscale spread over 0 to 255, transparency shown on white."""
    if image.mode in DEEP:
        return spread(np.asarray(image)).convert("RGB")
    if is_clear(image):
        clear = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear).convert("RGB")
    return image.convert("RGB")


def spread(values: np.ndarray) -> Image.Image:
    """Greyscale of 8 bits whose black is the smallest value and whose white is the largest."""
    low, high = float(values.min()), float(values.max())
    scaled = (values.astype(np.float32) - low) * (255 / (high - low) if high > low else 0)
    return Image.fromarray(np.rint(scaled).astype(np.uint8))
