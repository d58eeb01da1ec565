"""One image out of an .npz file without reading the others: every access maps just its own row.

An array that is stored plainly is mapped where it lies in the archive. A compressed one (MedMNIST's are) is
unpacked once into the cache, in pieces; nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import zipfile
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lite_medrl.data.cache import cache_folder
from lite_medrl.types import DataError, ImageRef

COPY_BYTES = 1 << 24
DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    ValueError,
    RuntimeError,
)  # as zip and numpy put it
SPARE_BYTES = 1 << 28  # left free on the disk when an array is unpacked


@dataclass(frozen=True, slots=True)
class Stored:
    """Where an array's values lie: from `offset` on in `path`, row by row."""

    path: str
    offset: int
    dtype: np.dtype
    shape: tuple[int, ...]

    def row(self, index: int) -> np.ndarray:
        """A copy of one row."""
        if not 0 <= index < self.shape[0]:
            raise IndexError(index)
        size = int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize
        at = self.offset + index * size
        return np.array(np.memmap(self.path, self.dtype, mode="r", offset=at, shape=self.shape[1:]))

    def all(self) -> np.ndarray:
        """The whole array, mapped; for labels."""
        return np.memmap(self.path, self.dtype, mode="r", offset=self.offset, shape=self.shape)


def stored(path: str, name: str) -> Stored:
    """The array `name` of an .npz file; DataError for a broken file, objects or a missing array."""
    try:
        status = Path(path).stat()
    except OSError as error:
        raise DataError(f"{path}: no such file; fetch it or check the path") from error
    return _stored(path, name, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=32)
def _stored(path: str, name: str, size: int, changed: int) -> Stored:
    try:
        with zipfile.ZipFile(path) as archive:
            info = archive.getinfo(f"{name}.npy")
            with archive.open(info) as member:
                dtype, shape, start = header(member, f"{path}:{name}")
            want = start + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            if info.file_size != want:
                raise DataError(f"{path}:{name}: {info.file_size} bytes where its header says {want}")
            if info.compress_type == zipfile.ZIP_STORED:
                return Stored(path, data_offset(path, info) + start, dtype, shape)
            plain = unpacked(archive, info, Path(path), size, changed)
            return Stored(str(plain), start, dtype, shape)
    except KeyError as error:
        raise DataError(f"{path}: has no array {name!r}; it is not a file of this set") from error
    except DAMAGE as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: cannot be read as .npz ({error}); download it again") from error


def header(member: Any, place: str) -> tuple[np.dtype, tuple[int, ...], int]:
    """dtype, shape and the number of bytes before the values."""
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(member)
    if dtype.hasobject or fortran:
        raise DataError(f"{place}: holds Python objects or columns first; save a plain array of numbers")
    return dtype, shape, member.tell()


def data_offset(path: str, info: zipfile.ZipInfo) -> int:
    """Where the bytes of a stored member begin: its local header has its own length."""
    with open(path, "rb") as file:
        file.seek(info.header_offset + 26)
        name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
    return info.header_offset + 30 + name + extra


def unpacked(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path, size: int, changed: int) -> Path:
    """The member as a file in the cache, made once for this state of the archive."""
    key = hashlib.sha256(f"{path.resolve()}|{size}|{changed}".encode()).hexdigest()[:16]
    plain = cache_folder() / "arrays" / f"{path.stem}-{key}" / info.filename
    if plain.is_file() and plain.stat().st_size == info.file_size:
        return plain
    plain.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(plain.parent).free
    if free < info.file_size + SPARE_BYTES:
        raise DataError(
            f"{path}: {info.filename} needs {info.file_size / 2**30:.1f} GiB in {plain.parent}, and "
            f"{free / 2**30:.1f} are free; set LITE_MEDRL_DATA to a larger disk"
        )
    half = plain.with_name(f".{plain.name}.{os.getpid()}")
    try:
        with archive.open(info) as member, half.open("wb") as out:
            shutil.copyfileobj(member, out, COPY_BYTES)
        half.replace(plain)
    finally:
        half.unlink(missing_ok=True)
    return plain


def picture(ref: ImageRef) -> Image.Image:
    """The image ARRAY/ROW of an .npz file in RGB. Its values are uint8: height, width and perhaps 3."""
    name, _, row = (ref.member or "").partition("/")
    array = stored(ref.path, name)
    if array.dtype != np.uint8 or len(array.shape) not in (3, 4) or array.shape[3:] not in ((), (3,)):
        raise DataError(f"image {ref}: expected uint8 [N, H, W] or [N, H, W, 3], got {array}")
    try:
        return Image.fromarray(array.row(int(row))).convert("RGB")
    except (IndexError, ValueError) as error:
        raise DataError(f"image {ref}: the array has rows 0 to {array.shape[0] - 1}") from error
