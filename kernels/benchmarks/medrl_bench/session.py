"""Runs tasks: every implementation checked first, then the right ones timed in turns, one row each."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from medrl_bench import heads
from medrl_bench.inputs import HeadInputs, StepInputs
from medrl_bench.machine import interpreted
from medrl_bench.peer import BOTH, FORWARD, Outputs, Peer, finite_or_none, judge
from medrl_bench.rows import GREEN, Row
from medrl_bench.tasks import COMPILED, Task
from medrl_bench.timing import Budget, Timer, Timing, launches, measure_in_turns, peak_mib, timer_for, wall_ms

PER_UNIT = {"TFLOP/s": 1e12, "GB/s": 1e9}
COPY_MIB = {"cuda": 512, "cpu": 64}
COMPILE_S = 90  # more than torch.compile takes
PLAIN_PYTORCH = ("reference", "plain logits")
UNTIMED = "ok, not timed: the interpreter runs it"


class LeftOut(NamedTuple):
    """What was not measured, and why: a task, or (`impl`) one implementation in it."""

    impl: str
    task: str
    why: str


class Session:
    """Where measurements are made: device, timer, budget, the ceilings found so far, and what came of it."""

    def __init__(self, device: torch.device, budget: Budget, box_s: float, stamp: dict[str, Any]) -> None:
        self.device, self.budget, self.box_s, self.stamp = device, budget, box_s, stamp
        self.timer: Timer = timer_for(device)
        self.ceilings: dict[Row, float] = {}
        self.rows: list[Row] = []
        self.left_out: list[LeftOut] = []
        self.last_s: dict[str, float] = {}

    def run(self, task: Task) -> list[Row]:
        """The rows of a task, ceiling included; none if the time that is left does not suffice."""
        if self.budget.left_s() < self.expected_s(task):
            self.left_out.append(LeftOut("", task.text, "no time left"))
            return []
        begin, done = time.monotonic(), len(self.rows)
        try:
            with until(self.budget.left_s()):
                self.compare(task)
        except TimeIsUp:
            self.left_out.append(LeftOut("", task.text, "the time was up while it ran"))
        except torch.OutOfMemoryError:
            self.left_out.append(LeftOut("", task.text, "its inputs or its reference do not fit into memory"))
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.last_s[task.op.name] = time.monotonic() - begin
        return self.rows[done:]

    def expected_s(self, task: Task) -> float:
        """What a task may take, from the last one of its op: the first ones compile."""
        least_s = COMPILE_S if task.only is not None and COMPILED in task.only else 10 * self.box_s
        return max(self.last_s.get(task.op.name, 0.0), least_s)

    def compare(self, task: Task) -> None:
        """Check every implementation, time the green ones."""
        inputs = task.op.make(task.case, self.device)
        ceiling = self.ceiling(task, inputs)
        truth = task.op.truth(inputs, task.backward)
        allowed = task.op.allowed(inputs, task.backward, truth)
        rows, calls = [], {}
        for peer in self.able(task, inputs):
            row = self.checked(task, peer, inputs, truth, allowed)
            rows.append(row)
            if row.check == GREEN:
                calls[peer.name] = bind(peer.run, inputs, task.backward)
        del truth
        timings = measure_in_turns(calls, self.timer, self.box_s, self.budget)
        for row in rows:
            timing = timings.get(row.impl)
            if timing is not None:
                row = self.timed(row, timing, calls[row.impl], task, ceiling)
            self.rows.append(row)

    def able(self, task: Task, inputs: Any) -> list[Peer]:
        """The implementations that this task wants and this machine can run; the others are noted."""
        able = []
        for peer in task.op.peers:
            wanted = peer.name in task.only if task.only is not None else peer.name != COMPILED
            why = peer.missing(inputs) if wanted else None
            if why is not None:
                self.left_out.append(LeftOut(peer.name, task.text, why))
            elif wanted:
                able.append(peer)
        return able

    def checked(self, task: Task, peer: Peer, inputs: Any, truth: Outputs, allowed: dict[str, float]) -> Row:
        """A row without times: "ok", or what is wrong."""
        case = task.case
        row = Row(
            task.op.name, peer.name, BOTH if task.backward else FORWARD, case.label, case.shape, case.dtype,
            **self.stamp,
        )  # fmt: skip
        try:
            found = peer.run(inputs, task.backward)
            none = dict.fromkeys(allowed, 0.0)
            extra = task.op.slack(inputs, truth, peer.drops) if peer.drops else none
        except torch.OutOfMemoryError:
            return replace(row, check="red: out of memory")
        except Exception as error:  # a peer that does not run is a result, not the end of the benchmark
            first_line = (str(error).splitlines() or [""])[0]
            return replace(row, check=f"red: {type(error).__name__}: {first_line}"[:200])
        limits = {name: limit + extra[name] for name, limit in allowed.items()}
        verdict = judge(found, truth, limits)
        untimed = verdict.check == GREEN and interpreted() and peer.name not in PLAIN_PYTORCH
        return replace(row, error=verdict.error, check=UNTIMED if untimed else verdict.check)

    def timed(
        self, row: Row, timing: Timing, call: Callable[[], Any], task: Task, ceiling: float | None
    ) -> Row:
        """The row with its figures."""
        work, unit = task.op.work(task.case, task.backward)
        rate = work / PER_UNIT[unit] / (timing.ms.p50 / 1e3)
        row = replace(
            row, p50_ms=timing.ms.p50, p20_ms=timing.ms.p20, p80_ms=timing.ms.p80, repeats=timing.repeats,
            rate=rate, rate_unit=unit, ceiling_share=finite_or_none(rate / ceiling) if ceiling else None,
        )  # fmt: skip
        if self.device.type != "cuda":
            return row
        return replace(row, wall_ms=wall_ms(call), peak_mib=peak_mib(call), launches=launches(call))

    def ceiling(self, task: Task, inputs: Any) -> float | None:
        """Rate of the bare product of this shape, or of a device copy: measured once and kept as a row."""
        head = inputs.head if isinstance(inputs, StepInputs) else inputs
        if isinstance(head, HeadInputs):
            case = head.case
            row = Row("ceiling", "matmul", FORWARD, "", case.shape, case.dtype)
            return self.measured(row, lambda: heads.matmul(case, head), *heads.work(case, False))
        size = COPY_MIB[self.device.type] * 2**20
        row = Row("ceiling", "copy", FORWARD, "", f"{size >> 20} MiB", "int8")
        return self.measured(row, lambda: self.copy(size), 2.0 * size, "GB/s")

    def copy(self, size: int) -> Callable[[], Any]:
        """A copy of device memory, of so many bytes."""
        source, target = (torch.zeros(size, dtype=torch.int8, device=self.device) for _ in range(2))
        return lambda: target.copy_(source)

    def measured(
        self, row: Row, make: Callable[[], Callable[[], Any]], work: float, unit: str
    ) -> float | None:
        """The rate of a ceiling, measured unless it has been; None if it does not fit into memory."""
        if row not in self.ceilings:
            try:
                timing = measure_in_turns({row.impl: make()}, self.timer, self.box_s, self.budget)[row.impl]
            except torch.OutOfMemoryError:
                return None
            rate = self.ceilings[row] = work / PER_UNIT[unit] / (timing.ms.p50 / 1e3)
            figures: dict[str, Any] = {
                "p50_ms": timing.ms.p50,
                "p20_ms": timing.ms.p20,
                "p80_ms": timing.ms.p80,
            }
            figures |= {"repeats": timing.repeats, "rate": rate, "rate_unit": unit}
            self.rows.append(replace(row, **figures, **self.stamp))
        return self.ceilings[row]


class TimeIsUp(BaseException):
    """Not an Exception: it must come through what catches a peer's."""


@contextmanager
def until(seconds: float) -> Iterator[None]:
    """TimeIsUp in whatever still runs after so many seconds, as soon as it comes back to Python. By a signal,
    so in the main thread of a process and where there are such signals; elsewhere it waits."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise TimeIsUp

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def bind(run: Callable[[Any, bool], Any], inputs: Any, backward: bool) -> Callable[[], Any]:
    """The call that is timed."""
    return lambda: run(inputs, backward)
