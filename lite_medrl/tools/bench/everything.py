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
        found.insert(0, Part("kernels", [*words, *(["--shapes", "small"] if tiny else [])], 0.5))
    return found


def bench_all(folder: Path, *, tiny: bool, minutes: float, repository: Path = REPOSITORY) -> dict[str, Any]:
    """Runs them one after the other inside about `minutes`.

    Returns:
        "rows" of each part (as it prints them with --json), "verdicts": what is asked of them beside what was
        measured, "failed" with the last lines of what it said, and the folder of the CSV files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    chosen, end = parts(folder, repository, tiny=tiny), time.monotonic() + 60 * minutes
    rows: dict[str, Any] = {}
    verdicts: dict[str, list[str]] = {}
    failed: dict[str, str] = {}
    for number, part in enumerate(chosen):
        left = end - time.monotonic()
        share = part.share / sum(other.share for other in chosen[number:])
        log.info("%s: at most %.1f min", part.name, left * share / 60)
        try:
            found = run(part, left * share)
            rows[part.name], verdicts[part.name] = found.rows, found.verdicts
            if found.fault:
                failed[part.name] = found.fault
        except (subprocess.SubprocessError, ValueError) as error:
            failed[part.name] = str(error)
            log.warning("%s: %s", part.name, error)
    return {"rows": rows, "verdicts": verdicts, "failed": failed, "folder": str(folder)}


class Found(NamedTuple):
    """What one benchmark printed: its rows, what is asked of them, what went wrong beside ("": nothing)."""

    rows: list[Any]
    verdicts: list[str]
    fault: str = ""


def run(part: Part, seconds: float) -> Found:
    """What one benchmark prints; ValueError with its last lines where it fails without rows."""
    done = subprocess.run(
        [sys.executable, *part.words, "--minutes", f"{max(seconds, 20) / 60:.2f}", "--json"],
        capture_output=True, text=True, check=False, timeout=2 * max(seconds, 20) + 60,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip
    told = f"exit code {done.returncode}: " + " | ".join(done.stderr.strip().splitlines()[-3:])
    try:
        found = json.loads(done.stdout)
    except ValueError:
        raise ValueError(told if done.returncode else f"it printed no JSON: {done.stdout[-200:]!r}") from None
    rows = found["rows"] if isinstance(found, dict) else found
    if done.returncode and not rows:
        raise ValueError(told)
    figures = found.get("figures", []) if isinstance(found, dict) else []
    verdicts = [f"{one['figure']}: {one['verdict']} ({shown(one['measured'])})" for one in figures]
    if "rollout" in part.words:
        from lite_medrl.tools.bench.rollout import verdict

        verdicts += verdict(rows)
    red = [row for row in rows if not str(row.get("check", "ok")).startswith("ok")]
    reds = f"{len(red)} rows are red, the first: {red[0].get('impl')}: {red[0]['check']}" if red else told
    return Found(rows, verdicts, reds if done.returncode else "")


def shown(measured: float | None) -> str:
    """A measured value in a few digits."""
    return "not measured" if measured is None else f"measured: {measured:.3g}"


def describe(result: dict[str, Any]) -> str:
    """A line a part."""
    lines = [f"{name:<34}{len(rows):>4} rows" for name, rows in result["rows"].items()]
    lines += [f"{name}: {line}" for name, told in result["verdicts"].items() for line in told]
    lines += [f"{name:<34}failed: {why}" for name, why in result["failed"].items()]
    return "\n".join([*lines, f"CSV files: {result['folder']}"])
