"""What is trained next? The rule reads support, the recipe's limits may stand against it, `why` says both.

The rule is that of arXiv 2603.01301 on support above chance: GRPO sharpens where the right answer is within
reach, SFT bridges where it is not.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from lite_medrl.measure.support import Support

Training = Literal["sft", "grpo"]


@dataclass(frozen=True, slots=True)
class Decision:
    """`rule`: what the rule asks for. `action`: what the run does, "stop" being nothing more; `why` in words.

    They differ where the rounds of SFT are used up, GRPO is off, or the run is a diagnosis.
    """

    rule: Training
    action: Training | Literal["stop"]
    why: str
    support: float
    threshold: float
    rule_k: int

    def to_json(self) -> dict[str, Any]:
        """The fields as a dict, ready for a row of "decisions" in results.json."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Limits:
    """What the recipe lets follow: `rounds` of SFT are done, `max_rounds` allowed, GRPO is on or off."""

    rounds: int = 0
    max_rounds: int = 1
    grpo_enabled: bool = True

    @property
    def sft_left(self) -> bool:
        """Whether another round of SFT may follow."""
        return self.rounds < self.max_rounds

    @property
    def trains(self) -> bool:
        """Whether anything may be trained at all; where not, the run is a diagnosis."""
        return self.max_rounds > 0 or self.grpo_enabled


def decide(support: Support, threshold: float, limits: Limits | None = None) -> Decision:
    """What the rule asks for, and what follows within the limits (by default a first round of SFT, and GRPO).

    Raises ValueError for a threshold outside (0, 1).
    """
    if not 0 < threshold < 1:
        raise ValueError(f"threshold must lie between 0 and 1, got {threshold}")
    limits = limits or Limits()
    rule: Training = "grpo" if support.support >= threshold else "sft"
    action = _action(rule, limits)
    sentence = f"{_measured(support, threshold)}, {_followed(rule, action, limits)}."
    why = " ".join([sentence, *_doubt(support, threshold), *_about_k(support)])
    return Decision(rule, action, why, support.support, threshold, support.rule_k)


def _action(rule: Training, limits: Limits) -> Training | Literal["stop"]:
    if rule == "sft" and limits.sft_left:
        return "sft"
    return "grpo" if limits.grpo_enabled else "stop"


def _measured(support: Support, threshold: float) -> str:
    k, side = support.rule_k, "at or above" if support.support >= threshold else "below"
    return (
        f"Support above chance is {support.support:.3f} at K = {k}, {side} the threshold of {threshold:.3f} "
        f"(Pass@{k} {support.pass_at_k[k]:.3f}, chance line {support.chance_pass_at_k[k]:.3f})"
    )


def _followed(rule: Training, action: str, limits: Limits) -> str:
    """The end of the sentence: what the rule asks for, what stands against it, what follows."""
    again = " again" if rule == "sft" and limits.rounds else ""
    asked = f"so the rule asks for {rule.upper()}{again}"
    if not limits.trains:
        return f"{asked}; this is a diagnosis, which trains nothing"
    if action == rule == "sft":
        return f"{asked}, and round {limits.rounds + 1} of at most {limits.max_rounds} follows"
    if action == rule:
        return f"{asked}, which follows"
    against = [_spent(limits)] if rule == "sft" else []
    if action == "stop":
        against.append("GRPO is off (grpo.enabled = false)")
        return f"{asked}, but {' and '.join(against)}: the run ends here"
    still = " still" if limits.rounds else ""
    return f"{asked}, but {against[0]} and GRPO begins with support{still} below the threshold"


def _spent(limits: Limits) -> str:
    if not limits.max_rounds:
        return "the recipe has none (sft.max_rounds = 0)"
    rounds = "one round of SFT is" if limits.max_rounds == 1 else f"{limits.max_rounds} rounds of SFT are"
    return f"the recipe's {rounds} used up (sft.max_rounds = {limits.max_rounds})"


def _doubt(support: Support, threshold: float) -> list[str]:
    low, high = support.support_ci95
    if not low < threshold <= high:
        return []
    interval = f"{low:.3f} to {high:.3f}"
    return [f"The 95 % interval, {interval}, holds the threshold: other questions may decide otherwise."]


def _about_k(support: Support) -> list[str]:
    limit, chance = support.max_chance, support.chance_pass_at_k[support.rule_k]
    if chance >= limit:
        return [
            f"No K keeps the chance line under {limit:.2f}, so the smallest is used: take the value as noisy."
        ]
    larger = [str(k) for k in support.pass_at_k if k > support.rule_k]
    if not larger:
        return []
    return [f"Left out, as guessing alone reaches {limit:.2f} or more there: K = {', '.join(larger)}."]
