"""The examples run, and the page that spells GRPO out computes what the trainer computes."""

from __future__ import annotations

import functools
import importlib.util
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import test_grpo
import tiny
import torch

from lite_medrl.model.encode import encode_prompts

EXAMPLE = tiny.REPO / "examples" / "grpo_on_one_page.py"


@functools.cache
def page() -> ModuleType:
    """The example as a module."""
    spec = importlib.util.spec_from_file_location("grpo_on_one_page", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_whole_algorithm_fits_on_a_page() -> None:
    source = EXAMPLE.read_text(encoding="utf-8")
    assert len(source.splitlines()) < 150
    assert "Trainer(" not in source


@pytest.mark.slow
def test_it_runs_and_its_losses_are_finite() -> None:
    path = os.pathsep.join(map(str, [tiny.REPO, tiny.REPO / "kernels"]))
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), "--steps", "2", "--sft-steps", "2"],
        capture_output=True, text=True, check=False, timeout=600, env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [["sft", "1"], ["sft", "2"], ["grpo", "1"], ["grpo", "2"]]
    losses = [float(found) for found in re.findall(r"loss ([-+]?\d+\.\d+)", done.stdout)]
    assert len(losses) == 4
    assert all(map(math.isfinite, losses))
    assert losses[1] < losses[0]  # the second batch of SFT after a step on the first
    for line in lines[2:]:
        shares = [float(x) for x in re.findall(r"(?:right|format) (\d\.\d\d)", line)]
        assert len(shares) == 2
        assert max(shares) <= 1


def test_advantages_loss_and_gradient_are_the_trainers(tmp_path: Path) -> None:
    """On one rollout of five groups; for the loss, one of them is made silent."""
    groups = 5
    trainer = test_grpo.trainer_of(
        tmp_path, temperature=1.0, reward_weights=[1.0, page().FORMAT_WEIGHT],
        per_device_train_batch_size=groups * test_grpo.G,
    )  # fmt: skip
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    batch = trainer._scored(test_grpo.rows(trainer, groups), test_grpo.G)
    masks = batch["completion_mask"].bool()
    completions = [ids[mask].tolist() for ids, mask in zip(batch["completion_ids"], masks, strict=True)]
    texts = trainer.processing_class.batch_decode(completions, skip_special_tokens=True)
    samples = tiny.samples()[:groups]
    rewards = page().rewards_of([s for s in samples for _ in range(test_grpo.G)], texts)
    found_PG = page().advantages((rewards[0] + page().FORMAT_WEIGHT * rewards[1]).view(groups, -1))
    torch.testing.assert_close(found_PG.flatten(), batch["advantages"], rtol=1e-5, atol=1e-5)
    assert found_PG.any(1).sum() >= 2

    advantage_B = torch.randn(groups * test_grpo.G, generator=torch.Generator().manual_seed(0))
    advantage_B[: test_grpo.G] = 0.0
    inputs = encode_prompts(trainer.processing_class, samples, instruction=tiny.INSTRUCTION)
    owner = [p for p in range(groups) for _ in range(test_grpo.G)]
    results = []
    for loss in (
        trainer.compute_loss(trainer.model, batch | {"advantages": advantage_B}),
        page().policy_loss(trainer.model, inputs, completions, owner, advantage_B)[0],
    ):
        trainer.model.zero_grad(set_to_none=True)
        loss.backward()
        results.append((loss.item(), tiny.lora_grads(trainer.model)))
    (loss, grads), (page_loss, page_grads) = results
    assert abs(loss) > 1e-4
    assert page_loss == pytest.approx(loss, abs=1e-6)
    largest = max(float(grad.abs().max()) for grad in grads.values())
    for name, grad in grads.items():
        torch.testing.assert_close(page_grads[name], grad, rtol=1e-4, atol=1e-6 * largest, msg=name)


def test_equal_rewards_have_no_advantage_however_they_are_rounded() -> None:
    rewards = torch.tensor([[0.2] * 8, [1.2] + [0.2] * 7])
    assert rewards[0].mean() != 0.2  # in fp32
    found = page().advantages(rewards)
    assert (found[0] == 0).all()
    assert found[1, 0] == pytest.approx(0.875 / (math.sqrt(0.125) + 1e-4), rel=1e-5)
