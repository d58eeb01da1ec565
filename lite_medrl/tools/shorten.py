"""How far must a recipe be cut to fit into some minutes? Steps and questions shrink by one factor."""

from __future__ import annotations

from lite_medrl.sections import Recipe

QUICKSTART_MINUTES = (
    6.0  # examples/quickstart.yaml in full on two CPU cores (its results.json, seconds.total)
)
FEWEST = {
    "data.max_validation_samples": 40,
    "data.max_test_samples": 80,
    "sft.max_steps": 20,
    "grpo.max_steps": 10,
}


def shortened(recipe: Recipe, minutes: float) -> list[str]:
    """Overrides such as "grpo.max_steps=32" with which a run takes about `minutes`; none if nothing is cut.

    The measure is the quickstart on two CPU cores. Nothing falls below FEWEST or rises above the recipe's own
    value; a limit that the recipe does not set stays unset. ValueError unless minutes > 0.
    """
    if minutes <= 0:
        raise ValueError(f"minutes must be above 0, got {minutes}")
    share = min(1.0, minutes / QUICKSTART_MINUTES)
    found = []
    for key, fewest in FEWEST.items():
        section, _, name = key.partition(".")
        value = getattr(getattr(recipe, section), name)
        if value is not None and (cut := max(min(fewest, value), round(value * share))) < value:
            found.append(f"{key}={cut}")
    return found
