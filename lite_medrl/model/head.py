"""From states to logits over the vocabulary, in fp32 whatever the states and the head are kept in.

The scorer's product (`medrl_kernels.grouped_logp`) is in fp32 too; a 16-bit one would round each logit to 8
or 11 bits, and the sampler would draw from another distribution than the one that is trained. Heads that are
no plain linear layer (an adapter on the head, another quantisation) compute as they do.

Letters: R rows, D hidden, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

HALF = (torch.float16, torch.bfloat16)
CHUNK_CELLS = 2**24  # of the head that are cast at once where there is no product from 16 into 32 bits


def head_logits(base: Any, hidden_RD: Tensor) -> Tensor:
    """The head over these states as `score` computes it: bias and soft cap included, fp32 (or float64)."""
    head = base.get_output_embeddings()
    logits_RV = wide(head, hidden_RD) if narrow(head, hidden_RD) else head(hidden_RD)
    if logits_RV.dtype != torch.float64:
        logits_RV = logits_RV.float()
    cap = getattr(base.config.get_text_config(), "final_logit_softcapping", None)
    return logits_RV if cap is None else cap * torch.tanh(logits_RV / cap)


def narrow(head: Any, hidden_RD: Tensor) -> bool:
    """Whether a plain linear head would multiply in 16 bits, by its own dtypes or by autocast."""
    if type(head) is not nn.Linear:
        return False
    half = hidden_RD.dtype in HALF or head.weight.dtype in HALF
    return half or torch.is_autocast_enabled(hidden_RD.device.type)


def wide(head: nn.Linear, hidden_RD: Tensor) -> Tensor:
    """The head's product in fp32 from operands as they lie in memory."""
    weight_VD = head.weight
    with torch.autocast(hidden_RD.device.type, enabled=False):
        if hidden_RD.is_cuda and hidden_RD.dtype == weight_VD.dtype != torch.float32:
            logits_RV = torch.mm(hidden_RD, weight_VD.t(), out_dtype=torch.float32)
        else:
            rows = max(1, CHUNK_CELLS // weight_VD.shape[1])
            parts = [hidden_RD.float() @ part.float().t() for part in weight_VD.split(rows)]
            logits_RV = torch.cat(parts, 1)
        return logits_RV if head.bias is None else logits_RV + head.bias.float()
