"""How much of an open answer is right? Precision, recall and F1 over tokens, with their repeats.

The tokens are those of `equality.tokens`: NFKC, no case, words, numbers and signs such as + < %; "the" and a
leading "a" or "an" are left out; plurals and number words stay as they are.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from lite_medrl.data.reading.equality import exact, stems, tokens


class Overlap(NamedTuple):
    """Fractions of 1; all 0 where an answer or the gold has no token, except that two empty ones match."""

    precision: float
    recall: float
    f1: float


def overlap(predicted: str, gold: str) -> Overlap:
    """Token overlap of two texts (SQuAD's F1, arXiv 1606.05250, with the tokens above)."""
    ours, theirs = Counter(tokens(exact(predicted))), Counter(tokens(exact(gold)))
    if not ours or not theirs:
        same = float(ours == theirs)
        return Overlap(same, same, same)
    common = (ours & theirs).total()
    precision, recall = common / ours.total(), common / theirs.total()
    return Overlap(precision, recall, 2 * common / (ours.total() + theirs.total()))


def same_answer(predicted: str, gold: str) -> bool:
    """Exact match of free text: equal but for case, punctuation, articles, plurals and number words."""
    first, second = (stems(tokens(exact(text))) for text in (predicted, gold))
    return first == second and bool(first)
