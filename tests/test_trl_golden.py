"""Our trainers against TRL's `compute_loss` with its own forward pass, on the same batches.

Nothing of TRL's is replaced here, so the precision is that of fp32. Its 1.15 folds the head in Triton, which
the interpreter runs on a CPU; the exact comparisons are in test_grpo.py and test_trl_parity.py.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import test_grpo
import test_sft
import tiny
import torch
import trl
from trl import GRPOTrainer as TRLGRPOTrainer
from trl import SFTTrainer as TRLSFTTrainer

from lite_medrl.train.batches import number_groups
from lite_medrl.train.grpo import GRPOTrainer
from lite_medrl.train.sft import SFTTrainer

pytest.importorskip("triton", reason=f"TRL {trl.__version__} folds its head in Triton")
Found = tuple[float, dict[str, torch.Tensor], dict[str, float]]


def found(trainer: Any, owner: type, batch: dict[str, Any], **options: Any) -> Found:
    """Loss, LoRA gradients and metrics of `owner.compute_loss` on a copy of the batch."""
    trainer._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
    trainer.model.zero_grad(set_to_none=True)
    loss: Any = owner.compute_loss(trainer, trainer.model, dict(batch), **options)  # pyright: ignore
    loss.backward()
    metrics = {name: values[0] for name, values in trainer._metrics["train"].items()}
    return float(loss.detach()), tiny.lora_grads(trainer.model), metrics


def assert_same(ours: Found, theirs: Found, names: tuple[str, ...]) -> None:
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5, abs=1e-7)
    largest = max(float(grad.abs().max()) for grad in theirs[1].values())
    assert largest > 1e-5
    for name, grad in theirs[1].items():
        torch.testing.assert_close(ours[1][name], grad, rtol=1e-4, atol=2e-5 * largest, msg=name)
    for name in names:
        assert ours[2][name] == pytest.approx(theirs[2][name], rel=1e-4, abs=1e-6), name


# --- SFT ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("items", [None, 77])
def test_sft_loss_gradient_and_metrics_are_trls(tmp_path: Path, items: int | None) -> None:
    trainer = test_sft.trainer_of(tmp_path)
    trainer.model.train()
    batch = trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[i] for i in range(4)]))
    count = {"num_items_in_batch": None if items is None else torch.tensor(items)}
    theirs = found(trainer, TRLSFTTrainer, batch, **count)
    trainer._total_train_tokens = 0
    assert_same(found(trainer, SFTTrainer, batch, **count), theirs, ("entropy", "num_tokens"))


def test_sft_evaluates_as_trl(tmp_path: Path) -> None:
    trainer = test_sft.trainer_of(tmp_path)
    trainer.model.eval()
    batch = trainer.data_collator([trainer.eval_dataset[i] for i in range(3)])
    theirs = TRLSFTTrainer.prediction_step(trainer, trainer.model, dict(batch), prediction_loss_only=True)
    ours = trainer.prediction_step(trainer.model, dict(batch), prediction_loss_only=True)
    torch.testing.assert_close(ours[0], theirs[0].detach(), rtol=1e-5, atol=1e-7)


def test_sft_steps_are_trls_however_they_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """8 x 1, 2 x 4 and 1 x 8 rows of one step: one loss and one gradient, TRL's."""
    trls, ours, steps = TRLSFTTrainer, SFTTrainer, []
    for owner, size in ((trls, 8), (trls, 2), (ours, 8), (ours, 2), (ours, 1)):
        trainer = test_sft.trainer_of(
            tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=8 // size
        )
        watch = test_sft.Watch()
        trainer.add_callback(watch)
        with monkeypatch.context() as patch:
            patch.setattr(SFTTrainer, "compute_loss", owner.compute_loss)
            trainer.train()
        steps.append((watch.logs[0]["loss"], watch.grads[0], {}))
    for step in steps[1:]:
        assert_same(step, steps[0], ())


# --- GRPO ---------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def rollout(tmp_path_factory: pytest.TempPathFactory) -> tuple[GRPOTrainer, dict[str, Any]]:
    """A trainer on NF4 and a rollout of two groups; old and reference policies are not the current one."""
    trainer = test_grpo.trainer_of(tmp_path_factory.mktemp("golden"))
    trainer.model.train()
    batch = trainer._generate_and_score_completions(test_grpo.rows(trainer, groups=2))
    batch = number_groups(batch, test_grpo.G)
    g = torch.Generator().manual_seed(0)
    batch["advantages"] = torch.randn(len(batch["advantages"]), generator=g)
    for key in ("old_per_token_logps", "ref_per_token_logps"):
        logp = batch["sampling_per_token_logps"]
        batch[key] = logp + 0.3 * torch.randn(logp.shape, generator=g)
    trainer.current_gradient_accumulation_steps = 2
    trainer.args.steps_per_generation = 4
    return trainer, batch


def images_of_rows(batch: dict[str, Any]) -> dict[str, Any]:
    """What TRL has in a batch where ours has each group's images once."""
    return {"pixel_values": test_grpo.pixels_of(batch), "num_images": [1] * len(batch["prompt_ids"])}


@pytest.mark.parametrize("loss_type", test_grpo.LOSSES)
def test_grpo_loss_gradient_and_metrics_are_trls(
    rollout: tuple[GRPOTrainer, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, loss_type: str
) -> None:
    trainer, batch = rollout
    monkeypatch.setattr(trainer, "loss_type", loss_type)
    monkeypatch.setattr(trainer, "beta", 0.1)
    ours = found(trainer, GRPOTrainer, batch)
    log_probs = MethodType(TRLGRPOTrainer._get_per_token_logps_and_entropies, trainer)
    monkeypatch.setattr(trainer, "_get_per_token_logps_and_entropies", log_probs)
    theirs = found(trainer, TRLGRPOTrainer, batch | images_of_rows(batch))
    assert_same(ours, theirs, ("entropy", "kl"))


def test_old_and_reference_log_probs_are_trls(rollout: tuple[GRPOTrainer, dict[str, Any]]) -> None:
    trainer, batch = rollout
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    call = (trainer.model, ids, mask, batch["completion_ids"].shape[1])
    options = {"compute_entropy": True} | images_of_rows(batch)
    with torch.no_grad():
        theirs = TRLGRPOTrainer._get_per_token_logps_and_entropies(trainer, *call, **options)
        ours = trainer._get_per_token_logps_and_entropies(*call, **options)
    keep = batch["completion_mask"].bool()
    for our, their in zip(ours[:2], theirs[:2], strict=True):
        torch.testing.assert_close(our[keep], their[keep], rtol=1e-4, atol=2e-5)
    assert ours[2] is theirs[2] is None
