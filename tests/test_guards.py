"""Numbers that are not finite stop a stage where they are seen; what fp16's loss scaler mends does not."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lite_medrl.train.guards import SCALER_HALVINGS, FiniteOnly, refuse_not_finite, refuse_processes
from lite_medrl.train.stages import Recorder

NAN, INF = math.nan, math.inf


def log(guard: FiniteOnly, step: int = 1, *, fp16: bool = False, **logs: float) -> None:
    guard.on_log(SimpleNamespace(fp16=fp16), SimpleNamespace(global_step=step), None, logs)


@pytest.mark.parametrize(
    ("logs", "told"),
    [
        (
            {"loss": NAN, "grad_norm": 1.0},
            "grpo, step 7: loss is nan; no adapter of this stage is saved. Lower ",
        ),
        ({"loss": 1.0, "grad_norm": INF}, "grpo, step 7: grad_norm is inf; no adapter"),
        ({"loss": -INF, "grad_norm": NAN}, "grpo, step 7: loss is -inf and grad_norm is nan; no adapter"),
    ],
)
def test_a_value_that_is_not_finite_is_named(logs: dict[str, float], told: str) -> None:
    guard = FiniteOnly("grpo")
    log(guard, 6, loss=0.0, grad_norm=0.0, entropy=NAN)
    with pytest.raises(FloatingPointError) as caught:
        log(guard, 7, **logs)
    assert str(caught.value).startswith(told)
    assert "Lower grpo.learning_rate or grpo.max_grad_norm, or set model.dtype=float32" in str(caught.value)


def test_rows_without_a_loss_are_let_pass() -> None:
    log(FiniteOnly("sft"), train_loss=NAN)
    FiniteOnly("sft").on_log(SimpleNamespace(fp16=False), SimpleNamespace(global_step=1), None, None)


def test_what_the_loss_scaler_of_fp16_mends_is_let_pass_a_while() -> None:
    scaler = torch.amp.GradScaler("cpu")
    assert scaler.get_scale() * scaler.get_backoff_factor() ** SCALER_HALVINGS < 1
    guard = FiniteOnly("sft-2")
    for _ in range(2):
        for _ in range(SCALER_HALVINGS):
            log(guard, fp16=True, loss=1.0, grad_norm=INF)
        log(guard, fp16=True, loss=1.0, grad_norm=1.0)
    for _ in range(SCALER_HALVINGS):
        log(guard, fp16=True, loss=1.0, grad_norm=NAN)
    with pytest.raises(
        FloatingPointError, match=r"sft-2, step 9: grad_norm is nan; .* Lower sft\.learning_rate"
    ):
        log(guard, 9, fp16=True, loss=1.0, grad_norm=NAN)
    with pytest.raises(FloatingPointError, match="loss is nan"):
        log(FiniteOnly("sft"), fp16=True, loss=NAN, grad_norm=1.0)


def test_only_trained_weights_must_be_finite() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    with torch.no_grad():
        model[0].weight[0, 0] = NAN
    refuse_not_finite(model, "grpo")
    with torch.no_grad():
        model[1].bias[1] = INF
    with pytest.raises(
        FloatingPointError, match=r"grpo, after its last step: 1 of its 2 .* first 1\.bias; no ad"
    ):
        refuse_not_finite(model, "grpo")


def test_a_metrics_row_is_json_whatever_is_logged() -> None:
    rows: list[dict[str, object]] = []
    state = SimpleNamespace(global_step=3, max_steps=4)
    Recorder("sft", 1, rows.append).on_log(None, state, None, {"loss": 0.5, "grad_norm": INF, "entropy": NAN})
    assert [(row["step"], row["loss"], row["grad_norm"], row["entropy"]) for row in rows] == [
        (3, 0.5, None, None)
    ]


def test_several_processes_are_refused_before_their_gradients_would_differ() -> None:
    refuse_processes(1)
    with pytest.raises(ValueError, match=r"num_processes=2: this trainer runs on one GPU; .* TRL's own"):
        refuse_processes(2)
