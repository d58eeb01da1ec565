"""Addresses of the Triton grouped_logp past 2^31 elements, forward and backward, without that much memory.

Every kernel sees programs, states and targets that are numbered from far on, and memory that begins as far
before the memory that is there: an offset in 32 bits would miss it by gigabytes.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from test_grouped_logp_triton import kernel, problem
from torch import Tensor
from triton.runtime import interpreter

from medrl_kernels import grouped_logp_triton, grpo_loss_triton
from medrl_kernels.configs import INTERPRETED

FAR = 2**28  # rows; times 24 dimensions, or 64 columns, past 2^31 (and past 2^32)
# How many elements further each argument is at a row that is one further. A kernel numbers its programs by
# rows, or by bands of FILTER_ROWS of them.
ONE_A_ROW = ("start_ptr", "pivot_ptr", "peak_ptr", "top_ptr", "sum_ptr", "moment_ptr", "over_ptr", "lse_ptr",
             "spread_ptr", "mass_ptr", "entropy_mass_ptr", "state_ptr", "factor_ptr")  # fmt: skip
ROWS: dict[str, Callable[[dict[str, Any]], int]] = dict.fromkeys(ONE_A_ROW, lambda call: 1) | {
    "mean_ptr": lambda call: call["width"],
    "z_ptr": lambda call: call["stride_z"],
    "part_ptr": lambda call: call["stride_part"],
    "hidden_ptr": lambda call: call["stride_h"],
    "grad_ptr": lambda call: call["stride_grad"],
    "weight_ptr": lambda call: call["stride_w"],
    "bias_ptr": lambda call: 1,
}
INDICES = ("state_ptr", "target_ptr")  # what they hold are rows too
KERNELS = ("_pivot_kernel", "_fold_kernel", "_live_blocks_kernel", "_finish_kernel", "_coefficient_kernel",
           "_gather_kernel", "_dlogit_kernel")  # fmt: skip
# The columns of a tile are near: what is a row of the head there is a column of the tile.
NEAR = {"_fold_kernel": {"bias_ptr"}, "_dlogit_kernel": {"bias_ptr"}, "_live_blocks_kernel": {"weight_ptr"}}


class Far:
    """A kernel whose rows, states and targets are FAR further than they are."""

    def __init__(self, name: str, patch: pytest.MonkeyPatch) -> None:
        self.name, self.patch, self.kernel = name, patch, getattr(grouped_logp_triton, name)

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return lambda *args, **kwargs: self.run(
            grid, dict(zip(self.kernel.arg_names, args, strict=False)) | kwargs
        )

    def run(self, grid: Any, call: dict[str, Any]) -> None:
        banded = self.name == "_live_blocks_kernel"
        programs = FAR // call["FILTER_ROWS"] if banded else FAR
        further = {name: ROWS[name](call) * FAR for name in ROWS if name in call}
        further |= dict.fromkeys(NEAR.get(self.name, ()), 0)
        if "live_ptr" in call:
            further["live_ptr"] = call["live_stride"] * (FAR // INTERPRETED.filter_rows)
        if call.get("RECOMPUTED"):
            further["factor_ptr"] = 0  # one for all
        for flag, name in (("PARTS", "mean_ptr"), ("FILTER", "live_ptr")):
            if not call.get(flag, True):
                further.pop(name)  # another's memory stands there, unread
        if banded:
            call = call | {"rows": call["rows"] + FAR}
        call = call | {name: call[name] + FAR for name in INDICES if name in call}
        pivots = call.get("pivot_ptr")
        if self.name == "_coefficient_kernel":
            call = call | {"pivot_ptr": call["pivot_ptr"] + FAR}
        self.launch(grid, call, programs, further)
        if self.name == "_pivot_kernel":
            pivots -= FAR

    def launch(self, grid: Any, call: dict[str, Any], programs: int, further: dict[str, int]) -> None:
        """The kernel with its first program numbered `programs`, and each pointer set back by its share."""
        given = {name: call[name] for name in further if isinstance(call[name], Tensor)}
        back = {x.data_ptr(): further[name] * x.element_size() for name, x in given.items()}
        assert all(back[x.data_ptr()] == further[name] * x.element_size() for name, x in given.items())
        convert = interpreter._implicit_cvt

        def set_back(arg: Any) -> Any:
            found = convert(arg)
            if isinstance(arg, Tensor):
                found.handle.data -= np.uint64(back.get(arg.data_ptr(), 0))
            return found

        builder = interpreter.interpreter_builder
        number = type(builder).create_get_program_id

        def numbered(self: Any, axis: int) -> Any:
            found = number(self, axis)
            found.data += np.int32(programs if axis == 0 else 0)
            return found

        with self.patch.context() as patch:
            patch.setattr(interpreter, "_implicit_cvt", set_back)
            patch.setattr(type(builder), "create_get_program_id", numbered)
            self.kernel[grid](**call)


@pytest.mark.parametrize(
    "options",
    [{}, {"filter_eps": 0.02}, {"entropy": True}, {"head": True}],
    ids=["frozen", "filtered", "entropy", "head"],
)
def test_rows_past_two_to_the_31(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """mean, gradient, products, weights and live blocks: all as they are near."""
    p = problem(37, 50, 150, 24, torch.float16)
    asked = {"head": False, "bias": True, "entropy": False} | options
    want = kernel(p, **asked)
    for name in KERNELS:
        monkeypatch.setattr(grouped_logp_triton, name, Far(name, monkeypatch))
    got = kernel(p, **asked)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("module", [grouped_logp_triton, grpo_loss_triton])
def test_programs_are_numbered_in_64_bits_wherever_they_become_an_offset(module: Any) -> None:
    """Where the number of a program is small whatever happens, its name says so: program, programs."""
    for call in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(call, ast.Assign) and "program_id" in (text := ast.unparse(call.value)):
            small = ast.unparse(call.targets[0]).strip("()").startswith("program")
            assert small or text.count("program_id") == text.count(".to(tl.int64)"), text
