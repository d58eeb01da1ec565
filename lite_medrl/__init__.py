"""Diagnose, bridge by SFT and sharpen by GRPO a vision-language model for medical question answering.

The trainers are drop-ins for TRL's and load on first use; importing the package itself pulls in no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lite_medrl.train.config import GRPOConfig, SFTConfig
    from lite_medrl.train.grpo import GRPOTrainer
    from lite_medrl.train.sft import SFTTrainer

__version__ = "0.1.0"
__all__ = ["GRPOConfig", "GRPOTrainer", "SFTConfig", "SFTTrainer", "__version__"]

_LAZY = {
    "GRPOConfig": "lite_medrl.train.config",
    "GRPOTrainer": "lite_medrl.train.grpo",
    "SFTConfig": "lite_medrl.train.config",
    "SFTTrainer": "lite_medrl.train.sft",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'lite_medrl' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
