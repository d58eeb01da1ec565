"""Does every Triton kernel of this project compile for a card, fit its shared memory and keep to its
registers?

    python kernels/benchmarks/compile_all.py                 # for the card of this machine, or for all
    python kernels/benchmarks/compile_all.py --arch 75 90    # a T4 and an H100; neither needs to be there

Needs triton and no GPU. Ends with 1 where a kernel may not ship.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import starmap
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)  # read when a kernel is defined: interpreted ones cannot be compiled
sys.path[:0] = [str(Path(__file__).parents[1])]

import torch  # noqa: E402
from medrl_bench.aot import MODULES, Outcome, shipped, try_to_build  # noqa: E402

from medrl_kernels.configs import ARCHITECTURES, nearest  # noqa: E402


def arguments(line: list[str] | None) -> argparse.Namespace:
    """The command line, parsed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--arch", type=int, nargs="+", choices=ARCHITECTURES, help="compute capability x 10")
    parser.add_argument("--module", nargs="+", default=MODULES, help="modules with compilations(arch)")
    parser.add_argument(
        "--odd", type=int, nargs="*", help="those to try sizes on that are no multiples of 16"
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes that compile")
    parser.add_argument("--json", action="store_true", help="all outcomes as JSON instead of a table")
    return parser.parse_args(line)


def present() -> list[int]:
    """The architecture of this machine's card; all of them where there is none."""
    if not torch.cuda.is_available():
        return list(ARCHITECTURES)
    major, minor = torch.cuda.get_device_capability()
    return [nearest(10 * major + minor)]


def tasks(args: argparse.Namespace) -> Iterator[tuple[str, int, int, str]]:
    """(module, arch, index, sizes) of everything to compile."""
    archs = args.arch or present()
    odd = archs if args.odd is None else args.odd
    for arch in archs:
        for module in args.module:
            for index in range(len(shipped(module, arch))):
                yield module, arch, index, "aligned"
                if arch in odd:
                    yield module, arch, index, "odd"


def compile_all(args: argparse.Namespace) -> list[Outcome]:
    """Every outcome, in the order of the tasks."""
    todo = list(tasks(args))
    if args.jobs == 1:
        return list(starmap(try_to_build, todo))
    with ProcessPoolExecutor(args.jobs, multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(try_to_build, *zip(*todo, strict=True), chunksize=4))


def show(outcomes: list[Outcome]) -> None:
    """A line an architecture, and one for each complaint."""
    for arch in sorted({outcome.arch for outcome in outcomes}):
        here = [outcome for outcome in outcomes if outcome.arch == arch]
        bad = [outcome for outcome in here if outcome.complaints]
        shared, registers = max(o.shared_bytes for o in here), max(o.registers for o in here)
        seconds = sum(outcome.seconds for outcome in here)
        print(
            f"sm_{arch}: {len(here) - len(bad)} of {len(here)} kernels are well; "
            f"at most {shared / 1024:g} KiB of shared memory, {registers} registers; {seconds:.0f} s"
        )
        for outcome in bad:
            print(f"  {outcome.name} ({outcome.sizes}): {'; '.join(outcome.complaints)}")


def main(line: list[str] | None = None) -> int:
    """Compile, say what came of it; 1 if anything may not ship."""
    args = arguments(line)
    outcomes = compile_all(args)
    if args.json:
        print(json.dumps([outcome._asdict() for outcome in outcomes], indent=1))
    else:
        show(outcomes)
    return int(any(outcome.complaints for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
