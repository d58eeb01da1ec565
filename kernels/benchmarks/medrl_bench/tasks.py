"""What is measured, the most important first: cases for a data-centre card, for a CPU, and tiny ones for
tests."""

from __future__ import annotations

from typing import NamedTuple

from medrl_bench import heads, losses, steps
from medrl_bench.inputs import HeadCase, LossCase, StepCase
from medrl_bench.peer import Op

OPS = {op.name: op for op in (heads.OP, losses.OP, steps.OP)}
SHAPES = ("tiny", "small", "full")
COMPILED = "torch.compile"  # takes a minute to compile: only where a task names it
ONLY_COMPILED = frozenset({"triton", "plain logits", COMPILED})
MEMORY = frozenset({"triton", "trl tiles", "unsloth"})


class Task(NamedTuple):
    """One comparison: a case in a direction. `only` names the implementations, all of them if it is None."""

    op: Op
    case: HeadCase | LossCase | StepCase
    backward: bool
    only: frozenset[str] | None = None

    @property
    def text(self) -> str:
        """The task in words."""
        direction = "forward+backward" if self.backward else "forward"
        return f"{self.op.name}, {direction}, {self.case.shape} {self.case.dtype}, {self.case.label}"


def plan(shapes: str, ops: list[str], half: str) -> list[Task]:
    """The tasks of a preset in the order of their importance; `half` is the card's 16-bit dtype."""
    if shapes not in SHAPES:
        raise ValueError(f"shapes must be one of {', '.join(SHAPES)}, got {shapes!r}")
    unknown = set(ops) - set(OPS)
    if unknown:
        raise ValueError(f"ops must be among {', '.join(OPS)}, got {', '.join(sorted(unknown))}")
    tasks = {"tiny": tiny, "small": small}[shapes]() if shapes != "full" else full(half)
    return [task for task in tasks if task.op.name in ops]


def full(half: str) -> list[Task]:
    """For a card: the head of a 4B and an 8B model, and losses up to four million tokens."""
    narrow, wide = HeadCase(4096, 151936, 2560, half), HeadCase(4096, 151936, 4096, half)
    short, long = LossCase(64, 512), LossCase(4096, 1024)
    step = StepCase(narrow._replace(with_entropy=True), LossCase(8, 512, "grpo"))
    tasks = [
        Task(heads.OP, narrow, True),
        Task(losses.OP, short, True),
        Task(losses.OP, long, True),
        Task(heads.OP, narrow, False),
        Task(steps.OP, step, True),
        Task(heads.OP, narrow._replace(with_entropy=True), True),
        Task(heads.OP, narrow._replace(policy="flat"), True),
        Task(
            heads.OP,
            narrow._replace(policy="scattered"),
            True,
            frozenset({"triton", "triton filtered", "cce"}),
        ),
        Task(losses.OP, long._replace(beta=0.04), True),
        Task(losses.OP, short._replace(loss_type="grpo", level="sequence", beta=0.04), True),
        Task(heads.OP, wide, True),
        Task(heads.OP, wide, False),
        Task(heads.OP, narrow._replace(tokens=16384), True, MEMORY),
    ]
    if half != "fp16":
        tasks.append(Task(heads.OP, narrow._replace(dtype="fp16"), True))
    return [*tasks, Task(heads.OP, narrow, True, ONLY_COMPILED)]


def small() -> list[Task]:
    """For a CPU, in fp32: what the reference costs against TRL's eager path."""
    head = HeadCase(256, 16384, 512, "fp32")
    loss = LossCase(64, 512)
    return [
        Task(heads.OP, head, True),
        Task(heads.OP, head, False),
        Task(losses.OP, loss, True),
        Task(heads.OP, head._replace(with_entropy=True), True),
        Task(losses.OP, loss._replace(beta=0.04), True),
        Task(losses.OP, loss._replace(loss_type="grpo", level="sequence"), True),
        Task(losses.OP, LossCase(512, 1024), True),
        Task(steps.OP, StepCase(head._replace(with_entropy=True), LossCase(8, 32, "grpo")), True),
        Task(heads.OP, head._replace(policy="flat"), True),
    ]


def tiny() -> list[Task]:
    """For tests: each op once, in no time."""
    head, loss = HeadCase(12, 96, 32, "fp32", with_entropy=True), LossCase(3, 4, "grpo", 0.04)
    return [
        Task(heads.OP, head, True),
        Task(heads.OP, head._replace(with_entropy=False, policy="flat"), False),
        Task(losses.OP, loss, True),
        Task(steps.OP, StepCase(head, loss._replace(beta=0.0)), True),
    ]
