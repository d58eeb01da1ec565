"""Scores over rows of completions.jsonl: by hand, and their intervals against scipy."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lite_medrl.data.reading.overlap import overlap, same_answer
from lite_medrl.measure.scores import scores, token_scores
from lite_medrl.measure.statistics import bootstrap_ci

SCAN = ["CT", "MRI"]
WORDS = ["lung", "heart", "left", "mass", "of"]


def row(correct: bool, **changes: Any) -> dict[str, Any]:
    plain = {
        "kind": "modality", "modality": "head", "options": SCAN, "answer": "CT", "greedy": "CT",
        "failure": None, "correct": correct,
    }  # fmt: skip
    return plain | changes


def test_token_scores_by_hand() -> None:
    found = token_scores("<answer>The left lower lobe, left</answer>", "left lower lobe")
    assert found == {"exact_match": 0.0, "recall": 1.0, "f1": pytest.approx(6 / 7)}  # 3 of 4 tokens, all of 3
    assert token_scores("<answer>A small mass.</answer>", "small masses")["exact_match"] == 1.0
    assert token_scores("<answer>A small mass.</answer>", "small masses")["f1"] == 0.5  # tokens keep their s
    assert token_scores("I cannot say", "mass") == {"exact_match": 0.0, "recall": 0.0, "f1": 0.0}
    assert token_scores("<answer>5 mm</answer>", "<5 mm")["exact_match"] == 0.0  # signs count
    assert token_scores("<answer>left</answer>", "right")["f1"] == 0.0
    assert overlap("", "the") == (0.0, 0.0, 0.0)
    assert not same_answer("", "")


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.lists(st.sampled_from(["lung", "heart", "left", "mass", "of"]), max_size=8).map(" ".join), st.data()
)
def test_overlap_is_the_share_of_common_words(first: str, data: st.DataObject) -> None:
    second = data.draw(st.lists(st.sampled_from(["lung", "heart", "left", "mass"]), min_size=1).map(" ".join))
    common = sum(min(first.split().count(w), second.split().count(w)) for w in set(first.split()))
    found = overlap(first, second)
    if first:
        assert found.precision == pytest.approx(common / len(first.split()), abs=1e-15)
        assert found.recall == pytest.approx(common / len(second.split()), abs=1e-15)
        p, r = found.precision, found.recall
        assert found.f1 == pytest.approx(2 * p * r / (p + r) if common else 0.0, abs=1e-12)
    swapped = overlap(second, first)
    assert (swapped.precision, swapped.recall, swapped.f1) == (found.recall, found.precision, found.f1)
    assert same_answer(first, second) <= (Counter(first.split()) == Counter(second.split()))


def test_whole_and_parts() -> None:
    rows = [
        row(True),
        row(False, kind="organ", failure="two_answers"),
        row(False, modality="chest"),
        row(True, kind="sign", options=["no", "yes"], answer="yes"),
        row(False, kind="sign", options=[], answer="mass", greedy="<answer>small mass</answer>"),
    ]
    found = scores(rows, seed=3)
    assert (found["n"], found["accuracy"], found["parse_failure_frac"]) == (5, 0.4, 0.2)
    theirs = stats.binomtest(2, 5).proportion_ci(method="wilson")
    assert found["ci95"] == pytest.approx([theirs.low, theirs.high], abs=1e-12)
    assert {kind: part["accuracy"] for kind, part in found["by_kind"].items()} == {
        "modality": 0.5, "organ": 0.0, "sign": 0.5,
    }  # fmt: skip
    assert {name: part["n"] for name, part in found["by_modality"].items()} == {"chest": 1, "head": 4}
    assert {name: part["n"] for name, part in found["by_answer_type"].items()} == {
        "choice": 3, "open": 1, "yes_no": 1,
    }  # fmt: skip
    assert found["by_kind"]["organ"]["parse_failure_frac"] == 1.0
    assert "open" not in found["by_kind"]["modality"]
    assert found["open"]["n"] == 1
    assert found["open"]["recall"] == {"mean": 1.0, "ci95": [1.0, 1.0]}
    assert found["open"]["f1"]["mean"] == pytest.approx(2 / 3)


def test_intervals_of_open_scores_are_bootstrap_intervals() -> None:
    answers = ["mass", "small mass", "cyst", "mass in the lung"]
    rows = [row(False, options=[], answer="mass", greedy=f"<answer>{a}</answer>") for a in answers]
    found = scores(rows, seed=5, bootstrap_samples=500)["open"]["f1"]
    values = [1.0, 2 / 3, 0.0, 0.5]
    assert found["mean"] == pytest.approx(sum(values) / 4)
    assert found["ci95"] == pytest.approx(bootstrap_ci(values, seed=5, bootstrap_samples=500))


def test_no_answers() -> None:
    with pytest.raises(ValueError, match="at least one answer"):
        scores([])
