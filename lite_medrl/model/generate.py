"""Draws G answers for each prompt: the prompts pass through the model once, answers grow beside them.

Each token comes with its log-prob under the distribution that was really sampled, and under the model's own.
Every answer owns its random numbers, drawn from (seed, step, prompt key, g), so batch layout does not change
the samples. Image, pad and other special tokens are banned. The adapter is live: nothing is merged. Models
that `prefill.why_not` names go through transformers' own generate; the choice is logged once.

Letters: P prompts, G answers to a prompt, R rows = P x G, L prompt tokens.
"""

from __future__ import annotations

import logging
from collections import abc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from lite_medrl.model.cache_budget import bytes_per_token, check_rows, free_bytes, waves
from lite_medrl.model.decode import Chance, decode
from lite_medrl.model.encode import check_left_padded, special_ids, stop_ids
from lite_medrl.model.folded import folded
from lite_medrl.model.hf_generate import hf_generate
from lite_medrl.model.kv_cache import shared_attention
from lite_medrl.model.packed import base_of
from lite_medrl.model.prefill import prefill, replaced, why_not
from lite_medrl.model.prompt_images import as_weights, join_images, split_images, with_equal_images
from lite_medrl.model.prompt_length import context_of, too_long
from lite_medrl.model.sampling import Sampling, check, seen_tokens, uniforms
from lite_medrl.model.stops import Growing, completions, make_stops
from lite_medrl.model.tree_mask import device_of, mask_dtype
from lite_medrl.types import Completion, RecipeError

__all__ = ["Generator", "Sampling", "generate"]

log = logging.getLogger(__name__)

Generator = Literal["grouped", "hf"]
Steps = abc.Generator[list[int], None, None]  # the numbers of the answers that grew, step after step


@torch.no_grad()
def generate(
    model: Any,
    processor: Any,
    inputs: Mapping[str, Tensor],
    *,
    num_generations: int,
    sampling: Sampling,
    seed: int = 0,
    step: int = 0,
    keys_P: Sequence[int] | None = None,
    greedy_first: bool = False,
    generator: Generator = "grouped",
    max_cache_gib: float | None = None,
) -> list[list[Completion]]:
    """G completions for each of P prompts.

    Args:
        inputs: left-padded model inputs of the P prompts (`encode_prompts`).
        keys_P: a number that names each prompt in the random streams; 0, 1, .. when left out.
        greedy_first: the first completion of every prompt takes the likeliest tokens (diagnose needs both
            kinds).
        generator: "grouped" is ours, "hf" transformers' own.
        max_cache_gib: keys and values held at once; None takes most of what is free.

    Returns:
        P lists of G completions; token ids include the end token.

    Raises:
        RecipeError: a sampling option without meaning, a stop string that this tokenizer cannot write.
        DataError: a prompt that fills the model's context. ModelError: no memory for one answer ("hf": for
            all answers together).
    """
    count = len(inputs["input_ids"])
    asked = Asked(num_generations, sampling, seed, step, list(keys_P or range(count)), greedy_first)
    with answering(model):
        rollout = start(model, processor, inputs, asked, generator, max_cache_gib)
        with closing(rollout.steps) as steps:
            for _ in steps:
                pass
    rows = completions(processor.tokenizer, rollout.answers)
    return [rows[i : i + num_generations] for i in range(0, len(rows), num_generations)]


class Asked:
    """What is drawn for P prompts: how many answers each, and by which random streams."""

    def __init__(
        self,
        num_generations: int,
        sampling: Sampling,
        seed: int,
        step: int,
        keys_P: list[int],
        greedy_first: bool,
    ) -> None:
        if num_generations < 1:
            raise RecipeError(f"num_generations={num_generations}: must be 1 or more")
        check(sampling)
        self.num_generations, self.sampling, self.greedy_first = num_generations, sampling, greedy_first
        self.seed, self.step, self.keys_P = seed, step, keys_P


class Rollout:
    """Answers that grow while `steps` is walked through; each step yields the numbers of those that grew.

    Whoever stops early closes `steps`, which hold the model's layers and attention as they need them.
    """

    def __init__(self, answers: list[Growing], steps: Steps) -> None:
        self.answers, self.steps = answers, steps


@contextmanager
def answering(model: Any) -> Iterator[None]:
    """The model in evaluation mode in here; afterwards, or after Ctrl-C, it is as it was."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def start(
    model: Any,
    processor: Any,
    inputs: Mapping[str, Tensor],
    asked: Asked,
    generator: Generator = "grouped",
    max_cache_gib: float | None = None,
) -> Rollout:
    """Checks everything that can be wrong, and returns answers that nothing has been drawn for yet."""
    base = base_of(model)
    inputs = as_weights(base, inputs)
    stops = make_stops(processor.tokenizer, stop_ids(processor, base), asked.sampling.stop)
    length_P = inputs["attention_mask"].sum(1).tolist()
    check_left_padded(inputs["attention_mask"])
    limit_P = [limit(base, p, length, asked.sampling.max_new_tokens) for p, length in enumerate(length_P)]
    answers = [Growing(stops, limit) for limit in limit_P for _ in range(asked.num_generations)]
    device, token_bytes = device_of(base), bytes_per_token(base.config, mask_dtype(base))
    budget = free_bytes(device) if max_cache_gib is None else int(max_cache_gib * 2**30)
    if generator == "hf" or not treats(base, inputs):
        longest = inputs["input_ids"].shape[1] + max(limit_P)
        check_rows(len(answers), longest, token_bytes=token_bytes, budget_bytes=budget)
        return Rollout(answers, by_transformers(model, processor, inputs, asked, answers))
    order = image_order(base, inputs)
    planned = waves(
        [length_P[p] for p in order],
        asked.num_generations,
        max(limit_P),
        token_bytes=token_bytes,
        budget_bytes=budget,
    )
    if len(planned) > 1:
        log.info("answers to %d prompts are drawn in %d waves (max_cache_gib)", len(order), len(planned))
    parts = [(sorted(order[i] for i in wave.prompts), wave.answers) for wave in planned]
    return Rollout(answers, in_waves(model, processor, inputs, asked, parts, answers))


def limit(base: Any, p: int, length: int, max_new_tokens: int) -> int:
    """How many tokens an answer may have; DataError for a prompt that fills the model's context."""
    context = context_of(base) or length + max_new_tokens
    if length >= context:
        raise too_long(f"prompt {p}", length, context)
    return min(max_new_tokens, context - length)


_SAID: set[str] = set()  # reasons that have been logged


def treats(base: Any, inputs: Mapping[str, Tensor]) -> bool:
    """Whether our own decoding serves this model; the reason why not is logged once."""
    reason = why_not(base.config, inputs) or replaced(base)
    if reason and reason not in _SAID:
        _SAID.add(reason)
        log.info("%s: answers are drawn by transformers' generate (%s)", base.config.model_type, reason)
    return reason is None


def image_order(base: Any, inputs: Mapping[str, Tensor]) -> list[int]:
    """The prompts, those of one image next to each other, so that a wave holds them together."""
    if getattr(base.config, "image_token_id", None) is None or inputs.get("pixel_values") is None:
        return list(range(len(inputs["input_ids"])))
    return [p for alike in with_equal_images(split_images(base.config, inputs)) for p in alike]


def in_waves(
    model: Any,
    processor: Any,
    inputs: Mapping[str, Tensor],
    asked: Asked,
    parts: Sequence[tuple[list[int], int]],
    answers: Sequence[Growing],
) -> Steps:
    """Prefill and decoding, wave after wave."""
    base, size = base_of(model), asked.num_generations
    with folded(model):
        for prompts, together in parts:
            some = some_prompts(base, inputs, prompts) if len(parts) > 1 else inputs
            prefix = prefill(base, some)
            for first in range(0, size, together):
                numbers = range(first, min(first + together, size))
                names = [p * size + g for p in prompts for g in numbers]
                chance = draws(base, processor, some, asked, prompts, numbers)
                with shared_attention(base):
                    for grown in decode(base, prefix, [answers[n] for n in names], chance):
                        yield [names[i] for i in grown]
            del prefix
    if device_of(base).type == "cuda":
        torch.cuda.empty_cache()  # the graphs' pool goes back before the update


def draws(
    base: Any,
    processor: Any,
    inputs: Mapping[str, Tensor],
    asked: Asked,
    prompts: Sequence[int],
    numbers: range,
) -> Chance:
    """The random numbers, bans and penalties of these prompts' answers `numbers`."""
    device, sampling = device_of(base), asked.sampling
    keys = [asked.keys_P[p] for p in prompts]
    vocabulary = base.get_output_embeddings().weight.shape[0]
    seen_PV = None
    if sampling.repetition_penalty != 1.0:
        seen_PV = seen_tokens(inputs["input_ids"], inputs["attention_mask"], vocabulary)
    greedy_R = torch.tensor([g == 0 for _ in prompts for g in numbers], device=device)
    return Chance(
        sampling,
        uniforms(asked.seed, asked.step, keys, numbers, sampling.max_new_tokens).to(device),
        torch.tensor([i for i in special_ids(processor, base) if i < vocabulary], device=device),
        greedy_R if asked.greedy_first else None,
        seen_PV,
    )


def some_prompts(base: Any, inputs: Mapping[str, Tensor], prompts: Sequence[int]) -> dict[str, Tensor]:
    """The inputs of some prompts, with their images."""
    rows = torch.tensor(prompts, device=inputs["input_ids"].device)
    some = {key: inputs[key][rows] for key in ("input_ids", "attention_mask")}
    if inputs.get("pixel_values") is None:
        return some
    images_P = split_images(base.config, inputs)
    return some | join_images([images_P[p] for p in prompts])


def by_transformers(
    model: Any,
    processor: Any,
    inputs: Mapping[str, Tensor],
    asked: Asked,
    answers: Sequence[Growing],
) -> Steps:
    """All answers in one step, through `model.generate`."""
    prompts, numbers = range(len(inputs["input_ids"])), range(asked.num_generations)
    chance = draws(base_of(model), processor, inputs, asked, prompts, numbers)
    hf_generate(model, inputs, answers, chance, pad_token_id=processor.tokenizer.pad_token_id)
    yield list(range(len(answers)))
