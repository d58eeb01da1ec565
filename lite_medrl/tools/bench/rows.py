"""One measurement is one row of a CSV file: what was run, what it took, how far it is from TRL, and where."""

from __future__ import annotations

import csv
import importlib.metadata
import platform
import re
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lite_medrl.types import DataError

GREEN = "ok"
PACKAGES = ("torch", "triton", "trl", "transformers", "peft", "bitsandbytes", "unsloth")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One phase of one implementation; what was not compared or could not be measured is None."""

    impl: str
    phase: str
    """update: GRPO's loss, forward and backward; old_logp: log-probs, forward only; sft: SFT's loss, both."""
    shape: str
    dtype: str
    """What is computed in; "nf4, bfloat16" where the linear layers are quantised."""
    prompt: int
    response: int
    generations: int
    questions_per_image: int
    p50_s: float
    p20_s: float
    p80_s: float
    repeats: int
    questions_per_s: float
    """Questions, with all their completions, in a second of p50."""
    peak_gib: float | None
    """Most memory above weights and batch: the CUDA allocator's, or the process's growth on a CPU."""
    trunk_tokens: int
    """Rows x places through the text model, padding among them; forward pass."""
    real_tokens: int
    """Those that are no padding."""
    image_patches: int
    """Patches through the vision tower."""
    loss: float
    """The loss; of old_logp, minus the mean log-prob."""
    loss_diff: float | None = None
    """Distance to the reference's, the first implementation of the run (TRL's, unless it was left out)."""
    grad_diff: float | None = None
    """Largest difference of a LoRA gradient to the reference's."""
    grad_max: float | None = None
    """Largest LoRA gradient of the reference."""
    logp_diff: float | None = None
    """Largest difference of a log-prob to the reference's."""
    times_as_fast: float | None = None
    """Reference's p50 over this one's; only where `check` is "ok"."""
    check: str = GREEN
    note: str = ""
    device: str = ""
    versions: str = ""
    commit: str = ""
    date: str = ""


COLUMNS = tuple(field.name for field in fields(Row))


def append(path: Path, rows: Iterable[Row]) -> None:
    """Adds rows to a CSV file, with a header if it is new. DataError if the file has other columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists() or path.stat().st_size == 0
    if not new:
        with path.open(encoding="utf-8", newline="") as file:
            found = tuple(next(csv.reader(file)))
        if found != COLUMNS:
            raise DataError(f"{path} has other columns than these rows; move it away: {', '.join(found)}")
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if new:
            writer.writerow(COLUMNS)
        writer.writerows([as_text(value) for value in asdict(row).values()] for row in rows)


def as_text(value: object) -> str:
    """A cell: nothing for None, six significant digits for a float."""
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def table(rows: Sequence[Row]) -> list[str]:
    """Lines for a terminal, a block for each phase of each shape."""
    blocks: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        key = (row.phase, row.shape, row.dtype, row.prompt, row.response, row.generations)
        blocks.setdefault((*key, row.questions_per_image), []).append(row)
    lines = []
    for (phase, shape, dtype, prompt, response, generations, questions), block in blocks.items():
        sizes = f"P={prompt} R={response}" + (f" G={generations}" if phase != "sft" else "")
        lines.append(f"{phase}  {shape}  {dtype}  {sizes}  questions per image: {questions}")
        lines += [f"  {line_of(row)}" for row in block]
    return lines + list(dict.fromkeys(f"note: {row.impl}: {row.note}" for row in rows if row.note))


def line_of(row: Row) -> str:
    """One implementation's line in the table."""
    parts = [f"{row.impl:<12}{row.p50_s:8.3f} s [{row.p20_s:.3f}, {row.p80_s:.3f}]"]
    parts += [f"{row.peak_gib:7.3f} GiB"] if row.peak_gib is not None else []
    parts += [f"{row.trunk_tokens:6d} tokens ({row.real_tokens} real)", f"{row.image_patches} patches"]
    parts += [f"loss {row.loss:.7f}"]
    parts += [f"{row.times_as_fast:.2f} x as fast"] if row.times_as_fast is not None else []
    parts += [f"loss differs by {row.loss_diff:.1e}"] if row.loss_diff is not None else []
    parts += [f"gradients by {row.grad_diff:.1e} of {row.grad_max:.1e}"] if row.grad_diff is not None else []
    parts += [f"log-probs by {row.logp_diff:.1e}"] if row.logp_diff is not None else []
    return "  ".join(parts + ([row.check] if row.check != GREEN else []))


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of the values lie, interpolated."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def stamp(device: str, threads: int) -> dict[str, str]:
    """Where and with what a row was measured."""
    return {
        "device": device_name(device, threads),
        "versions": versions(),
        "commit": commit(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def device_name(device: str, threads: int) -> str:
    """The card's name, or the processor's with the threads in use (0: torch's own number)."""
    import torch

    if device == "cuda":
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8") if cpuinfo.exists() else ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.M)
    name = found.group(1).strip() if found else platform.processor() or platform.machine()
    threads = threads or torch.get_num_threads()
    return f"{name}, {threads} thread{'s' * (threads > 1)}"


def versions() -> str:
    """Python and every package that a row depends on, as far as they are installed."""
    parts = [f"python {platform.python_version()}"]
    for name in PACKAGES:
        try:
            parts.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return " ".join(parts)


def commit() -> str:
    """The commit that is checked out, with a + where sources differ from it; "unknown" outside a checkout."""
    here = Path(__file__).parent
    head = git(here, "rev-parse", "--short=12", "HEAD")
    if head is None:
        return "unknown"
    return head + ("+" if git(here, "status", "--porcelain", "--", ":/lite_medrl", ":/kernels") else "")


def git(folder: Path, *words: str) -> str | None:
    """What a git command prints; None if it fails or there is no git."""
    try:
        done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
