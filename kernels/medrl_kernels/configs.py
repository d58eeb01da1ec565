"""What each architecture runs: block sizes, warps and stages as plain data, readable without Triton.

An architecture is a CUDA compute capability as one number: 75 (T4), 80 (A100), 86 (RTX 30), 89 (RTX 40, L4),
90 (H100), 100 (B200), 120 (RTX 50). One that is not listed runs what the next lower one runs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
# Shared memory that one block may use, KiB (CUDA programming guide, technical specifications per capability).
SHARED_KIB = {75: 64, 80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}


class Compilation(NamedTuple):
    """One kernel as it is shipped: enough to compile it ahead of time without a GPU.

    fn: the jitted function. signature: a Triton type per argument ("*fp16", "i64", "constexpr").
    constexprs: values of the constexpr arguments.
    """

    name: str
    fn: Any
    signature: dict[str, str]
    constexprs: dict[str, Any]
    num_warps: int
    num_stages: int


def nearest(capability: int) -> int:
    """The listed architecture whose configuration a capability runs. ValueError below 75."""
    lower = [arch for arch in ARCHITECTURES if arch <= capability]
    if not lower:
        raise ValueError(f"the Triton kernels need compute capability 7.5, got {capability / 10:.1f}")
    return lower[-1]


class LogpConfig(NamedTuple):
    """Tile sizes of `grouped_logp`: rows of a chunk, columns of a tile (a power of two, all in one program's
    registers), and the blocks of the filtered product; filter_rows 0: there is none, `filter_eps` changes
    nothing. Every product is `rows` high, so few states cost as much as `rows`, and a row's results do not
    depend on how many there are. Chosen by the room they take; no timing has chosen among them yet."""

    rows: int
    block_c: int
    fold_warps: int
    filter_rows: int
    filter_cols: int
    filter_d: int
    filter_warps: int
    filter_stages: int


# A row may lose so many times `filter_eps` of its probability in all: the unit roundoff of the dtype at
# filter_eps = finfo(dtype).eps / 32, the value that benchmarks use.
FILTER_MASS = 16.0

GROUPED_LOGP = {
    75: LogpConfig(512, 8192, 16, 0, 64, 64, 4, 2),  # Triton multiplies without tensor cores there
    80: LogpConfig(1024, 8192, 16, 128, 64, 128, 8, 3),
    86: LogpConfig(512, 8192, 16, 128, 64, 128, 8, 2),
    90: LogpConfig(1024, 8192, 16, 128, 64, 128, 8, 3),
    100: LogpConfig(1024, 8192, 32, 128, 64, 128, 8, 3),  # with 16 warps ptxas spills to fit one program more
    120: LogpConfig(512, 8192, 16, 128, 64, 128, 8, 2),
}
INTERPRETED = LogpConfig(32, 64, 4, 16, 16, 16, 4, 1)  # the interpreter runs programs one by one: small ones


def logp_config(capability: int | None) -> LogpConfig:
    """Tile sizes for a compute capability (75, 90, ..); None is the interpreter."""
    if capability is None:
        return INTERPRETED
    return GROUPED_LOGP[max(arch for arch in GROUPED_LOGP if arch <= nearest(capability))]
