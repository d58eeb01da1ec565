"""Does the sampler draw from the policy that the trainer differentiates?

Every token that was drawn has a log-prob from the sampler; the update computes it again. Under equal
weights the two differ by rounding only. The first batch of a run has to pass; later gaps are a metric, and
TRL's importance correction (`vllm_importance_sampling_correction`) makes up for them in the loss, as it does
for vLLM.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lite_medrl.types import ModelError

# Mean |difference| that rounding explains, by what the model computes in. On the embedded model on a CPU
# rounding makes 0.0050 in bf16 and 0.0006 in fp16; a last prompt token that is not seen makes 0.055, and a
# small adapter that is forgotten 0.012, which bf16 cannot tell from rounding. To be checked on a card.
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4, torch.float16: 0.005, torch.bfloat16: 0.03}


def logp_gap(sampling_logp_N: Tensor, rescored_logp_N: Tensor) -> float:
    """Mean |difference| of the log-probs of the same tokens."""
    return float((sampling_logp_N.double() - rescored_logp_N.double()).abs().mean())


def check(sampling_logp_N: Tensor, rescored_logp_N: Tensor, dtype: torch.dtype) -> float:
    """The gap; ModelError where rounding in this dtype does not explain it (NaN included)."""
    gap = logp_gap(sampling_logp_N, rescored_logp_N)
    if not gap <= TOLERANCE[dtype]:
        raise ModelError(
            f"the sampler's log-probs differ from the trainer's by {gap:.2g} a token, more than "
            f"{str(dtype).removeprefix('torch.')} explains ({TOLERANCE[dtype]:g}): answers are not drawn "
            "from the policy that is trained. Set generator: hf to go on, and please report the model"
        )
    return gap


@dataclass
class Guard:
    """`check` on the first batch, the gap alone afterwards; `on` once our generator draws the answers."""

    on: bool = False
    passed: bool = False

    def __call__(self, sampling_logp_N: Tensor, rescored_logp_N: Tensor, dtype: torch.dtype) -> float:
        if self.passed:
            return logp_gap(sampling_logp_N, rescored_logp_N)
        gap = check(sampling_logp_N, rescored_logp_N, dtype)
        self.passed = True
        return gap


def compute_dtype(model: Any, mixed_precision: str | None) -> torch.dtype:
    """What the forward pass computes in: the Trainer's mixed precision, or else the embedding's dtype."""
    mixed = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(mixed_precision or "no")
    return mixed or model.get_input_embeddings().weight.dtype
