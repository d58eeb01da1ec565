"""What did the model answer, and is it right? One door for the reward, the evaluation and the demo.

`parse` returns an option (or free text) with how it was found, or a named failure. It never guesses: an
option is read only when the answer equals it, not because it occurs in the answer ("left lung" is no "lung").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lite_medrl.data.reading.choices import Options, Reading, prepared
from lite_medrl.data.reading.strict import formatted_answer, read_strict
from lite_medrl.data.reading.tolerant import read_tolerant
from lite_medrl.types import Sample

FAILURES = (
    "no_answer",  # no <answer>, and nothing else that states an answer
    "empty_answer",  # <answer> is there, with nothing in it
    "two_answers",  # two that differ
    "unknown_option",  # an answer, but none of the options
    "ambiguous_option",  # fits two options equally well
    "letter_text_conflict",  # "A. lung" where lung is option B
    "bad_format",  # profile "strict" only
)


@dataclass(frozen=True, slots=True)
class Answer:
    """A reading: `value` is the option's own text (or free text), `label` its letter, `how` how it was found.

    `how` is "option_text", "letter", "letter_text", "yes_no" or "free_text"; `failure` is one of FAILURES.
    One of `value` and `failure` is None. `label` is None for free text and for options beyond the tenth.
    """

    value: str | None
    label: str | None
    how: str | None
    failure: str | None
    has_format: bool


def parse(text: str, *, options: Sequence[str] | None = None, profile: str = "lite-v1") -> Answer:
    """Read the answer in `text`; without options the answer is free text (or a lone letter).

    Profile "lite-v1" is tolerant; "strict" wants the format to hold and the option's text, its letter or
    "letter. text", in any case. ValueError for another profile; a bad answer is data, never an exception.
    """
    if profile not in _PROFILES:
        raise ValueError(f"unknown answer profile {profile!r}: use {' or '.join(map(repr, _PROFILES))}")
    inside = formatted_answer(text)
    reading = _PROFILES[profile](text, inside, prepared(tuple(options)) if options else None)
    return Answer(*reading, has_format=inside is not None)


def is_correct(text: str, sample: Sample) -> bool:
    """Whether the tolerant reading of `text` is the sample's gold option."""
    return parse(text, options=sample.options).value == sample.answer


def has_format(text: str) -> bool:
    """Whether `text` is <think>...</think><answer>...</answer>: each tag once, only white space outside.

    As the format reward of the R1 family (arXiv 2501.12948), except that a trailing newline does no harm.
    """
    return formatted_answer(text) is not None


_PROFILES: dict[str, Callable[[str, str | None, Options | None], Reading]] = {
    "lite-v1": read_tolerant,
    "strict": lambda text, inside, options: read_strict(inside, options),
}
