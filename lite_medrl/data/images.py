"""Opens one image, from a file or from a zip pack, and treats it as hostile.

Only five formats, a cap on bytes and on pixels before anything is decoded, turned upright by its
EXIF tag, then no metadata kept.
"""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from lite_medrl.types import DataError, ImageRef

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
MAX_PIXELS = 40_000_000
MAX_BYTES = 100_000_000
UNNAMED = re.compile(r"\s*<_io\.BytesIO[^>]*>")  # what Pillow calls the file: it sees bytes only


def load_image(ref: ImageRef) -> Image.Image:
    """The image in RGB, pixels only.

    Raises:
        DataError: missing, empty, corrupt, of another format, over 100 MB or over 40 megapixels.
    """
    return decode(read_bytes(ref), str(ref))


def read_bytes(ref: ImageRef) -> bytes:
    """Bytes of the file or of the zip member."""
    try:
        if ref.member is not None:
            return pack(ref.path).read(ref.member)
        if Path(ref.path).stat().st_size > MAX_BYTES:
            raise DataError(f"image {ref}: over {MAX_BYTES // 1_000_000} MB; convert it to a smaller file")
        return Path(ref.path).read_bytes()
    except (FileNotFoundError, KeyError, IsADirectoryError) as error:
        raise DataError(f"image {ref}: no such file; check the path in the row") from error
    except (zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"image {ref}: {error}; copy or download the archive again") from error
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise DataError(
            f"image {ref}: cannot be opened ({why}); check the path and its permissions"
        ) from error


@lru_cache(maxsize=4)
def pack(path: str) -> zipfile.ZipFile:
    """An open zip pack; kept open because an evaluation reads it hundreds of times."""
    return zipfile.ZipFile(path)


def decode(data: bytes, name: str) -> Image.Image:
    """RGB image from bytes; the size is checked before the pixels are decoded."""
    if not data:
        raise DataError(f"image {name}: the file is empty (0 bytes); copy or export it again")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise DataError(
                    f"image {name}: {width} x {height} is over {MAX_PIXELS // 10**6} megapixels; shrink it"
                )
            if image.mode[0] in "IF":
                raise DataError(
                    f"image {name}: {image.mode} greyscale (over 8 bits) can be shown in many ways; "
                    "choose a window and save 8 bits"
                )
            upright = ImageOps.exif_transpose(image).convert("RGB")
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
