"""A process of its own for one implementation, and both ends of the pipe to it.

So nothing of another implementation is cached, patched or resident. The process builds its model, then does
what it is asked until the pipe closes. No torch here: some libraries have to be imported before it.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

from lite_medrl.tools.bench.case import Job

BEFORE = {"unsloth": ("unsloth",)}  # it replaces trl's trainers, if it is imported before them
NO_TIME = "no time was left; raise --minutes"


class WorkerError(Exception):
    """Why a process has no answer."""


class Worker:
    """The parent's end."""

    def __init__(self, job: Job) -> None:
        self.job, self.log = job, Path(job.folder) / f"{job.impl}.log"
        spawn = multiprocessing.get_context("spawn")
        self.pipe, theirs = spawn.Pipe()
        self.process = spawn.Process(target=serve, args=(theirs, job, self.log), daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, command: str, phase: str, end: float) -> Any:
        """What a method of `Step` returns. WorkerError after `end`, or with what the process died of."""
        try:
            self.pipe.send((command, phase))
            if not self.pipe.poll(max(0.0, end - time.monotonic())):
                raise WorkerError(NO_TIME)
            answer = self.pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise WorkerError(self.log.read_text(errors="replace").strip()[-4000:] or "it died") from None
        if isinstance(answer, WorkerError):
            raise answer
        return answer

    def died(self) -> bool:
        """Whether the process ended by itself."""
        self.process.join(0.1)
        return not self.process.is_alive()

    def stop(self) -> None:
        """Ends the process, whatever it is doing."""
        self.process.kill()
        self.process.join()
        self.pipe.close()


def serve(pipe: Any, job: Job, log: Path) -> None:
    """The child's end: answers what it is asked; running out of memory is an answer."""
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    for name in BEFORE.get(job.impl, ()):
        importlib.import_module(name)
    import torch

    from lite_medrl.tools.bench.step import Step

    step = None
    while True:
        command, phase = pipe.recv()
        try:
            step = step or Step(job)
            pipe.send(getattr(step, command)(phase))
        except torch.OutOfMemoryError as error:
            pipe.send(WorkerError(f"out of memory: {str(error).splitlines()[0]}"))
