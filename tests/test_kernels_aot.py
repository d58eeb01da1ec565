"""Every Triton kernel compiles, without a GPU, for every architecture that it ships for, and may run
there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton has no wheel for this platform")
REPO = Path(__file__).parents[1]
BENCHMARKS = REPO / "kernels" / "benchmarks"
sys.path.append(str(BENCHMARKS))

from medrl_bench import aot  # noqa: E402
from toy_kernels import double  # noqa: E402

from medrl_kernels.configs import ARCHITECTURES, SHARED_KIB, Compilation  # noqa: E402

FINE = aot.Facts(
    shared_bytes=0, registers=32, stack_bytes=0, local_bytes=0, tensor_memory_columns=0,
    ttir="tt.store %x : tensor<256x!tt.ptr<f16>>", ptx=".target sm_75\nst.global.b16 [%rd1], %rs1;",
)  # fmt: skip
PRODUCT = "%4 = tt.dot %1, %2, %3 : tensor<16x32xbf16> * tensor<32x16xbf16> -> tensor<16x16xf32>"


def compile_all(cache: Path, *line: str) -> tuple[int, list[dict[str, Any]]]:
    """compile_all.py in a process of its own (kernels of this one are interpreted): exit code and
    outcomes."""
    paths = os.pathsep.join([str(REPO / "tests"), str(REPO / "kernels")])
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "compile_all.py"), "--json", *line],
        env=os.environ | {"TRITON_CACHE_DIR": str(cache), "PYTHONPATH": paths},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout, done.stderr[-3000:]
    return done.returncode, json.loads(done.stdout)


@pytest.fixture(scope="session")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """All that ships, for each architecture; the oldest one's also on sizes that are no multiples of 16."""
    line = ["--arch", *map(str, ARCHITECTURES), "--odd", "75", "--jobs", str(min(2, os.cpu_count() or 1))]
    return compile_all(tmp_path_factory.mktemp("compiled"), *line)[1]


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_what_ships_compiles_and_fits(arch: int, outcomes: list[dict[str, Any]]) -> None:
    here = [found for found in outcomes if found["arch"] == arch]
    assert [(f["name"], f["sizes"], f["complaints"]) for f in here if f["complaints"]] == []
    for module in aot.MODULES:
        shipped = {kernel.name for kernel in aot.shipped(module, arch)}
        assert shipped
        assert shipped <= {found["name"] for found in here if found["sizes"] == "aligned"}


def test_names_of_what_ships_are_distinct_and_t4_gets_no_bf16() -> None:
    for arch in ARCHITECTURES:
        listed = [kernel for module in aot.MODULES for kernel in aot.shipped(module, arch)]
        assert len({kernel.name for kernel in listed}) == len(listed)
    old = [kernel for module in aot.MODULES for kernel in aot.shipped(module, 75)]
    assert not any("bf16" in kind for kernel in old for kind in kernel.signature.values())


@pytest.mark.slow
@pytest.mark.parametrize("arch", [75, 90])
def test_faults_are_found(arch: int, tmp_path: Path) -> None:
    line = ["--module", "toy_kernels", "--arch", str(arch), "--odd"]
    code, found = compile_all(tmp_path, *line)
    complaints = {outcome["name"]: "; ".join(outcome["complaints"]) for outcome in found}
    assert code == 1
    assert complaints.pop("well") == ""
    assert complaints.pop("spills").startswith("spills: ")
    assert "does not compile: " in complaints.pop("does not compile")
    if arch == 75:
        assert complaints.pop("bf16") == "uses bf16"
        assert complaints.pop("too many stages") == "num_stages is 3, at most 2 pay"
        assert "without tensor cores" in complaints.pop("a product")
    else:
        assert complaints.pop("a product") == ""
        assert complaints.pop("too much shared memory").startswith("needs 256 KiB of shared memory")
    assert complaints == {}


@pytest.mark.parametrize(
    ("arch", "change", "complaint"),
    [
        (75, {"shared_bytes": 64 * 1024 + 1}, "shared memory, a block of sm_75 has 64"),
        (86, {"shared_bytes": 100 * 1024}, "needs 100 KiB of shared memory"),
        (90, {"stack_bytes": 8}, "spills: 8 bytes of stack"),
        (90, {"local_bytes": 16}, "16 of local memory"),
        (100, {"tensor_memory_columns": 513}, "513 columns"),
        (75, {"ptx": "cvt.rn.bf16.f32 %rs1, %f1;"}, "uses bf16"),
        (75, {"ttir": "tt.load %p : tensor<16x!tt.ptr<bf16>>"}, "uses bf16"),
        (75, {"ptx": "cp.async.cg.shared.global [%r1], [%rd1], 16;"}, "asynchronous copies"),
        (80, {"ttir": PRODUCT}, "without tensor cores"),
    ],
)
def test_each_complaint(arch: int, change: dict[str, Any], complaint: str) -> None:
    (found,) = aot.check_compilation(double("x"), arch, FINE._replace(**change))
    assert complaint in found


def test_what_may_ship_is_not_complained_about() -> None:
    for arch in ARCHITECTURES:
        assert (
            aot.check_compilation(double("x"), arch, FINE._replace(shared_bytes=1024 * SHARED_KIB[arch]))
            == []
        )
    newer = FINE._replace(ttir=PRODUCT, ptx="cp.async.cg.shared.global [%r1], [%rd1], 16;\nmma.sync.aligned;")
    assert aot.check_compilation(double("x", "bf16", num_stages=4), 80, newer) == []
    complaints = aot.check_compilation(double("x", "bf16", num_stages=3), 75, FINE)
    assert complaints == ["uses bf16", "num_stages is 3, at most 2 pay"]


def test_resources_are_read_from_cuobjdump() -> None:
    said = (
        " Function k:\n  REG:42 STACK:8 SHARED:1024 LOCAL:16 CONSTANT[0]:544 TEXTURE:0 SURFACE:0 SAMPLER:0\n"
    )
    usage = aot.parse_resource_usage(said)
    assert (usage["REG"], usage["STACK"], usage["LOCAL"], usage["CONSTANT"]) == (42, 8, 16, 544)
    with pytest.raises(ValueError, match="did not say"):
        aot.parse_resource_usage("cuobjdump info: no kernels here")


def test_hints_are_those_of_a_launch() -> None:
    names = ("x_ptr", "size", "scale", "kept", "BLOCK")
    parameters = [
        SimpleNamespace(
            name=name, num=i, do_not_specialize=name == "kept", do_not_specialize_on_alignment=False
        )
        for i, name in enumerate(names)
    ]
    kinds = ("*fp16", "i64", "fp32", "i32", "constexpr")
    signature: dict[str, str] = dict(zip(names, kinds, strict=True))
    toy = Compilation("toy", SimpleNamespace(params=parameters), signature, {"BLOCK": 16}, 4, 2)
    multiple = [["tt.divisibility", 16]]
    assert aot.divisible_by_16(toy, "aligned") == {(0,): multiple, (1,): multiple}
    assert aot.divisible_by_16(toy, "odd") == {(0,): multiple}
    with pytest.raises(ValueError, match="sizes must be one of aligned, odd"):
        aot.divisible_by_16(toy, "even")
