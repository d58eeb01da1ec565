"""Unpacks a zip archive that somebody else made: nothing leaves the folder, nothing swells past the caps.

Everything is checked from the archive's own list before a byte is written, and the sizes again while writing,
because the list may lie.
"""

from __future__ import annotations

import shutil
import stat
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from lite_medrl.types import DataError

MAX_TOTAL_BYTES = 200 * 2**30
MAX_MEMBERS = 2_000_000
MAX_RATIO = 200  # unpacked to packed; deflate itself ends at about 1,030
SMALL_BYTES = 1 << 20  # a member up to here may be packed as tightly as it likes
COPY_BYTES = 1 << 20


def unpack(archive: Path, folder: Path, *, strip: str = "", max_total_bytes: int = MAX_TOTAL_BYTES) -> int:
    """Unpacks all files of the archive into the folder; returns how many.

    Args:
        strip: a leading folder of the names that is left out.

    Raises:
        DataError: no archive, a name that leads out of the folder, a link, or sizes past the caps. What was
            already written stays.
    """
    try:
        with zipfile.ZipFile(archive) as file:
            members = [info for info in file.infolist() if not info.is_dir()]
            check(members, archive, max_total_bytes)
            for info in members:
                write(file, info, folder / PurePosixPath(info.filename.removeprefix(strip)), archive)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{archive}: {error}; download the archive again") from error
    return len(members)


def check(members: Sequence[zipfile.ZipInfo], archive: Path, max_total_bytes: int) -> None:
    """DataError for anything in the archive's list that must not be unpacked."""
    if len(members) > MAX_MEMBERS:
        raise DataError(f"{archive}: {len(members)} files, over {MAX_MEMBERS}; do not use it")
    for info in members:
        place = f"{archive}:{info.filename}"
        if leads_out(info.filename):
            raise DataError(f"{place}: the name leads out of the folder; do not use this archive")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise DataError(f"{place}: is a link; do not use this archive")
        if info.file_size > SMALL_BYTES and info.file_size > MAX_RATIO * max(info.compress_size, 1):
            raise DataError(f"{place}: swells over {MAX_RATIO} times; do not use this archive")
    total = sum(info.file_size for info in members)
    if total > max_total_bytes:
        raise DataError(
            f"{archive}: {total / 2**30:.1f} GiB unpacked, over {max_total_bytes / 2**30:.1f}; do not use it"
        )


def leads_out(name: str) -> bool:
    """Whether a member's name is absolute, names a drive or climbs up."""
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or ":" in name or "\x00" in name or not path.parts


def write(file: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path, archive: Path) -> None:
    """One member, to its end and not past the size it was listed with."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(path.parent).free < info.file_size + SMALL_BYTES:
        raise DataError(f"{archive}: the disk of {path.parent} is full; free space and begin again")
    left = info.file_size
    with file.open(info) as member, path.open("wb") as out:
        while block := member.read(COPY_BYTES):
            left -= len(block)
            if left < 0:
                raise DataError(f"{archive}:{info.filename}: is larger than listed; do not use this archive")
            out.write(block)
