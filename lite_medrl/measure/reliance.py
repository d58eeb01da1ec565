"""Does the model look at the image? The same questions with their image, a grey one, and another question's.

A model that answers alike whatever it is shown has read the question only, however often it is right (arXiv
2603.03437 found this in models trained by RL). That paper's names are used; its formulas were not at hand, so
these are ours:

* visual_reliance: accuracy with the own image minus accuracy with another one; at or below 0, the image was
  of no use. "blank" has the same against the grey image, and what remains there.
* image_sensitivity: share of questions whose answer changes with the grey image or with the other one.

Accuracies compare questions whose answers count under both images (a published rule may leave one out).
Letters: Q questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lite_medrl.measure.statistics import mcnemar, paired_bootstrap, wilson_ci

Row = Mapping[str, Any]
Json = dict[str, Any]


def reliance(rows: Sequence[Row], *, bootstrap_samples: int = 2000, seed: int = 0) -> Json | None:
    """The figures of one set of questions from their greedy rows; None where no other image was shown.

    Each condition is compared on the questions that have it. Fractions of 1, 95 % intervals.
    """
    by_shown: dict[str, dict[str, Row]] = {}
    for row in rows:
        by_shown.setdefault(row["shown"], {})[row["id"]] = row
    real = by_shown.pop("real", {})
    others = {name: by_shown[name] for name in ("blank", "shuffled") if name in by_shown}
    if not real or not others:
        return None
    settings = {"bootstrap_samples": bootstrap_samples, "seed": seed}
    found: dict[str, Any] = {
        name: figures for name, other in others.items() if (figures := against(real, other, **settings))
    }
    if "shuffled" in found:
        found["visual_reliance"] = found["shuffled"]["drop"]
        found["visual_reliance_ci95"] = found["shuffled"]["drop_ci95"]
    changed_Q = [
        any(said(row) != said(other[name]) for other in others.values() if name in other)
        for name, row in real.items()
        if any(name in other for other in others.values())
    ]
    found["image_sensitivity"] = float(np.mean(changed_Q))
    found["image_sensitivity_ci95"] = list(wilson_ci(sum(changed_Q), len(changed_Q)))
    found["unchanged_frac"] = 1.0 - found["image_sensitivity"]
    return found


def against(
    real: Mapping[str, Row], other: Mapping[str, Row], *, bootstrap_samples: int, seed: int
) -> Json | None:
    """One condition against the own image; None where no question counts under both."""
    both = [name for name in real if name in other]
    changed = [said(real[name]) != said(other[name]) for name in both]
    names = [name for name in both if counts(real[name]) and counts(other[name])]
    if not names:
        return None
    seen = [bool(real[name]["correct"]) for name in names]
    unseen = [bool(other[name]["correct"]) for name in names]
    drop = paired_bootstrap(unseen, seen, bootstrap_samples=bootstrap_samples, seed=seed)
    accuracy = float(np.mean(unseen))
    return {
        "n": len(names),
        "real_accuracy": float(np.mean(seen)),
        "accuracy": accuracy,
        "ci95": list(wilson_ci(sum(unseen), len(names))),
        "drop": drop.difference,
        "drop_ci95": list(drop.ci95),
        "drop_p": mcnemar(unseen, seen).p,
        "retained_frac": accuracy / float(np.mean(seen)) if any(seen) else None,
        "changed_frac": float(np.mean(changed)),
        "changed_ci95": list(wilson_ci(sum(changed), len(changed))),
    }


def counts(row: Row) -> bool:
    """Whether the rule has the answer in its mean."""
    return row.get("score", 0.0) is not None


def said(row: Row) -> str:
    """What an answer comes to: the option that was read, else its text."""
    return row["parsed"] if row["parsed"] is not None else "\0" + row["text"].strip()
