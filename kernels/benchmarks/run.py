"""Times every op, implementation and installed peer on the same inputs, and appends CSV rows.

python kernels/benchmarks/run.py                              # full shapes on a CUDA card, small ones on a
CPU python kernels/benchmarks/run.py --ops grpo_loss --minutes 2

An implementation is checked against the reference before it is timed; one that is wrong gets a row that says
so and no time, and the command ends with 1. Ends inside --minutes, says what was left out, and which of the
project's figures the rows meet. kernels/README.md says what a row means.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path[:0] = [str(Path(__file__).parents[1])]

import torch  # noqa: E402
from medrl_bench import machine, plots, rows, summary  # noqa: E402
from medrl_bench.session import Session  # noqa: E402
from medrl_bench.tasks import OPS, SHAPES, Task, plan  # noqa: E402
from medrl_bench.timing import Budget  # noqa: E402

HERE = Path(__file__).parent
RESERVE_S = 15  # for the plots, and for a call under way when the time is up, which ends first
BOX_S = {"tiny": 0.01, "small": 1.0, "full": 0.7}


def arguments(line: list[str] | None) -> argparse.Namespace:
    """The command line, parsed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--ops", default=",".join(OPS), help=f"comma-separated, among {', '.join(OPS)}")
    parser.add_argument("--shapes", choices=SHAPES, help="full on a CUDA card, small on a CPU unless given")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the CSV and the plots")
    parser.add_argument("--minutes", type=float, default=8.0, help="time to stay in")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON instead of a table")
    return parser.parse_args(line)


def device_here() -> torch.device:
    """The CUDA card if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def half_dtype(device: torch.device) -> str:
    """bf16 where the card computes in it, else fp16."""
    if device.type != "cuda":
        return "bf16"
    return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"


def stem(device: torch.device, shapes: str) -> str:
    """Name of the files of a device: cpu, or the card's name."""
    name = "cpu" if device.type == "cpu" else re.sub(r"[^a-z0-9]+", "-", machine.device_name(device).lower())
    return name + ("-tiny" if shapes == "tiny" else "")


def run_all(session: Session, tasks: list[Task], path: Path, quiet: bool) -> None:
    """Every task that there is time for; rows are written as soon as they are there."""
    for task in tasks:
        new = session.run(task)
        rows.append(path, new)
        if new and not quiet:
            print(rows.table(new), flush=True)


def main(line: list[str] | None = None) -> int:
    """Measure, write, draw and tell."""
    args = arguments(line)
    budget = Budget(60 * args.minutes - min(RESERVE_S, 6 * args.minutes))
    device = device_here()
    shapes = args.shapes or ("full" if device.type == "cuda" else "small")
    tasks = plan(shapes, args.ops.split(","), half_dtype(device))
    stamp = {"device": machine.device_name(device), "versions": machine.versions()}
    stamp |= {"commit": machine.commit(HERE), "date": machine.today()}
    session = Session(device, budget, BOX_S[shapes], stamp)
    path = args.out / f"{stem(device, shapes)}.csv"
    run_all(session, tasks, path, quiet=args.json)
    known = rows.read(path) if path.exists() else []
    drawn = plots.draw(known, args.out, path.stem)
    tell(session, [path, *drawn] if known else [], summary.compare(known), as_json=args.json)
    return int(any(not row.check.startswith(rows.GREEN) for row in session.rows))


def tell(session: Session, written: list[Path], findings: list[summary.Finding], as_json: bool) -> None:
    """What was measured (as JSON only: the table has been printed), what was left out, which figures the rows
    of this device meet, and what was written."""
    if as_json:
        left_out = [left._asdict() for left in session.left_out]
        found = {"rows": [asdict(row) for row in session.rows], "left_out": left_out}
        found["figures"] = [finding._asdict() for finding in findings]
        print(json.dumps(found | {"files": [str(path) for path in written]}, indent=1))
        return
    absent = Counter((left.impl, left.why) for left in session.left_out if left.impl)
    for (impl, why), times in absent.items():
        print(f"left out {times} times: {impl}: {why}")
    for left in session.left_out:
        if not left.impl:
            print(f"left out: {left.task}: {left.why}")
    print("\n".join(summary.told(findings)))
    for path in written:
        print(f"wrote {path}")
    if not any(path.suffix == ".svg" for path in written):
        print("no plot drawn: there are no two green times of the same thing")


if __name__ == "__main__":
    sys.exit(main())
