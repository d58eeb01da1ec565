"""How sure is a figure? Intervals and paired tests over the items (questions) of a split, in plain numpy.

Letters: Q items, R bootstrap samples, M statistics that are means over the items. Intervals are (low, high).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

Interval = tuple[float, float]
McNemarMethod = Literal["exact", "mid-p", "continuity"]
FEW = 10  # below it a single question moves an accuracy by more than ten points
_CELLS_AT_ONCE = 4_000_000  # drawn indices or signs held in memory: 32 MB
_ROUNDING = 1e-9  # sums this near in relation to all that was added are one sum


@dataclass(frozen=True, slots=True)
class McNemar:
    """McNemar test: `b` items only the first got right, `c` only the second.

    `p` is two-sided; `difference` is the accuracy of the second minus that of the first.
    """

    b: int
    c: int
    p: float
    difference: float


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Mean of second minus first over the items, with its bootstrap interval."""

    difference: float
    ci95: Interval


def bootstrap_means(values_QM: ArrayLike, *, bootstrap_samples: int = 2000, seed: int = 0) -> np.ndarray:
    """Means float64 [R, M] of R resamples of the items; all M columns see the same resamples.

    Raises ValueError without items or for values that are not finite.
    """
    values = np.asarray(values_QM, dtype=np.float64)
    if values.ndim != 2 or not len(values):
        raise ValueError(f"needs items x statistics with at least one item, got shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("values must be finite; an item without a score cannot be resampled")
    random, items = np.random.default_rng(seed), len(values)
    rows = max(1, _CELLS_AT_ONCE // items)
    sizes = [min(rows, bootstrap_samples - start) for start in range(0, bootstrap_samples, rows)]
    return np.concatenate([_resampled_counts(random, size, items) @ values / items for size in sizes])


def _resampled_counts(random: np.random.Generator, samples: int, items: int) -> np.ndarray:
    """How often each of Q items is drawn in each of R samples: float64 [R, Q], rows sum to Q."""
    cells = random.integers(items, size=(samples, items)) + np.arange(samples)[:, None] * items
    return np.bincount(cells.ravel(), minlength=samples * items).reshape(samples, items).astype(np.float64)


def percentile_interval(draws_R: ArrayLike, *, confidence: float = 0.95) -> Interval:
    """The middle `confidence` of bootstrap draws (Efron's percentile interval)."""
    tail = (1 - _checked(confidence)) / 2
    low, high = np.quantile(np.asarray(draws_R, dtype=np.float64), [tail, 1 - tail])
    return float(low), float(high)


def bootstrap_ci(
    values_Q: ArrayLike, *, confidence: float = 0.95, bootstrap_samples: int = 2000, seed: int = 0
) -> Interval:
    """Percentile interval of the mean over items; the same seed gives the same interval."""
    values = np.asarray(values_Q, dtype=np.float64).reshape(-1, 1)
    draws = bootstrap_means(values, bootstrap_samples=bootstrap_samples, seed=seed)
    return percentile_interval(draws[:, 0], confidence=confidence)


def wilson_ci(num_correct: int, n: int, *, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion (Wilson 1927), without continuity correction."""
    if not 0 <= num_correct <= n or n < 1:
        raise ValueError(f"num_correct must lie in 0..n and n be at least 1, got {num_correct}/{n}")
    z = _normal_quantile((1 + _checked(confidence)) / 2)
    share, shrink = num_correct / n, 1 + z * z / n
    middle = (share + z * z / (2 * n)) / shrink
    half = z / shrink * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low = 0.0 if num_correct == 0 else max(0.0, middle - half)
    return low, 1.0 if num_correct == n else min(1.0, middle + half)


def mcnemar(first_Q: ArrayLike, second_Q: ArrayLike, *, method: McNemarMethod = "exact") -> McNemar:
    """Did the second model get more of the same items right? A fair coin on the items where they differ.

    "exact" is the binomial test (never too sure of itself); "mid-p" counts the split that came only half
    (Fagerland, Lydersen and Laake 2013, doi 10.1186/1471-2288-13-91: nearer to the nominal level);
    "continuity" is the chi-square test with Edwards' correction, (|b - c| - 1)^2 / (b + c).
    Raises ValueError for another method, or without two scores for each of at least one item.
    """
    first, second = _paired(first_Q, second_Q, bool)
    b, c = int((first & ~second).sum()), int((~first & second).sum())
    if method not in _MCNEMAR:
        raise ValueError(f"method must be one of {', '.join(_MCNEMAR)}, got {method!r}")
    return McNemar(b, c, _MCNEMAR[method](b, c), (c - b) / len(first))


def paired_bootstrap(
    first_Q: ArrayLike, second_Q: ArrayLike, *, bootstrap_samples: int = 2000, seed: int = 0
) -> PairedDifference:
    """Second minus first on the same items, resampling items so that each keeps its pair."""
    first, second = _paired(first_Q, second_Q, np.float64)
    difference = second - first
    interval = bootstrap_ci(difference, bootstrap_samples=bootstrap_samples, seed=seed)
    return PairedDifference(float(difference.mean()), interval)


def sign_flip_p(difference_Q: ArrayLike, *, draws: int = 100_000, seed: int = 0) -> float:
    """Two-sided p of a mean difference over items, if each item's sign were a coin toss (Fisher 1935).

    The item is what varies, so an item may bring the mean of several answers. All 2^Q choices of signs are
    counted where they are at most `draws`, items without a difference aside; otherwise p is (hits + 1) /
    (draws + 1) over seeded draws, never 0 (Phipson and Smyth 2010, doi 10.2202/1544-6115.1585).
    Raises ValueError without items, for values that are not finite, or without draws.
    """
    values = np.asarray(difference_Q, dtype=np.float64)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise ValueError(f"needs a finite difference for each of at least one item, got shape {values.shape}")
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}")
    moved = values[values != 0]
    least = abs(moved.sum()) - _ROUNDING * np.abs(moved).sum()
    if 2 ** len(moved) <= draws:
        return float((np.abs(_every_sum(moved)) >= least).mean())
    return (_hits(moved, least, draws, np.random.default_rng(seed)) + 1) / (draws + 1)


def too_few(n: int) -> str:
    """What to say beside a figure over n items: a warning below `FEW`, else nothing ("")."""
    return f"n = {n}: too few questions to compare" if n < FEW else ""


def _every_sum(values_Q: np.ndarray) -> np.ndarray:
    """The sums under all choices of signs: float64 [2^Q]."""
    sums = np.zeros(1)
    for value in values_Q:
        sums = np.concatenate([sums + value, sums - value])
    return sums


def _hits(values_Q: np.ndarray, least: float, draws: int, random: np.random.Generator) -> int:
    """How many of `draws` random choices of signs give a sum of at least `least` to either side."""
    rows, hits = max(1, _CELLS_AT_ONCE // len(values_Q)), 0
    for start in range(0, draws, rows):
        heads_RQ = random.random((min(rows, draws - start), len(values_Q))) < 0.5
        sums_R = 2 * (heads_RQ @ values_Q) - values_Q.sum()
        hits += int((np.abs(sums_R) >= least).sum())
    return hits


def _paired(first_Q: ArrayLike, second_Q: ArrayLike, dtype: type) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.asarray(first_Q, dtype=dtype), np.asarray(second_Q, dtype=dtype)
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise ValueError(f"needs two scores for each item, got shapes {first.shape} and {second.shape}")
    return first, second


def _sign_test(b: int, c: int) -> float:
    """P of a split at least as uneven as b to c under a fair coin."""
    tail, _ = _lower_tail(b, c)
    return min(1.0, 2 * tail / 2 ** (b + c))


def _mid_p(b: int, c: int) -> float:
    tail, last = _lower_tail(b, c)
    return (2 * tail - last) / 2 ** (b + c)


def _continuity(b: int, c: int) -> float:
    """P(chi-square with one degree of freedom); 1 where b = c, for which statsmodels squares -1."""
    excess = max(0, abs(b - c) - 1)
    return math.erfc(excess / math.sqrt(2 * (b + c))) if b + c else 1.0


def _lower_tail(b: int, c: int) -> tuple[int, int]:
    """Ways to toss at most min(b, c) heads in b + c, and exactly that many; nothing is rounded."""
    n, term, tail = b + c, 1, 1
    for i in range(min(b, c)):
        term = term * (n - i) // (i + 1)
        tail += term
    return tail, term


_MCNEMAR = {"exact": _sign_test, "mid-p": _mid_p, "continuity": _continuity}


def _normal_quantile(p: float) -> float:
    """z with P(Z < z) = p, by Newton's method on erfc (p between 0.5 and 1)."""
    z = 0.0
    for _ in range(60):
        step = (p - 1 + 0.5 * math.erfc(z / math.sqrt(2))) * math.sqrt(2 * math.pi) * math.exp(z * z / 2)
        z += step
        if abs(step) < 1e-15:
            break
    return z


def _checked(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    return confidence
