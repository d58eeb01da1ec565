"""How published evaluations word a question: the text of the user's turn, behind its images.

A figure can only be held against a published one if the model was asked in the same words, so these are
restated to the letter, oddities included (each is named where it stands). Our own wording is in prompts.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lite_medrl.data.reading.verdict import answer_type_of
from lite_medrl.types import LETTERS, Sample

Wording = Callable[[Sample], str]
LETTER_ONLY = "Answer with the option's letter from the given choices directly."


def lettered(options: Sequence[str]) -> list[str]:
    """The options as "A. text"."""
    return [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]


def medvlthinker(sample: Sample) -> str:
    """MedVLThinker (UCSC-VLAA/MedVLThinker, commit a3163b1); its line break is a backslash and an n."""
    instruction = (
        "You will solve a problem/request. You should provide your thoughts within <think> </think> tags "
        r"before providing the answer.\nWrite your final answer within <answer> </answer> tags."
    )
    options = "".join(f"\n\n{option}" for option in lettered(sample.options))
    return f"{instruction}\n\nQuestion: {sample.question}\n\nOptions:{options}"


def medbridgerl(sample: Sample) -> str:
    """MedBridgeRL's kit (armenjeddi/medbridgerl, commit 1d93246); there is no space behind "tags,"."""
    form = "ONLY the short final answer, no extra words."
    if sample.options:
        form = "ONLY the single option letter, for example <answer>A</answer>"
    options = "\n".join(["\n\nOptions:", *lettered(sample.options)]) if sample.options else ""
    return (
        f"{sample.question}{options}\nFirst output the thinking process in <think> </think> tags,Then output "
        f"the final answer in <answer> </answer> tags.\nIMPORTANT: In <answer>, output {form}"
    )


def medevalkit(sample: Sample) -> str:
    """MedEvalKit (alibaba-damo-academy/MedEvalKit, commit 9b12e3b), English, without reasoning."""
    if sample.answer_type == "closed":  # SLAKE says so; its yes/no questions are asked like the others
        return f"{sample.question}\nAnswer the question using a single word or phrase."
    kind = answer_type_of(sample.answer, sample.options or None)
    if kind == "yes_no":
        return f"{sample.question}\nPlease output 'yes' or 'no'(no extra output)."
    if not sample.options:
        return f"{sample.question}\nPlease answer the question concisely."
    options = "\n".join(lettered(sample.options))
    return f"\nQuestion: {sample.question}\nOptions: \n{options}\n{LETTER_ONLY}"


def letter_only(sample: Sample) -> str:
    """Question, lettered options, and the request for a letter."""
    return "\n".join([sample.question, *lettered(sample.options), LETTER_ONLY])


def bare(sample: Sample) -> str:
    """LLaVA-Med (microsoft/LLaVA-Med, model_vqa_med.py): the question alone, without its options."""
    return sample.question
