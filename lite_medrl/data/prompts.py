"""From a Sample to the chat messages a processor's template understands, and to TRL's dataset columns.

This is the only place that knows how a question is worded; no other file builds prompt text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lite_medrl.types import LETTERS, Sample

INSTRUCTION = (
    "First think about the image inside <think> </think>, "
    "then give the text of the right option inside <answer> </answer>."
)


def question_text(question: str, options: Sequence[str], instruction: str = INSTRUCTION) -> str:
    """The user's text: question, lettered options, instruction (left out when empty)."""
    lettered = " ".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
    lines = [question, f"Options: {lettered}" if options else "", instruction]
    return "\n".join(line for line in lines if line)


def messages(
    sample: Sample, instruction: str = INSTRUCTION, system: str | None = None
) -> list[dict[str, Any]]:
    """Chat messages with one image placeholder per image, images first."""
    content: list[dict[str, Any]] = [{"type": "image"} for _ in sample.images]
    content.append({"type": "text", "text": question_text(sample.question, sample.options, instruction)})
    head = [{"role": "system", "content": [{"type": "text", "text": system}]}] if system else []
    return [*head, {"role": "user", "content": content}]


def target_text(sample: Sample, *, think: bool = True, letter: bool = False) -> str:
    """The completion that SFT teaches: the reasoning that names the fact, then the answer."""
    answer = f"<answer> {sample.letter if letter else sample.answer} </answer>"
    return f"<think> {sample.reasoning} </think>{answer}" if think and sample.reasoning else answer


def conversation(
    sample: Sample, instruction: str = INSTRUCTION, system: str | None = None, *, letter: bool = False
) -> dict[str, Any]:
    """TRL's columns of one row: prompt and completion (images are put in front by TRL), and what rewards
    need.
    """
    head = [{"role": "system", "content": system}] if system else []
    text = question_text(sample.question, sample.options, instruction)
    return {
        "prompt": [*head, {"role": "user", "content": text}],
        "completion": [{"role": "assistant", "content": target_text(sample, letter=letter)}],
        "id": sample.id,
        "answer": sample.answer,
        "options": list(sample.options),
        "kind": sample.kind,
    }
