"""The figures of one benchmark, or of one of its parts, from the rows of answers.jsonl.

`accuracy` is by the protocol's own rule, over questions with options; what that rule leaves out of its mean
is left out here. Beside it stands what our rule says of the same texts. Open questions have their own block.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lite_medrl.measure.reliance import reliance
from lite_medrl.measure.scores import PARTS, scores
from lite_medrl.measure.statistics import bootstrap_ci, wilson_ci
from lite_medrl.measure.support import chance_pass_at_k, pass_at_k
from lite_medrl.measure.votes import maj_at_k, mean_at_k

Row = Mapping[str, Any]
Json = dict[str, Any]
SAMPLED = ("mean_at_k", "maj_at_k", "pass_at_k", "chance_pass_at_k")  # told where two models are compared


def summary(rows: Sequence[Row], *, seed: int = 0) -> Json:
    """All figures of these questions: "closed" with "sampled", and "open", each with its "reliance".

    Raises ValueError where no greedy answer to a question with its own image is among the rows.
    """
    greedy = [row for row in rows if row["number"] == 0]
    real = [row for row in greedy if row["shown"] == "real"]
    if not real:
        raise ValueError("needs the greedy answers with the questions' own images")
    found: Json = {"n": len(real)}
    for kind, figures in (("closed", closed_figures), ("open", open_figures)):
        some = [row for row in real if row["closed"] == (kind == "closed")]
        if some:
            found[kind] = figures(some, seed)
            which = [row for row in greedy if row["closed"] == (kind == "closed")]
            found[kind]["reliance"] = reliance(which, seed=seed)
    if drawn := sampled_figures([row for row in real if row["options"]], rows, seed):
        found["sampled"] = drawn
    return found


def closed_figures(rows: Sequence[Row], seed: int) -> Json:
    """Accuracy by the protocol with Wilson's interval, chance, parse failures, ours, and parts by label.

    What the protocol's rule leaves out of its mean is in `n`, but neither in `counted` nor in the parts.
    """
    counted = [row for row in rows if row["score"] is not None]
    right, ours = sum(row["correct"] for row in counted), sum(row["lite_v1"] for row in rows)
    failed = sum(row["failure"] is not None for row in rows)
    return {
        "n": len(rows),
        "counted": len(counted),
        "accuracy": right / len(counted) if counted else None,
        "ci95": list(wilson_ci(right, len(counted))) if counted else None,
        "chance": chance_pass_at_k([len(row["options"]) for row in rows], 1),
        "parse_failure_frac": failed / len(rows),
        "failures": tally(row["failure"] for row in rows if row["failure"]),
        "format_failure_frac": float(np.mean([not row["has_format"] for row in rows])),
        "lite_v1_accuracy": ours / len(rows),
        "lite_v1_ci95": list(wilson_ci(ours, len(rows))),
        **(parts_of(counted, seed) if counted else {}),
    }


def open_figures(rows: Sequence[Row], seed: int) -> Json:
    """Exact match, token F1 and recall (ours) with intervals, by label too; what the protocol reports."""
    counted = [row["score"] for row in rows if row["score"] is not None]
    names = sorted({name for row in rows for name in row["parts"]})
    failed = sum(row["failure"] is not None for row in rows)
    return {
        **scores([completion(row) for row in rows], seed=seed)["open"],
        "parse_failure_frac": failed / len(rows),
        "failures": tally(row["failure"] for row in rows if row["failure"]),
        "protocol_score": measured(counted, seed) if counted else None,
        "protocol_parts": {
            name: measured([row["parts"].get(name, 0.0) for row in rows], seed) for name in names
        },
        **parts_of(rows, seed),
    }


def parts_of(rows: Sequence[Row], seed: int) -> Json:
    """Figures by question type, modality and answer type."""
    found = scores([completion(row) for row in rows], seed=seed)
    return {f"by_{part}": found[f"by_{part}"] for part in PARTS}


def measured(values: Sequence[float], seed: int) -> Json:
    """A mean with its bootstrap interval, and n."""
    mean = float(np.mean(values))
    return {"mean": mean, "ci95": list(bootstrap_ci(values, seed=seed)), "n": len(values)}


def sampled_figures(asked: Sequence[Row], rows: Sequence[Row], seed: int = 0) -> Json | None:
    """mean@K, maj@K and Pass@K with its chance line, at K = 1, 2, 4, .. and all; None without samples.

    Args:
        asked: the greedy rows of the questions with options.
        rows: all rows.
    """
    drawn: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row["number"]:
            drawn[row["id"]].append(row)
    if not drawn or not asked:
        return None
    samples_Q = [sorted(drawn[row["id"]], key=lambda row: row["number"]) for row in asked]
    most = min(map(len, samples_Q))
    ks = sorted({k for i in range(most.bit_length()) if (k := 2**i) <= most} | {most})
    right_Q = [sum(row["correct"] for row in samples) for samples in samples_Q]
    number_Q = [len(samples) for samples in samples_Q]
    options_Q = [len(row["options"]) for row in asked]
    read_Q = [[row["parsed"] for row in samples] for samples in samples_Q]
    votes = {k: maj_at_k(read_Q, [row["answer"] for row in asked], k) for k in ks}
    reached = {k: pass_at_k(right_Q, number_Q, k) for k in ks}
    return {
        "n": len(asked),
        "num_samples": most,
        "mean_at_k": float(mean_at_k(right_Q, number_Q).mean()),
        "mean_at_k_ci95": list(bootstrap_ci(mean_at_k(right_Q, number_Q), seed=seed)),
        "maj_at_k": {str(k): vote.accuracy for k, vote in votes.items()},
        "maj_at_k_ci95": {str(k): list(bootstrap_ci(vote.score_Q, seed=seed)) for k, vote in votes.items()},
        "maj_at_k_tied_frac": {str(k): vote.tied_frac for k, vote in votes.items()},
        "pass_at_k": {str(k): float(values.mean()) for k, values in reached.items()},
        "pass_at_k_ci95": {str(k): list(bootstrap_ci(values, seed=seed)) for k, values in reached.items()},
        "chance_pass_at_k": {str(k): chance_pass_at_k(options_Q, k) for k in ks},
    }


def average(parts: Mapping[str, Json]) -> Json | None:
    """The plain mean of the parts' accuracies, as published tables have it; None where no part counts.

    Its interval comes from the parts' own Wilson intervals by the method of variance estimates recovery (Zou
    and Donner 2008, doi 10.1002/sim.3095), so it does not shrink to a point where a part has few questions.

    Args:
        parts: the closed figures by name; parts without a counted answer are left out.
    """
    kept = {name: found for name, found in parts.items() if found["counted"]}
    if not kept:
        return None
    mean_P = np.array([found["accuracy"] for found in kept.values()])
    low_P, high_P = np.array([found["ci95"] for found in kept.values()]).T
    mean, k = float(mean_P.mean()), len(kept)
    down, up = (float(np.sqrt(((side - mean_P) ** 2).sum())) / k for side in (low_P, high_P))
    return {
        "parts": list(kept),
        "n": sum(found["counted"] for found in kept.values()),
        "accuracy": mean,
        "ci95": [mean - down, mean + up],
    }


def completion(row: Row) -> Json:
    """A greedy row under the names of a run's completions.jsonl."""
    return {**row, "greedy": row["text"]}


def tally(values: Iterable[str]) -> dict[str, int]:
    """How often each value comes, the most frequent first."""
    return dict(Counter(values).most_common())
