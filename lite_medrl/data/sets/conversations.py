"""LLaVA's and sharegpt's conversations: every pair of turns about an image is an open question.

{"id", "image" or "images", "conversations": [{"from": "human", "value": "<image> ..."}, {"from": "gpt"...}]},
or the same under "messages" with role and content. A pair answered by yes or no is a closed question.
"""

from __future__ import annotations

from typing import Any

from lite_medrl.data.sets.fields import FieldMap, Place, Values, closed_or_open, without_marks
from lite_medrl.types import DataError, ImageRef

ASKS, ANSWERS, SETS_UP = ("human", "user"), ("gpt", "assistant"), ("system",)


def conversation(values: Values, place: Place) -> list[Values]:
    """One row a pair of turns; a turn out of turn is a fault of the row."""
    said = turns(values.get("conversations", values.get("messages")))
    images = values.get("images", values.get("image"))
    images = [images] if isinstance(images, str | ImageRef) else images
    if not images:
        raise DataError("the conversation has no image; drop the row")
    if not isinstance(images, list):
        raise DataError(f'"image" must be a file name or a list of them, got {images!r}; repair the row')
    refs = [image if isinstance(image, ImageRef) else place.image(image) for image in images]
    name = values.get("id", place.number)
    rows = []
    for number, ((_, question), (_, answer)) in enumerate(zip(said[::2], said[1::2], strict=True), 1):
        row = {
            "id": place.id(name, number),
            "images": refs,
            "question": without_marks(question),
            "kind": "turn",
        }
        rows.append(row | closed_or_open(answer))
    return rows


def turns(value: Any) -> list[tuple[str, str]]:
    """(speaker, text) in turn, the system's first words left out; DataError where they do not alternate."""
    if not (isinstance(value, list) and all(isinstance(turn, dict) for turn in value)):
        raise DataError(f"conversations must be a list of turns, got {value!r}")
    said = [(turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))) for turn in value]
    if not all(isinstance(part, str) for turn in said for part in turn):
        raise DataError(f"a turn must name who says which text, got {value!r}; repair the row or drop it")
    said = said[1:] if said and said[0][0] in SETS_UP else said
    in_turn = all(who in (ANSWERS if i % 2 else ASKS) for i, (who, _) in enumerate(said))
    if not said or len(said) % 2 or not in_turn:
        raise DataError(
            f"turns must alternate between human and gpt, got {[who for who, _ in said]}; drop the row"
        )
    return said


CONVERSATION = FieldMap((), conversation, ("id", "image", "images", "conversations", "messages", "model"))
