"""Image reliance and the summary of a benchmark, on rows whose figures can be counted by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from lite_medrl.measure.published import COLUMN_OF, COLUMNS, PUBLISHED
from lite_medrl.measure.reliance import reliance
from lite_medrl.measure.statistics import wilson_ci
from lite_medrl.measure.summary import average, summary

Row = dict[str, Any]


def row(name: int, said: str | None, *, shown: str = "real", number: int = 0, **more: Any) -> Row:
    """An answer to a question whose right answer is "a"."""
    return {
        "benchmark": "own", "id": f"q{name}", "shown": shown, "number": number, "text": f"<{said}>",
        "parsed": said, "failure": None if said else "no_answer", "correct": said == "a",
        "score": float(said == "a"), "has_format": said is not None, "lite_v1": said == "a", "parts": {},
        "closed": True, "part": "", "question": "?", "options": ["a", "b", "c"], "answer": "a",
        "kind": f"k{name % 2}", "modality": "ct",
    } | more  # fmt: skip


REAL = ["a", "a", "a", "b", None]
BLANK = ["a", "b", "a", "b", None]
OTHER = ["b", "b", "a", "c", "a"]


def rows() -> list[Row]:
    shown = {"real": REAL, "blank": BLANK, "shuffled": OTHER}
    return [row(i, said, shown=name) for name, all_said in shown.items() for i, said in enumerate(all_said)]


def test_reliance_by_hand() -> None:
    found = reliance(rows())
    assert found is not None
    assert found["blank"]["accuracy"] == 2 / 5
    assert found["blank"]["drop"] == pytest.approx(1 / 5)
    assert found["blank"]["retained_frac"] == pytest.approx(2 / 3)
    assert found["blank"]["changed_frac"] == 1 / 5  # two answers that could not be read, with one text
    assert found["blank"]["drop_p"] == stats.binomtest(0, 1).pvalue
    assert found["shuffled"]["accuracy"] == 2 / 5
    assert found["visual_reliance"] == found["shuffled"]["drop"] == pytest.approx(1 / 5)
    assert found["shuffled"]["changed_frac"] == 4 / 5
    assert found["image_sensitivity"] == 4 / 5
    assert found["unchanged_frac"] == pytest.approx(1 / 5)
    assert found["image_sensitivity_ci95"] == list(wilson_ci(4, 5))


def test_a_question_without_another_image_is_left_out_of_that_comparison() -> None:
    some = [r for r in rows() if not (r["shown"] == "shuffled" and r["id"] in ("q1", "q4"))]
    found = reliance(some)
    assert found is not None
    assert found["shuffled"]["n"] == 3
    assert found["shuffled"]["drop"] == pytest.approx(2 / 3 - 1 / 3)
    assert found["blank"]["n"] == 5
    assert reliance([r for r in rows() if r["shown"] == "real"]) is None


def test_texts_that_cannot_be_read_count_as_changed_where_they_differ() -> None:
    two = [row(0, None), row(0, None, shown="blank", text="something else")]
    found = reliance(two)
    assert found is not None
    assert found["image_sensitivity"] == 1.0


def sampled() -> list[Row]:
    drawn = {0: ["a", "a", "b", "b"], 1: ["a", "c", None, "c"], 2: ["b"] * 4, 3: ["a"] * 4, 4: [None] * 4}
    return [
        {k: v for k, v in row(i, said, number=n).items() if k not in ("options", "kind", "answer")}
        for i, all_said in drawn.items()
        for n, said in enumerate(all_said, 1)
    ]


def test_summary_by_hand() -> None:
    found = summary([*rows(), *sampled()])
    closed, drawn = found["closed"], found["sampled"]
    assert (found["n"], closed["n"], closed["counted"]) == (5, 5, 5)
    assert closed["accuracy"] == 3 / 5
    assert closed["ci95"] == list(wilson_ci(3, 5))
    assert closed["chance"] == pytest.approx(1 / 3)
    assert closed["parse_failure_frac"] == 1 / 5
    assert closed["failures"] == {"no_answer": 1}
    assert closed["by_kind"]["k1"]["accuracy"] == 1 / 2
    assert drawn["num_samples"] == 4
    assert list(drawn["pass_at_k"]) == ["1", "2", "4"]
    assert drawn["mean_at_k"] == pytest.approx((2 + 1 + 0 + 4 + 0) / 20)
    assert drawn["pass_at_k"]["4"] == 3 / 5
    assert drawn["pass_at_k"]["2"] == pytest.approx((5 / 6 + 1 / 2 + 0 + 1 + 0) / 5)
    assert drawn["maj_at_k"]["4"] == pytest.approx((1 / 2 + 0 + 0 + 1 + 0) / 5)
    assert drawn["chance_pass_at_k"]["2"] == pytest.approx(1 - (2 / 3) ** 2)
    assert "open" not in found
    with pytest.raises(ValueError, match="own images"):
        summary([r for r in rows() if r["shown"] != "real"])


def test_what_a_rule_leaves_out_of_its_mean_is_left_out() -> None:
    left = [row(0, "a"), row(1, "b", score=None), row(2, "b")]
    closed = summary(left)["closed"]
    assert (closed["n"], closed["counted"], closed["accuracy"], closed["lite_v1_accuracy"]) == (
        3,
        2,
        1 / 2,
        1 / 3,
    )
    assert closed["by_kind"]["k0"]["n"] == 2
    assert "k1" not in closed["by_kind"]
    nobody = summary([row(0, "b", score=None)])["closed"]
    assert (nobody["accuracy"], nobody["ci95"]) == (None, None)
    assert average({"one": nobody}) is None


def test_reliance_counts_what_the_rule_counts_under_both_images() -> None:
    some = [row(i, said) for i, said in enumerate(REAL)]
    some += [row(i, said, shown="blank", score=None if i < 3 else 0.0) for i, said in enumerate(BLANK)]
    found = reliance(some)
    assert found is not None
    assert (found["blank"]["n"], found["blank"]["real_accuracy"]) == (2, 0.0)
    assert found["image_sensitivity"] == 1 / 5  # whether an answer changed does not hang on the rule


def test_open_questions_have_scores_of_their_own() -> None:
    free = [
        row(0, "left lung", options=[], closed=False, answer="left lung", text="<answer>left lung</answer>",
            parts={"recall": 1.0}, score=1.0),
        row(1, "lung", options=[], closed=False, answer="left lung", text="<answer>lung</answer>",
            parts={"recall": 0.5}, score=0.0),
    ]  # fmt: skip
    blank = [r | {"shown": "blank", "parsed": "x", "correct": False} for r in free]
    found = summary([*free, *blank])
    assert "closed" not in found
    assert found["open"]["parse_failure_frac"] == 0.0
    assert found["open"]["by_kind"]["k1"]["open"]["exact_match"]["mean"] == 0.0
    assert found["open"]["reliance"]["image_sensitivity"] == 1.0
    assert found["open"]["exact_match"] == {"mean": 0.5, "ci95": list(wilson_ci(1, 2))}
    assert found["open"]["recall"]["mean"] == 0.75
    assert found["open"]["protocol_parts"]["recall"]["mean"] == 0.75
    assert (found["open"]["protocol_score"]["mean"], found["open"]["protocol_score"]["n"]) == (0.5, 2)


def test_the_mean_of_parts_is_a_plain_one() -> None:
    one = summary([row(i, "a") for i in range(10)])["closed"]
    two = summary([row(0, "b"), row(1, "a"), row(2, "b", score=None)])["closed"]
    found = average({"one": one, "two": two})
    assert found is not None
    assert (found["accuracy"], found["n"]) == (pytest.approx((1 + 0.5) / 2), 12)
    (low, _), (bottom, top) = wilson_ci(10, 10), wilson_ci(1, 2)
    assert found["ci95"][0] == pytest.approx(0.75 - np.hypot(1 - low, 0.5 - bottom) / 2)
    assert found["ci95"][1] == pytest.approx(0.75 + (top - 0.5) / 2)
    assert found["parts"] == ["one", "two"]


def test_the_interval_of_the_mean_covers_it() -> None:
    """95 of 100, for parts of unlike size and accuracy."""
    draw, truth, sizes = np.random.default_rng(0), np.array([0.5, 0.8, 0.3]), (40, 80, 200)
    hits = 0
    for _ in range(400):
        right = draw.binomial(sizes, truth)
        parts = {
            str(i): {"counted": n, "accuracy": r / n, "ci95": list(wilson_ci(int(r), n))}
            for i, (n, r) in enumerate(zip(sizes, right, strict=True))
        }
        found = average(parts)
        assert found is not None
        hits += found["ci95"][0] <= truth.mean() <= found["ci95"][1]
    assert 0.92 < hits / 400 < 0.98


def test_published_means_are_the_means_of_their_columns() -> None:
    for one in PUBLISHED:
        assert one.mean == pytest.approx(np.mean(one.percent), abs=0.011), one.model
        assert one.source
        assert one.protocol
    assert set(COLUMN_OF.values()) == set(COLUMNS)
