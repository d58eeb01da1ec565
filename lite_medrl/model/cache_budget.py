"""How many bytes a rollout's keys and values take, and which prompts may be answered at the same time.

Counted before the first forward pass. A prompt takes room once, however many answers grow on it; an answer
takes room for its longest. What does not fit waits: prompts go in waves, and if one prompt's answers do not
fit together, they go in turns on the same prompt.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from lite_medrl.types import ModelError

USABLE = 0.8  # share of the free memory: the rest is for activations, logits and what the allocator wastes


class Wave(NamedTuple):
    """Prompts that are prefilled together, and how many answers to each grow at a time."""

    prompts: list[int]
    answers: int


def bytes_per_token(config: Any, dtype: torch.dtype) -> int:
    """Keys and values of one token in all layers that hold any."""
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    kinds = getattr(text, "layer_types", None) or ["full_attention"] * text.num_hidden_layers
    layers = sum(kind.endswith("attention") and kind != "linear_attention" for kind in kinds)
    return 2 * layers * heads * width * dtype.itemsize


def free_bytes(device: torch.device) -> int:
    """What a rollout may still take on this device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int((free + idle) * USABLE)
    return int(available_memory() * USABLE)


def available_memory() -> int:
    """Bytes of main memory that can be had without swapping; what the system does not tell is no limit."""
    try:
        with open("/proc/meminfo") as lines:
            found = next((line for line in lines if line.startswith("MemAvailable:")), "")
        return int(found.split()[1]) * 1024
    except (OSError, IndexError):
        names = os.sysconf_names if hasattr(os, "sysconf_names") else {}
        known = "SC_PHYS_PAGES" in names and "SC_PAGE_SIZE" in names
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if known else 2**62


def waves(
    length_P: Sequence[int], num_generations: int, max_new_tokens: int, *, token_bytes: int, budget_bytes: int
) -> list[Wave]:
    """All prompts in waves that stay within the budget, in order; prompts of a wave are padded to its
    longest.

    Raises:
        ModelError: a single answer to the longest prompt does not fit.
    """
    room = budget_bytes // token_bytes
    made: list[Wave] = []
    for p, length in enumerate(length_P):
        if length + max_new_tokens > room:
            raise ModelError(
                f"no room for answers: prompt {p} ({length} tokens) with one answer of {max_new_tokens} "
                f"takes {gib(token_bytes * (length + max_new_tokens))} of keys and values, but "
                f"{gib(budget_bytes)} may be used; raise max_cache_gib or free memory, or shorten "
                "max_completion_length or the images"
            )
        together = [*made[-1].prompts, p] if made else [p]
        if (
            made
            and made[-1].answers == num_generations
            and fits([length_P[i] for i in together], num_generations, max_new_tokens, room)
        ):
            made[-1] = Wave(together, num_generations)
        else:
            made.append(Wave([p], min(num_generations, (room - length) // max_new_tokens)))
    return made


def check_rows(rows: int, length: int, *, token_bytes: int, budget_bytes: int) -> None:
    """ModelError where transformers' cache, a whole row of `length` tokens for each answer, does not fit."""
    needed = rows * length * token_bytes
    if needed > budget_bytes:
        raise ModelError(
            f"no room for answers: transformers' generate holds {rows} rows of {length} tokens at once, "
            f"which takes {gib(needed)} of keys and values, but {gib(budget_bytes)} may be used; lower the "
            "batch size or num_generations, shorten max_completion_length, raise max_cache_gib or free memory"
        )


def fits(length_P: Sequence[int], answers: int, max_new_tokens: int, room: int) -> bool:
    """Whether these prompts and their answers take at most `room` tokens."""
    return len(length_P) * (max(length_P) + answers * max_new_tokens) <= room


def gib(count: float) -> str:
    """A number of bytes for people."""
    return f"{count / 2**30:.3g} GiB"
