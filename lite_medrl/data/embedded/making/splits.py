"""Cuts an axis into contiguous train, test and validation blocks with guard steps between them."""

from __future__ import annotations

TRAIN, TEST, VALIDATION, GUARD = "train", "test", "validation", None


def blocks(pattern: list[tuple[str | None, int]], length: int) -> list[str | None]:
    """Split of each of `length` steps: the pattern of (split, steps), repeated; None is a guard step."""
    out: list[str | None] = []
    while len(out) < length:
        for split, steps in pattern:
            out.extend([split] * steps)
    return out[:length]
