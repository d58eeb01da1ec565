"""What did the model answer? One reading for the reward, the evaluation and the demo.

`parse` returns an option (or free text) with how it was found, or a named failure. It never guesses: an
option is read only when the answer equals it, not because it occurs in the answer ("left lung" is no "lung").
Equality is tried from the strictest sense to the loosest, so options that differ only a little stay apart:
verbatim -> exact (NFKC, case, white space) -> trimmed (outer punctuation) -> letter -> letter with text ->
words (inner punctuation, articles) -> stems (plurals, number words, place of left and right).
Past 400 lines: what counts as equal and the readings that rely on it are one thing to check.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from lite_medrl.types import LETTERS, Sample

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
    inside = _formatted_answer(text)
    reading = _PROFILES[profile](text, inside, _prepared(tuple(options)) if options else None)
    return Answer(*reading, has_format=inside is not None)


def is_correct(text: str, sample: Sample) -> bool:
    """Whether the tolerant reading of `text` is the sample's gold option."""
    return parse(text, options=sample.options).value == sample.answer


def has_format(text: str) -> bool:
    """Whether `text` is <think>...</think><answer>...</answer>: each tag once, only white space outside.

    As the format reward of the R1 family (arXiv 2501.12948), except that a trailing newline does no harm.
    """
    return _formatted_answer(text) is not None


# What two texts must share to be equal: the keys, from strict to loose.

_FOLD = str.maketrans(
    dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212", "-")
    | dict.fromkeys("\u2018\u2019\u02bc`", "'")
    | dict.fromkeys("\u201c\u201d", '"')
    | dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u00ad")
)
_LEFT_EDGE = " ,;:!?'\"()[]{}*#|_"  # never + - % < >: "A+" and "<5" would lose their meaning
_RIGHT_EDGE = _LEFT_EDGE + "."  # a dot on the left may belong to a number: ".5"
_TOKEN = re.compile(
    r"\d*(?:[.,/:]\d+)+|[^\W_]+"  # numbers such as 1.5, .5 and 20/40; words
    r"|[<>=+%±≤≥≠°↑↓←→]"  # signs that carry the meaning of a finding or a range
    r"|(?<![\w)])-(?=\d)|(?<=[\w)+-])-(?!\w)"  # minus five; "ER-"; any other hyphen is punctuation
)
_NUMBERS = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
sixteen seventeen eighteen nineteen twenty"""
_STEM = {word: str(number) for number, word in enumerate(_NUMBERS.split())}
_STEM |= {"metastases": "metastasis", "diagnoses": "diagnosis", "vertebrae": "vertebra", "nuclei": "nucleus"}
_SIDES = frozenset({"left", "right", "bilateral"})
_LETTERS = LETTERS.casefold()


def _nfkc(text: str) -> str:
    return text if text.isascii() else unicodedata.normalize("NFKC", text).translate(_FOLD)


def _exact(text: str) -> str:
    return " ".join(_nfkc(text).casefold().split())


def _trimmed(text: str) -> str:
    return _exact(text).lstrip(_LEFT_EDGE).rstrip(_RIGHT_EDGE)


def _words(text: str) -> str:
    return " ".join(_tokens(text))


def _stems(text: str) -> str:
    """Tokens in the singular; a single left or right goes first: "kidney-left", "left-sided kidney"."""
    tokens = [_stem(token) for token in _tokens(text)]
    places = [place for place, token in enumerate(tokens) if token in _SIDES]
    if len(places) == 1:
        side = tokens.pop(places[0])
        if tokens[places[0] : places[0] + 1] in (["side"], ["sided"]):
            tokens.pop(places[0])
        tokens.insert(0, side)
    return " ".join(tokens)


def _tokens(text: str) -> list[str]:
    """Words, numbers and signs, without "the" and a leading article; a lone "a" stays: it may be a letter."""
    plain = _exact(text).replace("'", "").replace("&", " and ")
    found = _TOKEN.findall(plain.replace("x-ray", "xray").replace("x ray", "xray"))
    kept = [token for token in found if token != "the"] or found
    return kept[1:] if kept[:1] in (["a"], ["an"]) and len("".join(kept[1:2])) > 1 else kept


def _stem(token: str) -> str:
    if token in _STEM or len(token) < 4 or not token.endswith("s") or token.endswith(("ss", "us", "is")):
        return _STEM.get(token, token)
    if token.endswith("ies"):
        return token[:-3] + "y"
    return token[:-2] if token.endswith(("sses", "xes", "ches", "shes")) else token[:-1]


# The options of one question.

_NEAR = (str.strip, _exact, _trimmed)
_LOOSE = (_words, _stems)
_AMBIGUOUS = -1


class _Reading(NamedTuple):
    value: str | None = None
    label: str | None = None
    how: str | None = None
    failure: str | None = None


class _Options:
    """The options, with a table from key to place for every sense of equality, made when first needed."""

    def __init__(self, texts: tuple[str, ...]) -> None:
        self.texts = texts
        self.tables: dict[Callable[[str], str], dict[str, int]] = {}

    def table(self, key: Callable[[str], str]) -> dict[str, int]:
        """Place of the option with that key; _AMBIGUOUS where two options share it."""
        if key not in self.tables:
            names = [key(text) for text in self.texts]
            places = ((n, _AMBIGUOUS if names.count(n) > 1 else p) for p, n in enumerate(names) if n)
            self.tables[key] = dict(places)
        return self.tables[key]

    def find(self, phrase: str, keys: Sequence[Callable[[str], str]]) -> int | None:
        for key in keys:
            place = self.table(key).get(key(phrase))
            if place is not None:
                return place
        return None

    def read(self, place: int, how: str) -> _Reading:
        if place == _AMBIGUOUS:
            return _Reading(failure="ambiguous_option")
        return _Reading(self.texts[place], LETTERS[place : place + 1] or None, how)


@lru_cache(maxsize=8192)
def _prepared(texts: tuple[str, ...]) -> _Options:
    return _Options(texts)


# One phrase -> one option.

_LEAD = re.compile(
    r"(?:(?:the|my) )?(?:(?:final|correct|best) )*(?:answer|option|choice)\b ?"
    r"(?:is\b ?:?|would be\b|[:=])? ?",
    re.IGNORECASE,
)
_MARKUP = re.compile(r"\*+|`+|\\boxed\b|\\text(?:bf)?\b|</\w*>?\s*$|<\|\w+\|>")
_LETTER_TEXT = re.compile(r"[(\[{]? ?([a-j]) ?(?:[)\]}.:,;]+| -+ ?|-+ ) ?(.+)")
_LETTER_SPACE_TEXT = re.compile(r"([a-j]) (.+)")
_TEXT_LETTER = re.compile(r"[(\[]([a-j])[)\]]$")


def _read_phrase(phrase: str, options: _Options, *, cut: bool = False) -> _Reading | None:
    """An option, its letter, or both; None where the phrase is something else.

    `cut` says that the phrase may be the start of a longer one: a lone lower-case "a" is then an article.
    """
    reading = _read_as_is(phrase, options, cut=cut)
    plain = phrase if reading else _without_lead(phrase)
    return reading if plain == phrase else _read_as_is(plain, options, cut=cut)


def _read_as_is(phrase: str, options: _Options, *, cut: bool) -> _Reading | None:
    place = options.find(phrase, _NEAR)
    reading = _read_letter(phrase, options, cut=cut) if place is None else None
    place = options.find(phrase, _LOOSE) if place is None and reading is None else place
    return reading if place is None else options.read(place, "option_text")


def _without_lead(phrase: str) -> str:
    """The phrase without mark-up and without "the answer is", "option" and the like (case is kept)."""
    plain = " ".join(_MARKUP.sub(" ", _nfkc(phrase)).split())
    for _ in range(3):
        lead = _LEAD.match(plain)
        plain = plain[lead.end() :] if lead else plain
    return plain


def _read_letter(phrase: str, options: _Options, *, cut: bool) -> _Reading | None:
    letter = _trimmed(phrase)
    if len(letter) != 1 or letter not in _LETTERS:
        return _read_letter_and_text(_exact(phrase), options)
    if cut and phrase.strip() == "a":
        return None
    place = _LETTERS.index(letter)
    return options.read(place, "letter") if place < len(options.texts) else _Reading(failure="unknown_option")


def _read_letter_and_text(key: str, options: _Options) -> _Reading | None:
    """ "A. lung" or "lung (A)"; the two must agree. Without a delimiter ("A lung") only agreement counts."""
    letter, text, delimited = _split_letter(key)
    place = options.find(text, _NEAR + _LOOSE)
    if place is None or (place != _LETTERS.find(letter) and not delimited):
        return None
    agree = place == _LETTERS.find(letter)
    return options.read(place, "letter_text") if agree else _Reading(failure="letter_text_conflict")


def _split_letter(key: str) -> tuple[str, str, bool]:
    """Letter, text, and whether a delimiter parts them; a text of "" where there is no letter."""
    if found := _LETTER_TEXT.fullmatch(key):
        return found[1], found[2], True
    if found := _TEXT_LETTER.search(key.rstrip("., ")):
        return found[1], key[: found.start()], True
    found = _LETTER_SPACE_TEXT.fullmatch(key)
    return (found[1], found[2], False) if found else ("", "", False)


# One <answer> -> one reading.

_SEPARATOR = re.compile(r"[,;/|&]|\band\b|\bor\b", re.IGNORECASE)
_YES_NO = re.compile(r"(yes|no)(?:[,.;:!]| - )")
_CONTRARY = {"yes": re.compile(r"\bno\b ?(?:[^\w\s]|$)"), "no": re.compile(r"\byes\b")}


def _read_segment(text: str, options: _Options, *, cut: bool) -> _Reading:
    """What stands inside one <answer>: a phrase, a list of phrases, a first line, or yes/no with a remark."""
    return (
        _read_phrase(text, options, cut=cut)
        or _read_list(text, options)
        or _read_lines(text, options)
        or _read_yes_no(text, options)
        or _Reading(failure="unknown_option")
    )


def _read_list(text: str, options: _Options) -> _Reading | None:
    """ "A and B", "yes/no": two answers where the parts are options that differ, one where they agree."""
    parts = [part for part in _SEPARATOR.split(text) if part.strip()]
    found = [_read_phrase(part, options) for part in parts] if len(parts) > 1 else []
    readings = [reading for reading in found if reading and reading.value is not None]
    return _agreed(readings) if readings and len(readings) == len(parts) else None


def _read_lines(text: str, options: _Options) -> _Reading | None:
    """The first line, where it is an answer by itself and no later line is another."""
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) < 2:
        return None
    first, *others = (_read_phrase(line, options) for line in lines)
    return first and _agreed([first, *(other for other in others if other and other.value is not None)])


def _read_yes_no(text: str, options: _Options) -> _Reading | None:
    """ "Yes, there is no doubt": a leading yes or no with punctuation, unless the rest takes it back."""
    key = _exact(_without_lead(text))
    found = _YES_NO.match(key)
    places = options.table(_trimmed)
    if found is None or not {"yes", "no"} <= places.keys():
        return None
    if _CONTRARY[found[1]].search(key, found.end()):
        return _Reading(failure="two_answers")
    return options.read(places[found[1]], "yes_no")


def _read_lone_letter(text: str) -> _Reading | None:
    letter = _trimmed(text).upper()
    return _Reading(letter, letter, "letter") if len(letter) == 1 and letter in LETTERS else None


def _read_free(text: str) -> _Reading:
    plain = " ".join(text.split())
    return _read_lone_letter(text) or _Reading(plain.rstrip(". ") or plain, None, "free_text")


def _agreed(readings: Sequence[_Reading], key: Callable[[str], str] = str) -> _Reading:
    """The last reading, or a failure where two differ; `key` says when two values are the same."""
    values = {reading.value and key(reading.value) for reading in readings}
    return readings[-1] if len(values) == 1 else _Reading(failure="two_answers")


# The whole text -> its answers.

_FORMAT = re.compile(r"\s*<think>.*</think>\s*<answer>(.*)</answer>\s*", re.DOTALL)
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_TAG_NAMES = ("think", r"/\s?think", "answer", r"/\s?answer")
_OPEN_THINK, _CLOSE_THINK, _OPEN_ANSWER, _CLOSE_ANSWER = (
    re.compile(rf"<\s?{name}\s?>", re.IGNORECASE) for name in _TAG_NAMES
)
_STATED = re.compile(
    r"(?<!if the )(?<!whether the )\banswer\b['\"]?\s{0,3}((?:is|would be)\b\s{0,3}:?|[:=])", re.IGNORECASE
)
_STOP = re.compile(r"[.!?](?=\s+[A-Z]|\s*$)|,?\s(?:because|since|as)\b")


def _formatted_answer(text: str) -> str | None:
    """What stands in <answer> where the whole text keeps the format, else None."""
    if any(text.count(tag) != 1 for tag in _TAGS):
        return None
    found = _FORMAT.fullmatch(text)
    return found and found[1]


def _read_tolerant(text: str, inside: str | None, options: _Options | None) -> _Reading:
    place = options.find(inside, _NEAR[:1]) if options and inside else None
    if options and place is not None:  # the common case, kept short
        return options.read(place, "option_text")
    plain = _nfkc(inside or "")
    if options and plain.strip() and "<" not in plain:
        return _read_segment(plain, options, cut=False)
    text = _nfkc(text)
    visible = _without_reasoning(text)
    segments = _segments(visible if visible.strip() else text)
    filled = [(segment, closed) for segment, closed in segments if segment.strip()]
    if filled:
        return _read_all(filled, options)
    return _Reading(failure="empty_answer") if segments else _read_untagged(visible, options)


def _read_all(segments: Sequence[tuple[str, bool]], options: _Options | None) -> _Reading:
    """All answers must agree; a last one that was cut off and cannot be read is left out."""
    if options is None:
        return _agreed([_read_free(segment) for segment, _ in segments], _trimmed)
    readings = [_read_segment(segment, options, cut=not closed) for segment, closed in segments]
    torn = len(readings) > 1 and not segments[-1][1] and readings[-1].failure == "unknown_option"
    return _agreed(readings[:-1] if torn else readings)


def _without_reasoning(text: str) -> str:
    """The text outside <think>...</think>; an unclosed <think> ends at <answer>, a lone </think> ends one."""
    *closed, last = _CLOSE_THINK.split(text)
    parts = (_OPEN_THINK.split(chunk, maxsplit=1) for chunk in closed)
    before = [part[0] for part in parts if len(part) > 1]
    head, *unclosed = _OPEN_THINK.split(last, maxsplit=1)
    answer = _OPEN_ANSWER.search(unclosed[0]) if unclosed else None
    return " ".join([*before, head, unclosed[0][answer.start() :] if answer else ""])


def _segments(text: str) -> list[tuple[str, bool]]:
    """Every <answer>: its text up to </answer>, the next <answer> or the end, and whether it was closed."""
    parts = (_CLOSE_ANSWER.split(part, maxsplit=1) for part in _OPEN_ANSWER.split(text)[1:])
    return [(part[0], len(part) > 1) for part in parts]


def _read_untagged(visible: str, options: _Options | None) -> _Reading:
    """Without tags only a whole text that is an option or letter counts, or an explicit "the answer is X"."""
    visible = _MARKUP.sub(" ", _CLOSE_ANSWER.sub(" ", visible)).strip()
    whole = _read_phrase(visible, options, cut=len(visible) > 1) if options else _read_lone_letter(visible)
    if whole:
        return whole
    parts = iter(_STATED.split(visible)[1:])
    pieces = [(mark, piece.strip()) for mark, piece in zip(parts, parts, strict=True)]
    stated = [_read_stated(piece, options, cut=mark[-1] not in ":=") for mark, piece in pieces if piece]
    readable = [reading for reading in stated if reading.failure != "unknown_option"]
    if not readable:
        return _Reading(failure="unknown_option" if stated else "no_answer")
    return _agreed(readable, str if options else _trimmed)


def _read_stated(piece: str, options: _Options | None, *, cut: bool) -> _Reading:
    """The phrase after "the answer is": its line, else up to the end of the sentence or a "because"."""
    line = piece.splitlines()[0]
    sentence = _STOP.split(line, maxsplit=1)[0]
    if options is None:
        return _read_free(sentence or line)
    return (
        _read_phrase(line, options, cut=cut)
        or _read_phrase(sentence, options, cut=cut)
        or _read_yes_no(line, options)
        or _Reading(failure="unknown_option")
    )


def _read_strict(text: str, inside: str | None, options: _Options | None) -> _Reading:
    if inside is None or not inside.strip():
        return _Reading(failure="bad_format" if inside is None else "empty_answer")
    if options is None:
        return _Reading(inside.strip(), None, "free_text")
    name = _folded(inside)
    place = options.table(_folded).get(name)
    if place is not None:
        return options.read(place, "option_text")
    for place, (letter, option) in enumerate(zip(_LETTERS, options.texts, strict=False)):
        if name in (letter, f"{letter}. {_folded(option)}"):
            return options.read(place, "letter" if name == letter else "letter_text")
    return _Reading(failure="unknown_option")


def _folded(text: str) -> str:
    return text.strip().casefold()


_PROFILES: dict[str, Callable[[str, str | None, _Options | None], _Reading]] = {
    "lite-v1": _read_tolerant,
    "strict": _read_strict,
}
