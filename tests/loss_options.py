"""Options of `grpo_loss` for tests that go through every loss type with one set of them."""

from __future__ import annotations

from typing import Any

from medrl_kernels.dispatch import foreign_options


def heard(options: dict[str, Any]) -> dict[str, Any]:
    """The options without those that their loss type has not."""
    foreign = foreign_options(options.get("loss_type", "dapo"))
    return {name: value for name, value in options.items() if name not in foreign}
