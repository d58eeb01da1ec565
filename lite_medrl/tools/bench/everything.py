"""Every benchmark that can run on this machine, each in a process of its own, in the order of what it tells.

On a CUDA card: kernels, updates (one and four questions an image), SFT, rollouts, at full size. On a CPU the
small shapes of each. Rows are appended to CSV files as they come; one benchmark that fails does not end the
others, it is named.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

log = logging.getLogger(__name__)

REPOSITORY = Path(__file__).parents[3]
KERNELS = Path("kernels") / "benchmarks" / "run.py"


class Part(NamedTuple):
    """One benchmark: its name, the words behind `python`, and its share of the time."""

    name: str
    words: list[str]
    share: float


def parts(folder: Path, repository: Path, *, tiny: bool) -> list[Part]:
    """What runs; the kernels' own only in a checkout, which holds them."""
    step = ["-m", "lite_medrl", "bench", "step", "--output", str(folder / "bench_step.csv")]
    rollout = ["-m", "lite_medrl", "bench", "rollout", "--output", str(folder / "bench_rollout.csv")]
    size = ["--tiny"] if tiny else []
    shape = [] if tiny else ["--shape", "qwen3-vl-4b"]
    found = [
        Part("update", [*step, *size, *shape], 0.2),
        Part("update, short answers", [*step, *size, *shape, "--response", "32" if tiny else "64"], 0.1),
        Part("update, four questions an image", [*step, *size, *shape, "--questions-per-image", "4"], 0.2),
        Part("SFT", [*step, *size, *shape, "--phase", "sft", "--questions-per-image", "4"], 0.1),
        Part("rollout", [*rollout, *size], 0.2),
    ]
    if (repository / KERNELS).is_file():
        words = [str(repository / KERNELS), "--out", str(repository / KERNELS.parent / "results")]
        found.insert(0, Part("kernels", [*words, *(["--shapes", "small"] if tiny else [])], 0.2))
    return found


def bench_all(folder: Path, *, tiny: bool, minutes: float, repository: Path = REPOSITORY) -> dict[str, Any]:
    """Runs them one after the other inside about `minutes`.

    Returns:
        "rows" of each part (as it prints them with --json), "failed" with the last lines of what it said, and
        the folder of the CSV files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    chosen, end = parts(folder, repository, tiny=tiny), time.monotonic() + 60 * minutes
    rows: dict[str, Any] = {}
    failed: dict[str, str] = {}
    for number, part in enumerate(chosen):
        left = end - time.monotonic()
        share = part.share / sum(other.share for other in chosen[number:])
        log.info("%s: at most %.1f min", part.name, left * share / 60)
        try:
            rows[part.name] = run(part, left * share)
        except (subprocess.SubprocessError, ValueError) as error:
            failed[part.name] = str(error)
            log.warning("%s: %s", part.name, error)
    return {"rows": rows, "failed": failed, "folder": str(folder)}


def run(part: Part, seconds: float) -> Any:
    """What one benchmark prints; ValueError with its last lines where it fails or runs out of time."""
    limit = [] if "rollout" in part.words else ["--minutes", f"{max(seconds, 20) / 60:.2f}"]
    done = subprocess.run(
        [sys.executable, *part.words, *limit, "--json"],
        capture_output=True, text=True, check=False, timeout=2 * max(seconds, 20) + 60,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip
    if done.returncode:
        raise ValueError(f"exit code {done.returncode}: " + " | ".join(done.stderr.strip().splitlines()[-3:]))
    found = json.loads(done.stdout)
    return found["rows"] if isinstance(found, dict) else found


def describe(result: dict[str, Any]) -> str:
    """A line a part."""
    lines = [f"{name:<34}{len(rows):>4} rows" for name, rows in result["rows"].items()]
    lines += [f"{name:<34}failed: {why}" for name, why in result["failed"].items()]
    return "\n".join([*lines, f"CSV files: {result['folder']}"])
