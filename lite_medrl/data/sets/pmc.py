"""PMC-VQA: four choices about figures of open-access papers, as CSV, as a Parquet mirror, and 8,000 of them.

Choices begin with their own letter ("A:..." or " A:..."); a row is dropped as faulty where that letter, the
gold letter or the gold text does not fit. Version 2 has no Answer_label: its Answer is the letter. An early
README spells Answer "Anwser"; so do files made after it.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

from lite_medrl.data.sets.fields import FieldMap, Place, Values, by_letter, need
from lite_medrl.types import DataError

LETTERS = "ABCD"
PER_LETTER = 2000
VALIDATION_PER_LETTER = 125
SEED = 42


def choice(text: Any, letter: str) -> str:
    """A choice without its letter; DataError where it begins with another."""
    name, colon, rest = str(text).strip().strip("\"'").partition(":")
    if not colon or name.strip() not in LETTERS or len(name.strip()) != 1:
        return str(text).strip().strip("\"'").strip()
    if name.strip() != letter:
        raise DataError(f"choice {letter} is lettered {name.strip()!r}: {text!r}; drop the row")
    return rest.strip()


def four_choices(values: Values, names: Iterable[str], *, answer: Any, label: Any) -> Values:
    """Options and gold text, checked against each other."""
    options = [choice(values[name], letter) for name, letter in zip(names, LETTERS, strict=True)]
    told = str(answer if answer is not None else "").strip()
    if label is None:
        return {"options": options, "answer": by_letter(options, told)}
    right = by_letter(options, str(label).strip())
    text = choice(told, str(label).strip()) if told else right
    if text.casefold() != right.casefold():
        raise DataError(
            f"gold letter {label!r} stands for {right!r}, but the answer is {told!r}; drop the row"
        )
    return {"options": options, "answer": right}


COLUMNS = ("Choice A", "Choice B", "Choice C", "Choice D")


def pmc_csv(values: Values, place: Place) -> list[Values]:
    """A row of train.csv, test.csv, test_clean.csv, train_2.csv or test_2.csv."""
    need(values, "Figure_path", "Question", *COLUMNS)
    found = four_choices(
        values, COLUMNS, answer=values.get("Answer", values.get("Anwser")), label=values.get("Answer_label")
    )
    row = {
        "id": place.id(),
        "images": [place.image(values["Figure_path"].strip())],
        "question": values["Question"].strip(),
        "kind": "figure",
        "subject": values["Figure_path"].strip().partition("_")[0],  # the paper
    }
    return [row | found]


SMALL = ("choice a", "choice b", "choice c", "choice d")


def pmc_mirror(values: Values, place: Place) -> list[Values]:
    """A row of the Parquet mirror, whose column names are in lower case."""
    need(values, "image", "question", *SMALL, "answer label")
    found = four_choices(values, SMALL, answer=values.get("answer"), label=values["answer label"])
    row = {"id": place.id(), "images": [values["image"]], "question": str(values["question"]).strip()}
    return [row | {"kind": "figure"} | found]


def balanced(
    rows: Iterable[tuple[int, str, str]],
    taken: frozenset[str],
    *,
    per_letter: int = PER_LETTER,
    seed: int = SEED,
) -> list[int]:
    """Which rows make the balanced subset: as many for each gold letter, none with an image of the test set.

    Args:
        rows: (number, gold letter, image) of every row without a fault.
        taken: images that must not come.

    Returns:
        Numbers in rising order. ValueError where a letter has too few rows.
    """
    by_gold: dict[str, list[int]] = {letter: [] for letter in LETTERS}
    for number, letter, image in rows:
        if image not in taken:
            by_gold[letter].append(number)
    if short := [f"{letter} ({len(found)})" for letter, found in by_gold.items() if len(found) < per_letter]:
        raise DataError(f"too few rows for {per_letter} of each gold letter: {', '.join(short)}")
    draw = random.Random(seed)
    return sorted(number for letter in LETTERS for number in draw.sample(by_gold[letter], per_letter))


CSV = FieldMap(
    ("Figure_path", "Question", *COLUMNS),
    pmc_csv,
    ("Answer", "Anwser", "Answer_label", "Caption", "index", "split", ""),
)
MIRROR = FieldMap(("image", "question", *SMALL, "answer label"), pmc_mirror, ("answer", "caption"))
