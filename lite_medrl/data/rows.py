"""What must a row hold to become a Sample? Every field map ends here, and so does every row of one's own.

A row is a dict with the keys of `FIELDS`; its images are ImageRefs by then. A fault says what came and what
to do; whoever reports it adds the place.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lite_medrl.types import LETTERS, DataError, ImageRef, Sample

REQUIRED = ("id", "question", "options", "answer")
TEXTS = ("kind", "modality", "source", "licence")
FIELDS = (*REQUIRED, "image", "images", "split", *TEXTS, "subject", "reasoning", "frame", "window")
DICOM = (".dcm", ".dicom")


@dataclass(frozen=True, slots=True)
class Fault:
    """`what` came and what to do about it, in which row (None: in the file as a whole) of which file.

    `lost` counts the rows that cannot be read for it. None: nobody can tell how many, so no reading goes on.
    """

    row: int | None
    id: str | None
    what: str
    file: str = ""
    lost: int | None = 1

    @property
    def place(self) -> str:
        """FILE:ROW, as far as they are known."""
        return ":".join(str(part) for part in (self.file, self.row) if part)

    def __str__(self) -> str:
        return f"{self.place}: {self.what}" if self.place else self.what


def image_names(row: dict[str, Any]) -> Any:
    """What stands under "images" or "image", a single one as a list."""
    names = row.get("images", row.get("image"))
    return [names] if isinstance(names, str | ImageRef) else names


def image_faults(row: dict[str, Any]) -> list[str]:
    """What is wrong with the names of a row's images; nothing is opened."""
    names = image_names(row)
    if not (isinstance(names, list) and names and all(isinstance(name, str | ImageRef) for name in names)):
        return [f'"images" must be a list of file names (or "image" one name), got {names!r}']
    return view_faults(row)


def view_faults(row: dict[str, Any]) -> list[str]:
    """What is wrong with "frame" and "window", which choose what is shown of a DICOM file."""
    frame, window = row.get("frame"), row.get("window")
    found = []
    if frame is not None and not (isinstance(frame, int) and not isinstance(frame, bool) and frame >= 1):
        found.append(f'"frame" must be a whole number from 1, got {frame!r}')
    numbers = isinstance(window, list) and len(window) == 2 and all(map(is_number, window))
    if window is not None and not (numbers and window[1] > 0):
        found.append(f'"window" must be [centre, width] with a width above 0, got {window!r}')
    return found


def is_number(value: Any) -> bool:
    """Whether it is a finite int or float, and no bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9


def refs_of(row: dict[str, Any], folder: Path) -> list[ImageRef]:
    """The images of a row without `image_faults`; their paths are relative to the folder."""
    return [ref_of(name, row, folder) for name in image_names(row)]


def ref_of(name: str | ImageRef, row: dict[str, Any], folder: Path) -> ImageRef:
    """One image; of a DICOM file, the frame and the window that the row names."""
    if isinstance(name, ImageRef):
        return name
    window = row.get("window")
    shown = f"&window={window[0]:g},{window[1]:g}" if window else ""
    is_dicom = Path(name).suffix.lower() in DICOM
    return ImageRef(str(folder / name), f"frame={row.get('frame') or 1}{shown}" if is_dicom else None)


def faults_of(row: dict[str, Any]) -> list[str]:
    """All that is wrong with a row but for its images: what came, what to do. No options: an open one."""
    found = []
    if missing := [key for key in REQUIRED if key not in row]:
        found.append(f"missing {', '.join(missing)}; a row needs {', '.join(REQUIRED)} and images")
    options = row.get("options", [])
    if not (isinstance(options, list | tuple) and (not options or 2 <= len(options) <= len(LETTERS))):
        return [*found, f"options must be a list of 2 to {len(LETTERS)} texts, got {options!r}"]
    options = [str(option) for option in options]
    answer = gold(row, options)
    if options and "answer" in row and answer not in options:
        found.append(f"gold answer {answer!r} is not among the options {options}; fix the row or drop it")
    if not options and "options" in row and not str(row.get("answer") or "").strip():
        found.append("an open question needs an answer; fix the row or drop it")
    if len(set(options)) != len(options):
        found.append(f"an option stands twice in {options}; drop one")
    return found


def gold(row: dict[str, Any], options: Sequence[str]) -> str:
    """The gold answer's text: that of the option whose letter it is, unless an option reads so itself."""
    answer = str(row.get("answer"))
    is_letter = answer not in options and answer in list(LETTERS[: len(options)])
    return options[LETTERS.index(answer)] if is_letter else answer


def sample_of(row: dict[str, Any]) -> Sample:
    """A Sample from a row that already has its ImageRefs; DataError, without its place, for a fault."""
    if faults := faults_of(row):
        raise DataError(faults[0])
    options = [str(option) for option in row["options"]]
    text = {key: str(row.get(key) or "unknown") for key in TEXTS}
    return Sample(
        id=str(row["id"]),
        images=tuple(row["images"]),
        question=str(row["question"]),
        options=tuple(options),
        answer=gold(row, options),
        split=str(row.get("split") or "train"),
        reasoning=row.get("reasoning"),
        subject=row.get("subject"),
        **text,
    )


def strangers(keys: Iterable[str], known: Iterable[str]) -> list[str]:
    """The keys that nobody reads."""
    taken = set(known)
    return [key for key in keys if key not in taken]
