"""Intervals and paired tests against scipy, what statsmodels said, closed forms and brute force."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from golden_statsmodels import CASES, GOLDEN, LARGEST, counts
from scipy import stats

from lite_medrl.measure import statistics
from lite_medrl.measure.statistics import (
    bootstrap_ci,
    bootstrap_means,
    mcnemar,
    paired_bootstrap,
    percentile_interval,
    sign_flip_p,
    too_few,
    wilson_ci,
)


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.999])
@pytest.mark.parametrize("n", [1, 2, 7, 272, 3362])
def test_wilson_is_scipys(n: int, confidence: float) -> None:
    for correct in {0, 1, n // 3, n // 2, n - 1, n}:
        ours = wilson_ci(correct, n, confidence=confidence)
        theirs = stats.binomtest(correct, n).proportion_ci(confidence, method="wilson")
        assert ours == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_wilson_is_scipys_on_random_counts() -> None:
    random = np.random.default_rng(7)
    for n in random.integers(1, 10_000, 200):
        correct, confidence = int(random.integers(0, n + 1)), float(random.uniform(0.5, 0.999))
        theirs = stats.binomtest(correct, int(n)).proportion_ci(confidence, method="wilson")
        ours = wilson_ci(correct, int(n), confidence=confidence)
        assert ours == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_wilson_by_hand() -> None:
    z2, low_high = 1.959963984540054**2, wilson_ci(8, 10)
    roots = sorted(np.roots([1 + z2 / 10, -(2 * 0.8 + z2 / 10), 0.8**2]))  # (p - x)^2 = z^2 x (1 - x) / n
    assert low_high == pytest.approx(roots, abs=1e-12)
    assert wilson_ci(0, 5)[0] == 0.0
    assert wilson_ci(5, 5)[1] == 1.0


@pytest.mark.parametrize(
    ("b", "c"), [(0, 0), (0, 1), (0, 6), (3, 3), (2, 9), (30, 12), (151, 210), (4000, 4300)]
)
def test_mcnemar_is_the_exact_binomial_test(b: int, c: int) -> None:
    first = np.array([1] * b + [0] * c + [1, 1, 0])
    second = np.array([0] * b + [1] * c + [1, 1, 0])
    order = np.random.default_rng(0).permutation(len(first))
    test = mcnemar(first[order], second[order])
    expected = stats.binomtest(b, b + c).pvalue if b + c else 1.0
    assert (test.b, test.c) == (b, c)
    assert test.p == pytest.approx(expected, rel=1e-12, abs=1e-300)
    assert test.difference == pytest.approx((c - b) / (b + c + 3), abs=1e-15)


def answers_of(b: int, c: int, both: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Two models' answers that differ on b and c items."""
    return np.array([1] * b + [0] * c + [1] * both), np.array([0] * b + [1] * c + [1] * both)


STATSMODELS = json.loads(GOLDEN.read_text(encoding="utf-8"))


def test_mcnemar_is_statsmodels() -> None:
    """Its `mcnemar`, exact and corrected; it has no mid-p, and where b = c it squares -1 and ours is 1."""
    assert [(row["b"], row["c"]) for row in STATSMODELS["mcnemar"]] == counts()[0]
    for row in STATSMODELS["mcnemar"]:
        first, second = answers_of(row["b"], row["c"])
        assert mcnemar(first, second).p == pytest.approx(row["exact"], abs=1e-12)
        corrected = mcnemar(first, second, method="continuity").p
        if row["b"] == row["c"]:
            assert (corrected, row["exact"]) == (1.0, 1.0)
            assert row["continuity"] == pytest.approx(stats.chi2.sf(1 / (row["b"] + row["c"]), 1), abs=1e-12)
        else:
            assert corrected == pytest.approx(row["continuity"], abs=1e-12)


def test_wilson_is_statsmodels() -> None:
    """Its `proportion_confint(method="wilson")`."""
    asked = [(row["correct"], row["n"], row["confidence"]) for row in STATSMODELS["wilson"]]
    assert asked == counts()[1]
    assert len(asked) == CASES * len(LARGEST)
    for row in STATSMODELS["wilson"]:
        ours = wilson_ci(row["correct"], row["n"], confidence=row["confidence"])
        assert ours == pytest.approx(row["ci"], abs=1e-12)


def fagerland_mid_p(b: int, c: int) -> float:
    """Fagerland, Lydersen and Laake 2013: the exact p less the point probability of what came."""
    half = stats.binom.cdf(min(b, c), b + c, 0.5) - 0.5 * stats.binom.pmf(min(b, c), b + c, 0.5)
    return 2 * half


@pytest.mark.parametrize("seed", range(20))
def test_mcnemar_methods_on_random_answers(seed: int) -> None:
    random = np.random.default_rng(seed)
    first = random.random(200 + 50 * seed) < 0.5
    second = np.where(random.random(len(first)) < 0.3, random.random(len(first)) < 0.6, first)
    b, c = int((first & ~second).sum()), int((~first & second).sum())
    assert b != c
    corrected = stats.chi2.sf((abs(b - c) - 1) ** 2 / (b + c), 1)
    assert mcnemar(first, second).p == pytest.approx(stats.binomtest(b, b + c).pvalue, abs=1e-12)
    assert mcnemar(first, second, method="continuity").p == pytest.approx(corrected, abs=1e-12)
    assert mcnemar(first, second, method="mid-p").p == pytest.approx(fagerland_mid_p(b, c), abs=1e-12)
    assert mcnemar(first, second, method="mid-p").p < mcnemar(first, second).p


def test_mcnemar_methods_where_nothing_speaks_for_either() -> None:
    for method in ("exact", "mid-p", "continuity"):
        for b in (0, 1, 7):
            first = np.array([1] * b + [0] * b + [1])
            second = np.array([0] * b + [1] * b + [1])
            assert mcnemar(first, second, method=method).p == 1.0
    with pytest.raises(ValueError, match="exact, mid-p, continuity"):
        mcnemar([1], [0], method="chi2")  # type: ignore[arg-type]


def test_bootstrap_of_three_items_is_the_enumeration_of_all_resamples() -> None:
    values = np.array([0.0, 0.5, 2.0])
    every = np.array([np.mean(draw) for draw in itertools.product(values, repeat=3)])
    means = bootstrap_means(values[:, None], bootstrap_samples=60_000, seed=3)[:, 0]
    found, counts = np.unique(means.round(9), return_counts=True)
    expected, shares = np.unique(every.round(9), return_counts=True)
    assert found == pytest.approx(expected)
    assert counts / 60_000 == pytest.approx(shares / 27, abs=0.01)
    assert bootstrap_ci(values, bootstrap_samples=60_000) == (0.0, 2.0)  # each has a share of 1/27 = 3.7 %
    narrower = bootstrap_ci(values, confidence=0.9, bootstrap_samples=60_000)
    assert narrower == pytest.approx((0.5 / 3, 4.5 / 3))


def test_bootstrap_is_the_same_for_the_same_seed_and_any_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).random((50, 2))
    once = bootstrap_means(values, bootstrap_samples=300, seed=5)
    assert once.shape == (300, 2)
    assert (once == bootstrap_means(values, bootstrap_samples=300, seed=5)).all()
    assert (once != bootstrap_means(values, bootstrap_samples=300, seed=6)).any()
    monkeypatch.setattr(statistics, "_CELLS_AT_ONCE", 50 * 7)
    assert bootstrap_means(values, bootstrap_samples=300, seed=5) == pytest.approx(once, abs=1e-15)


def test_bootstrap_against_scipy_and_the_normal_interval() -> None:
    values = (np.random.default_rng(2).random(400) < 0.7).astype(float)
    low, high = bootstrap_ci(values, bootstrap_samples=9999, seed=0)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(9))
    assert (low, high) == pytest.approx(tuple(theirs.confidence_interval), abs=0.004)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.04)
    narrow = bootstrap_ci(values, confidence=0.5, bootstrap_samples=9999)
    assert narrow[1] - narrow[0] == pytest.approx(2 * 0.6745 * values.std() / 20, rel=0.06)


def test_columns_share_their_resamples() -> None:
    values = np.random.default_rng(3).random(40)
    means = bootstrap_means(np.column_stack([values, 1 - 2 * values]), bootstrap_samples=200)
    assert means[:, 1] == pytest.approx(1 - 2 * means[:, 0], abs=1e-12)


def test_paired_bootstrap_keeps_the_pairs() -> None:
    random = np.random.default_rng(4)
    first = (random.random(300) < 0.5).astype(int)
    second = np.where(random.random(300) < 0.1, 1, first)
    found = paired_bootstrap(first, second, seed=1)
    assert found.difference == pytest.approx(second.mean() - first.mean(), abs=1e-15)
    assert found.ci95 == bootstrap_ci(second - first, seed=1)
    assert found.ci95[1] - found.ci95[0] < 0.06  # two samples that are not paired would have 0.16
    assert paired_bootstrap(second, first).difference == -found.difference


def test_interval_of_a_constant_has_no_width() -> None:
    assert bootstrap_ci([1, 1, 1]) == (1.0, 1.0)
    assert percentile_interval([0, 1, 2, 3, 4], confidence=0.5) == (1.0, 3.0)


def test_bad_input() -> None:
    for call in (
        lambda: bootstrap_ci([]),
        lambda: bootstrap_ci([0.1, float("nan")]),
        lambda: bootstrap_ci([1.0], confidence=95),
        lambda: wilson_ci(3, 2),
        lambda: wilson_ci(0, 0),
        lambda: mcnemar([1, 0], [1]),
        lambda: mcnemar([], []),
        lambda: sign_flip_p([]),
        lambda: sign_flip_p([1.0, float("inf")]),
        lambda: sign_flip_p([1.0], draws=0),
        lambda: paired_bootstrap([1], [1, 0]),
    ):
        with pytest.raises(ValueError, match=r"needs|must"):
            call()


def flips(values: np.ndarray) -> float:
    """The sign-flip test by writing out every choice of signs."""
    signs = np.array(list(itertools.product([-1.0, 1.0], repeat=len(values))))
    sums = np.abs(signs @ values)
    return float((sums >= abs(values.sum()) - 1e-9).mean())


@pytest.mark.parametrize("seed", range(12))
def test_sign_flips_of_few_items_are_all_counted(seed: int) -> None:
    random = np.random.default_rng(seed)
    values = (
        random.integers(-3, 4, size=3 + seed) / 3
    )  # differences of means over three seeds, some of them 0
    exact = sign_flip_p(values)
    assert exact == pytest.approx(flips(values), abs=1e-12)
    theirs = stats.permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=2 ** len(values), vectorized=False
    )
    assert exact == pytest.approx(theirs.pvalue, abs=1e-12)
    assert exact == sign_flip_p(-values) == sign_flip_p(np.concatenate([values, np.zeros(500)]))


def test_sign_flips_of_many_items_are_drawn() -> None:
    random = np.random.default_rng(3)
    values = random.choice([-1, -2 / 3, 0, 0, 1 / 3, 1], size=300)
    values[:14] = 1 / 3
    p = sign_flip_p(values, draws=50_000)
    theirs = stats.permutation_test(
        (values,), lambda x, axis: x.mean(axis), permutation_type="samples", n_resamples=20_000,
        rng=np.random.default_rng(1),
    )  # fmt: skip
    assert 0.05 < p < 0.95
    assert p == pytest.approx(theirs.pvalue, abs=0.015)
    near = 2 * stats.norm.sf(abs(values.sum()) / np.sqrt((values**2).sum()))
    assert p == pytest.approx(near, abs=0.02)
    assert p == sign_flip_p(values, draws=50_000) != sign_flip_p(values, draws=50_000, seed=1)


def test_a_p_that_is_drawn_is_never_0_and_does_not_hang_on_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.ones(40)
    assert sign_flip_p(values, draws=999) == 1 / 1000
    assert sign_flip_p(values[:5], draws=999) == 2 / 32
    assert sign_flip_p(np.zeros(9)) == 1.0
    mixed = np.random.default_rng(0).normal(0.1, 1, 60)
    whole = sign_flip_p(mixed, draws=999)
    monkeypatch.setattr(statistics, "_CELLS_AT_ONCE", 60 * 7)
    assert sign_flip_p(mixed, draws=999) == whole


def test_sign_flips_on_one_run_are_mcnemars_exact_test() -> None:
    random = np.random.default_rng(8)
    first, second = random.random(60) < 0.5, random.random(60) < 0.5
    keep = np.flatnonzero(first != second)[:13]
    difference = second[keep].astype(float) - first[keep]
    assert sign_flip_p(difference) == pytest.approx(mcnemar(first[keep], second[keep]).p, abs=1e-12)


def test_few_questions_are_said() -> None:
    assert too_few(9) == "n = 9: too few questions to compare"
    assert too_few(10) == ""
