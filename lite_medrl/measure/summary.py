"""The figures of one benchmark, or of one of its parts, from the rows of answers.jsonl.

`accuracy` is by the protocol's own rule, over questions with options; what that rule leaves out of its mean
is left out here. Beside it stands what our rule says of the same texts. Open questions have their own block.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lite_medrl.measure.reliance import reliance
from lite_medrl.measure.scores import scores
from lite_medrl.measure.statistics import bootstrap_ci, bootstrap_means, percentile_interval, wilson_ci
from lite_medrl.measure.support import chance_pass_at_k, pass_at_k
from lite_medrl.measure.votes import maj_at_k, mean_at_k

Row = Mapping[str, Any]
Json = dict[str, Any]


def summary(rows: Sequence[Row], *, seed: int = 0) -> Json:
    """All figures of these questions: "closed", "open", "sampled" and "reliance", where there are any.

    Raises ValueError where no greedy answer to a question with its own image is among the rows.
    """
    greedy = [row for row in rows if row["number"] == 0]
    real = [row for row in greedy if row["shown"] == "real"]
    if not real:
        raise ValueError("needs the greedy answers with the questions' own images")
    closed, free = [r for r in real if r["options"]], [r for r in real if not r["options"]]
    found: Json = {"n": len(real)}
    if closed:
        found["closed"] = closed_figures(closed, seed)
        if drawn := sampled_figures(closed, rows):
            found["sampled"] = drawn
    if free:
        found["open"] = open_figures(free, seed)
    which = {row["id"] for row in closed or free}
    if relied := reliance([row for row in greedy if row["id"] in which], seed=seed):
        found["reliance"] = relied
    return found


def closed_figures(rows: Sequence[Row], seed: int) -> Json:
    """Accuracy by the protocol with Wilson's interval, chance, parse failures, ours, and parts by label."""
    counted = [row for row in rows if row["score"] is not None]
    right = sum(row["correct"] for row in counted)
    ours = sum(row["lite_v1"] for row in rows)
    parts = scores([completion(row) for row in rows], seed=seed)
    return {
        "n": len(rows),
        "counted": len(counted),
        "accuracy": right / len(counted) if counted else None,
        "ci95": list(wilson_ci(right, len(counted))) if counted else None,
        "chance": chance_pass_at_k([len(row["options"]) for row in rows], 1),
        "parse_failure_frac": parts["parse_failure_frac"],
        "failures": counts(row["failure"] for row in rows if row["failure"]),
        "format_failure_frac": float(np.mean([not row["has_format"] for row in rows])),
        "lite_v1_accuracy": ours / len(rows),
        "lite_v1_ci95": list(wilson_ci(ours, len(rows))),
        **{key: parts[key] for key in ("by_kind", "by_modality", "by_answer_type")},
    }


def open_figures(rows: Sequence[Row], seed: int) -> Json:
    """Exact match, token F1 and recall (ours) with intervals, and what the protocol's rule reports."""
    whole = scores([completion(row) for row in rows], seed=seed)
    counted = [row["score"] for row in rows if row["score"] is not None]
    names = sorted({name for row in rows for name in row["parts"]})
    reported = {name: float(np.mean([row["parts"].get(name, 0.0) for row in rows])) for name in names}
    return {
        **whole["open"],
        "parse_failure_frac": whole["parse_failure_frac"],
        "protocol_score": float(np.mean(counted)) if counted else None,
        "protocol_parts": reported,
    }


def sampled_figures(closed: Sequence[Row], rows: Sequence[Row]) -> Json | None:
    """mean@K, maj@K and Pass@K with its chance line, at K = 1, 2, 4, .. and all; None without samples."""
    drawn: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row["number"]:
            drawn[row["id"]].append(row)
    if not drawn:
        return None
    samples_Q = [sorted(drawn[row["id"]], key=lambda row: row["number"]) for row in closed]
    most = min(map(len, samples_Q))
    ks = sorted({k for i in range(most.bit_length()) if (k := 2**i) <= most} | {most})
    right_Q = [sum(row["correct"] for row in samples) for samples in samples_Q]
    number_Q = [len(samples) for samples in samples_Q]
    options_Q = [len(row["options"]) for row in closed]
    read_Q = [[row["parsed"] for row in samples] for samples in samples_Q]
    votes = {k: maj_at_k(read_Q, [row["answer"] for row in closed], k) for k in ks}
    reached = {k: pass_at_k(right_Q, number_Q, k) for k in ks}
    return {
        "num_samples": most,
        "mean_at_k": float(mean_at_k(right_Q, number_Q).mean()),
        "mean_at_k_ci95": list(bootstrap_ci(mean_at_k(right_Q, number_Q))),
        "maj_at_k": {str(k): vote.accuracy for k, vote in votes.items()},
        "maj_at_k_tied_frac": {str(k): vote.tied_frac for k, vote in votes.items()},
        "pass_at_k": {str(k): float(values.mean()) for k, values in reached.items()},
        "pass_at_k_ci95": {str(k): list(bootstrap_ci(values)) for k, values in reached.items()},
        "chance_pass_at_k": {str(k): chance_pass_at_k(options_Q, k) for k in ks},
    }


def average(rows_by_part: Mapping[str, Sequence[Row]], *, seed: int = 0) -> Json:
    """The plain mean of the parts' accuracies, as published tables have it; its interval resamples each part.

    Parts without a counted answer are left out.
    """
    scores_by_part = {
        name: [float(row["correct"]) for row in rows if row["shown"] == "real" and not row["number"]
               and row["options"] and row["score"] is not None]
        for name, rows in rows_by_part.items()
    }  # fmt: skip
    kept = {name: values for name, values in scores_by_part.items() if values}
    draws = [
        bootstrap_means(np.array(values)[:, None], seed=seed + place)[:, 0]
        for place, values in enumerate(kept.values())
    ]
    means = [float(np.mean(values)) for values in kept.values()]
    return {
        "parts": list(kept),
        "accuracy": float(np.mean(means)),
        "ci95": list(percentile_interval(np.mean(draws, axis=0))),
    }


def completion(row: Row) -> Json:
    """A greedy row under the names of a run's completions.jsonl."""
    return {**row, "greedy": row["text"]}


def counts(values: Any) -> dict[str, int]:
    """How often each value comes, the most frequent first."""
    found: defaultdict[str, int] = defaultdict(int)
    for value in values:
        found[value] += 1
    return dict(sorted(found.items(), key=lambda pair: (-pair[1], pair[0])))
