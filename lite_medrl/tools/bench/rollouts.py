"""Made-up rollouts in the form that TRL's GRPOTrainer hands to its loss, and rows as for its SFTTrainer.

A prompt is a few words, an image, then a question; questions about the image follow each other, as our
trainers keep them. Token ids are random, but never 0, which is padding: so real tokens can be counted.

Letters: B rows, Q questions, G completions of a question; P, C and L tokens of a padded prompt, completion
and row.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lite_medrl.tools.bench.case import Case
from lite_medrl.tools.bench.shapes import SHAPES

PAD, NO_LABEL = 0, -100
WORDS = 500  # ids above padding and below every shape's special ones
LEAD = 3  # words before the image


def rollouts(case: Case) -> dict[str, Any]:
    """A generation batch of Q groups, with the keys of TRL's `_generate_and_score_completions`.

    Advantages are normal and sum to 0 in each group. Old log-probs are the caller's to add.
    """
    generator = torch.Generator().manual_seed(case.seed)
    prompts = [p for p in questions(case, generator) for _ in range(case.generations)]
    prompt_BP = padded(prompts, side="left")
    completion_BC = padded(answers(case, len(prompts), generator), side="right")
    advantage_QG = torch.randn(case.questions_per_image, case.generations, generator=generator)
    return {
        "prompt_ids": prompt_BP,
        "prompt_mask": (prompt_BP != PAD).long(),
        "completion_ids": completion_BC,
        "completion_mask": (completion_BC != PAD).long(),
        "advantages": (advantage_QG - advantage_QG.mean(1, keepdim=True)).flatten(),
        "num_items_in_batch": (completion_BC != PAD).sum(),
        "num_images": [1] * len(prompts),
        **image_fields(case, torch.cat([prompt_BP, torch.zeros_like(completion_BC)], 1), generator),
    }


def labelled(case: Case) -> dict[str, Any]:
    """Q rows for SFT, a question and its answer each, padded on the right; labels on the answer."""
    generator = torch.Generator().manual_seed(case.seed)
    prompts = questions(case, generator)
    told = answers(case, len(prompts), generator)
    ids_BL = padded([p + a for p, a in zip(prompts, told, strict=True)], side="right")
    rows = [[NO_LABEL] * len(p) + a for p, a in zip(prompts, told, strict=True)]
    return {
        "input_ids": ids_BL,
        "attention_mask": (ids_BL != PAD).long(),
        "labels": padded(rows, side="right", value=NO_LABEL),
        **image_fields(case, ids_BL, generator),
    }


def image_side(prompt: int) -> int:
    """Side of the square of image tokens that fills at most nine tenths of a prompt."""
    return math.isqrt(9 * prompt // 10)


def questions(case: Case, generator: torch.Generator) -> list[list[int]]:
    """Token ids of the Q prompts: the same words and image, then P tokens in all, or less text if ragged."""
    image = [SHAPES[case.shape].image_token] * image_side(case.prompt) ** 2
    start = words(LEAD, generator) + image
    text = case.prompt - len(start)
    count = case.questions_per_image
    return [
        start + words(text - (q * text // (2 * count) if case.ragged else 0), generator) for q in range(count)
    ]


def answers(case: Case, rows: int, generator: torch.Generator) -> list[list[int]]:
    """Token ids of each completion: R of them; if ragged, from R / 2 to R after the first.

    The first token differs from row to row, so that completions share nothing but their prompt.
    """
    least = case.response // 2 if case.ragged else case.response
    more = torch.randint(least, case.response + 1, (rows - 1,), generator=generator).tolist()
    return [
        [1 + row % WORDS, *words(length - 1, generator)] for row, length in enumerate([case.response, *more])
    ]


def words(count: int, generator: torch.Generator) -> list[int]:
    """Random ids from 1 to WORDS."""
    return torch.randint(1, WORDS + 1, (count,), generator=generator).tolist()


def padded(rows: list[list[int]], *, side: str, value: int = PAD) -> Tensor:
    """The rows side by side, int64."""
    tensors = [torch.tensor(row) for row in rows]
    return pad_sequence(tensors, batch_first=True, padding_value=value, padding_side=side)


def image_fields(case: Case, ids_BL: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """Pixels, grids and token types of rows with the same image, as a Qwen-VL processor makes them."""
    shape, side, rows = SHAPES[case.shape], image_side(case.prompt), len(ids_BL)
    pixels = torch.randn(4 * side**2, shape.patch_values, generator=generator)  # 2 x 2 patches make a token
    return {
        "pixel_values": pixels.repeat(rows, 1),
        "image_grid_thw": torch.tensor([[1, 2 * side, 2 * side]] * rows),
        "mm_token_type_ids": (ids_BL == shape.image_token).long(),
    }
