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
ANSWER_TYPES = ("closed", "open")
FIELDS = (
    *REQUIRED, "image", "images", "split", *TEXTS, "subject", "answer_type", "reasoning", "frame", "window",
)  # fmt: skip
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


def rows_lost(faults: Iterable[Fault]) -> int:
    """How many rows cannot be used for these faults; one with several is one."""
    rows = {(f.file, f.row if f.row is not None else f.id): f.lost or 1 for f in faults}
    return sum(rows.values())


def image_names(row: dict[str, Any]) -> Any:
    """What stands under "images" or "image", a single one as a list."""
    names = row.get("images", row.get("image"))
    return [names] if isinstance(names, str | ImageRef) else names


def image_faults(row: dict[str, Any]) -> list[str]:
    """What is wrong with the names of a row's images; nothing is opened."""
    names = image_names(row)
    if not (isinstance(names, list) and names and all(isinstance(name, str | ImageRef) for name in names)):
        return [f'"images" must be a list of file names (or "image" one name), got {names!r}']
    told = [name_fault(name) for name in names if isinstance(name, str)]
    return [*filter(None, told), *view_faults(row)]


def name_fault(name: str) -> str | None:
    """Why no file can have that name, if so."""
    if name and "\x00" not in name and is_unicode(name):
        return None
    return f"the image name {name!r} is empty or holds a character that no file name has; repair the row"


def is_unicode(text: str) -> bool:
    """Whether a text can be written down: JSON may hold half a surrogate pair, which cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


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
    return ImageRef(str(folder / name), f"frame={row.get('frame') or 1}{shown}" if is_dicom(name) else None)


def is_dicom(name: str) -> bool:
    """Whether a file is DICOM by its name."""
    return Path(name).suffix.lower() in DICOM


def faults_of(row: dict[str, Any]) -> list[str]:
    """All that is wrong with a row but for its images: what came, what to do. No options: an open one."""
    found = []
    if missing := [key for key in REQUIRED if key not in row]:
        found.append(f"missing {', '.join(missing)}; a row needs {', '.join(REQUIRED)} and images")
    found += [told for key in ("id", "question") if key in row and (told := text_fault(key, row[key]))]
    found += other_faults(row)
    options = row.get("options", [])
    if not (isinstance(options, list | tuple) and (not options or 2 <= len(options) <= len(LETTERS))):
        return [*found, f"options must be a list of 2 to {len(LETTERS)} texts, got {options!r}"]
    if told := next(filter(None, (text_fault("options", option) for option in options)), None):
        return [*found, told]
    options = [str(option) for option in options]
    found += answer_faults(row, options) if "answer" in row else []
    if len({option.strip() for option in options}) != len(options):  # as the parser tells them apart
        found.append(f"an option stands twice in {options}; drop one")
    return found


def answer_faults(row: dict[str, Any], options: Sequence[str]) -> list[str]:
    """What is wrong with a row's answer."""
    if not options and "options" in row and not str("" if row["answer"] is None else row["answer"]).strip():
        return ["an open question needs an answer; fix the row or drop it"]
    if told := text_fault("answer", row["answer"]):
        return [told]
    answer = gold(row, options)
    if options and answer not in options:
        return [f"gold answer {answer!r} is not among the options {options}; fix the row or drop it"]
    return []


def text_fault(key: str, value: Any) -> str | None:
    """Why a value (a number is taken as a text) cannot stand under a key, if so."""
    if value is None or value != value or (isinstance(value, str) and not value.strip()):  # NaN: pandas' null
        return f'nothing stands under "{key}", got {value!r}; fill it in or drop the row'
    if isinstance(value, list | tuple | dict | bytes):
        return f'no text stands under "{key}", got {value!r}; fix the row or drop it'
    if not is_unicode(str(value)):
        return (
            f'half a character (a lone surrogate) stands under "{key}", got {value!r}; fix the row or drop it'
        )
    return None


def other_faults(row: dict[str, Any]) -> list[str]:
    """What is wrong with the keys that a row may leave out; null is as good as none."""
    given = [key for key in ("split", "subject", *TEXTS) if row.get(key) not in (None, "")]
    told = [text_fault(key, row[key]) for key in given]
    if row.get("answer_type") not in (None, "", *ANSWER_TYPES):
        told.append(
            f'"answer_type" must be closed or open, got {row["answer_type"]!r}; fix it or leave it out'
        )
    reasoning = row.get("reasoning")
    if reasoning is not None and not isinstance(reasoning, str):
        told.append(f'"reasoning" must be a text, got {reasoning!r}; fix the row or drop it')
    elif reasoning:
        told.append(text_fault("reasoning", reasoning))
    return [fault for fault in told if fault]


def gold(row: dict[str, Any], options: Sequence[str]) -> str:
    """The gold answer's text: that of the option whose letter it is, unless an option reads so itself."""
    answer = str(row.get("answer"))
    is_letter = answer not in options and answer in list(LETTERS[: len(options)])
    return options[LETTERS.index(answer)] if is_letter else answer


def sample_of(row: dict[str, Any], place: tuple[str, int | None] = ("", None)) -> Sample:
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
        subject=None if row.get("subject") is None else str(row["subject"]),
        answer_type=row.get("answer_type") or None,
        place=place,
        **text,
    )


def strangers(keys: Iterable[str], known: Iterable[str]) -> list[str]:
    """The keys that nobody reads."""
    taken = set(known)
    return [key for key in keys if key not in taken]
