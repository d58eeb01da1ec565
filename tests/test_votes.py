"""mean@K and maj@K against every way to draw, and by hand."""

from __future__ import annotations

import itertools
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from lite_medrl.measure.support import pass_at_k
from lite_medrl.measure.votes import maj_at_k, mean_at_k, votes


def test_mean_at_k_is_pass_at_one() -> None:
    correct, samples = np.array([0, 1, 3, 4]), np.array([4, 4, 5, 4])
    assert mean_at_k(correct, samples) == pytest.approx(pass_at_k(correct, samples, 1), abs=1e-15)
    for bad in (([5], 4), ([-1], 4), ([0], 0)):
        with pytest.raises(ValueError, match="at least one sample"):
            mean_at_k(*bad)


def drawn_at_random(sampled: tuple[str | None, ...], gold: str) -> Fraction:
    """Chance that a fair draw among the answers with most votes is the gold one, the slow way."""
    votes = Counter(value for value in sampled if value)
    lead = [value for value in votes if votes[value] == max(votes.values())]
    return Fraction(lead.count(gold), len(lead)) if lead else Fraction(0)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_shared_ties_are_a_fair_draw_for_all_samples_there_can_be(k: int) -> None:
    every = list(itertools.product(("a", "b", "c", None), repeat=4))
    found = maj_at_k(every, ["a"] * len(every), k)
    expected = [drawn_at_random(sampled[:k], "a") for sampled in every]
    assert found.score_Q == pytest.approx([float(score) for score in expected], abs=1e-15)
    assert found.accuracy == pytest.approx(float(sum(expected)) / len(every), abs=1e-12)
    assert found.silent_frac == pytest.approx(0.25**k)
    wrong = maj_at_k(every, ["a"] * len(every), k, ties="wrong")
    assert wrong.accuracy == sum(score == 1 for score in expected) / len(every)


def test_ties_by_hand() -> None:
    rows = [["x", "y", "y", "x"], [None, None, "y", "x"], [None] * 4, ["x", "x", "y", None]]
    gold = ["x", "x", "x", "x"]
    assert maj_at_k(rows, gold, 4).score_Q == (0.5, 0.5, 0.0, 1.0)
    assert maj_at_k(rows, gold, 4, ties="first").score_Q == (1.0, 0.0, 0.0, 1.0)
    assert maj_at_k(rows, gold, 4, ties="wrong").score_Q == (0.0, 0.0, 0.0, 1.0)
    found = maj_at_k(rows, gold, 4)
    assert (found.accuracy, found.tied_frac, found.silent_frac) == (0.5, 0.5, 0.25)
    assert maj_at_k(rows, gold, 3).score_Q == (0.0, 0.0, 0.0, 1.0)  # the fourth sample is not looked at


def test_fields_of_a_stage() -> None:
    rows = [
        {"sampled": ["x", "y"], "answer": "x", "num_correct": 1, "num_samples": 2},
        {"sampled": ["y", "y"], "answer": "x", "num_correct": 0, "num_samples": 2},
    ]
    assert votes(rows, (2, 1)) == {
        "mean_at_k": 0.25,
        "maj_at_k": {"1": 0.5, "2": 0.25},
        "maj_at_k_tied_frac": {"1": 0.0, "2": 0.5},
    }


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="maj@3 needs at least 3 samples an item, got 2"):
        maj_at_k([["x", "y"]], ["x"], 3)
    with pytest.raises(ValueError, match="for each of 2 gold answers, got 1"):
        maj_at_k([["x"]], ["x", "y"], 1)
    with pytest.raises(ValueError, match="share, wrong or first"):
        maj_at_k([["x"]], ["x"], 1, ties="drawn")  # type: ignore[arg-type]


def test_guessing_wins_the_vote_as_often_as_a_single_guess() -> None:
    """Over all draws of K options: why a report's line of guessing is flat for maj@K."""
    for options, k in (("ab", 3), ("abc", 2), ("abcd", 4)):
        draws = list(itertools.product(options, repeat=k))
        found = maj_at_k(draws, [options[0]] * len(draws), k)
        assert found.accuracy == pytest.approx(1 / len(options), abs=1e-12)
