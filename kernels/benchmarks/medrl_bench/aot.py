"""Ahead-of-time compilation of the Triton kernels for any architecture, without a GPU, and what must hold of
it.

A launch tells Triton which arguments are multiples of 16, and that decides how wide loads are and whether
they are pipelined; so every kernel is compiled twice: "aligned" as it runs on the usual sizes (every integer
a multiple of 16), and "odd" as it runs on sizes that are none (pointers stay aligned: torch allocates so).
TRITON_INTERPRET must be unset before a kernel module is imported, or there is nothing to compile.
"""

from __future__ import annotations

import functools
import importlib
import re
import subprocess
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from medrl_kernels.configs import SHARED_KIB, Compilation

MODULES = ("medrl_kernels.grouped_logp_triton", "medrl_kernels.grpo_loss_triton")
SIZES = ("aligned", "odd")
TENSOR_MEMORY_COLUMNS = 512  # of an sm_100 multiprocessor
HALF_PRODUCT = r"tt\.dot .*tensor<\w+xb?f16>"  # in Triton's IR
TENSOR_CORE = r"\b(mma\.sync|wgmma\.mma_async|tcgen05\.mma)"  # in PTX
FIRST_WITH_BF16_AND_ASYNC_COPIES = 80
MOST_STAGES_BEFORE = 2  # without asynchronous copies there is nothing to overlap beyond a double buffer


class Facts(NamedTuple):
    """What a compiled kernel needs, and its code. Bytes are per thread but for shared memory's, per block."""

    shared_bytes: int
    registers: int
    stack_bytes: int
    local_bytes: int
    tensor_memory_columns: int
    ttir: str
    ptx: str


class Outcome(NamedTuple):
    """One kernel compiled for one architecture: `complaints` is empty where all is well."""

    name: str
    arch: int
    sizes: str
    seconds: float
    shared_bytes: int
    registers: int
    complaints: list[str]


def check_compilation(compilation: Compilation, arch: int, facts: Facts) -> list[str]:
    """What is wrong with a compiled kernel on its architecture; nothing where it may ship."""
    complaints = []
    room_kib, needed_kib = SHARED_KIB[arch], facts.shared_bytes / 1024
    if needed_kib > room_kib:
        complaints.append(f"needs {needed_kib:g} KiB of shared memory, a block of sm_{arch} has {room_kib}")
    if facts.stack_bytes or facts.local_bytes:
        stack, local = facts.stack_bytes, facts.local_bytes
        complaints.append(f"spills: {stack} bytes of stack and {local} of local memory a thread")
    if facts.tensor_memory_columns > TENSOR_MEMORY_COLUMNS:
        columns = facts.tensor_memory_columns
        complaints.append(f"needs {columns} columns of tensor memory, there are {TENSOR_MEMORY_COLUMNS}")
    if re.search(HALF_PRODUCT, facts.ttir) and not re.search(TENSOR_CORE, facts.ptx):
        complaints.append("multiplies 16-bit matrices without tensor cores")
    if arch < FIRST_WITH_BF16_AND_ASYNC_COPIES:
        complaints += check_before_ampere(compilation, facts)
    return complaints


def check_before_ampere(compilation: Compilation, facts: Facts) -> list[str]:
    """What a card without bf16 and asynchronous copies could not run well: sm_75."""
    complaints = []
    if any("bf16" in text for text in (*compilation.signature.values(), facts.ttir, facts.ptx)):
        complaints.append("uses bf16")
    if "cp.async" in facts.ptx:
        complaints.append("uses asynchronous copies")
    if compilation.num_stages > MOST_STAGES_BEFORE:
        complaints.append(f"num_stages is {compilation.num_stages}, at most {MOST_STAGES_BEFORE} pay")
    return complaints


def build(compilation: Compilation, arch: int, sizes: str) -> Facts:
    """Compile down to machine code; whatever Triton or ptxas raises comes through."""
    source = ASTSource(
        fn=compilation.fn,
        signature=compilation.signature,
        constexprs=compilation.constexprs,
        attrs=divisible_by_16(compilation, sizes),
    )
    options = {name: getattr(compilation, name, None) for name in ("num_warps", "num_stages", "maxnreg")}
    kernel = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    usage = resource_usage(kernel.asm["cubin"])
    return Facts(
        shared_bytes=kernel.metadata.shared,
        registers=usage["REG"],
        stack_bytes=usage["STACK"],
        local_bytes=usage["LOCAL"],
        tensor_memory_columns=getattr(kernel.metadata, "tmem_size", None) or 0,
        ttir=kernel.asm["ttir"],
        ptx=kernel.asm["ptx"],
    )


def divisible_by_16(compilation: Compilation, sizes: str) -> dict[tuple[int, ...], list[list[object]]]:
    """The hints that a launch would give: Triton's attributes by argument position."""
    if sizes not in SIZES:
        raise ValueError(f"sizes must be one of {', '.join(SIZES)}, got {sizes!r}")
    hints: dict[tuple[int, ...], list[list[object]]] = {}
    for parameter in compilation.fn.params:
        kind = compilation.signature.get(parameter.name, "constexpr")
        fixed = parameter.do_not_specialize or parameter.do_not_specialize_on_alignment
        integer = re.fullmatch(r"[iu](32|64)", kind) is not None and sizes == "aligned"
        if not fixed and (kind.startswith("*") or integer):
            hints[(parameter.num,)] = [["tt.divisibility", 16]]
    return hints


def resource_usage(cubin: bytes) -> dict[str, int]:
    """REG, STACK, SHARED, LOCAL, .. of the one kernel in a cubin, by the cuobjdump in Triton's wheel."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        line = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(path)]
        said = subprocess.run(line, capture_output=True, text=True, check=True).stdout
    return parse_resource_usage(said)


def parse_resource_usage(said: str) -> dict[str, int]:
    """The numbers of cuobjdump's line, by their names. ValueError unless registers, stack and local are
    there."""
    usage = {name: int(number) for name, number in re.findall(r"\b([A-Z]+)(?:\[\d+\])?:(\d+)", said)}
    if not {"REG", "STACK", "LOCAL"} <= usage.keys():
        raise ValueError(f"cuobjdump did not say what the kernel uses: {said!r}")
    return usage


@functools.cache
def shipped(module: str, arch: int) -> list[Compilation]:
    """What a kernel module ships for an architecture."""
    return importlib.import_module(module).compilations(arch)


def try_to_build(module: str, arch: int, index: int, sizes: str) -> Outcome:
    """Compile and check one of a module's kernels; failing to compile is a complaint, not an exception."""
    compilation = shipped(module, arch)[index]
    begin = time.perf_counter()
    shared_bytes = registers = 0
    try:
        facts = build(compilation, arch, sizes)
        shared_bytes, registers = facts.shared_bytes, facts.registers
        complaints = check_compilation(compilation, arch, facts)
    except Exception as error:  # Triton's errors have no base class of their own
        complaints = [f"does not compile: {type(error).__name__}: {error}"]
    seconds = round(time.perf_counter() - begin, 2)
    return Outcome(compilation.name, arch, sizes, seconds, shared_bytes, registers, complaints)
