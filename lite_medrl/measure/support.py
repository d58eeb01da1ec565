"""Is the right answer within the model's reach? Acc@1 against Pass@K, above what guessing reaches.

Support is Pass@K, the chance that at least one of K sampled answers is right. Sharpening (RL) raises Acc@1
towards it, bridging (SFT) raises support itself (arXiv 2603.01301). Two things differ
from that paper: Pass@K is the unbiased estimator over n >= K samples instead of "any of exactly K", and the
rule looks at support above chance, (S - C) / (1 - C): guessing alone has a Pass@16 of 0.99 on four options.
Letters: Q items (questions).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lite_medrl.measure.statistics import Interval, bootstrap_means, percentile_interval, wilson_ci
from lite_medrl.types import Sample


@dataclass(frozen=True, slots=True)
class Support:
    """One diagnosis. `support` is corrected for chance at K = `rule_k`; `gap` is Pass@rule_k - Acc@1.

    Fractions of 1; 95 % intervals are Wilson's for Acc@1, by bootstrap over the items for the others;
    `max_chance` is the limit that chose `rule_k`.
    """

    n: int
    acc_at_1: float
    acc_at_1_ci95: Interval
    pass_at_k: Mapping[int, float]
    pass_at_k_ci95: Mapping[int, Interval]
    chance_pass_at_k: Mapping[int, float]
    support: float
    support_ci95: Interval
    rule_k: int
    gap: float
    format_failure_frac: float
    by_kind: Mapping[str, Mapping[str, float]]
    by_modality: Mapping[str, Mapping[str, float]]
    max_chance: float

    def to_json(self) -> dict[str, Any]:
        """The stage fields of results.json: keys of Pass@K as strings, intervals as lists."""
        fields = {name: value for name, value in asdict(self).items() if name != "max_chance"}
        for name in ("pass_at_k", "pass_at_k_ci95", "chance_pass_at_k"):
            fields[name] = {str(k): _plain(value) for k, value in fields[name].items()}
        return {name: _plain(value) for name, value in fields.items()}


def pass_at_k(num_correct_Q: ArrayLike, num_samples: ArrayLike, k: int) -> np.ndarray:
    """Chance that k of an item's n samples hold a right one: 1 - C(n - c, k) / C(n, k), float64 [Q], 0 to 1.

    Unbiased for k <= n (arXiv 2107.03374, eq. 1). A product of k ratios: nothing overflows.
    `num_samples` is one n or one an item. Raises ValueError for k outside 1..n or a count outside 0..n.
    """
    correct, samples = np.broadcast_arrays(
        np.asarray(num_correct_Q, np.int64), np.asarray(num_samples, np.int64)
    )
    if not 1 <= k <= samples.min(initial=k):
        raise ValueError(f"Pass@{k} needs k of 1 or more and at least k samples an item, got {samples.min()}")
    if ((correct < 0) | (correct > samples)).any():
        raise ValueError("the number of right samples must lie between 0 and the number of samples")
    taken_K = np.arange(k)
    wrong_QK = (samples - correct)[
        ..., None
    ] - taken_K  # reaches 0 where fewer than k are wrong: no draw misses
    return 1.0 - (wrong_QK / (samples[..., None] - taken_K)).prod(-1)


def chance_pass_at_k(option_count_Q: ArrayLike, k: int) -> float:
    """Pass@K of guessing, 1 - (1 - 1/m)^K, averaged over the items' own numbers of options m.

    m = 0 is an open question, which guessing never hits. Raises ValueError without items or for m < 0.
    """
    return float(_chance_Q(option_count_Q, k).mean())


def corrected_support(reached: float, chance: float) -> float:
    """(S - C) / (1 - C): 0 is guessing, 1 is always within reach. 0.0 where C = 1: nothing shows there."""
    return float(_corrected(np.float64(reached), np.float64(chance)))


def rule_k(option_count_Q: ArrayLike, ks: Sequence[int], max_chance: float = 0.7) -> int:
    """The K at which the rule reads support: the largest of `ks` whose chance line stays under `max_chance`.

    Near a chance line of 1 the corrected value is noise. Where no K stays under it, the smallest is taken.
    """
    if not ks or min(ks) < 1:
        raise ValueError(f"needs at least one K, each 1 or more, got {list(ks)}")
    return max((k for k in ks if chance_pass_at_k(option_count_Q, k) < max_chance), default=min(ks))


def diagnose(
    greedy_correct_Q: ArrayLike,
    num_correct_Q: ArrayLike,
    num_samples: int,
    option_count_Q: ArrayLike,
    *,
    format_failure_Q: ArrayLike,
    kind_Q: Sequence[str],
    modality_Q: Sequence[str],
    ks: Sequence[int] = (1, 2, 4, 8, 16),
    max_chance: float = 0.7,
    bootstrap_samples: int = 2000,
    seed: int = 0,
) -> Support:
    """Acc@1, Pass@K with its chance line, corrected support and their intervals for one model on one split.

    Args:
        greedy_correct_Q: whether the greedy answer is right.
        num_correct_Q: how many of `num_samples` sampled answers are right.
        option_count_Q: options of each item (0: open question).
        format_failure_Q: whether the format was broken, or the share of the item's answers that broke it.
        kind_Q, modality_Q: labels by which Acc@1 is split up.

    Acc@1 has Wilson's interval, which keeps its width where all answers are right; the others share a set of
    bootstrap samples. `rule_k` is chosen once, on all items.
    Raises ValueError where lengths differ, there are no items, or a K is above `num_samples`.
    """
    greedy, failed = np.asarray(greedy_correct_Q, np.float64), np.asarray(format_failure_Q, np.float64)
    _check_lengths(greedy, num_correct_Q, option_count_Q, failed, kind_Q, modality_Q)
    ks = sorted(set(ks))
    chosen = rule_k(option_count_Q, ks, max_chance)
    pass_QK = np.stack([pass_at_k(num_correct_Q, num_samples, k) for k in ks], axis=1)
    chance_Q = _chance_Q(option_count_Q, chosen)
    columns_QM = np.column_stack([pass_QK, chance_Q])
    draws_RM = bootstrap_means(columns_QM, bootstrap_samples=bootstrap_samples, seed=seed)
    at_k = ks.index(chosen)
    means = columns_QM.mean(0)
    return Support(
        n=len(greedy),
        acc_at_1=float(greedy.mean()),
        acc_at_1_ci95=wilson_ci(int(greedy.sum()), len(greedy)),
        pass_at_k={k: float(means[i]) for i, k in enumerate(ks)},
        pass_at_k_ci95={k: percentile_interval(draws_RM[:, i]) for i, k in enumerate(ks)},
        chance_pass_at_k={k: chance_pass_at_k(option_count_Q, k) for k in ks},
        support=corrected_support(means[at_k], means[-1]),
        support_ci95=percentile_interval(_corrected(draws_RM[:, at_k], draws_RM[:, -1])),
        rule_k=chosen,
        gap=float(means[at_k] - greedy.mean()),
        format_failure_frac=float(failed.mean()),
        by_kind=_accuracy_by(kind_Q, greedy),
        by_modality=_accuracy_by(modality_Q, greedy),
        max_chance=max_chance,
    )


def majority_baseline(train_samples: Sequence[Sample], test_samples: Sequence[Sample]) -> np.ndarray:
    """Which test items the commonest answer gets right, without a look at the image: bool [Q].

    For every kind of question the answers of the training samples are counted; of an item's options the most
    frequent one is given, the first where several are (so the first option for a kind never seen). An open
    question gets the commonest answer of its kind.
    """
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for sample in train_samples:
        counts[sample.kind][sample.answer] += 1
    return np.array([_commonest(s.options, counts[s.kind]) == s.answer for s in test_samples], dtype=bool)


def _commonest(options: Sequence[str], counts: Counter[str]) -> str | None:
    return max(options or counts, key=counts.__getitem__, default=None)


def _chance_Q(option_count_Q: ArrayLike, k: int) -> np.ndarray:
    counts = np.asarray(option_count_Q, np.float64)
    if counts.ndim != 1 or not len(counts) or (counts < 0).any():
        raise ValueError("needs the number of options of at least one item, none below 0")
    return np.where(counts > 0, 1.0 - (1.0 - 1.0 / np.maximum(counts, 1.0)) ** k, 0.0)


def _corrected(reached: np.ndarray | np.float64, chance: np.ndarray | np.float64) -> np.ndarray:
    room = 1.0 - np.asarray(chance)
    return np.where(room > 0, (reached - chance) / np.where(room > 0, room, 1.0), 0.0)


def _check_lengths(greedy: np.ndarray, *others: ArrayLike | Sequence[str]) -> None:
    lengths = [len(np.asarray(column)) for column in (greedy, *others)]
    if len(set(lengths)) > 1 or not lengths[0]:
        raise ValueError(
            f"needs one entry an item in every column and at least one item, got lengths {lengths}"
        )


def _accuracy_by(label_Q: Sequence[str], greedy: np.ndarray) -> dict[str, dict[str, float]]:
    labels = np.asarray(label_Q)
    groups = {str(label): greedy[labels == label] for label in sorted(set(label_Q))}
    return {label: {"n": len(right), "acc_at_1": float(right.mean())} for label, right in groups.items()}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
