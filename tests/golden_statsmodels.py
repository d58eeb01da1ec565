"""Writes what statsmodels says about random counts to golden_statsmodels.json, for test_statistics.py.

statsmodels, six packages of some 70 MB when installed, is no dependency for three formulas, so its words are
stored. To have them anew, from the project's folder:

    pip install --no-deps --target build/statsmodels statsmodels==0.15.0 patsy==1.0.3
    PYTHONPATH=build/statsmodels python tests/golden_statsmodels.py
"""

from __future__ import annotations

import json
import random
from importlib.metadata import version
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parent / "golden_statsmodels.json"
LARGEST = (5, 30, 300, 3_000)
CASES = 50  # of each size


def counts(seed: int = 0) -> tuple[list[tuple[int, int]], list[tuple[int, int, float]]]:
    """Random b and c of McNemar's test, not both 0; random hits, items and confidence of an interval."""
    draw = random.Random(seed)
    pairs, shares = [], []
    for largest in LARGEST:
        for _ in range(CASES):
            b, c = draw.randint(0, largest), draw.randint(0, largest)
            pairs.append((b, max(c, int(not b))))
            n = draw.randint(1, largest)
            shares.append((draw.randint(0, n), n, round(draw.uniform(0.5, 0.999), 3)))
    return pairs, shares


def words() -> dict[str, Any]:
    """What statsmodels says about these counts."""
    from statsmodels.stats.contingency_tables import mcnemar  # pyright: ignore
    from statsmodels.stats.proportion import proportion_confint  # pyright: ignore

    pairs, shares = counts()
    return {
        "statsmodels": version("statsmodels"),
        "mcnemar": [
            {
                "b": b,
                "c": c,
                "exact": float(mcnemar([[0, b], [c, 0]], exact=True).pvalue),
                "continuity": float(mcnemar([[0, b], [c, 0]], exact=False, correction=True).pvalue),
            }
            for b, c in pairs
        ],
        "wilson": [
            {"correct": k, "n": n, "confidence": level, "ci": [float(bound) for bound in ci]}
            for k, n, level in shares
            for ci in [proportion_confint(k, n, alpha=1 - level, method="wilson")]
        ],
    }


def main() -> None:
    """One case a line."""
    told = words()
    text = json.dumps(told).replace("[{", "[\n  {").replace("}, {", "},\n  {").replace("}], ", "}\n],\n")
    GOLDEN.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
