"""How likely the model finds each of a question's options: no sampling, no parsing.

Every option is a branch below its question, so a question with five options costs one prompt and five short
answers. With letters as options this is the usual protocol of multiple-choice benchmarks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lite_medrl.model.encode import stop_ids
from lite_medrl.model.generate import answering
from lite_medrl.model.score import score
from lite_medrl.types import DataError


@torch.no_grad()
def option_logps(
    model: Any,
    processor: Any,
    inputs: Mapping[str, Tensor],
    options_P: Sequence[Sequence[str]],
    *,
    before: str = "",
    after: str = "",
    ended: bool = False,
    per_token: bool = False,
) -> list[list[float]]:
    """Log-prob of each option as the answer to its prompt.

    Args:
        inputs: left-padded inputs of the P prompts.
        before: what the answer has begun with already, such as an answer tag; it is given, not scored.
        after: what has to follow the option, such as the closing tag; it is scored with it.
        ended: the end of the answer is scored too, so that "no" does not gain from "no change".
        per_token: the mean over an option's tokens instead of their sum (long options lose less).

    Raises:
        DataError: an option without a token, or a prompt without options.
    """
    tokenizer, end = processor.tokenizer, [stop_ids(processor)[0]] if ended else []
    given = tokenizer.encode(before, add_special_tokens=False) if before else []
    completions, owners = [], []
    for p, options in enumerate(options_P):
        if not options:
            raise DataError(f"prompt {p} has no options to choose from")
        for option in options:
            tokens = tokenizer.encode(option + after, add_special_tokens=False) if option else []
            if not tokens:
                raise DataError(f"prompt {p}: option {option!r} has no token")
            completions.append([*given, *tokens, *end])
            owners.append(p)
    with answering(model):
        logp_N = score(model, inputs, completions, owners).logp_N
    found = logp_N.split([len(c) for c in completions])
    values = iter(
        float(logps[len(given) :].mean() if per_token else logps[len(given) :].sum()) for logps in found
    )
    return [[next(values) for _ in options] for options in options_P]


def probabilities(logps: Sequence[float]) -> list[float]:
    """The options' shares of the probability that they have together."""
    return torch.tensor(logps, dtype=torch.float64).softmax(0).tolist()
