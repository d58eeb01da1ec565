"""VQA-RAD, PathVQA and SLAKE: short answers, of which yes and no make closed questions.

VQA-RAD and PathVQA (flaviagiammarino's Parquet files) do not say which questions are closed, so those
answered by yes or no are: 251 of VQA-RAD's 451 test questions, 3,362 of PathVQA's 6,719. Others
count 272 in VQA-RAD. SLAKE says it (416 English test questions), but names no options: 355 are yes/no, the
others stay open here and keep its word in `answer_type`, for rules that read them as closed.
"""

from __future__ import annotations

from lite_medrl.data.sets.fields import FieldMap, Place, Values, closed_or_open, need, worded


def image_question_answer(values: Values, place: Place) -> list[Values]:
    """VQA-RAD and PathVQA: image, question, answer."""
    need(values, "image", "question", "answer")
    found = closed_or_open(values["answer"])
    kind = "yes/no" if found["options"] else "open"
    return [
        {
            "id": place.id(),
            "images": [values["image"]],
            "question": worded(values, "question"),
            "kind": kind,
            **found,
        }
    ]


def slake(values: Values, place: Place) -> list[Values]:
    """SLAKE's JSON; questions in Chinese are no part of the English set."""
    need(values, "img_name", "question", "answer", "q_lang", "qid")
    if values["q_lang"] != "en":
        return []
    row = {
        "id": place.id(values["qid"]),
        "images": [place.image(values["img_name"])],
        "question": worded(values, "question"),
        "kind": str(values.get("content_type") or "unknown"),
        "modality": str(values.get("modality") or "unknown"),
        "subject": str(values["img_id"]) if values.get("img_id") is not None else None,
        "answer_type": str(values.get("answer_type") or "").lower() or None,
    }
    return [row | closed_or_open(values["answer"])]


RAD = FieldMap(("image", "question", "answer"), image_question_answer)
SLAKE = FieldMap(
    ("img_name", "question", "answer", "q_lang", "qid"),
    slake,
    ("img_id", "location", "modality", "answer_type", "base_type", "content_type", "triple"),
)
