"""One candidate question: a wording filled in, with its options; balance.py shuffles them later."""

from __future__ import annotations

from random import Random

from . import words
from .pack import Ask, Picture


def ask(
    picture: Picture,
    random: Random,
    kind: str,
    options: list[str],
    answer: str,
    *,
    key: str = "",
    **names: str,
) -> Ask:
    """A question of a kind with one of its wordings filled in."""
    question = random.choice(words.QUESTIONS[kind]).format(**names)
    template = words.REASONS[kind]
    if isinstance(template, dict):
        template = template[answer]
    return Ask(
        picture.id,
        picture.split,
        kind,
        question,
        options,
        answer,
        template.format(answer=answer, **names),
        key or answer,
    )


def few(random: Random, pool: list[str], answer: str, count: int) -> list[str]:
    """The answer and count - 1 others of the pool."""
    return [answer, *random.sample([p for p in pool if p != answer], min(count, len(pool)) - 1)]
