"""A decision says what the rule asks for, what the run does within the recipe's limits, and why."""

from __future__ import annotations

import itertools

import pytest

from lite_medrl.measure.rule import Limits, decide
from lite_medrl.measure.support import Support, corrected_support
from lite_medrl.tools.report.words import decided

CHANCE = {1: 0.3, 2: 0.516, 4: 0.747}


def measured(support: float, interval: tuple[float, float] = (0.9, 0.9)) -> Support:
    """A diagnosis with this corrected support at K = 2."""
    reached = support * (1 - CHANCE[2]) + CHANCE[2]
    assert corrected_support(reached, CHANCE[2]) == pytest.approx(support)
    passed = {1: 0.3, 2: reached, 4: 0.8}
    return Support(
        n=4, acc_at_1=0.3, acc_at_1_ci95=(0.2, 0.4), pass_at_k=passed, pass_at_k_ci95={}, rule_k=2, gap=0.1,
        chance_pass_at_k=CHANCE, support=support, support_ci95=interval, format_failure_frac=0.0, by_kind={},
        by_modality={}, max_chance=0.7,
    )  # fmt: skip


def first_sentence(why: str) -> str:
    return why.partition(" Left out")[0]


WEAK = (
    "Support above chance is -0.050 at K = 2, below the threshold of 0.500 (Pass@2 0.492, chance line 0.516)"
)
THERE = (
    "Support above chance is 0.500 at K = 2, at or above the threshold of 0.500 "
    "(Pass@2 0.758, chance line 0.516)"
)
# support, rounds done, rounds allowed, GRPO on -> rule, action, in a few words, the sentence
CASES = {
    "weak, a first round": (
        (-0.05, 0, 2, True), "sft", "sft", "SFT, as the rule asks",
        f"{WEAK}, so the rule asks for SFT, and round 1 of at most 2 follows.",
    ),
    "weak, a second round": (
        (-0.05, 1, 2, False), "sft", "sft", "SFT, as the rule asks",
        f"{WEAK}, so the rule asks for SFT again, and round 2 of at most 2 follows.",
    ),
    "weak, the one round used up": (
        (-0.05, 1, 1, True), "sft", "grpo", "GRPO, though the rule asks for SFT",
        f"{WEAK}, so the rule asks for SFT again, but the recipe's one round of SFT is used up "
        "(sft.max_rounds = 1) and GRPO begins with support still below the threshold.",
    ),
    "weak, three rounds used up": (
        (-0.05, 3, 3, True), "sft", "grpo", "GRPO, though the rule asks for SFT",
        f"{WEAK}, so the rule asks for SFT again, but the recipe's 3 rounds of SFT are used up "
        "(sft.max_rounds = 3) and GRPO begins with support still below the threshold.",
    ),
    "weak, no SFT": (
        (-0.05, 0, 0, True), "sft", "grpo", "GRPO, though the rule asks for SFT",
        f"{WEAK}, so the rule asks for SFT, but the recipe has none (sft.max_rounds = 0) "
        "and GRPO begins with support below the threshold.",
    ),
    "weak, used up, no GRPO": (
        (-0.05, 1, 1, False), "sft", "stop", "nothing more is trained, though the rule asks for SFT",
        f"{WEAK}, so the rule asks for SFT again, but the recipe's one round of SFT is used up "
        "(sft.max_rounds = 1) and GRPO is off (grpo.enabled = false): the run ends here.",
    ),
    "weak, nothing is to be trained": (
        (-0.05, 0, 0, False), "sft", "stop", "nothing is trained; the rule asks for SFT",
        f"{WEAK}, so the rule asks for SFT; this is a diagnosis, which trains nothing.",
    ),
    "there, nothing is to be trained": (
        (0.5, 0, 0, False), "grpo", "stop", "nothing is trained; the rule asks for GRPO",
        f"{THERE}, so the rule asks for GRPO; this is a diagnosis, which trains nothing.",
    ),
    "there": (
        (0.5, 0, 1, True), "grpo", "grpo", "GRPO, as the rule asks",
        f"{THERE}, so the rule asks for GRPO, which follows.",
    ),
    "there, no GRPO": (
        (0.5, 0, 1, False), "grpo", "stop", "nothing is trained; the rule asks for GRPO",
        f"{THERE}, so the rule asks for GRPO, but GRPO is off (grpo.enabled = false): the run ends here.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_the_rule_asks_and_what_the_run_does(case: str) -> None:
    (support, rounds, allowed, grpo), rule, action, told, sentence = CASES[case]
    found = decide(measured(support), 0.5, Limits(rounds, allowed, grpo))
    assert (found.rule, found.action) == (rule, action)
    assert first_sentence(found.why) == sentence
    assert decided({"after": "sft" if rounds else "base"} | found.to_json()) == told


def test_the_action_always_lies_within_the_limits() -> None:
    for support, rounds, allowed, grpo in itertools.product(
        (-1.2, 0.2, 0.9), (0, 1, 2), (0, 1, 2), (True, False)
    ):
        if rounds > allowed:
            continue
        found = decide(measured(support), 0.5, Limits(rounds, allowed, grpo))
        assert found.rule == ("grpo" if support >= 0.5 else "sft")
        assert found.action != "sft" or (found.rule == "sft" and rounds < allowed)
        assert found.action != "grpo" or grpo
        assert found.action != "stop" or not grpo


def test_the_row_of_results_json() -> None:
    found = decide(measured(0.6), 0.6)
    assert found.to_json() == {
        "rule": "grpo", "action": "grpo", "why": found.why, "support": 0.6, "threshold": 0.6, "rule_k": 2,
    }  # fmt: skip
    assert decide(measured(0.6), 0.601).rule == "sft"
    for threshold in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="between 0 and 1"):
            decide(measured(0.6), threshold)


def test_what_is_to_be_doubted() -> None:
    why = decide(measured(0.25, (0.2, 0.3)), 0.22).why
    assert (
        "The 95 % interval, 0.200 to 0.300, holds the threshold: other questions may decide otherwise." in why
    )
    assert "interval" not in decide(measured(0.25, (0.2, 0.3)), 0.5).why
    assert why.endswith("Left out, as guessing alone reaches 0.70 or more there: K = 4.")
