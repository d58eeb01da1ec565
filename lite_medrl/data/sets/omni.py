"""OmniMedVQA: a JSON list for each of its sources, two to four options in columns of their own.

Some rows name the field for the kind of scan "modality" instead of "modality_type".
"""

from __future__ import annotations

from lite_medrl.data.sets.fields import FieldMap, Place, Values, need
from lite_medrl.types import DataError

OPTIONS = tuple(f"option_{letter}" for letter in "ABCD")


def omni(values: Values, place: Place) -> list[Values]:
    """The gold answer is a text; it must be one of the options, letter for letter."""
    need(values, "question_id", "question", "gt_answer", "image_path", "option_A", "option_B")
    options = [str(values[name]).strip() for name in OPTIONS if values.get(name) not in (None, "")]
    answer = str(values["gt_answer"]).strip()
    if answer not in options:
        raise DataError(f"gold answer {answer!r} is not among the options {options}; fix the row or drop it")
    modality = values.get("modality_type", values.get("modality"))
    source = str(values.get("dataset") or "unknown")
    row = {
        "id": place.id(source, values["question_id"]),
        "images": [place.image(str(values["image_path"]).removeprefix("Images/"))],
        "question": str(values["question"]).strip(),
        "options": options,
        "answer": answer,
        "kind": str(values.get("question_type") or "unknown"),
        "modality": str(modality or "unknown"),
        "source": f"{place.name}/{source}",
    }
    return [row]


OMNI = FieldMap(
    ("question_id", "question", "gt_answer", "image_path", "option_A", "option_B"),
    omni,
    ("dataset", "question_type", "option_C", "option_D", "modality_type", "modality"),
)
