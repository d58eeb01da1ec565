"""What do K sampled answers to one question say together? mean@K, and maj@K with its ties named.

Pass@K, which asks whether any of them is right, is in support.py with its chance line.
Letters: Q items (questions), N samples of an item.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

Ties = Literal["share", "wrong", "first"]


@dataclass(frozen=True, slots=True)
class Majority:
    """maj@K: the mean of `score_Q` is `accuracy`; fractions of 1.

    `tied_frac` of the items had two or more answers in the lead; `silent_frac` had no readable answer at all.
    """

    k: int
    accuracy: float
    tied_frac: float
    silent_frac: float
    score_Q: tuple[float, ...]


def mean_at_k(num_correct_Q: ArrayLike, num_samples: ArrayLike) -> np.ndarray:
    """Share of each item's samples that are right: float64 [Q].

    The mean is the accuracy of one sampled answer, whatever K is; guessing has 1/m with m options.
    Raises ValueError without samples or for a count outside 0..n.
    """
    correct, samples = np.broadcast_arrays(
        np.asarray(num_correct_Q, np.int64), np.asarray(num_samples, np.int64)
    )
    if (samples < 1).any() or ((correct < 0) | (correct > samples)).any():
        raise ValueError("needs at least one sample an item, and a number right between 0 and their number")
    return correct / samples


def maj_at_k(
    sampled_QN: Sequence[Sequence[str | None]], gold_Q: Sequence[str], k: int, *, ties: Ties = "share"
) -> Majority:
    """Accuracy of the answer that most of an item's first `k` samples gave; None (not readable) has no vote.

    Where several lead, "share" gives the gold its share of them (what a fair draw would give on average),
    "wrong" gives nothing, "first" takes the one that was given first (as MedVLThinker does, so that the order
    of the samples decides). Raises ValueError for a K beyond the samples, or without items.
    """
    if not gold_Q or len(gold_Q) != len(sampled_QN):
        raise ValueError(f"needs samples for each of {len(gold_Q)} gold answers, got {len(sampled_QN)}")
    if not 1 <= k <= min(map(len, sampled_QN)):
        raise ValueError(f"maj@{k} needs at least {k} samples an item, got {min(map(len, sampled_QN))}")
    leads = [_leaders(sampled[:k]) for sampled in sampled_QN]
    scores = tuple(_score(lead, gold, ties) for lead, gold in zip(leads, gold_Q, strict=True))
    return Majority(
        k=k,
        accuracy=float(np.mean(scores)),
        tied_frac=float(np.mean([len(lead) > 1 for lead in leads])),
        silent_frac=float(np.mean([not lead for lead in leads])),
        score_Q=scores,
    )


def votes(rows: Sequence[Mapping[str, Any]], ks: Sequence[int]) -> dict[str, Any]:
    """mean_at_k, and maj_at_k with its tied share for every K: fields of a stage in results.json.

    `rows` are lines of completions.jsonl; ties are shared.
    """
    sampled, gold = [row["sampled"] for row in rows], [row["answer"] for row in rows]
    found = {str(k): maj_at_k(sampled, gold, k) for k in sorted(set(ks))}
    means = mean_at_k([row["num_correct"] for row in rows], [row["num_samples"] for row in rows])
    return {
        "mean_at_k": float(means.mean()),
        "maj_at_k": {k: majority.accuracy for k, majority in found.items()},
        "maj_at_k_tied_frac": {k: majority.tied_frac for k, majority in found.items()},
    }


def _leaders(sampled: Sequence[str | None]) -> list[str]:
    """The answers with most votes, in the order in which they first came."""
    votes = Counter(value for value in sampled if value is not None)
    most = max(votes.values(), default=0)
    return [value for value, count in votes.items() if count == most]


def _score(lead: Sequence[str], gold: str, ties: Ties) -> float:
    if ties == "first":
        return float(lead[:1] == [gold])
    if ties == "wrong":
        return float(list(lead) == [gold])
    if ties == "share":
        return (gold in lead) / max(1, len(lead))
    raise ValueError(f"ties must be share, wrong or first, got {ties!r}")
