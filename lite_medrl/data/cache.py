"""Where fetched sets lie: the folder LITE_MEDRL_DATA, or ~/.cache/lite-medrl/data."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

BLOCK_BYTES = 1 << 22


def cache_folder() -> Path:
    """The folder itself; it need not be there yet."""
    return Path(os.environ.get("LITE_MEDRL_DATA") or Path.home() / ".cache" / "lite-medrl" / "data")


def md5_of(path: Path) -> str:
    """MD5 of a file: what publishers give to tell a damaged download, no protection against a forger."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def has_md5(path: Path, wanted: str) -> bool:
    """Whether the file has this MD5; a positive answer is noted in the cache until the file changes."""
    status = path.stat()
    state = f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}|{wanted}"
    note = cache_folder() / "checked" / hashlib.sha256(state.encode()).hexdigest()[:32]
    if note.is_file():
        return True
    if md5_of(path) != wanted:
        return False
    note.parent.mkdir(parents=True, exist_ok=True)
    note.touch()
    return True
