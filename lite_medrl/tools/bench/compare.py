"""The step benchmark: TRL's trainers against ours on the same model and rollouts, each in a fresh process.

On a CPU they are measured in turns. On a CUDA card, which is rarely shared and may not hold two models, one
runs after the other. Rows are compared with the first implementation's before a speed-up is told.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from lite_medrl.tools.bench.case import Case, Job
from lite_medrl.tools.bench.rows import GREEN, Row, append, percentile, stamp, table
from lite_medrl.tools.bench.shapes import SHAPES, one_of
from lite_medrl.tools.bench.worker import Worker, WorkerError
from lite_medrl.types import RecipeError

IMPLS = ("trl", "lite-medrl", "lite-medrl-separate", "unsloth")  # the first one that runs is the reference
DEFAULT = ("trl", "lite-medrl", "unsloth")
PHASES = ("update", "old_logp", "sft")
TINY_MINUTES, MINUTES = 0.75, 10.0
# Differences that rounding explains: of the loss, of a gradient as a share of the largest one, of a log-prob.
ALLOWED = {"float32": (1e-6, 1e-3, 1e-4), "float16": (1e-2, 0.2, 0.1), "bfloat16": (1e-2, 0.2, 0.5)}


@dataclass(slots=True)
class Found:
    """What came of a run; `left_out` says what was not measured, and why."""

    rows: list[Row] = field(default_factory=list)
    left_out: list[dict[str, str]] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """For --json."""
        return {"rows": [asdict(row) for row in self.rows], "left_out": self.left_out}

    def describe(self) -> str:
        """For a terminal."""
        left_out = [f"left out: {one['impl']} ({one['shape']}): {one['why']}" for one in self.left_out]
        return "\n".join([*table(self.rows), *left_out])


def bench_step(
    *,
    tiny: bool = False,
    shapes: Sequence[str] = (),
    impls: Sequence[str] = (),
    phases: Sequence[str] = (),
    minutes: float | None = None,
    output: Path | None = None,
    **sizes: Any,
) -> Found:
    """Measures every implementation on every shape; rows are appended to `output` as soon as they are there.

    Args:
        sizes: fields of `Case`; what is None or left out takes the default of the run.
    """
    end = time.monotonic() + 60 * (minutes or (TINY_MINUTES if tiny else MINUTES))
    cases = make_cases(tiny, shapes, {name: value for name, value in sizes.items() if value is not None})
    wanted = [one_of("phase", name, PHASES) for name in phases] or list(PHASES[:2])
    chosen, found = choose(impls), Found()
    if "unsloth" in chosen and find_spec("unsloth") is None:
        chosen.remove("unsloth")
        found.left_out.append({"impl": "unsloth", "shape": "any", "why": "it is not installed"})
    runs = [(case, group) for case in cases for group in trainer_phases(wanted)]
    for number, (case, group) in enumerate(runs):
        share_s = (end - time.monotonic()) / (len(runs) - number)
        new, left_out = compare(case, group, chosen, min(end, time.monotonic() + share_s))
        found.rows += new
        found.left_out += left_out
        if output:
            append(output, new)
    return found


def choose(impls: Sequence[str]) -> list[str]:
    """The implementations asked for, or all, in the order in which they run."""
    asked = [one_of("implementation", name, IMPLS) for name in impls] or DEFAULT
    return [name for name in IMPLS if name in asked]


def make_cases(tiny: bool, shapes: Sequence[str], sizes: dict[str, Any]) -> list[Case]:
    """One case a shape; where and in which precision it runs is the machine's to say."""
    names = [one_of("shape", name, SHAPES) for name in shapes]
    if tiny and names:
        raise RecipeError("--tiny is a shape of its own; leave out --shape")
    device = sizes.pop("device", "auto")
    cuda = torch.cuda.is_available() if device == "auto" else device == "cuda"
    if cuda and not torch.cuda.is_available():
        raise RecipeError("--device cuda: there is no CUDA card here")
    if not (cuda or tiny or names):
        raise RecipeError("there is no CUDA card here; give --tiny, or name a --shape to run it on the CPU")
    names = names or ["tiny" if tiny else "qwen3-vl-4b"]
    return [make_case(name, setting(name, cuda) | sizes) for name in names]


def make_case(shape: str, values: dict[str, Any]) -> Case:
    """A case from the names and values of its other fields."""
    return Case(shape, **values)


def setting(shape: str, cuda: bool) -> dict[str, Any]:
    """Defaults of a case: the tiny model in plain fp32, the others as QLoRA trains them."""
    small = shape == "tiny"
    return {
        "prompt": 512 if small else 1000,
        "response": 64 if small else 200,
        "device": "cuda" if cuda else "cpu",
        "threads": int(small),  # more gain little there, and wait for each other where a machine is shared
        "dtype": "float32" if small or not cuda else half(),
        "quantised": not small,
        "gradient_checkpointing": not small,
    }


def half() -> str:
    """The 16-bit type that this card computes in."""
    return "bfloat16" if torch.cuda.get_device_capability()[0] >= 8 else "float16"


def trainer_phases(phases: Sequence[str]) -> list[tuple[str, ...]]:
    """Phases by trainer: GRPO's share a process, and SFT's has its own."""
    grpo = tuple(phase for phase in ("update", "old_logp") if phase in phases)
    return [group for group in (grpo, ("sft",) if "sft" in phases else ()) if group]


def compare(
    case: Case, phases: tuple[str, ...], impls: Sequence[str], end: float
) -> tuple[list[Row], list[dict[str, str]]]:
    """Rows of one case, and what was left out of it."""
    together = [impls] if case.device == "cpu" else [[impl] for impl in impls]
    rows: list[Row] = []
    left_out: list[dict[str, str]] = []
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder:
        jobs = {impl: Job(impl, phases, case, folder) for impl in impls}
        for number, group in enumerate(together):
            share_s = (end - time.monotonic()) / (len(together) - number)
            turns = Turns([jobs[impl] for impl in group], time.monotonic() + share_s)
            rows += [measured(jobs[impl], look, times) for impl, look, times in turns.run()]
            left_out += [{"impl": impl, "shape": case.shape, "why": why} for impl, why in turns.why.items()]
        rows.sort(key=lambda row: phases.index(row.phase))  # stable: the first of a phase is its reference
        first = {row.phase: row for row in reversed(rows)}
        compared = [row if row is first[row.phase] else against(row, first[row.phase], jobs) for row in rows]
    return compared, left_out


class Turns:
    """Processes that are measured in turns, so that a drift of the machine meets all of them alike."""

    def __init__(self, jobs: Sequence[Job], end: float) -> None:
        self.jobs, self.end = jobs, end
        self.workers: dict[str, Worker] = {}
        self.why: dict[str, str] = {}

    def run(self) -> list[tuple[str, dict[str, Any], list[float]]]:
        """Implementation, what was seen of a phase, and the seconds of its repeats."""
        phases, found = self.jobs[0].phases, []
        try:
            self.workers = {job.impl: Worker(job) for job in self.jobs}
            for phase in phases:
                self.ask_all("warm_up", phase)
            for number, phase in enumerate(phases):
                share_s = (self.end - time.monotonic()) / (len(phases) - number)
                found += self.phase(phase, time.monotonic() + share_s)
        finally:
            for worker in self.workers.values():
                worker.stop()
        return found

    def phase(self, phase: str, enough: float) -> list[tuple[str, dict[str, Any], list[float]]]:
        """One phase of all; two repeats, then more while another one would end before `enough`."""
        looks = self.ask_all("look", phase)
        times: dict[str, list[float]] = {impl: [] for impl in looks}
        round_s = 0.0
        for number in range(self.jobs[0].case.repeats):
            begin = time.monotonic()
            if number >= 2 and begin + round_s > enough:
                break
            for impl, seconds in self.ask_all("seconds", phase).items():
                times[impl].append(seconds)
            round_s = max(round_s, time.monotonic() - begin)
        return [(impl, look, times[impl]) for impl, look in looks.items() if times[impl]]

    def ask_all(self, command: str, phase: str) -> dict[str, Any]:
        """Answers of those that have one, in turn; the others are stopped. If ours dies, it is an error."""
        answers: dict[str, Any] = {}
        for impl, worker in list(self.workers.items()):
            try:
                answers[impl] = worker.ask(command, phase, self.end)
            except WorkerError as error:
                if impl.startswith("lite-medrl") and worker.died():
                    raise RuntimeError(f"the process of {impl} failed:\n{error}") from None
                self.why[impl] = f"{phase}: {str(error).splitlines()[-1]}"
                self.workers.pop(impl).stop()
        return answers


def measured(job: Job, look: dict[str, Any], times: list[float]) -> Row:
    """A row without comparison."""
    case = job.case
    p50 = percentile(times, 0.5)
    sizes = ("shape", "prompt", "response", "generations", "questions_per_image")
    known: dict[str, Any] = {name: getattr(case, name) for name in sizes} | look
    known |= stamp(case.device, case.threads)
    return Row(
        impl=job.impl,
        dtype=f"nf4, {case.dtype}" if case.quantised else case.dtype,
        p50_s=p50,
        p20_s=percentile(times, 0.2),
        p80_s=percentile(times, 0.8),
        repeats=len(times),
        questions_per_s=case.questions_per_image / p50,
        **known,
    )


def against(row: Row, reference: Row, jobs: Mapping[str, Job]) -> Row:
    """The row with its differences to the reference's, and with a speed-up if they are rounding."""
    mine, theirs = (torch.load(jobs[one.impl].tensors(row.phase)) for one in (row, reference))
    assert mine.keys() == theirs.keys(), "the implementations trained different parameters"
    diff = largest([mine[name] - theirs[name] for name in theirs])
    seen = {"loss_diff": abs(row.loss - reference.loss)}
    if row.phase == "old_logp":
        seen["logp_diff"] = diff
    else:
        seen |= {"grad_diff": diff, "grad_max": largest(list(theirs.values()))}
    red = why_red(jobs[row.impl].case, seen, reference.loss)
    speed = reference.p50_s / row.p50_s
    return replace(row, **seen, times_as_fast=None if red else speed, check=red or GREEN)


def largest(tensors: Sequence[torch.Tensor]) -> float:
    """The largest absolute value; NaN if there is one."""
    return float(torch.stack([tensor.abs().max() for tensor in tensors]).max())


def why_red(case: Case, seen: Mapping[str, float], loss: float) -> str:
    """What is more than rounding, or nothing."""
    # TRL rounds the LoRA of a quantised model to bfloat16, whatever else it computes in.
    of_loss, of_grad, of_logp = ALLOWED["bfloat16" if case.quantised else case.dtype]
    limits = {"loss_diff": of_loss * max(1.0, abs(loss)), "logp_diff": of_logp}
    limits["grad_diff"] = of_grad * seen.get("grad_max", 0.0)
    over = [name for name, limit in limits.items() if name in seen and not seen[name] <= limit]  # NaN too
    return ", ".join(f"red: {name} {seen[name]:.1e} is over {limits[name]:.1e}" for name in over)
