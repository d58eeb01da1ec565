"""How good are one model's answers? Accuracy and token scores with their intervals, whole and in parts.

A row is one line of completions.jsonl. Closed questions (with options) count as right or wrong. Open ones
have exact match (equal but for case, punctuation, articles, plurals and number words), and recall and F1 over
the tokens that data/reading/overlap.py names. An answer that cannot be read scores 0: a parse failure.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from lite_medrl.data.answers import judge
from lite_medrl.data.reading.verdict import answer_type_of
from lite_medrl.measure.statistics import bootstrap_ci, wilson_ci

Row = Mapping[str, Any]
Json = dict[str, Any]
PARTS = ("kind", "modality", "answer_type")
OPEN = {"exact_match": "exact match", "f1": "token F1", "recall": "token recall"}  # scores of open answers


def scores(rows: Sequence[Row], *, bootstrap_samples: int = 2000, seed: int = 0) -> Json:
    """Figures over all rows, and under "by_kind", "by_modality" and "by_answer_type" over their parts.

    Each part has n, accuracy with Wilson's interval, and parse_failure_frac; where there are open questions
    also open: n, exact_match (Wilson), recall and f1 (bootstrap). Raises ValueError without rows.
    """
    if not rows:
        raise ValueError("needs at least one answer to score")
    whole = _figures(rows, bootstrap_samples=bootstrap_samples, seed=seed)
    for part in PARTS:
        groups: defaultdict[str, list[Row]] = defaultdict(list)
        for row in rows:
            groups[label(row, part)].append(row)
        whole[f"by_{part}"] = {
            name: _figures(groups[name], bootstrap_samples=bootstrap_samples, seed=seed)
            for name in sorted(groups)
        }
    return whole


def label(row: Row, part: str) -> str:
    """Which group of a part ("kind", "modality" or "answer_type") a row belongs to."""
    return answer_type_of(row["answer"], row["options"] or None) if part == "answer_type" else row[part]


def token_scores(text: str, gold: str) -> Json:
    """exact_match, recall and f1 (0 to 1) of the answer in a model's whole text to an open question."""
    verdict = judge(text, gold, answer_type="open")
    return {"exact_match": verdict.score, "recall": verdict.parts["recall"], "f1": verdict.parts["f1"]}


def _figures(rows: Sequence[Row], **bootstrap: int) -> Json:
    right = sum(bool(row["correct"]) for row in rows)
    figures: Json = {
        "n": len(rows),
        "accuracy": right / len(rows),
        "ci95": list(wilson_ci(right, len(rows))),
        "parse_failure_frac": sum(row["failure"] is not None for row in rows) / len(rows),
    }
    found = [token_scores(row["greedy"], row["answer"]) for row in rows if not row["options"]]
    if found:
        means = {name: _mean([score[name] for score in found], **bootstrap) for name in found[0]}
        exact = sum(score["exact_match"] == 1.0 for score in found)
        means["exact_match"]["ci95"] = list(wilson_ci(exact, len(found)))
        figures["open"] = {"n": len(found), **means}
    return figures


def _mean(values: Sequence[float], **bootstrap: int) -> Json:
    return {"mean": sum(values) / len(values), "ci95": list(bootstrap_ci(values, **bootstrap))}
