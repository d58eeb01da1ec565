"""What an op is to the benchmark, what an implementation of it is, and the check that comes before its time.

An implementation may be as far from the truth (fp32 on the same inputs, fp64 where those are fp32) as twice
what plain PyTorch in the inputs' dtype is, and a floor. One that skips small probabilities may also miss what
they add up to, row by row, up to its own bound and never as much as MOST_SLACK of the gradient. NaN never
passes.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from medrl_bench.machine import interpreted
from medrl_bench.rows import GREEN

Outputs = dict[str, Tensor]
FLOOR = {"logp": 1e-4, "entropy": 1e-4, "loss": 1e-5, "grad": 1e-5}
RELATIVE = {"grad"}  # by the norm of all; the others by their largest deviation
TIMES_PLAIN = 2.0
FORWARD, BOTH = "forward", "forward+backward"
# Whatever a filter may drop, a gradient that misses more than this share of its norm is wrong.
MOST_SLACK = 0.5


class Peer(NamedTuple):
    """One implementation. `run(inputs, backward)` gives its outputs; `missing(inputs)` says why it cannot."""

    name: str
    run: Callable[[Any, bool], Outputs]
    missing: Callable[[Any], str | None] = lambda inputs: None
    drops: float = 0.0
    """How many times `filter_eps` of a row's probability it may leave out in all; inf: no bound but eps."""


class Op(NamedTuple):
    """An op: its implementations, its inputs, its truth, and the work that its rate counts."""

    name: str
    peers: tuple[Peer, ...]
    make: Callable[[Any, torch.device], Any]
    truth: Callable[[Any, bool], Outputs]
    allowed: Callable[[Any, bool, Outputs], dict[str, float]]
    slack: Callable[[Any, Outputs, float], dict[str, float]]
    """What skipping probabilities below `filter_eps` may add to an error, `drops` times it in all."""
    work: Callable[[Any, bool], tuple[float, str]]
    """Floating point operations or bytes of a call, and the unit of its rate: TFLOP/s or GB/s."""


class Verdict(NamedTuple):
    """Errors as a share of what is allowed, and "ok" or what is wrong."""

    error: str
    check: str


def distance(name: str, found: Tensor, truth: Tensor) -> float:
    """How far an output is from the truth; NaN if either is NaN."""
    gap = found.double() - truth.double()
    if name in RELATIVE:
        return float(gap.norm() / truth.double().norm().clamp(min=1e-30))
    return float(gap.abs().max())


def allowances(plain: Outputs, truth: Outputs) -> dict[str, float]:
    """The largest distance that passes, by output."""
    return {name: TIMES_PLAIN * distance(name, plain[name], truth[name]) + FLOOR[name] for name in truth}


def judge(found: Outputs, truth: Outputs, allowed: Mapping[str, float]) -> Verdict:
    """Whether every output is as near the truth as it has to be."""
    shares, wrong = [], []
    for name in truth:
        if name not in found or found[name].shape != truth[name].shape:
            wrong.append(f"{name} is missing or has another shape")
            continue
        share = distance(name, found[name], truth[name]) / allowed[name]
        shares.append(f"{name} {share:.2g}")
        if not share <= 1:
            wrong.append(f"{name} is off by {share:.3g} times what is allowed")
    return Verdict(", ".join(shares), f"red: {'; '.join(wrong)}" if wrong else GREEN)


def needs(
    *packages: str, cuda: bool = False, half: bool = False, triton: bool = False, entropy: bool = True
) -> Callable[[Any], str | None]:
    """A `missing` for what needs packages, a CUDA card, 16-bit inputs, Triton (a card or the interpreter), or
    has no entropy."""

    def missing(inputs: Any) -> str | None:
        head = getattr(inputs, "head", inputs)
        absent = [name for name in packages if not importable(name)]
        on_cuda = next(x for x in head if isinstance(x, Tensor)).is_cuda
        if absent:
            return f"{' and '.join(absent)} cannot be imported here"
        if (cuda or (triton and not interpreted())) and not on_cuda:
            return "needs a CUDA card" + ("" if cuda else " or TRITON_INTERPRET=1")
        if half and inputs.case.dtype == "fp32":
            return "needs 16-bit inputs"
        if not entropy and getattr(head.case, "with_entropy", False):
            return "has no entropy"
        return None

    return missing


@functools.cache
def importable(package: str) -> bool:
    """Whether a package is installed and its import succeeds."""
    try:
        if importlib.util.find_spec(package.partition(".")[0]) is None:
            return False
        importlib.import_module(package)
    except Exception:  # a package that is there but does not suit the others here: as good as absent
        return False
    return True


def filter_eps(dtype: torch.dtype) -> float:
    """The probability below which filtered implementations may skip: 2.4e-4 in bf16, as Apple's CCE has
    it."""
    return torch.finfo(dtype).eps / 32


def no_slack(inputs: Any, truth: Outputs, drops: float) -> dict[str, float]:
    """For ops of which no implementation skips anything."""
    return dict.fromkeys(truth, 0.0)


def finite_or_none(value: float) -> float | None:
    """A number, or None for inf and NaN."""
    return value if math.isfinite(value) else None
