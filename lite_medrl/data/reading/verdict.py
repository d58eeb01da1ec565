"""What a scoring rule says about one answer: a score, and what it took for the answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

AnswerType = Literal["choice", "yes_no", "closed", "open"]
YES_NO = ("yes", "no")


@dataclass(frozen=True, slots=True)
class Verdict:
    """`score` (0 to 1) is what the rule puts into its mean; `reading` is what it took for the answer.

    `counted` is False where the rule leaves the item out of its mean altogether. `parts` holds the other
    figures that it reports for open questions, under the names that it gives them.
    """

    score: float
    reading: str | None = None
    counted: bool = True
    parts: Mapping[str, float] = field(default_factory=dict)

    @property
    def correct(self) -> bool:
        """Whether the score is full and counted."""
        return self.counted and self.score == 1.0


Judge = Callable[[str, str, Sequence[str] | None, AnswerType], Verdict]
"""Called as f(text, gold, options, answer_type); `gold` is the option's text where there are options."""


def answer_type_of(gold: str, options: Sequence[str] | None) -> AnswerType:
    """ "yes_no" where that is the choice, "choice" for other options, "open" without options."""
    names = {option.strip().casefold() for option in options or (gold,)}
    if names <= set(YES_NO):
        return "yes_no"
    return "choice" if options else "open"


def label_of(gold: str, options: Sequence[str] | None) -> str | None:
    """The gold option's letter, "A" for the first; None without options."""
    if not options or gold not in options:
        return None
    return chr(ord("A") + list(options).index(gold))
