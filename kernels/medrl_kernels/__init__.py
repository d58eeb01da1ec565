"""Log-probabilities of chosen tokens and the GRPO objective, as single ops over packed tokens.

Needs torch alone; `medrl_kernels.reference` is the specification of every op in plain PyTorch.
"""

from __future__ import annotations

from medrl_kernels.grouped_logp import grouped_logp
from medrl_kernels.grpo_loss import grpo_loss
from medrl_kernels.reference import GroupedLogp, GRPOLoss

__all__ = ["GRPOLoss", "GroupedLogp", "grouped_logp", "grpo_loss"]
