"""Public `grouped_logp`: hidden states and a vocabulary head in, log-probabilities of chosen tokens out.

It chooses the implementation and hands the call on; what is computed stands in `medrl_kernels.reference`.
"""

from __future__ import annotations

from torch import Tensor

from medrl_kernels import reference
from medrl_kernels.dispatch import choose_impl
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

    impl: "reference", "triton" (NotImplementedError so far) or "auto", which takes the reference.
    """
    options = {name: value for name, value in locals().items() if name != "impl"}
    choose_impl("grouped_logp", impl, hidden_SD.device.type)
    return reference.grouped_logp(**options)
