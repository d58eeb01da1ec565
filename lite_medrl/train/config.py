"""`GRPOConfig` and `SFTConfig`: TRL's, with the few options that only our trainers have.

TRL's own configs work as they are; the options below then keep their defaults.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import trl

from lite_medrl.model.score import MAX_TREE_TOKENS

MODES = ("auto", "required", "off")
GENERATORS = ("grouped", "hf")


def option(default: Any, help: str) -> Any:
    """A field as TRL's configs declare theirs."""
    return field(default=default, metadata={"help": help})


@dataclass
class SFTConfig(trl.SFTConfig):
    """TRL's SFTConfig and how rows of one image share it."""

    prefix_tree: str = option(
        "auto",
        "Rows that show one image share it: 'auto' where the model allows it, 'required' fails where it does "
        "not, 'off' never.",
    )
    max_tree_tokens: int = option(
        MAX_TREE_TOKENS, "Tokens of one packed row, and of packed rows that go through the model together."
    )
    group_by_image: bool = option(
        False, "Draw the rows of one image one after the other, so that a batch holds them together."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self)


@dataclass
class GRPOConfig(trl.GRPOConfig):
    """TRL's GRPOConfig, how completions share their prompt, and what happens to groups of equal rewards."""

    prefix_tree: str = option(
        "auto",
        "Completions share their prompt, and questions their image: 'auto' where the model allows it, "
        "'required' fails where it does not, 'off' never in training (rollouts have their own way).",
    )
    max_tree_tokens: int = option(
        MAX_TREE_TOKENS, "Tokens of one packed row, and of packed rows that go through the model together."
    )
    group_by_image: bool = option(
        False, "Draw the questions about one image one after the other, so that a batch holds them together."
    )
    resample_rounds: int = option(
        0,
        "Groups whose rewards are all equal are replaced by groups of fresh prompts, asked in at most so "
        "many rounds; 0 leaves them out of the update instead.",
    )

    generator: str = option(
        "grouped",
        "Who draws the completions: 'grouped' (ours: each prompt passes through the model once) or 'hf' "
        "(transformers' generate). `use_vllm` goes to TRL's vLLM instead.",
    )
    max_cache_gib: float | None = option(
        None, "Keys and values that a rollout may hold at once; left out, most of the memory that is free."
    )

    stop: list[str] | None = field(
        default=None,
        metadata={
            "help": "Texts that end a completion, which keeps them; vLLM's are in `generation_kwargs`."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self)
        if self.stop and self.use_vllm:
            raise ValueError("stop and use_vllm=True: give vLLM its stops in generation_kwargs")
        if self.stop and self.mask_truncated_completions:
            raise ValueError(
                "stop and mask_truncated_completions=True: TRL takes a stopped one for truncated"
            )
        if self.generator not in GENERATORS:
            raise ValueError(f"generator={self.generator!r}: must be one of {', '.join(GENERATORS)}")
        if self.generator == "hf" and self.use_vllm:
            raise ValueError("generator='hf' and use_vllm=True: choose one of them")
        if self.max_cache_gib is not None and not self.max_cache_gib > 0:
            raise ValueError(f"max_cache_gib={self.max_cache_gib}: must be above 0, or None")
        if self.resample_rounds < 0:
            raise ValueError(f"resample_rounds={self.resample_rounds}: must be 0 or more")
        if self.resample_rounds and (
            self.scale_rewards == "batch" or self.multi_objective_aggregation != "sum_then_normalize"
        ):
            raise ValueError(
                f"resample_rounds={self.resample_rounds}: advantages that are relative to the batch "
                f"(scale_rewards={self.scale_rewards!r}, multi_objective_aggregation="
                f"{self.multi_objective_aggregation!r}) cannot be put together from several rounds"
            )


def check(config: SFTConfig | GRPOConfig) -> None:
    """ValueError for values that the options common to both cannot have."""
    if config.prefix_tree not in MODES:
        raise ValueError(f"prefix_tree={config.prefix_tree!r}: must be one of {', '.join(MODES)}")
    if config.max_tree_tokens < 1:
        raise ValueError(f"max_tree_tokens={config.max_tree_tokens}: must be 1 or more")


def rollout_options(args: Any) -> dict[str, Any]:
    """What `generate` takes of a config, which may be TRL's."""
    return {
        "generator": getattr(args, "generator", "grouped"),
        "max_cache_gib": getattr(args, "max_cache_gib", None),
    }


def tree_options(args: Any) -> dict[str, Any]:
    """What `score` takes of a config, which may be TRL's."""
    return {
        "prefix_tree": getattr(args, "prefix_tree", "auto"),
        "max_tree_tokens": getattr(args, "max_tree_tokens", MAX_TREE_TOKENS),
    }
