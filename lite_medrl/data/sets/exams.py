"""MedXpertQA-MM, MMMU's medical subjects and MedVLThinker's files: lettered options, often several images."""

from __future__ import annotations

from lite_medrl.data.sets.fields import (
    FieldMap,
    Place,
    Values,
    by_letter,
    need,
    options_of,
    spoken,
    without_marks,
    worded,
)
from lite_medrl.types import DataError

CHOICES_IN_QUESTION = "\nAnswer Choices:"


def medxpert(values: Values, place: Place) -> list[Values]:
    """MedXpertQA-MM: options as a dict by letters; the question repeats them, which is cut off."""
    need(values, "id", "question", "options", "label", "images")
    if not isinstance(values["images"], list):
        raise DataError(f"images must be a list of names, got {values['images']!r}")
    options = options_of(values["options"])
    row = {
        "id": place.id(values["id"]),
        "images": [place.image(name) for name in values["images"]],
        "question": worded(values, "question").partition(CHOICES_IN_QUESTION)[0].strip(),
        "options": options,
        "answer": by_letter(options, values["label"]),
        "kind": str(values.get("question_type") or "unknown"),
        "subject": None,
    }
    return [row]


IMAGES = tuple(f"image_{i}" for i in range(1, 8))


def mmmu(values: Values, place: Place) -> list[Values]:
    """MMMU: options as a Python list in a text, up to seven images; without options, an open question."""
    need(values, "id", "question", "options", "answer")
    images = [values[name] for name in IMAGES if values.get(name) is not None]
    is_choice = values.get("question_type") == "multiple-choice"
    options = [spoken(option) for option in options_of(values["options"])] if is_choice else []
    if values["answer"] == "?":
        raise DataError("the answers of the test split are not published; use dev or validation")
    row = {
        "id": place.id(values["id"]),
        "images": images,
        "question": without_marks(worded(values, "question")),
        "options": options,
        "answer": by_letter(options, values["answer"]) if options else str(values["answer"]),
        "kind": str(values.get("subfield") or "unknown"),
    }
    return [row]


# The licence of each part of MedVLThinker's files.
PARTS = {
    "pmc_vqa": "CC-BY-SA",
    "pathvqa_closed": "MIT (images: their publishers)",
    "slake_closed": "CC-BY-4.0",
    "vqa_rad_closed": "CC0-1.0",
    "MMMU-medical": "Apache-2.0",
    "MedXpertQA-MM": "MIT",
}


def medvlthinker(values: Values, place: Place) -> list[Values]:
    """MedVLThinker: options as a JSON text by letters; each row says which set it is from."""
    need(values, "images", "question", "options", "answer_label", "dataset_name", "dataset_index")
    if not isinstance(values["images"], list):
        raise DataError(f"images must be a list, got {values['images']!r}")
    options, name = options_of(values["options"]), str(values["dataset_name"])
    answer = by_letter(options, values["answer_label"])
    told = str(values.get("answer") or answer).strip()
    if told.casefold() != answer.casefold():
        raise DataError(
            f"gold letter {values['answer_label']!r} stands for {answer!r}, not for {told!r}; drop it"
        )
    row = {
        "id": place.id(name, values["dataset_index"]),
        "images": [image if not isinstance(image, str) else place.image(image) for image in values["images"]],
        "question": without_marks(worded(values, "question")),
        "options": options,
        "answer": answer,
        "kind": name,
        "source": f"{place.name}/{name}",
        "licence": PARTS.get(name, "unknown"),
        "reasoning": values.get("reasoning") or None,
    }
    return [row]


MEDXPERT = FieldMap(
    ("id", "question", "options", "label", "images"),
    medxpert,
    ("medical_task", "body_system", "question_type"),
)
MMMU = FieldMap(
    ("id", "question", "options", "answer"),
    mmmu,
    (*IMAGES, "explanation", "img_type", "subfield", "topic_difficulty", "question_type"),
)
MEDVLTHINKER = FieldMap(
    ("images", "question", "options", "answer_label", "dataset_name", "dataset_index"),
    medvlthinker,
    ("answer", "reasoning", "hash", "misc"),
)
