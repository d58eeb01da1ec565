"""How fast answers are drawn: ours against transformers, and Unsloth and vLLM where they are installed.

One row for each generator and number of sequences: tokens a second over the whole call, time to the first
token, how many times transformers' generate that is, peak memory, and the share of the decode roofline: the
time that reading weights and keys and values once a step would take at the measured copy bandwidth (a
prompt's counted once for all its answers), over the time taken. Weights are counted as they lie in memory,
half a byte each in NF4. bitsandbytes may unpack a large layer for 64 rows instead of multiplying from 4 bits:
4.5 bytes would be moved for each of its weights (0.5 read, 2 written, 2 read), which caps the share.
"""

from __future__ import annotations

import csv
import gc
import logging
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers

from lite_medrl.model.cache_budget import bytes_per_token
from lite_medrl.model.load import first_line
from lite_medrl.tools.bench.rollout_models import SHAPES, Subject, make_subject, weight_bytes
from lite_medrl.tools.bench.rollout_rivals import NAMES, Draw, LeftOut, rival
from lite_medrl.tools.bench.rows import commit
from lite_medrl.types import RecipeError

log = logging.getLogger(__name__)

Row = dict[str, Any]
GRIDS = {1: (1, 1), 8: (1, 8), 64: (8, 8)}  # sequences -> prompts x answers to each
FIGURES = ("impl", "sequences", "tokens_per_s", "ttft_s", "peak_gib", "roofline_frac")
# Asked of ours with most sequences, on a card, for 8 x 8 answers of 200 tokens by Qwen3-VL-4B in NF4.
GOALS = {"times_hf": 5.0, "roofline_frac": 0.5}
GIB = 2**30


def run_rollout(args: Any) -> dict[str, list[Row]]:
    """Measures; returns {"rows": [...]}, and appends each to `args.output` (CSV) as it comes, if given.

    What cannot be measured here, for want of a package, of memory or of time, or because another's generator
    fails, has no row; the log says why.

    Args:
        args: `tiny` (the embedded model, short answers, seconds on a CPU), `model`, `impls` and `sequences`
            (comma-separated), `prompt_tokens`, `new_tokens`, `repeats`, `minutes` (no row is begun later),
            `output`; those missing take their defaults.

    Raises:
        RecipeError: an unknown generator, or a number of sequences that is not one of GRIDS.
    """
    tiny = bool(getattr(args, "tiny", False))
    names = chosen(getattr(args, "impls", None), NAMES, str)
    sequences = chosen(getattr(args, "sequences", None), tuple(GRIDS), int)
    card = torch.cuda.is_available()
    model = getattr(args, "model", None) or ("qwen3-vl-4b" if card and not tiny else "embedded")
    new_tokens = getattr(args, "new_tokens", None) or (24 if tiny or not card else 200)
    repeats = getattr(args, "repeats", None) or (2 if tiny else 3)
    prompt_tokens = getattr(args, "prompt_tokens", None) or 1000
    subject = make_subject(model, prompts=max(GRIDS[n][0] for n in sequences), prompt_tokens=prompt_tokens)
    bandwidth = copy_bandwidth(next(subject.model.parameters()).device)
    output, minutes = getattr(args, "output", None), getattr(args, "minutes", None)
    end = time.monotonic() + 60 * minutes if minutes else None
    rows: list[Row] = []
    for name in sorted(names, key=lambda name: name != "hf"):  # the others are held against it
        for row in rows_of(name, subject, sequences, new_tokens, repeats, bandwidth, end):
            rows.append(row | where(subject) | {"times_hf": times_hf(row, rows)})
            if output:
                append(Path(output), rows[-1:])
    return {"rows": sorted(rows, key=lambda row: names.index(row["impl"]))}


def rows_of(
    name: str,
    subject: Subject,
    sequences: list[int],
    new_tokens: int,
    repeats: int,
    bandwidth: float,
    end: float | None = None,
) -> Iterator[Row]:
    """A generator's rows, but for those that it cannot be measured for; the log says why.

    Ours may run out of memory, but a failure of its own is raised; another's, whatever it is, is not.
    """
    lacks = torch.OutOfMemoryError if name == "grouped" else Exception
    try:
        draw = rival(name, subject)
    except LeftOut as reason:
        log.info("%s: left out, %s", name, reason)
        return
    except lacks as error:
        log.warning("%s: left out, %s", name, first_line(error))
        return
    for n in sequences:
        if end is not None and time.monotonic() > end:
            log.warning("%s with %d sequences: left out, the time is up", name, n)
            continue
        try:
            yield measure(name, draw, subject, n, new_tokens, repeats, bandwidth)
        except lacks as error:
            log.warning("%s with %d sequences: left out, %s", name, n, first_line(error))
        release()


def release() -> None:
    """Gives back what a call that ended, or ran out of memory, still holds."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def times_hf(row: Row, rows: Sequence[Row]) -> float | None:
    """A row's tokens a second over those of transformers' generate; None where it has no row yet."""
    theirs = {other["sequences"]: other["tokens_per_s"] for other in rows if other["impl"] == "hf"}
    if row["impl"] == "hf":
        return 1.0
    return row["tokens_per_s"] / theirs[n] if (n := row["sequences"]) in theirs else None


def chosen(text: Any, known: tuple[Any, ...], kind: Callable[[str], Any]) -> list[Any]:
    """Names or numbers from a comma-separated text, all of `known` without one."""
    if not text:
        return list(known)
    try:
        found = [kind(part) for part in str(text).split(",")]
    except ValueError:
        found = [text]
    for one in found:
        if one not in known:
            raise RecipeError(f"bench rollout: {one!r} is not one of {', '.join(map(str, known))}")
    return found


def measure(
    name: str, draw: Draw, subject: Subject, sequences: int, new_tokens: int, repeats: int, bandwidth: float
) -> Row:
    """One row: medians over the repeats, after a call that warms up."""
    prompts, answers = GRIDS[sequences]
    device = next(subject.model.parameters()).device
    draw(prompts, answers, new_tokens)
    first = [timed(lambda: draw(prompts, answers, 1), device) for _ in range(repeats)]
    reset_peak(device)
    total = [timed(lambda: draw(prompts, answers, new_tokens), device) for _ in range(repeats)]
    ttft_s, total_s = statistics.median(first), statistics.median(total)
    ideal_s = step_bytes(subject, prompts, sequences, new_tokens) / bandwidth
    steps_s = max(total_s - ttft_s, 1e-9)
    return {
        "impl": name,
        "sequences": sequences,
        "tokens_per_s": sequences * new_tokens / total_s,
        "ttft_s": ttft_s,
        "peak_gib": peak_gib(device),
        "roofline_frac": ideal_s * (new_tokens - 1) / steps_s if new_tokens > 1 else None,
        "total_s": total_s,
        "spread_s": max(total) - min(total),
        "prompt_tokens": int(subject.first(prompts)["attention_mask"].sum(1).max()),
        "new_tokens": new_tokens,
        "repeats": repeats,
    }


def step_bytes(subject: Subject, prompts: int, sequences: int, new_tokens: int) -> float:
    """Bytes that one decode step has to read, on average: weights, prompts once, half-grown answers."""
    lengths = int(subject.first(prompts)["attention_mask"].sum())
    per_token = bytes_per_token(subject.model.config, subject.dtype)
    return weight_bytes(subject.model) + per_token * (lengths + sequences * new_tokens / 2)


def timed(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds until the call has returned and the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second that a large copy reads and writes, the best of several."""
    cells = (2**28 if device.type == "cuda" else 2**24) // 4
    source, target = (torch.ones(cells, device=device) for _ in range(2))
    return 2 * source.nbytes / min(timed(lambda: target.copy_(source), device) for _ in range(10))


def reset_peak(device: torch.device) -> None:
    """Starts the peak over."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_gib(device: torch.device) -> float | None:
    """Most memory since `reset_peak`: the card's, or this process's (None where the system does not tell)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024 / GIB
    return None


def where(subject: Subject) -> Row:
    """What a row was measured on."""
    device = next(subject.model.parameters()).device
    return {
        "model": f"{subject.name} (random weights)" if subject.name in SHAPES else subject.name,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "dtype": str(subject.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "bitsandbytes": version("bitsandbytes"),
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
    }


def append(path: Path, rows: list[Row]) -> None:
    """Adds rows to a CSV file, with a header if it is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else [])
        if fresh:
            writer.writeheader()
        writer.writerows(
            {k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows
        )


def describe(rows: Iterable[Row]) -> str:
    """The rows as a table for people."""
    rows = list(rows)
    head = f"{'impl':<10}{'sequences':>10}{'tokens/s':>11}{'ttft s':>9}{'peak GiB':>10}{'roofline':>10}"
    lines = [f"{head}{'x hf':>7}"]
    for row in rows:
        impl, sequences, speed, ttft, peak, share = (row[name] for name in FIGURES)
        memory = "-" if peak is None else f"{peak:.2f}"
        part = "-" if share is None else f"{share:.1%}"
        times = "-" if row.get("times_hf") is None else f"{row['times_hf']:.2f}"
        lines.append(f"{impl:<10}{sequences:>10}{speed:>11.1f}{ttft:>9.3f}{memory:>10}{part:>10}{times:>7}")
    return "\n".join([*lines, *verdict(rows)])


def verdict(rows: Sequence[Row]) -> list[str]:
    """Whether ours reaches the goals with most sequences; they are a card's, and that is said elsewhere."""
    mine = [row for row in rows if row["impl"] == "grouped" and row["sequences"] == max(GRIDS)]
    told = []
    for row in mine:
        for name, text in (("times_hf", "{:.2f} x hf"), ("roofline_frac", "{:.0%} of the roofline")):
            goal = text.format(GOALS[name])
            if (found := row.get(name)) is None:
                told.append(f"{max(GRIDS)} sequences: not measured (goal: {goal})")
                continue
            reached = "reached" if found >= GOALS[name] else "not reached"
            judged = "a card's" if row.get("device", "cpu") == "cpu" else reached
            told.append(f"{max(GRIDS)} sequences: {text.format(found)} (goal: {goal}, {judged})")
    return told
