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
            names = [info.filename.removeprefix(strip) for info in members]
            check(members, names, archive, max_total_bytes)
            for info, name in zip(members, names, strict=True):
                write(file, info, inside(folder, name, archive), archive)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{archive}: {error}; download the archive again") from error
    return len(members)


def check(
    members: Sequence[zipfile.ZipInfo], names: Sequence[str], archive: Path, max_total_bytes: int
) -> None:
    """DataError for anything in the archive's list that must not be unpacked; `names` are those written."""
    if len(members) > MAX_MEMBERS:
        raise DataError(f"{archive}: {len(members)} files, over {MAX_MEMBERS}; do not use it")
    files = {PurePosixPath(name) for name in names}
    for info, name in zip(members, names, strict=True):
        place = f"{archive}:{info.filename}"
        if leads_out(info.filename) or leads_out(name):
            raise DataError(f"{place}: the name leads out of the folder; do not use this archive")
        if not files.isdisjoint(PurePosixPath(name).parents):
            raise DataError(f"{place}: lies below a file of the same archive; do not use this archive")
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


def inside(folder: Path, name: str, archive: Path) -> Path:
    """Where a member is written; DataError if links in the folder lead it elsewhere."""
    path = folder / PurePosixPath(name)
    if not path.resolve().is_relative_to(folder.resolve()):
        raise DataError(f"{archive}:{name}: the name leads out of the folder; do not use this archive")
    return path


def write(file: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path, archive: Path) -> None:
    """One member, to its end and not past the size it was listed with."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise DataError(f"{archive}:{info.filename}: {error.filename} is a file; move it away") from error
    if shutil.disk_usage(path.parent).free < info.file_size + SMALL_BYTES:
        raise DataError(f"{archive}: the disk of {path.parent} is full; free space and begin again")
    left = info.file_size
    with file.open(info) as member, path.open("wb") as out:
        while block := member.read(COPY_BYTES):
            left -= len(block)
            if left < 0:
                raise DataError(f"{archive}:{info.filename}: is larger than listed; do not use this archive")
            out.write(block)
