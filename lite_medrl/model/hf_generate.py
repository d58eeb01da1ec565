"""Answers by transformers' own generate: for models that we do not treat, and as what ours is measured
against.

The forward passes, the cache and the loop are transformers'; the tokens are drawn as `decode` draws them,
each answer from its own random stream, so a batch's layout changes nothing here either, no global random
state is touched, and of a step's distribution only the drawn token's log-probs are kept. Every prompt is
read once for each answer, and an answer that ended stays in the batch.

Letters: R rows (answers), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from lite_medrl.model.decode import Chance
from lite_medrl.model.sampling import draw_tokens
from lite_medrl.model.stops import Growing


def hf_generate(
    model: Any,
    inputs: Mapping[str, Tensor],
    answers: Sequence[Growing],
    chance: Chance,
    *,
    pad_token_id: int | None,
) -> None:
    """Grows G answers to each of P prompts, prompt after prompt, to their ends."""
    drawing, device = Drawing(answers, chance), inputs["input_ids"].device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        model.generate(
            **inputs,
            do_sample=True,  # from one token, `Drawing`'s; without it a prompt has one answer
            num_return_sequences=len(answers) // len(inputs["input_ids"]),
            max_new_tokens=max(answer.limit for answer in answers),
            pad_token_id=pad_token_id,
            repetition_penalty=1.0,  # the model's own default would count otherwise
            logits_processor=LogitsProcessorList([drawing]),
            stopping_criteria=StoppingCriteriaList([Over(drawing)]),
        )


class Drawing(LogitsProcessor):
    """Draws every row's next token from the model's logits, and leaves that token alone to be chosen."""

    def __init__(self, answers: Sequence[Growing], chance: Chance) -> None:
        places = 1 if chance.seen_PV is None else len(answers) // len(chance.seen_PV)
        self.answers, self.chance, self.column = answers, chance, 0
        self.seen_RV = None if chance.seen_PV is None else chance.seen_PV.repeat_interleave(places, 0)
        self.going = [True] * len(answers)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """-inf everywhere but at the drawn tokens [R, V]; FloatingPointError for logits that are NaN."""
        drawn = draw_tokens(
            scores,
            self.chance.uniform_RT[:, self.column],
            self.chance.sampling,
            banned=self.chance.banned,
            greedy_R=self.chance.greedy_R,
            seen_RV=self.seen_RV,
        )
        values = torch.stack([drawn.sampling_logp_R, drawn.logp_R], 1)
        if not bool(values.isfinite().all()):
            raise FloatingPointError("the model's logits are not finite while answers are drawn")
        for row, (token, logps) in enumerate(zip(drawn.token_R.tolist(), values.tolist(), strict=True)):
            self.going[row] = self.going[row] and self.answers[row].add(token, *logps)
        self.column += 1
        if self.seen_RV is not None:
            self.seen_RV.scatter_(1, drawn.token_R[:, None], True)
        return torch.full_like(scores, -torch.inf).scatter_(1, drawn.token_R[:, None], 0.0)


class Over(StoppingCriteria):
    """Says which answers are over."""

    def __init__(self, drawing: Drawing) -> None:
        self.drawing = drawing

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """True for rows that have ended, bool [R]."""
        return ~torch.tensor(self.drawing.going, device=input_ids.device)
