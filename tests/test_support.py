"""Pass@K, its chance line, the rule, and the majority baseline, by enumeration and by hand."""

from __future__ import annotations

import itertools
import json
from fractions import Fraction
from math import comb

import numpy as np
import pytest

from lite_medrl.measure.rule import decide
from lite_medrl.measure.statistics import bootstrap_ci, wilson_ci
from lite_medrl.measure.support import (
    Support,
    chance_pass_at_k,
    corrected_support,
    diagnose,
    majority_baseline,
    pass_at_k,
    rule_k,
)
from lite_medrl.types import Sample

STAGE_FIELDS = {
    *("n", "acc_at_1", "acc_at_1_ci95", "pass_at_k", "pass_at_k_ci95", "chance_pass_at_k", "support"),
    *("support_ci95", "rule_k", "gap", "format_failure_frac", "by_kind", "by_modality"),
}


def test_pass_at_k_is_the_share_of_all_draws_with_a_right_answer() -> None:
    for n in range(1, 8):
        for k in range(1, n + 1):
            found = pass_at_k(np.arange(n + 1), n, k)
            for c in range(n + 1):
                draws = list(itertools.combinations([True] * c + [False] * (n - c), k))
                assert found[c] == pytest.approx(sum(map(any, draws)) / len(draws), abs=1e-14)


def test_pass_at_k_keeps_its_digits_with_many_samples() -> None:
    n = 5000
    for c, k in [(1, 1), (1, 2500), (3, 16), (2500, 2), (4999, 1), (10, 4990), (0, 64), (5000, 64)]:
        exact = 1 - Fraction(comb(n - c, k), comb(n, k))
        assert pass_at_k([c], n, k)[0] == pytest.approx(float(exact), abs=1e-12)


def test_pass_at_k_with_a_number_of_samples_for_each_item() -> None:
    assert pass_at_k([1, 1, 0], [4, 2, 3], 2).tolist() == [0.5, 1.0, 0.0]
    assert pass_at_k([], 4, 2).tolist() == []


@pytest.mark.parametrize(
    ("correct", "n", "k"), [([1], 4, 5), ([1], 4, 0), ([5], 4, 2), ([-1], 4, 2), ([1, 1], [4, 1], 2)]
)
def test_pass_at_k_bad_input(correct: list[int], n: int | list[int], k: int) -> None:
    with pytest.raises(ValueError, match="samples"):
        pass_at_k(correct, n, k)


def test_pass_at_k_is_unbiased() -> None:
    right = np.random.default_rng(0).binomial(12, 0.3, size=200_000)
    assert pass_at_k(right, 12, 4).mean() == pytest.approx(1 - 0.7**4, abs=2e-3)


def test_chance_line_is_averaged_over_the_items_own_options() -> None:
    assert chance_pass_at_k([4, 4], 16) == pytest.approx(1 - 0.75**16, abs=1e-15)
    assert chance_pass_at_k([2, 5], 4) == pytest.approx((1 - 0.5**4 + 1 - 0.8**4) / 2, abs=1e-15)
    assert chance_pass_at_k([1], 3) == 1.0
    assert chance_pass_at_k([0, 2], 1) == 0.25  # an open question cannot be guessed
    guesses = np.random.default_rng(0).integers([2, 3, 5], size=(200_000, 4, 3))
    assert chance_pass_at_k([2, 3, 5], 4) == pytest.approx((guesses == 0).any(1).mean(), abs=3e-3)
    for wrong in ([], [-1]):
        with pytest.raises(ValueError, match="options"):
            chance_pass_at_k(wrong, 2)


@pytest.mark.parametrize(
    ("options", "ks", "limit", "expected"),
    [
        ([4], (1, 2, 4, 8, 16), 0.7, 4),  # 0.684 at 4, 0.900 at 8
        ([5], (1, 2, 4, 8, 16), 0.7, 4),
        ([3], (1, 2, 4, 8, 16), 0.7, 2),  # 0.556 at 2, 0.802 at 4
        ([2], (1, 2, 4, 8, 16), 0.7, 1),  # 0.5 at 1, 0.75 at 2
        ([2], (16, 1, 4), 0.8, 1),
        ([2], (2, 4), 0.7, 2),  # none is under the limit: the smallest
        ([2], (1,), 0.5, 1),  # at the limit is not under it
        ([2, 2], (1, 2), 0.75, 1),
        ([2, 2], (1, 2), 0.7501, 2),
        ([1, 1], (4, 2), 0.7, 2),  # a chance line of 1 everywhere
        ([10], (1, 2, 4, 8, 16), 0.7, 8),
        ([2, 5], (1, 2, 4, 8), 0.7, 2),  # 0.555 at 2, 0.764 at 4
        ([0], (1, 16), 0.7, 16),
    ],
)
def test_rule_k(options: list[int], ks: tuple[int, ...], limit: float, expected: int) -> None:
    assert rule_k(options, ks, limit) == expected


def test_rule_k_bad_input() -> None:
    for ks in ((), (0, 1)):
        with pytest.raises(ValueError, match="at least one K"):
            rule_k([4], ks)


def test_corrected_support() -> None:
    assert corrected_support(0.84, 0.68) == pytest.approx(0.5, abs=1e-15)
    assert corrected_support(1.0, 0.3) == 1.0
    assert corrected_support(0.3, 0.3) == 0.0
    assert corrected_support(0.2, 0.6) == pytest.approx(-1.0, abs=1e-15)
    assert corrected_support(1.0, 1.0) == 0.0
    assert corrected_support(0.5, 1 - 0.5**60) == 0.0  # 1.0 to the last bit


def example() -> Support:
    return diagnose(
        [True, False, True, False],
        [4, 1, 2, 0],
        4,
        [4, 4, 4, 2],
        format_failure_Q=[0, 1, 0.5, 0],
        kind_Q=["plane", "organ", "organ", "organ"],
        modality_Q=["CT", "CT", "MR", "MR"],
        ks=(4, 1, 2),
        max_chance=0.7,
        bootstrap_samples=500,
    )


def test_diagnose_by_hand() -> None:
    found = example()
    at_2 = (1 + 0.5 + 5 / 6 + 0) / 4
    chance_2 = (3 * (1 - 0.75**2) + 0.75) / 4
    assert found.n == 4
    assert found.acc_at_1 == 0.5
    assert found.pass_at_k == pytest.approx({1: (1 + 0.25 + 0.5) / 4, 2: at_2, 4: 0.75})
    chance_4 = (3 * (1 - 0.75**4) + 1 - 0.5**4) / 4
    assert found.chance_pass_at_k == pytest.approx({1: 1.25 / 4, 2: chance_2, 4: chance_4})
    assert found.rule_k == 2  # 0.516 at 2, 0.747 at 4
    assert found.support == pytest.approx((at_2 - chance_2) / (1 - chance_2))
    assert found.gap == pytest.approx(at_2 - 0.5)
    assert found.format_failure_frac == 0.375
    assert found.by_kind == {
        "organ": {"n": 3, "acc_at_1": pytest.approx(1 / 3)},
        "plane": {"n": 1, "acc_at_1": 1.0},
    }
    assert found.by_modality == {"CT": {"n": 2, "acc_at_1": 0.5}, "MR": {"n": 2, "acc_at_1": 0.5}}


def test_diagnose_intervals() -> None:
    random = np.random.default_rng(0)
    right, options = random.binomial(8, 0.4, size=300), np.full(300, 4)
    greedy = random.random(300) < 0.5
    labels = ["a"] * 300
    found = diagnose(
        *(greedy, right, 8, options),
        format_failure_Q=np.zeros(300),
        kind_Q=labels,
        modality_Q=labels,
        ks=(1, 4),
        seed=7,
    )
    assert found.acc_at_1_ci95 == wilson_ci(int(greedy.sum()), 300)
    low, high = bootstrap_ci(pass_at_k(right, 8, 4), seed=7)
    assert found.pass_at_k_ci95[4] == pytest.approx((low, high), abs=1e-12)
    chance = 1 - 0.75**4  # the same for all items, so the corrected interval is the shifted one
    assert found.support_ci95 == pytest.approx(
        ((low - chance) / (1 - chance), (high - chance) / (1 - chance)), abs=1e-12
    )
    assert found.support_ci95[0] < found.support < found.support_ci95[1]


@pytest.mark.parametrize(("right", "low_high"), [(5, (0.5655, 1.0)), (0, (0.0, 0.4345))])
def test_the_interval_of_answers_that_are_all_alike_is_no_point(
    right: int, low_high: tuple[float, float]
) -> None:
    alike = {"format_failure_Q": [0] * 5, "kind_Q": ["a"] * 5, "modality_Q": ["b"] * 5}
    found = diagnose([right > 0] * 5, [right] * 5, 5, [4] * 5, ks=(1,), **alike)
    assert found.acc_at_1_ci95 == pytest.approx(low_high, abs=1e-4)


def test_diagnose_where_the_chance_line_is_one() -> None:
    found = diagnose([True], [4], 4, [1], format_failure_Q=[0], kind_Q=["a"], modality_Q=["b"], ks=(2, 4))
    assert (found.rule_k, found.support, found.support_ci95, found.gap) == (2, 0.0, (0.0, 0.0), 0.0)
    decision = decide(found, 0.5)
    assert decision.rule == "sft"
    assert "No K keeps the chance line under 0.70" in decision.why


def test_to_json_has_the_stage_fields_and_no_other() -> None:
    row = example().to_json()
    assert set(row) == STAGE_FIELDS
    assert row == json.loads(json.dumps(row, allow_nan=False))
    assert (
        list(row["pass_at_k"])
        == list(row["pass_at_k_ci95"])
        == list(row["chance_pass_at_k"])
        == ["1", "2", "4"]
    )
    assert row["pass_at_k"]["4"] == 0.75
    assert row["acc_at_1_ci95"] == list(example().acc_at_1_ci95)


def test_diagnose_bad_input() -> None:
    labels = {"format_failure_Q": [0, 0], "kind_Q": ["a", "a"], "modality_Q": ["b", "b"]}
    for args, keys in (
        (([1], [4, 1], 4, [4, 4]), labels),
        (([1, 0], [4, 1], 4, [4, 4]), {**labels, "kind_Q": ["a"]}),
        (([], [], 4, []), {"format_failure_Q": [], "kind_Q": [], "modality_Q": []}),
        (([1, 0], [4, 1], 4, [4, 4]), {**labels, "ks": (1, 8)}),
    ):
        with pytest.raises(ValueError, match="needs"):
            diagnose(*args, **keys)


def asked(kind: str, options: tuple[str, ...], answer: str) -> Sample:
    return Sample("id", (), "?", options, answer, kind, "CT", "here", "CC0-1.0")


def test_majority_baseline() -> None:
    organs = ("lung", "heart", "liver")
    train = [
        asked("organ", organs, answer)
        for answer in ("lung", "lung", "lung", "heart", "heart", "liver", "liver")
    ]
    train.append(asked("plane", ("axial", "coronal"), "coronal"))
    test = [
        asked("organ", ("liver", "lung"), "lung"),  # the commonest
        asked("organ", ("liver", "lung"), "liver"),
        asked("organ", ("spleen", "heart"), "heart"),  # the commonest is no option: the commonest that is
        asked("organ", ("liver", "heart"), "liver"),  # equally common: the first
        asked("organ", ("heart", "liver"), "liver"),
        asked("plane", ("axial", "coronal"), "coronal"),  # its own kind only
        asked("side", ("left", "right"), "left"),  # never seen: the first
        asked("organ", (), "lung"),  # open: the commonest
    ]
    correct = majority_baseline(train, test)
    assert correct.dtype == bool
    assert correct.tolist() == [True, False, True, True, False, True, True, True]
    assert majority_baseline([], [asked("organ", (), "lung")]).tolist() == [False]
