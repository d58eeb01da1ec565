"""The folder of an evaluation: what was asked for, the answers row by row, and how it goes on after a stop.

setup.json says what is evaluated; a folder that was begun with another setup is never mixed with. Every shard
writes a file of its own, so several machines may write into one folder.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lite_medrl.tools.run_folder import write_text
from lite_medrl.types import RecipeError

Json = dict[str, Any]
Key = tuple[str, str]  # benchmark and id of a question
SETUP = "setup.json"
OURS = re.compile(r"setup\.json|answers(-\d+-of-\d+)?\.jsonl|(judged|skipped)\.jsonl|results\.(json|md)")


@dataclass(frozen=True, slots=True)
class Shard:
    """The number-th of `count` parts of the questions, from 1."""

    number: int = 1
    count: int = 1

    @classmethod
    def read(cls, text: str | None) -> Shard:
        """From "2/4"; RecipeError for anything else."""
        if text is None:
            return cls()
        found = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        number, count = map(int, found.groups()) if found else (0, 0)
        if not 1 <= number <= count:
            raise RecipeError(f"--shard: must be i/n with i from 1 to n, such as 2/4, got {text!r}")
        return cls(number, count)

    @property
    def file(self) -> str:
        """Name of its file of answers."""
        return "answers.jsonl" if self.count == 1 else f"answers-{self.number}-of-{self.count}.jsonl"

    def all_files(self) -> list[str]:
        """The files of all shards."""
        return [Shard(number, self.count).file for number in range(1, self.count + 1)]


def open_folder(folder: Path, setup: Json, shard: Shard, *, resume: bool, overwrite: bool) -> None:
    """Makes the folder ready for this shard's answers.

    Raises RecipeError where it holds something else, another setup, or this shard's answers already.
    """
    if folder.exists() and not folder.is_dir():
        raise RecipeError(f"--output_dir: {folder} is a file; give a folder")
    held = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if resume and SETUP not in held:
        raise RecipeError(f"--resume: {folder} holds no evaluation; leave --resume out to begin one")
    if held and SETUP not in held:
        raise RecipeError(f"--output_dir: {folder} is not empty and holds no evaluation; give another folder")
    if overwrite:
        for name in held:
            if OURS.fullmatch(name):
                (folder / name).unlink()
        held = []
    if SETUP in held:
        refuse_other(folder, setup)
        if shard.file in held and not resume:
            raise RecipeError(
                f"--output_dir: {folder} holds these answers already; add --resume to go on, --overwrite to "
                "replace them, or give another folder"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / SETUP, json.dumps(setup, indent=2) + "\n")


def refuse_other(folder: Path, setup: Json) -> None:
    """RecipeError naming the first thing that differs from the setup in the folder."""
    try:
        before = json.loads((folder / SETUP).read_text(encoding="utf-8"))
    except ValueError as error:
        raise RecipeError(f"{folder / SETUP}: not JSON ({error}); add --overwrite") from None
    now = json.loads(json.dumps(setup))
    for key in now:
        if before.get(key) != now[key]:
            told = f"another {key}: {before.get(key)!r:.120}, now {now[key]!r:.120}"
            if key == "questions":
                told = "other questions, options, answers or pictures"
            raise RecipeError(
                f"--output_dir: {folder} was begun with {told}; give another folder, or add --overwrite"
            )


def read_answers(path: Path) -> Iterator[tuple[int, Json]]:
    """The rows of a file, each with the byte at which it ends; a torn last line is left out."""
    end = 0
    with path.open("rb") as file:
        for line in file:
            end += len(line)
            if not line.endswith(b"\n"):
                return
            yield end, checked_row(line, f"{path}: byte {end - len(line)}")


def checked_row(line: bytes, where: str) -> Json:
    """A line as a row that can be counted; RecipeError for anything else."""
    try:
        row = json.loads(line)
    except ValueError as error:
        raise RecipeError(f"{where} is not JSON ({error}); add --overwrite") from None
    if not isinstance(row, dict) or not {"benchmark", "id", "shown", "number"} <= row.keys():
        raise RecipeError(f"{where} is no answer of an evaluation: {row!r:.60}; add --overwrite")
    return row


def key_of(row: Mapping[str, Any]) -> Key:
    """Which question a row answers."""
    return row["benchmark"], row["id"]


def finished(path: Path, rows_of: Mapping[Key, int]) -> set[Key]:
    """The questions whose rows are all in the file; what stands behind the last of them is cut off."""
    if not path.is_file():
        return set()
    counts: dict[Key, int] = {}
    keep, done = 0, set[Key]()
    for end, row in read_answers(path):
        key = key_of(row)
        counts[key] = counts.get(key, 0) + 1
        if counts[key] == rows_of.get(key):
            done.add(key)
            keep = end
    os.truncate(path, keep)
    return done


def gathered(folder: Path, files: Iterable[str]) -> list[Json]:
    """The rows of all shards that are there."""
    paths = [folder / name for name in files]
    return [row for path in paths if path.is_file() for _, row in read_answers(path)]


def whole_questions(rows: Sequence[Json], rows_of: Mapping[Key, int]) -> set[Key]:
    """The questions all of whose rows are there."""
    counts = Counter(map(key_of, rows))
    return {key for key, count in rows_of.items() if counts[key] == count}
