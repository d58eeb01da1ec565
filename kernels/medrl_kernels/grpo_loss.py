"""Public `grpo_loss`: log-probabilities and advantages of packed completions in, loss and metrics out.

It chooses the implementation and hands the call on; what is computed stands in `medrl_kernels.reference`.
"""

from __future__ import annotations

from torch import Tensor

from medrl_kernels import reference
from medrl_kernels.dispatch import capability_of, check_is_tensor, choose_impl
from medrl_kernels.reference import GRPOLoss


def grpo_loss(
    logp_N: Tensor,
    old_logp_N: Tensor | None,
    advantage_B: Tensor | None,
    length_B: Tensor,
    *,
    advantage_N: Tensor | None = None,
    ref_logp_N: Tensor | None = None,
    sampling_logp_N: Tensor | None = None,
    entropy_N: Tensor | None = None,
    loss_type: str = "dapo",
    importance_sampling_level: str = "token",
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    delta: float | None = None,
    beta: float = 0.0,
    use_bias_correction_kl: bool = True,
    sapo_temperature_pos: float = 1.0,
    sapo_temperature_neg: float = 1.05,
    vespo_k_pos: float = 2.0,
    vespo_lambda_pos: float = 3.0,
    vespo_k_neg: float = 3.0,
    vespo_lambda_neg: float = 2.0,
    top_entropy_quantile: float = 1.0,
    entropy_coef: float = 0.0,
    off_policy_mask_threshold: float | None = None,
    importance_sampling_correction: bool = False,
    importance_sampling_mode: str = "sequence_mask",
    importance_sampling_clip_max: float | None = 3.0,
    importance_sampling_clip_min: float | None = None,
    max_completion_length: int | None = None,
    num_items_in_batch: Tensor | float | None = None,
    num_processes: int = 1,
    gradient_accumulation_steps: int = 1,
    steps_per_generation: int = 1,
    impl: str = "auto",
) -> GRPOLoss:
    """`reference.grpo_loss` by the implementation that `impl` names; formulas, shapes and errors stand there.

    impl: "reference", "triton" (ValueError where it cannot run) or "auto": Triton on CUDA, else the
    reference.
    """
    options = {name: value for name, value in locals().items() if name != "impl"}
    check_is_tensor("logp_N", logp_N)
    chosen = choose_impl("grpo_loss", impl, logp_N.device.type, logp_N.dtype, capability_of(logp_N))
    if chosen == "triton":
        from medrl_kernels import grpo_loss_triton

        return grpo_loss_triton.grpo_loss(**options)
    return reference.grpo_loss(**options)
