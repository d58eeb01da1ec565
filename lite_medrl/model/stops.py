"""When an answer is over: at a stop token, after a stop string, or at its longest.

A stop string may begin and end inside tokens; it is looked for in the text of the last few tokens, and stays
in the answer (transformers' habit: a closing tag belongs to the answer that it closes).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lite_medrl.types import Completion, FinishReason, RecipeError


@dataclass(frozen=True, slots=True)
class Stops:
    """Ids and strings that end an answer."""

    ids: frozenset[int]
    strings: tuple[str, ...] = ()
    tokenizer: Any = None

    def end(self, tokens: Sequence[int]) -> bool:
        """Whether the answer is over with its last token."""
        if tokens[-1] in self.ids:
            return True
        # A character is at least a byte, and a token adds at least one: no occurrence is longer than this.
        return any(
            text in self.tokenizer.decode(tokens[-len(text.encode()) - 1 :], skip_special_tokens=False)
            for text in self.strings
        )


def make_stops(tokenizer: Any, ids: Sequence[int], strings: Sequence[str] = ()) -> Stops:
    """RecipeError for a string that this tokenizer cannot write, so that no answer could ever hold it."""
    for text in strings:
        if not text:
            raise RecipeError("stop: an empty string would end every answer; leave it out")
        tokens = tokenizer.encode(text, add_special_tokens=False)
        if not tokens or text not in tokenizer.decode(tokens, skip_special_tokens=False):
            raise RecipeError(f"stop: this model's tokenizer cannot write {text!r}, so it would never stop")
    return Stops(frozenset(ids), tuple(strings), tokenizer)


@dataclass(slots=True)
class Growing:
    """One answer while it is drawn."""

    stops: Stops
    limit: int
    tokens: list[int] = field(default_factory=list)
    sampling_logps: list[float] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    stopped: bool = False

    def add(self, token: int, sampling_logp: float, logp: float) -> bool:
        """Takes one token; True if more may follow."""
        self.tokens.append(token)
        self.sampling_logps.append(sampling_logp)
        self.logps.append(logp)
        self.stopped = self.stops.end(self.tokens)
        return not self.stopped and len(self.tokens) < self.limit

    @property
    def text_tokens(self) -> list[int]:
        """Its tokens without the stop token."""
        return [token for token in self.tokens if token not in self.stops.ids]


def completions(tokenizer: Any, answers: Sequence[Growing]) -> list[Completion]:
    """The answers with their text; one that did not end by itself is "length"."""
    texts = tokenizer.batch_decode([answer.text_tokens for answer in answers])
    return [completion(text, answer) for text, answer in zip(texts, answers, strict=True)]


def completion(text: str, answer: Growing) -> Completion:
    """One finished answer."""
    reason: FinishReason = "stop" if answer.stopped else "length"
    return Completion(tuple(answer.tokens), text, tuple(answer.sampling_logps), reason, tuple(answer.logps))
