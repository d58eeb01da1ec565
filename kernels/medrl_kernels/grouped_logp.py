"""Public `grouped_logp`: hidden states and a vocabulary head in, log-probabilities of chosen tokens out.

It chooses the implementation and hands the call on; what is computed stands in `medrl_kernels.reference`.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from medrl_kernels import reference
from medrl_kernels.configs import logp_config
from medrl_kernels.dispatch import (
    capability_of,
    check_floating,
    check_grouped_logp,
    choose_impl,
    note_no_filter,
)
from medrl_kernels.reference import GroupedLogp


def grouped_logp(
    hidden_SD: Tensor,
    weight_VD: Tensor,
    target_N: Tensor,
    source_N: Tensor | None = None,
    *,
    temperature: float = 1.0,
    bias_V: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    with_entropy: bool = False,
    filter_eps: float = 0.0,
    chunk_size: int = 1024,
    impl: str = "auto",
) -> GroupedLogp:
    """`reference.grouped_logp` by the implementation that `impl` names; formulas and errors stand there.

    impl: "reference", "triton" (ValueError where it cannot run) or "auto": Triton on CUDA, else the
    reference. `chunk_size` is the reference's; `filter_eps` matters to Triton from compute capability 8.0 on:
    elsewhere a warning says once that it leaves nothing out.
    """
    options = {name: value for name, value in locals().items() if name != "impl"}
    check_floating("hidden_SD", hidden_SD)
    check_floating("weight_VD", weight_VD)
    dtype, capability = torch.promote_types(hidden_SD.dtype, weight_VD.dtype), capability_of(hidden_SD)
    chosen = choose_impl("grouped_logp", impl, hidden_SD.device.type, dtype, capability)
    check_grouped_logp(SimpleNamespace(**options))
    if filter_eps > 0:
        if chosen == "reference":
            note_no_filter("grouped_logp", "the reference has no blocks to leave out")
        elif logp_config(capability).filter_rows == 0:
            note_no_filter(
                "grouped_logp", "Triton multiplies without tensor cores before compute capability 8.0"
            )
    if chosen == "reference":
        return reference.grouped_logp(**options)
    from medrl_kernels import grouped_logp_triton

    del options["chunk_size"]
    return grouped_logp_triton.grouped_logp(**options)
