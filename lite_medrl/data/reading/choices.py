"""Which option is this phrase? Its text, its letter, or both; nothing else counts.

The senses of equality (equality.py) are tried from the strictest on, so options that differ only a little
stay apart; letters come between: where the options are blood groups, "A" is the option "A".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from lite_medrl.data.reading.equality import exact, nfkc, stems, tokens, trimmed, words
from lite_medrl.types import LETTERS

AMBIGUOUS = -1
FOLDED_LETTERS = LETTERS.casefold()


class Reading(NamedTuple):
    """What was found; the fields of `Answer` without `has_format`."""

    value: str | None = None
    label: str | None = None
    how: str | None = None
    failure: str | None = None


class Options:
    """The options of one question, with a table from key to place for each sense of equality.

    `folded` (case and outer white space) is the strict profile's.
    """

    def __init__(self, texts: tuple[str, ...]) -> None:
        self.texts = texts
        keys = [exact(text) for text in texts]
        parts = [tokens(key) for key in keys]
        self.verbatim = _places([text.strip() for text in texts])
        self.folded = _places([text.strip().casefold() for text in texts])
        self.exact = _places(keys)
        self.trimmed = _places([trimmed(key) for key in keys])
        self.words = _places([words(part) for part in parts])
        self.stems = _places([stems(part) for part in parts])

    def near(self, phrase: str, key: str) -> int | None:
        """Place of the option that is the phrase up to case and outer punctuation; `key` is exact(phrase)."""
        place = self.verbatim.get(phrase.strip())
        if place is None:
            place = self.exact.get(key)
        return self.trimmed.get(trimmed(key)) if place is None else place

    def loose(self, key: str) -> int | None:
        """Place of the option with the same words or stems."""
        parts = tokens(key)
        place = self.words.get(words(parts))
        return self.stems.get(stems(parts)) if place is None else place

    def read(self, place: int, how: str) -> Reading:
        """The option at a place, or the failure for AMBIGUOUS."""
        if place == AMBIGUOUS:
            return Reading(failure="ambiguous_option")
        return Reading(self.texts[place], LETTERS[place : place + 1] or None, how)


def _places(names: Sequence[str]) -> dict[str, int]:
    """Place of the option with each name; AMBIGUOUS where two options share it."""
    places = ((n, AMBIGUOUS if names.count(n) > 1 else p) for p, n in enumerate(names) if n)
    return dict(places)


@lru_cache(maxsize=8192)
def prepared(texts: tuple[str, ...]) -> Options:
    """The tables of a question's options, made once."""
    return Options(texts)


_LEAD = re.compile(
    r"(?:(?:the|my) )?(?:(?:final|correct|best) )*(?:answer|option|choice)\b ?"
    r"(?:is\b ?:?|would be\b|[:=])? ?",
    re.IGNORECASE,
)
_MARKUP = re.compile(r"\*\*+|(?<!\d)\*|\*(?=\w)|`+|\\boxed\b|\\text(?:bf)?\b|</\w*>?\s*$|<\|\w+\|>")
_LETTER_TEXT = re.compile(r"[(\[{]? ?([a-j]) ?(?:[)\]}.:,;]+| -+(?!\d) ?|-+ ) ?(.+)")
_LETTER_SPACE_TEXT = re.compile(r"([a-j]) (.+)")
_TEXT_LETTER = re.compile(r"[(\[]([a-j])[)\]]$")


def read_phrase(phrase: str, options: Options, *, cut: bool = False) -> Reading | None:
    """An option, its letter, or both; None where the phrase is something else.

    `cut` says that the phrase may be the start of a longer one: a lone lower-case "a" is then an article.
    """
    reading = _read_as_is(phrase, options, cut=cut)
    plain = phrase if reading else without_lead(phrase)
    return reading if plain == phrase else _read_as_is(plain, options, cut=cut)


def without_markup(text: str) -> str:
    """The text with stars, back-quotes, \\boxed and stray end tags blanked."""
    return _MARKUP.sub(" ", text)


def without_lead(phrase: str) -> str:
    """The phrase without mark-up and without "the answer is", "option" and the like (case is kept)."""
    plain = " ".join(without_markup(nfkc(phrase)).split())
    for _ in range(3):
        lead = _LEAD.match(plain)
        plain = plain[lead.end() :] if lead else plain
    return plain


def _read_as_is(phrase: str, options: Options, *, cut: bool) -> Reading | None:
    key = exact(phrase)
    place = options.near(phrase, key)
    if place is None:
        reading = _read_letter(phrase, key, options, cut=cut)
        if reading is not None:
            return reading
        place = options.loose(key)
    return None if place is None else options.read(place, "option_text")


def _read_letter(phrase: str, key: str, options: Options, *, cut: bool) -> Reading | None:
    letter = trimmed(key)
    if len(letter) != 1 or letter not in FOLDED_LETTERS:
        return _read_letter_and_text(key, options)
    if cut and phrase.strip() == "a":
        return None
    place = FOLDED_LETTERS.index(letter)
    return options.read(place, "letter") if place < len(options.texts) else Reading(failure="unknown_option")


def _read_letter_and_text(key: str, options: Options) -> Reading | None:
    """ "A. lung" or "lung (A)"; the two must agree. Without a delimiter ("A lung") only agreement counts."""
    letter, text, delimited = _split_letter(key)
    if not text:
        return None
    place = options.near(text, text)
    place = options.loose(text) if place is None else place
    if place is None or (place != FOLDED_LETTERS.find(letter) and not delimited):
        return None
    agree = place == FOLDED_LETTERS.find(letter)
    return options.read(place, "letter_text") if agree else Reading(failure="letter_text_conflict")


def _split_letter(key: str) -> tuple[str, str, bool]:
    """Letter, text, and whether a delimiter parts them; a text of "" where there is no letter."""
    if found := _LETTER_TEXT.fullmatch(key):
        return found[1], found[2], True
    if found := _TEXT_LETTER.search(key.rstrip("., ")):
        return found[1], key[: found.start()].rstrip(), True
    found = _LETTER_SPACE_TEXT.fullmatch(key)
    return (found[1], found[2], False) if found else ("", "", False)
