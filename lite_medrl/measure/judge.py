"""Does an open answer mean the same as the gold one? A second model's word on it, drawn by no chance.

The judge is a local model that is asked without an image; its verdict is whether it finds "yes" likelier
than "no" as the answer. It is another model's opinion, reported beside exact match and token scores, never
instead of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lite_medrl.model.choices import option_logps, probabilities
from lite_medrl.model.encode import encode_prompts
from lite_medrl.types import Sample

VERDICTS = ("yes", "no")


def question_to_judge(question: str, gold: str, said: str) -> str:
    """What the judge is asked."""
    return (
        "Compare two answers to a question about a medical image.\n"
        f"Question: {question}\nReference answer: {gold}\nGiven answer: {said}\n"
        "Does the given answer state the same as the reference answer? Answer yes or no."
    )


def judged(
    model: Any,
    processor: Any,
    rows: Sequence[dict[str, Any]],
    *,
    batch_size: int = 64,
    progress: Callable[[int], None] = lambda done: None,
) -> list[float]:
    """For each greedy row of an open question, P("yes") against "no"; 0 where no answer could be read."""
    found = [0.0] * len(rows)
    readable = [place for place, row in enumerate(rows) if row["parsed"] is not None]
    device = next(model.parameters()).device
    for start in range(0, len(readable), batch_size):
        places = readable[start : start + batch_size]
        asked = [put(rows[place]) for place in places]
        inputs = encode_prompts(processor, asked, instruction="", device=device)
        logps = option_logps(model, processor, inputs, [VERDICTS] * len(places))
        for place, pair in zip(places, logps, strict=True):
            found[place] = probabilities(pair)[0]
        progress(len(places))
    return found


def put(row: dict[str, Any]) -> Sample:
    """The judge's question as a sample without an image."""
    text = question_to_judge(row["question"], row["answer"], row["parsed"])
    return Sample(row["id"], (), text, (), row["answer"], "judge", "none", "judge", "none")
