"""Small Triton kernels for tests of the compilation check: one that is well, and one for each thing that is
not."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from medrl_kernels.configs import Compilation


@triton.jit
def _double_kernel(x_ptr, y_ptr, size, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + i, 2 * tl.load(x_ptr + i, mask=i < size, other=0.0), mask=i < size)


@triton.jit
def _center_kernel(x_ptr, y_ptr, size, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < size, other=0.0)
    tl.store(y_ptr + i, x - tl.max(x, axis=0), mask=i < size)


@triton.jit
def _product_kernel(a_ptr, b_ptr, c_ptr, width, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    total = tl.zeros((M, N), tl.float32)
    for start in range(0, width, K):
        a = tl.load(a_ptr + m[:, None] * width + start + k[None, :])
        b = tl.load(b_ptr + n[None, :] * width + start + k[:, None])
        total = tl.dot(a, b, total)
    tl.store(c_ptr + m[:, None] * N + n[None, :], total)


DOUBLE = {"x_ptr": "*fp16", "y_ptr": "*fp16", "size": "i32", "BLOCK": "constexpr"}


def double(name: str, dtype: str = "fp16", num_stages: int = 2) -> Compilation:
    """Twice a vector."""
    signature = DOUBLE | {"x_ptr": f"*{dtype}", "y_ptr": f"*{dtype}"}
    return Compilation(name, _double_kernel, signature, {"BLOCK": 256}, 4, num_stages)


def product(name: str, rows: int, columns: int, depth: int, num_warps: int, num_stages: int) -> Compilation:
    """One tile of a matrix product in fp16."""
    signature: dict[str, Any] = {"a_ptr": "*fp16", "b_ptr": "*fp16", "c_ptr": "*fp32", "width": "i32"}
    blocks = {"M": rows, "N": columns, "K": depth}
    signature |= dict.fromkeys(blocks, "constexpr")
    return Compilation(name, _product_kernel, signature, blocks, num_warps, num_stages)


def compilations(arch: int) -> list[Compilation]:
    """One that is well everywhere, a product that is where tensor cores are, and faults named by what is
    wrong."""
    center = DOUBLE | {"x_ptr": "*fp32"}
    listed = [
        double("well"),
        product("a product", 16, 16, 32, 1, 2),
        Compilation("spills", _center_kernel, center, {"BLOCK": 16384}, 1, 1),
        Compilation("does not compile", _double_kernel, {"x_ptr": "*fp16"}, {}, 4, 2),
    ]
    if arch < 80:
        return [*listed, double("bf16", "bf16"), double("too many stages", num_stages=3)]
    return [*listed, product("too much shared memory", 16, 16, 2048, 32, 3)]
