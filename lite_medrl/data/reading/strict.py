"""Profile "strict": the format must hold, and <answer> must be the option, its letter or "letter. text".

Only case and outer white space are forgiven. Differs from MedVLThinker's reward, which it resembles: line
breaks inside <answer> and after the text do no harm.
"""

from __future__ import annotations

from lite_medrl.data.reading.choices import FOLDED_LETTERS, Options, Reading

_TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def formatted_answer(text: str) -> str | None:
    """What stands in <answer> where the whole text keeps the format, else None."""
    rest, parts = text, []
    for tag in _TAGS:
        before, found, rest = rest.partition(tag)
        if not found:
            return None
        parts.append(before)
    parts.append(rest)
    head, _, between, inside, tail = parts
    if any(part and not part.isspace() for part in (head, between, tail)):
        return None
    return inside if all(text.count(tag) == 1 for tag in _TAGS) else None


def read_strict(inside: str | None, options: Options | None) -> Reading:
    """The reading of what stands in <answer>; None where the format does not hold."""
    if inside is None or not inside.strip():
        return Reading(failure="bad_format" if inside is None else "empty_answer")
    if options is None:
        return Reading(inside.strip(), None, "free_text")
    name = _folded(inside)
    place = options.folded.get(name)
    if place is not None:
        return options.read(place, "option_text")
    for place, (letter, option) in enumerate(zip(FOLDED_LETTERS, options.texts, strict=False)):
        if name in (letter, f"{letter}. {_folded(option)}"):
            return options.read(place, "letter" if name == letter else "letter_text")
    return Reading(failure="unknown_option")


def _folded(text: str) -> str:
    return text.strip().casefold()
