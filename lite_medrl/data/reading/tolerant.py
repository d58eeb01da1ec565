"""Profile "lite-v1": reads what a model meant wherever it can be read in one way only, and never guesses.

What stands in <answer> counts (closed or not, any number of them, if they agree); without the tag only a text
that is an answer and nothing else, or an explicit "the answer is X" that is not denied, doubted or taken back
(doubt.py). Reasoning inside <think> never counts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from lite_medrl.data.reading.choices import Options, Reading, read_phrase, without_lead, without_markup
from lite_medrl.data.reading.doubt import is_contrary, is_doubted, is_taken_back
from lite_medrl.data.reading.equality import exact, nfkc, trimmed
from lite_medrl.types import LETTERS

_SEPARATOR = re.compile(r"[,;/|&]|\band\b|\bor\b", re.IGNORECASE)
_YES_NO = re.compile(r"(yes|no)(?:[,.;:!]| - )")
LONGEST_LIST = 200  # characters of an untagged text that may be a list of options and nothing else
_TAG_NAMES = ("think", r"/\s?think", "answer", r"/\s?answer")
_OPEN_THINK, _CLOSE_THINK, _OPEN_ANSWER, _CLOSE_ANSWER = (
    re.compile(rf"<\s?{name}\s?>", re.IGNORECASE) for name in _TAG_NAMES
)
_STATED = re.compile(r"\banswer\b['\"]?\s{0,3}(?:(?:is|would be)\b\s{0,3}:?|[:=])", re.IGNORECASE)
_STOP = re.compile(r"[.!?](?=\s+[A-Z]|\s*$)|,?\s(?:because|since|as)\b")


def read_tolerant(text: str, inside: str | None, options: Options | None) -> Reading:
    """The reading of `text`; `inside` is what stands in <answer> where the whole text keeps the format."""
    place = options.verbatim.get(inside.strip()) if options and inside else None
    if options and place is not None:  # the common case, kept short
        return options.read(place, "option_text")
    plain = nfkc(inside or "")
    if options and plain.strip() and "<" not in plain:
        return _read_segment(plain, options, cut=False)
    text = nfkc(text)
    visible = _without_reasoning(text)
    segments = _segments(visible if visible.strip() else text)
    filled = [(segment, closed) for segment, closed in segments if segment.strip()]
    if filled:
        return _read_all(filled, options)
    return Reading(failure="empty_answer") if segments else _read_untagged(visible, options)


# The whole text -> its answers.


def _read_all(segments: Sequence[tuple[str, bool]], options: Options | None) -> Reading:
    """All answers must agree; a last one that was cut off and cannot be read is left out."""
    if options is None:
        return _agreed([_read_free(segment) for segment, _ in segments], _plain)
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


def _read_untagged(visible: str, options: Options | None) -> Reading:
    """Without tags only a whole text that is an option or letter counts, or an explicit "the answer is X"."""
    visible = without_markup(_CLOSE_ANSWER.sub(" ", visible)).strip()
    whole = read_phrase(visible, options, cut=len(visible) > 1) if options else _read_lone_letter(visible)
    if whole and not _is_asked(visible, whole):
        return whole
    listed = _read_list(visible, options) if options and len(visible) < LONGEST_LIST else None
    if listed and listed.failure:
        return listed
    stated = [_read_stated(piece, options, cut=cut) for piece, cut in _stated(visible)]
    readable = [reading for reading in stated if reading.failure != "unknown_option"]
    if not readable:
        return Reading(failure="unknown_option" if stated else "no_answer")
    return _agreed(readable, str if options else _plain)


def _is_asked(text: str, reading: Reading) -> bool:
    """Whether a text is "the answer is X?", with a question mark that the option X has not."""
    return text.endswith("?") and not (reading.value or "").endswith("?") and bool(_STATED.search(text))


def _stated(visible: str) -> list[tuple[str, bool]]:
    """What follows each "the answer is" that nothing before it denies; True where no colon parts the two."""
    marks = list(_STATED.finditer(visible))
    ends = [mark.start() for mark in marks[1:]] + [len(visible)]
    pieces = [(mark, visible[mark.end() : end].strip()) for mark, end in zip(marks, ends, strict=False)]
    return [
        (piece, mark[0][-1] not in ":=")
        for mark, piece in pieces
        if piece and not is_doubted(visible, mark.start())
    ]


def _read_stated(piece: str, options: Options | None, *, cut: bool) -> Reading:
    """The phrase after "the answer is": its line, else up to the end of the sentence or a "because"."""
    line = piece.splitlines()[0]
    sentence = _STOP.split(line, maxsplit=1)[0]
    rest = piece[len(sentence) :]
    if rest.startswith("?"):
        return Reading(failure="unknown_option")  # asked, not stated
    if is_taken_back(rest):
        return Reading(failure="two_answers")
    if options is None:
        return _read_free(sentence or line)
    return (
        read_phrase(line, options, cut=cut)
        or read_phrase(sentence, options, cut=cut)
        or _read_list(sentence, options)
        or _read_yes_no(line, options)
        or Reading(failure="unknown_option")
    )


# One <answer> -> one reading.


def _read_segment(text: str, options: Options, *, cut: bool) -> Reading:
    """What stands inside one <answer>: a phrase, a list of phrases, a first line, or yes/no with a remark."""
    return (
        read_phrase(text, options, cut=cut)
        or _read_list(text, options)
        or _read_lines(text, options)
        or _read_yes_no(text, options)
        or Reading(failure="unknown_option")
    )


def _read_list(text: str, options: Options) -> Reading | None:
    """ "A and B", "yes/no": two answers where the parts are options that differ, one where they agree."""
    parts = [part for part in _SEPARATOR.split(text) if part.strip()]
    found = [read_phrase(part, options) for part in parts] if len(parts) > 1 else []
    readings = [reading for reading in found if reading and reading.value is not None]
    return _agreed(readings) if readings and len(readings) == len(parts) else None


def _read_lines(text: str, options: Options) -> Reading | None:
    """The first line, where it is an answer by itself and no later line is another."""
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) < 2:
        return None
    if any(is_taken_back(line) for line in lines[1:]):
        return Reading(failure="two_answers")
    first, *others = (read_phrase(line, options) for line in lines)
    return first and _agreed([first, *(other for other in others if other and other.value is not None)])


def _read_yes_no(text: str, options: Options) -> Reading | None:
    """ "Yes, there is no doubt": a leading yes or no with punctuation, unless the rest takes it back."""
    places = options.trimmed
    if "yes" not in places or "no" not in places:
        return None
    key = exact(without_lead(text))
    found = _YES_NO.match(key)
    if found is None:
        return None
    if is_contrary(found[1], key[found.end() :]):
        return Reading(failure="two_answers")
    return options.read(places[found[1]], "yes_no")


def _read_lone_letter(text: str) -> Reading | None:
    letter = _plain(text).upper()
    return Reading(letter, letter, "letter") if len(letter) == 1 and letter in LETTERS else None


def _read_free(text: str) -> Reading:
    plain = " ".join(text.split())
    return _read_lone_letter(text) or Reading(plain.rstrip(". ") or plain, None, "free_text")


def _plain(text: str) -> str:
    return trimmed(exact(text))


def _agreed(readings: Sequence[Reading], key: Callable[[str], str] = str) -> Reading:
    """The last reading, or a failure where two differ; `key` says when two values are the same."""
    values = {reading.value and key(reading.value) for reading in readings}
    return readings[-1] if len(values) == 1 else Reading(failure="two_answers")
