"""What did the model answer, and is it right? One door for the reward, the evaluation and the demo.

`parse` returns an option (or free text) with how it was found, or a named failure. It never guesses: an
option is read only when the answer equals it, not because it occurs in the answer ("left lung" is no "lung").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lite_medrl.data.reading import llava_med, medbridgerl, medevalkit, medvlthinker
from lite_medrl.data.reading.choices import Reading, prepared
from lite_medrl.data.reading.overlap import Overlap, overlap, same_answer
from lite_medrl.data.reading.strict import formatted_answer, read_strict
from lite_medrl.data.reading.tolerant import read_tolerant
from lite_medrl.data.reading.verdict import YES_NO, AnswerType, Judge, Verdict, answer_type_of
from lite_medrl.types import LETTERS, Sample

FAILURES = (
    "no_answer",  # no <answer>, and nothing else that states an answer
    "empty_answer",  # <answer> is there, with nothing in it
    "two_answers",  # two that differ, or one taken back; a published rule that would take either
    "unknown_option",  # an answer, but none of the options
    "ambiguous_option",  # fits two options equally well
    "letter_text_conflict",  # "A. lung" where lung is option B
    "bad_format",  # profile "strict" only
)
PUBLISHED: dict[str, Judge] = {
    "medvlthinker": medvlthinker.evaluation,
    "medvlthinker-reward": medvlthinker.reward,
    "medvlthinker-regrade": medvlthinker.regrade,
    "medbridgerl": medbridgerl.kit,
    "medbridgerl-reward": medbridgerl.reward,
    "llava-med": llava_med.released,
    "llava-med-repaired": llava_med.repaired,
    "medevalkit-nojudge": medevalkit.nojudge,
}
"""Rules of others, restated with their defects, so that a published number can be had as it was published."""
PROFILES = ("lite-v1", "strict", *PUBLISHED)


@dataclass(frozen=True, slots=True)
class Answer:
    """A reading: `value` is the option's own text (or free text), `label` its letter, `how` how it was found.

    `how` is "option_text", "letter", "letter_text", "yes_no", "free_text", or "rule" for a published rule;
    `failure` is one of FAILURES. One of `value` and `failure` is None. `label` is None for free text and for
    options beyond the tenth.
    """

    value: str | None
    label: str | None
    how: str | None
    failure: str | None
    has_format: bool


def parse(text: str, *, options: Sequence[str] | None = None, profile: str = "lite-v1") -> Answer:
    """Read the answer in `text`; without options the answer is free text (or a lone letter).

    Profile "lite-v1" is tolerant; "strict" wants the format to hold and the option's text, its letter or
    "letter. text", in any case. A published rule reads the one option that it would call right. ValueError
    for another profile; a bad answer is data, never an exception.
    """
    _check(profile)
    inside = formatted_answer(text)
    if profile in PUBLISHED:
        reading = _read_published(text, options, PUBLISHED[profile])
    elif profile == "strict":
        reading = read_strict(inside, prepared(tuple(options)) if options else None)
    else:
        reading = read_tolerant(text, inside, prepared(tuple(options)) if options else None)
    return Answer(*reading, has_format=inside is not None)


def judge(
    text: str,
    gold: str,
    *,
    options: Sequence[str] | None = None,
    answer_type: AnswerType | None = None,
    profile: str = "lite-v1",
) -> Verdict:
    """How a profile scores `text`; `gold` is the text of the right option, or the free answer.

    `answer_type` is "choice" (lettered options), "yes_no", "closed" (a short answer from a closed set,
    without letters) or "open"; left out, it is told from the options and the gold. "lite-v1" and "strict"
    score an open answer by exact match, with precision, recall and F1 over tokens in `parts`.
    Raises ValueError for an unknown profile or a gold that is not among the options of a choice.
    """
    _check(profile)
    kind = answer_type or answer_type_of(gold, options)
    if options and kind != "open" and gold not in options:
        raise ValueError(f"gold answer {gold!r} is not among the options {list(options)}; fix the data set")
    if profile in PUBLISHED:
        return PUBLISHED[profile](text, gold, options, kind)
    if options and kind != "open":
        value = parse(text, options=options, profile=profile).value
        return Verdict(float(value == gold), value)
    names = YES_NO if kind == "yes_no" else None
    value = parse(text, options=names, profile=profile).value
    shared = Overlap(0.0, 0.0, 0.0) if value is None else overlap(value, gold)
    return Verdict(float(value is not None and same_answer(value, gold)), value, parts=shared._asdict())


def is_correct(text: str, sample: Sample) -> bool:
    """Whether the tolerant reading of `text` is the sample's gold answer."""
    return is_gold(parse(text, options=sample.options).value, sample)


def is_gold(value: str | None, sample: Sample) -> bool:
    """Whether a reading is the gold option, or matches the gold of an open question."""
    if sample.options or value is None:
        return value == sample.answer
    return same_answer(value, sample.answer)


def has_format(text: str) -> bool:
    """Whether `text` is <think>...</think><answer>...</answer>: each tag once, only white space outside.

    As the format reward of the R1 family (arXiv 2501.12948), except that a trailing newline does no harm.
    """
    return formatted_answer(text) is not None


def _check(profile: str) -> None:
    if profile not in PROFILES:
        raise ValueError(f"unknown answer profile {profile!r}: use one of {', '.join(PROFILES)}")


def _read_published(text: str, options: Sequence[str] | None, rule: Judge) -> Reading:
    """The option that the rule would call right whichever is the gold; free text is what it compares."""
    if not options:
        value = rule(text, "", None, "open").reading
        return Reading(value, None, "free_text") if value else Reading(failure="no_answer")
    kind = answer_type_of(options[0], options)
    places = [place for place, gold in enumerate(options) if rule(text, gold, options, kind).correct]
    if len({options[place] for place in places}) != 1:
        return Reading(failure="two_answers" if places else "unknown_option")
    return Reading(options[places[0]], LETTERS[places[0] : places[0] + 1] or None, "rule")
