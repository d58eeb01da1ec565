"""One answer while it is being written, for a page that shows it grow."""

from __future__ import annotations

from collections import abc
from collections.abc import Mapping
from contextlib import closing
from typing import Any

import torch
from torch import Tensor

from lite_medrl.model.generate import Asked, Generator, Sampling, answering, start

UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what a tokenizer writes for the first bytes of a character


@torch.no_grad()  # of a generator: while it computes, not between its steps
def stream(
    model: Any,
    processor: Any,
    inputs: Mapping[str, Tensor],
    *,
    sampling: Sampling,
    seed: int = 0,
    key: int = 0,
    generator: Generator = "grouped",
    max_cache_gib: float | None = None,
) -> abc.Generator[str, None, None]:
    """The text of the answer to one prompt so far, again after each token; the last is the whole answer.

    It is the same answer as `generate` gives; with `generator` "hf" it comes in one piece. Whoever stops
    listening early leaves the model usable.
    """
    asked = Asked(1, sampling, seed, 0, [key], False)
    with answering(model):
        rollout = start(model, processor, inputs, asked, generator, max_cache_gib)
        text = ""
        with closing(rollout.steps) as steps:
            for _ in steps:
                (text,) = processor.tokenizer.batch_decode([rollout.answers[0].text_tokens])
                yield text.rstrip(UNFINISHED)
        if text.endswith(UNFINISHED):
            yield text  # the answer ended inside a character
