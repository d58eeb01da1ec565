"""Where samples come from: the embedded pack, or a user's JSONL beside its images.

Every row is checked at the door; an error names the file, the line, what came and what to do.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lite_medrl.data.images import load_image
from lite_medrl.types import LETTERS, DataError, ImageRef, Sample

EMBEDDED = Path(__file__).parent / "embedded"
REQUIRED = ("id", "question", "options", "answer")


def load_samples(source: str, split: str, *, kinds: Sequence[str] | None = None) -> list[Sample]:
    """All samples of one split of the embedded pack or of a JSONL file, in file order.

    Args:
        source: "embedded" or the path of a JSONL file (rows without "split" belong to "train").
        kinds: keep only these question kinds.

    Raises:
        DataError: missing file, broken row, duplicate id, gold answer not among the options, empty result.
    """
    samples = embedded_samples() if source == "embedded" else jsonl_samples(Path(source))
    chosen = [s for s in samples if s.split == split and (kinds is None or s.kind in kinds)]
    if not chosen:
        have = ", ".join(
            f"{name} ({sum(s.split == name for s in samples)})" for name in sorted({s.split for s in samples})
        )
        wanted = f" and kinds {', '.join(kinds)}" if kinds else ""
        raise DataError(f"{source}: no sample in split {split!r}{wanted}; the file has {have or 'no rows'}")
    return chosen


def embedded_samples() -> list[Sample]:
    """The pack's questions joined with their images' source, modality and licence."""
    images = {row["id"]: row for row in read_jsonl(EMBEDDED / "images.jsonl")}
    pack = str(EMBEDDED / "images.zip")
    rows = [{**shared(images[row["image"]]), **row} for row in read_jsonl(EMBEDDED / "questions.jsonl")]
    for row in rows:
        row["images"] = [ImageRef(pack, images[row["image"]]["file"])]
    return checked(
        [sample_of(row, f"{EMBEDDED / 'questions.jsonl'}:{n}") for n, row in enumerate(rows, 1)], "embedded"
    )


def shared(image: dict[str, Any]) -> dict[str, Any]:
    """What a question inherits from its image."""
    return {key: image[key] for key in ("modality", "source", "licence", "subject") if key in image}


def jsonl_samples(path: Path) -> list[Sample]:
    """Rows {id, image | images, question, options, answer, ...}; image paths are relative to the file."""
    samples = []
    for n, row in numbered_rows(path):
        refuse(image_faults(row), f"{path}:{n}")
        samples.append(sample_of(row | {"images": refs_of(row, path)}, f"{path}:{n}"))
    return checked(samples, str(path))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """One object a line; empty lines are skipped."""
    return [row for _, row in numbered_rows(path)]


def numbered_rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Every row with the number of its line."""
    rows = []
    for n, line in numbered_lines(path):
        try:
            rows.append((n, object_of(line)))
        except DataError as error:
            raise DataError(f"{path}:{n}: {error}") from error
    return rows


def numbered_lines(path: Path) -> list[tuple[int, str]]:
    """Every line that holds something; a newline alone ends one: JSON may hold U+2028 or U+0085."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; give 'embedded' or the path of a .jsonl file")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from error
    return [(n, line) for n, line in enumerate(lines, 1) if line.strip()]


def object_of(line: str) -> dict[str, Any]:
    """The JSON object on a line; DataError, without its place, where there is none."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"not JSON: {error.msg} at column {error.colno}") from error
    if not isinstance(row, dict):
        raise DataError(f"expected an object, got {type(row).__name__}")
    return row


def image_names(row: dict[str, Any]) -> Any:
    """What stands under "images" or "image", one name as a list."""
    names = row.get("images", row.get("image"))
    return [names] if isinstance(names, str) else names


def refs_of(row: dict[str, Any], path: Path) -> list[ImageRef]:
    """The images of a row without `image_faults`; their paths are relative to the file."""
    return [ImageRef(str(path.parent / name)) for name in image_names(row)]


def image_faults(row: dict[str, Any]) -> list[str]:
    """What is wrong with the names of a row's images; nothing is opened."""
    names = image_names(row)
    if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
        return []
    return [f'"images" must be a list of file names (or "image" one name), got {names!r}']


def faults_of(row: dict[str, Any]) -> list[str]:
    """All that is wrong with a row but for its images: what came, what to do."""
    found = []
    if missing := [key for key in REQUIRED if key not in row]:
        found.append(f"missing {', '.join(missing)}; a row needs {', '.join(REQUIRED)} and images")
    options = row.get("options", [])
    if "options" in row and not (isinstance(options, list) and 2 <= len(options) <= len(LETTERS)):
        return [*found, f"options must be a list of 2 to {len(LETTERS)} texts, got {options!r}"]
    options = [str(option) for option in options]
    answer = gold(row, options)
    if options and "answer" in row and answer not in options:
        found.append(f"gold answer {answer!r} is not among the options {options}; fix the row or drop it")
    if len(set(options)) != len(options):
        found.append(f"an option stands twice in {options}; drop one")
    return found


def gold(row: dict[str, Any], options: list[str]) -> str:
    """The gold answer's text: that of the option whose letter it is, unless an option reads so itself."""
    answer = str(row.get("answer"))
    is_letter = answer not in options and answer in list(LETTERS[: len(options)])
    return options[LETTERS.index(answer)] if is_letter else answer


def refuse(faults: Sequence[str], where: str) -> None:
    """DataError for the first of the faults; nothing where there is none."""
    if faults:
        raise DataError(f"{where}: {faults[0]}")


def sample_of(row: dict[str, Any], where: str) -> Sample:
    """A Sample from a row that already has its ImageRefs."""
    refuse(faults_of(row), where)
    options = [str(option) for option in row["options"]]
    text = {key: str(row.get(key, "unknown")) for key in ("kind", "modality", "source", "licence")}
    return Sample(
        id=str(row["id"]),
        images=tuple(row["images"]),
        question=str(row["question"]),
        options=tuple(options),
        answer=gold(row, options),
        split=str(row.get("split", "train")),
        reasoning=row.get("reasoning"),
        subject=row.get("subject"),
        **text,
    )


def checked(samples: list[Sample], source: str) -> list[Sample]:
    """The same samples; DataError for none at all or for an id that stands twice."""
    if not samples:
        raise DataError(f"{source}: the data set is empty; it needs at least one row")
    seen: dict[str, int] = {}
    for n, sample in enumerate(samples, 1):
        if sample.id in seen:
            raise DataError(
                f"{source}: id {sample.id!r} stands twice (rows {seen[sample.id]} and {n}); use unique ids"
            )
        seen[sample.id] = n
    return samples


def check_images(samples: Sequence[Sample]) -> None:
    """Opens every distinct image once; DataError names the sample whose image cannot be used."""
    seen: set[ImageRef] = set()
    for sample in samples:
        for ref in sample.images:
            if ref in seen:
                continue
            seen.add(ref)
            try:
                load_image(ref)
            except DataError as error:
                raise DataError(f"sample {sample.id}: {error}") from error
