"""How is lite-medrl called from here, so that a command that we print works as typed?

`make quickstart` starts .venv/bin/lite-medrl, which is on nobody's PATH.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

NAME = "lite-medrl"


def command(*words: str | Path) -> str:
    """A command line that calls this program with these words from here, quoted for a POSIX shell."""
    return shlex.join([*program(), *map(str, words)])


def program() -> list[str]:
    """The words that start this program: as it was started, else the script beside this Python, else -m."""
    started = shutil.which(sys.argv[0])
    as_module = Path(sys.argv[0]).name == "__main__.py"
    if started is None or bare(started) != NAME:
        started = None if as_module else shutil.which(NAME, path=str(Path(sys.executable).parent))
    return [spelt(started)] if started else [spelt(sys.executable), "-m", "lite_medrl"]


def spelt(path: str) -> str:
    """The bare name where PATH leads to this very file, else its path, relative where it lies below."""
    whole, found = os.path.abspath(path), shutil.which(bare(path))
    if found and os.path.abspath(found) == whole:
        return bare(path)
    near = os.path.relpath(whole)
    if near.startswith(os.pardir):
        return whole
    return near if os.sep in near else os.path.join(os.curdir, near)


def bare(path: str) -> str:
    """Name of a program without its folder."""
    return Path(path).name.removesuffix(".exe")
