"""What the rows say: which of the project's figures they meet, and the table of kernels/README.md.

A figure is a bound on one implementation: on its time beside a peer's, on its share of the measured ceiling,
on its memory or on its launches. Where nothing was measured, that is said.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from medrl_bench.peer import BOTH, FORWARD
from medrl_bench.rows import GREEN, Row, latest

MIB = 2**20
TIME, SHARE, MEMORY, LAUNCHES = "time", "share of the ceiling", "MiB", "launches"
HEAD, LOSS, STEP = "grouped_logp", "grpo_loss", "grouped_logp+grpo_loss"
NARROW, WIDE = "N=4096 V=151936 D=2560", "N=4096 V=151936 D=4096"
TRL_ON_CPU = ("trl logits", "trl eager", "trl logits + eager")  # TRL's own code, an op each
MET, MISSED, UNMEASURED = "met", "missed", "not measured"


class Figure(NamedTuple):
    """A bound: at most, or of a share at least, `limit`. A time or memory is that of `peer` times it, if one
    is named. Shape, dtype and case are beginnings; on a CPU alone, or on a card alone."""

    op: str
    direction: str
    shape: str
    case: str
    impl: str
    quantity: str
    limit: float
    peer: str = ""
    on_cpu: bool = False
    dtype: str = "bf16"

    @property
    def text(self) -> str:
        """The figure in words."""
        bound = "at least" if self.quantity == SHARE else "at most"
        of = f" x {self.peer}'s" if self.peer else ""
        what = {
            TIME: "time",
            SHARE: SHARE,
            MEMORY: "peak memory" if self.peer else "MiB beyond u",
            LAUNCHES: LAUNCHES,
        }[self.quantity]
        where = ", ".join(filter(None, (self.direction, self.shape, self.dtype, self.case)))
        return f"{self.op}, {where}: {self.impl}'s {what} {bound} {self.limit:g}{of}"


class Finding(NamedTuple):
    """A figure beside what was measured (None: nothing)."""

    figure: str
    measured: float | None
    verdict: str


FIGURES = [
    *(Figure(HEAD, BOTH, shape, "peaked", "triton", TIME, 0.70, "trl tiles") for shape in (NARROW, WIDE)),
    *(Figure(HEAD, BOTH, shape, "peaked", "triton", TIME, 1.0, "unsloth") for shape in (NARROW, WIDE)),
    *(Figure(HEAD, FORWARD, shape, "peaked", "triton", SHARE, 0.85) for shape in (NARROW, WIDE)),
    *(
        Figure(HEAD, BOTH, shape, "peaked", "triton filtered", TIME, 0.45, "trl tiles")
        for shape in (NARROW, WIDE)
    ),
    *(
        Figure(HEAD, BOTH, shape, "peaked", "triton", MEMORY, 300.0)
        for shape in (NARROW, WIDE, "N=16384 V=151936 D=2560")
    ),
    Figure(STEP, BOTH, "B=8 T=512 V=151936 D=2560", "peaked", "triton", TIME, 1 / 3, "liger fused"),
    Figure(STEP, BOTH, "B=8 T=512 V=151936 D=2560", "peaked", "triton", MEMORY, 1.0, "liger fused"),
    Figure(LOSS, BOTH, "B=4096 T=1024", "dapo, token level", "triton", SHARE, 0.8, dtype="fp32"),
    Figure(LOSS, BOTH, "B=64 T=512", "dapo, token level", "triton", TIME, 0.1, "trl eager", dtype="fp32"),
    Figure(LOSS, BOTH, "B=64 T=512", "dapo, token level", "triton", LAUNCHES, 2, dtype="fp32"),
    *(
        Figure(op, BOTH, "", "", "reference", TIME, 1.0, peer, on_cpu=True, dtype="fp32")
        for op, peer in zip((HEAD, LOSS, STEP), TRL_ON_CPU, strict=True)
    ),
    Figure(HEAD, FORWARD, "", "", "reference", TIME, 1.0, "trl logits", on_cpu=True, dtype="fp32"),
]


def compare(rows: Sequence[Row]) -> list[Finding]:
    """Each figure of the rows' kind of device beside the latest green rows; the worst, where several fit."""
    green = [row for row in latest(rows) if row.check == GREEN and row.p50_ms is not None]
    on_cpu = bool(rows) and all(row.peak_mib is None for row in rows)
    findings = []
    for figure in FIGURES:
        if figure.on_cpu != on_cpu:
            continue
        found = [x for row in green if fits(figure, row) and (x := measured(figure, row, green)) is not None]
        worst = (min if figure.quantity == SHARE else max)(found, default=None)
        findings.append(Finding(figure.text, worst, verdict(figure, worst)))
    return findings


def fits(figure: Figure, row: Row) -> bool:
    """Whether a row measures what the figure bounds."""
    case = row.case == figure.case or not figure.case or row.case.startswith(f"{figure.case}, with")
    same = (row.op, row.impl, row.direction, row.dtype) == (
        figure.op, figure.impl, figure.direction, figure.dtype,
    )  # fmt: skip
    return same and case and figure.shape in ("", row.shape)


def measured(figure: Figure, row: Row, green: Sequence[Row]) -> float | None:
    """What a row measures of a figure's quantity; None where it, or the peer's, is not there."""
    if figure.quantity == SHARE:
        return row.ceiling_share
    if figure.quantity == LAUNCHES:
        return None if row.launches is None else float(row.launches)
    if figure.quantity == MEMORY and not figure.peer:
        return None if row.peak_mib is None else row.peak_mib - gradients_mib(row)
    key = ("op", "direction", "case", "shape", "dtype", "device")
    alike = [x for x in green if x.impl == figure.peer and all(getattr(x, k) == getattr(row, k) for k in key)]
    name = "p50_ms" if figure.quantity == TIME else "peak_mib"
    own, other = getattr(row, name), getattr(alike[0], name) if alike else None
    return None if own is None or not other else own / other


def gradients_mib(row: Row) -> float:
    """u (N, D) in fp32 and the gradient that comes out, in the inputs' dtype."""
    tokens, width = (
        int(found.group(1)) for found in (re.search(rf"{x}=(\d+)", row.shape) for x in "ND") if found
    )
    return tokens * width * (4 + (4 if row.dtype == "fp32" else 2)) / MIB


def verdict(figure: Figure, worst: float | None) -> str:
    """ "met", "missed" or "not measured"."""
    if worst is None:
        return UNMEASURED
    return MET if (worst >= figure.limit if figure.quantity == SHARE else worst <= figure.limit) else MISSED


def told(findings: Sequence[Finding]) -> list[str]:
    """A line a figure."""
    return [
        f"{found.verdict}: {found.figure}" + ("" if found.measured is None else f" ({found.measured:.3g})")
        for found in findings
    ]


def markdown(rows: Sequence[Row], ours: str, peers: Sequence[str]) -> str:
    """A table of one implementation's times beside those of whichever of the peers did the same."""
    lines = [
        f"| op | case | {ours}, ms (p20 to p80) | peer | its ms (p20 to p80) | ratio |",
        "|---|---|---|---|---|---|",
    ]
    green = [row for row in latest(rows) if row.check == GREEN and row.p50_ms is not None]
    key = ("op", "direction", "case", "shape", "dtype", "device")
    for row in green:
        for other in green:
            if (
                row.impl == ours
                and other.impl in peers
                and all(getattr(row, k) == getattr(other, k) for k in key)
            ):
                what = f"{row.direction}, {row.shape}, {row.case}"
                ratio = (row.p50_ms or 0.0) / (other.p50_ms or 1.0)
                times = (f"{x.p50_ms:.3g} ({x.p20_ms:.3g} to {x.p80_ms:.3g})" for x in (row, other))
                own, its = times
                lines.append(f"| `{row.op}` | {what} | {own} | {other.impl} | {its} | {ratio:.2f} |")
    return "\n".join(lines)
