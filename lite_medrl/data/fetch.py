"""Fetches a named set into the cache: from its hub by huggingface_hub, MedMNIST from its record by MD5.

The only file of the package that downloads data. A revision is pinned where we know one; no code that comes
with a set is ever run. A file that is there already is not fetched again.
"""

from __future__ import annotations

import logging
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lite_medrl.data.archives import unpack
from lite_medrl.data.cache import cache_folder, has_md5
from lite_medrl.data.sets import medmnist, registry
from lite_medrl.data.sets.medmnist_facts import Subset
from lite_medrl.types import DataError

MAX_BYTES = 20 * 2**30  # the largest MedMNIST file has 12 GB
BLOCK_BYTES = 1 << 20
TIMEOUT_S = 60

log = logging.getLogger(__name__)


def fetch(name: str, folder: Path | None = None) -> dict[str, Any]:
    """Fetches a set; returns its name, folder, licence, access terms and how to name it in a recipe.

    Args:
        folder: where to; None takes the cache, where a recipe finds the set by its name alone.

    Raises:
        DataError: an unknown name, a set that is not published as files, no connection, a wrong checksum.
    """
    if not registry.is_named(name) or ":" in name:
        raise DataError(
            f"{name}: no set of this name; lite-medrl data list names them{registry.nearest(name)}"
        )
    name = registry.name_and_path(name)[0]
    licence, access = registry.licence_of(name)
    log.info("%s: licence %s; access: %s", name, licence, access)
    if found := medmnist.subset_of(name):
        place = fetch_medmnist(*found, folder or cache_folder() / "medmnist")
    else:
        place = fetch_hub(registry.SETS[name], folder or cache_folder() / registry.SETS[name].home)
    source = f"{name}:{place}" if folder else name
    return {"set": name, "path": str(place), "licence": licence, "access": access, "source": source}


def fetch_hub(one: registry.NamedSet, folder: Path) -> Path:
    """A snapshot of the set's files at the pinned revision; archives that must be unpacked are."""
    if not one.hub:
        raise DataError(f"{one.name}: is a format of your own files; name one as {one.name}:FILE.json")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    folder.mkdir(parents=True, exist_ok=True)
    try:
        snapshot_download(
            one.hub,
            repo_type="dataset",
            revision=one.revision,
            allow_patterns=list(one.patterns),
            local_dir=folder,
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise DataError(
            f"{one.name}: {one.hub} could not be fetched ({first_line(error)}); check the connection, and "
            f"log in with `hf auth login` where its terms must be accepted; access: {one.access}"
        ) from error
    for archive in one.unpack:
        files = unpack(folder / archive, folder, strip=f"{Path(archive).stem}/")
        log.info("%s: %d files unpacked", archive, files)
    return folder


def fetch_medmnist(subset: Subset, size: int, folder: Path) -> Path:
    """The published .npz file, whole and with the published MD5."""
    path = folder / subset.file(size)
    if path.is_file() and has_md5(path, subset.md5[size]):
        return path
    folder.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        download(subset.url(size), half)
        if not has_md5(half, subset.md5[size]):
            raise DataError(f"{subset.url(size)}: the MD5 is not the published one; fetch it again")
        half.replace(path)
    finally:
        half.unlink(missing_ok=True)
    return path


def download(url: str, path: Path, opener: Callable[..., Any] = urllib.request.urlopen) -> None:
    """The bytes behind an https address, into a file. DataError without a connection or past the cap."""
    assert url.startswith("https://")
    try:
        with opener(url, timeout=TIMEOUT_S) as answer, path.open("wb") as out:
            taken = 0
            while block := answer.read(BLOCK_BYTES):
                taken += len(block)
                if taken > MAX_BYTES or shutil.disk_usage(path.parent).free < BLOCK_BYTES:
                    raise DataError(
                        f"{url}: more than {MAX_BYTES} bytes, or the disk is full; free some space"
                    )
                out.write(block)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise DataError(
            f"{url}: could not be fetched ({error}); check the connection and try again"
        ) from error


def first_line(error: BaseException) -> str:
    """An error in one line."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
