"""What all field maps share: the place a row stands in, options in their many spellings, yes and no.

A field map is a function (values, Place) -> list of rows with the keys of `lite_medrl.data.rows.FIELDS`: none
for a row that is not part of the set, several where a row asks several things. It raises DataError, without
its place, for a row that is not as the set's publishers describe it.
"""

from __future__ import annotations

import ast
import json
import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from lite_medrl.data.rows import is_dicom, name_fault, ref_of
from lite_medrl.types import LETTERS, DataError, ImageRef

Values = dict[str, Any]
MAX_LITERAL = 20_000
YES_NO = ("Yes", "No")


@dataclass(frozen=True, slots=True)
class Place:
    """Which row of which set: its split by the publishers' or the file's name, its number, its images."""

    name: str
    split: str
    number: int
    images: Pictures | None = None
    licence: str = "unknown"

    def id(self, *parts: Any) -> str:
        """NAME-SPLIT-NUMBER or NAME-SPLIT-PARTS: unique in the set."""
        return "-".join(str(part) for part in (self.name, self.split, *(parts or (self.number,))))

    def image(self, name: Any) -> ImageRef:
        """The image of that name, in the set's folder or archive."""
        if not (isinstance(name, str) and name):
            raise DataError(f"the name of an image must be a text, got {name!r}")
        if told := name_fault(name):
            raise DataError(told)
        return self.images.ref(name) if self.images else ref_of(name, {}, Path())


@dataclass(frozen=True, slots=True)
class Pictures:
    """Images by name: below `folder`, or in the first of the zip archives that is there."""

    folder: Path
    archives: tuple[Path, ...] = ()

    def ref(self, name: str) -> ImageRef:
        """Where it lies, of DICOM the first frame; DataError for a name that leads out of the folder."""
        if name.startswith(("/", "\\")) or ".." in Path(name).parts or ":" in name.split("/")[0]:
            raise DataError(f"the image name {name!r} leads out of its folder; repair the row")
        if self.folder.is_dir():
            return ref_of(name, {}, self.folder)
        for archive in self.archives:
            if archive.is_file():
                if is_dicom(name):
                    raise DataError(f"{archive}: DICOM is not read from archives; unpack it to {self.folder}")
                return ImageRef(str(archive), member_of(str(archive), self.folder.name, name))
        return ref_of(name, {}, self.folder)


def member_of(archive: str, folder: str, name: str) -> str:
    """The member for a name: some archives put a folder around their images, some do not."""
    inside = f"{folder}/{name}"
    return inside if inside in members(archive) else name


@lru_cache(maxsize=4)
def members(archive: str) -> frozenset[str]:
    """The names in an archive."""
    try:
        with zipfile.ZipFile(archive) as file:
            return frozenset(file.namelist())
    except zipfile.BadZipFile as error:
        raise DataError(f"{archive}: {error}; download the archive again") from error


def options_of(value: Any) -> list[str]:
    """Options out of a list, a dict by letters, or a text that holds one of them (JSON, or Python's way).

    Raises:
        DataError: anything else, and a dict whose letters are not A, B, C... without a gap.
    """
    if isinstance(value, str):
        value = literal(value)
    if isinstance(value, dict):
        filled = {str(key): option for key, option in value.items() if option is not None}
        letters = sorted(filled)
        if letters != list(LETTERS[: len(letters)]):
            raise DataError(f"options must be lettered A, B, C... without a gap, got {letters}")
        return [str(filled[letter]).strip() for letter in letters]
    if isinstance(value, list | tuple):
        return ["" if option is None else str(option).strip() for option in value]
    raise DataError(f"options must be a list, or a dict by letters, got {value!r}")


def literal(text: str) -> Any:
    """The value of a JSON text, or of a Python literal; DataError for any other text."""
    if len(text) > MAX_LITERAL:
        raise DataError(f"options take {len(text)} characters, over {MAX_LITERAL}; drop the row")
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    raise DataError(f"options cannot be read: {text[:80]!r} is neither JSON nor a Python list")


def by_letter(options: Sequence[str], letter: Any) -> str:
    """The option of a letter; DataError for a letter outside the options."""
    name = str(letter or "").strip()
    if len(name) != 1 or name not in LETTERS[: len(options)]:
        last = LETTERS[len(options) - 1] if options else "none"
        raise DataError(f"gold letter {name!r} is outside the options A to {last}; fix the row or drop it")
    return options[LETTERS.index(name)]


def yes_no(answer: Any) -> str | None:
    """ "Yes" or "No" where the answer is just that word, else None."""
    return {"yes": "Yes", "no": "No"}.get(str(answer).strip().rstrip(".").casefold())


def closed_or_open(answer: Any) -> Values:
    """Options and answer: Yes/No where the answer is one of them, else none (an open question)."""
    if word := yes_no(answer):
        return {"options": list(YES_NO), "answer": word}
    return {"options": [], "answer": str(answer if answer is not None else "").strip()}


def need(values: Values, *names: str) -> None:
    """DataError for fields that a row lacks."""
    if missing := [name for name in names if values.get(name) is None]:
        raise DataError(
            f"missing {', '.join(missing)}; the set's rows have it, so check where this file is from"
        )


def worded(values: Values, name: str) -> str:
    """The text in a field; DataError for anything else in it."""
    value = values.get(name)
    if not isinstance(value, str):
        raise DataError(f"{name} must be a text, got {value!r}; check where this file is from")
    return value.strip()


def without_marks(question: str) -> str:
    """The question without <image>, and with image 1 for <image 1>: where images go is the prompt's business.

    Marks at either end go altogether. (MedVLThinker drops them all, which leaves "Which of and is it?")
    """
    bare = re.sub(r"[ \t]*<image>[ \t]*", " ", question).strip()
    bare = re.sub(r"^(?:<image \d+>\s*)+|(?:\s*<image \d+>)+$", "", bare)
    return spoken(bare)


def spoken(text: str) -> str:
    """The text with image 1 for <image 1>: a model's template must not find a mark of its own there."""
    return re.sub(r"<image (\d+)>", r"image \1", text)


@dataclass(frozen=True, slots=True)
class FieldMap:
    """How a set's rows are read: fields that every row has, fields that are known, the function."""

    required: tuple[str, ...]
    convert: Callable[[Values, Place], list[Values]]
    optional: tuple[str, ...] = ()

    @property
    def known(self) -> tuple[str, ...]:
        """All fields that the set's publishers name, read or not."""
        return (*self.required, *self.optional)
