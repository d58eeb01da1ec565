"""Answers by transformers' own generate: for models that we do not treat, and as what ours is measured
against.

It has one random stream a batch instead of one an answer, and reads every prompt once for each answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lite_medrl.model.encode import special_ids
from lite_medrl.model.sampling import Sampling
from lite_medrl.model.stops import Growing, Stops


def hf_generate(
    model: Any,
    processor: Any,
    inputs: Mapping[str, Tensor],
    num_generations: int,
    sampling: Sampling,
    stops: Stops,
    *,
    seed: int,
    step: int,
    **options: Any,
) -> list[Growing]:
    """P * G answers; `options` go to `model.generate`."""
    torch.manual_seed(hash((seed, step)) % 2**31)
    if sampling.temperature > 0:
        options |= {name: getattr(sampling, name) for name in ("temperature", "top_p", "top_k", "min_p")}
    if stops.strings:
        options |= {"stop_strings": list(stops.strings), "tokenizer": stops.tokenizer}
    output = model.generate(
        **inputs,
        do_sample=sampling.temperature > 0,
        num_return_sequences=num_generations,
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=sorted(stops.ids),
        pad_token_id=processor.tokenizer.pad_token_id,
        suppress_tokens=special_ids(processor, model),
        repetition_penalty=sampling.repetition_penalty,  # the model's own default would count otherwise
        output_logits=True,
        output_scores=True,
        return_dict_in_generate=True,
        **options,
    )
    new_RT = output.sequences[:, inputs["input_ids"].shape[1] :]
    sampled_RT = _logp(output.scores, new_RT, 1.0)
    own_RT = _logp(output.logits, new_RT, sampling.temperature or 1.0)
    answers = []
    for row in zip(new_RT.tolist(), sampled_RT.tolist(), own_RT.tolist(), strict=True):
        answer = Growing(stops, sampling.max_new_tokens)
        for token, sampled, own in zip(*row, strict=True):
            if not answer.add(token, sampled, own):
                break
        answers.append(answer)
    return answers


def _logp(logits_T: tuple[Tensor, ...], token_RT: Tensor, temperature: float) -> Tensor:
    """Log-probs fp32 [R, T] of the tokens, step by step to hold one step's distribution at a time."""
    steps = zip(logits_T, token_RT.T, strict=True)
    found = [
        (logits_RV.float() / temperature).log_softmax(-1).gather(1, token_R[:, None]).squeeze(1)
        for logits_RV, token_R in steps
    ]
    return torch.stack(found, 1)
