"""Puts questions to a model and reads the answers: a greedy one and n sampled ones for every question."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lite_medrl.data.answers import Answer, is_gold, parse
from lite_medrl.data.prompts import INSTRUCTION
from lite_medrl.model.encode import encode_prompts
from lite_medrl.model.generate import Generator, Sampling, generate
from lite_medrl.model.prompt_length import check_prompt_lengths
from lite_medrl.sections import Recipe, Rollout
from lite_medrl.types import Sample


@dataclass(frozen=True, slots=True)
class Asked:
    """What came back for one question; `sampled`: each sampled answer as it was read, None for a failure."""

    sample: Sample
    greedy: str
    answer: Answer
    correct: bool
    num_correct: int
    num_samples: int
    sampled: tuple[str | None, ...] = ()


def ask(
    model: Any,
    processor: Any,
    samples: Sequence[Sample],
    *,
    num_samples: int,
    sampling: Sampling,
    batch_size: int = 256,
    instruction: str = INSTRUCTION,
    system: str | None = None,
    blank: bool = False,
    seed: int = 0,
    generator: Generator = "grouped",
    max_cache_gib: float | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Asked]:
    """Greedy answer and `num_samples` sampled answers for each question, in order.

    Args:
        batch_size: rows decoded at once; a batch holds batch_size // (num_samples + 1) questions.
        generator, max_cache_gib: as `generate` takes them.
        blank: put a grey image in place of every image.
        progress: called with the number of questions done in each batch.

    Raises:
        DataError: a question whose prompt fills the model's context, before the first forward pass.
    """
    check_prompt_lengths(model, processor, samples, instruction=instruction, system=system)
    per_batch, device = max(1, batch_size // (num_samples + 1)), next(model.parameters()).device
    asked: list[Asked] = []
    for start in range(0, len(samples), per_batch):
        batch = samples[start : start + per_batch]
        inputs = encode_prompts(
            processor, batch, instruction=instruction, system=system, blank=blank, device=device
        )
        groups = generate(
            model,
            processor,
            inputs,
            num_generations=num_samples + 1,
            sampling=sampling,
            seed=seed,
            keys_P=[zlib.crc32(s.id.encode()) for s in batch],
            greedy_first=True,
            generator=generator,
            max_cache_gib=max_cache_gib,
        )
        asked += [
            read(sample, group[0].text, [c.text for c in group[1:]])
            for sample, group in zip(batch, groups, strict=True)
        ]
        progress(len(batch))
    return asked


def drawing(rollout: Rollout) -> dict[str, Any]:
    """Who draws a recipe's answers, as keyword arguments; vLLM trains only, so ours measures then."""
    ours = rollout.generator if rollout.generator != "vllm" else "grouped"
    return {"generator": ours, "max_cache_gib": rollout.max_cache_gib}


def greedy(recipe: Recipe) -> Sampling:
    """The likeliest answer, as long as a measured one may be, ended as the recipe says."""
    length = recipe.diagnose.max_completion_length
    return Sampling(length, temperature=0.0, stop=tuple(recipe.rollout.stop))


def read(sample: Sample, greedy: str, drawn: Sequence[str]) -> Asked:
    """Parses and scores the answers to one question."""
    answer, *sampled = (parse(text, options=sample.options) for text in (greedy, *drawn))
    values = tuple(reading.value for reading in sampled)
    hits = sum(is_gold(value, sample) for value in values)
    return Asked(sample, greedy, answer, is_gold(answer.value, sample), hits, len(drawn), values)
