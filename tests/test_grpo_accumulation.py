"""A step cut into micro-batches: what reaches the optimizer, against TRL's loss in the same training loop.

The whole loop runs (buffering, splitting, scaling, accumulating), once with our loss and once with TRL's
`_compute_loss`, on one given rollout of eight completions in fp64. The learning rate is 0, so that all steps
start from one policy.
"""

from __future__ import annotations

import gc
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
import tiny
import torch
from test_grpo import LOSSES, pixels_of, plain_logps, rows, trainer_of
from test_sft import Watch
from trl import GRPOTrainer as TRLGRPOTrainer

from lite_medrl.train.grpo import GRPOTrainer

ROWS = 8
# Completions in a micro-batch, micro-batches in a step, and micro-batches in a generation: "1 x 8" and so on.
CUTS = {"8 x 1": (8, 1, 1), "2 x 4": (2, 4, 4), "1 x 8": (1, 8, 8)}
HALVES = {"2 x 2, twice": (2, 2, 4)}
Step = tuple[float, dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def trainers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, GRPOTrainer]]:
    """A trainer for each cut, all on one model in fp64 and all handed the same rollout.

    Four groups of two: one has no variance, one completion was truncated and masked, and the old, reference
    and sampling policies are not the current one.
    """
    model = tiny.with_lora(tiny.loaded(load_in_4bit=False).model, scale=0.02)
    folder, made = tmp_path_factory.mktemp("accumulation"), {}
    for name, (size, steps, per_generation) in (CUTS | HALVES).items():
        made[name] = trainer_of(
            folder, model, num_generations=2, per_device_train_batch_size=size, learning_rate=0.0,
            gradient_accumulation_steps=steps, steps_per_generation=per_generation,
            max_steps=per_generation // steps, vllm_importance_sampling_correction=False,
        )  # fmt: skip
        made[name]._parity.passed = True  # the sampling policy is made up, and so is its distance
    trainer = made["8 x 1"]
    trainer.model.train()
    batch = trainer._generate_and_score_completions(rows(trainer, groups=4, size=2))
    tiny.in_fp64(model)
    g = torch.Generator().manual_seed(0)
    batch["pixel_values"] = batch["pixel_values"].double()
    batch["advantages"] = torch.randn(ROWS, generator=g, dtype=torch.float64)
    batch["advantages"][2:4] = 0.0
    batch["completion_mask"][5] = 0
    mask = batch["completion_mask"]
    assert len(set(mask.sum(1).tolist())) > 2
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    both_masks = torch.cat([batch["prompt_mask"], mask], 1)
    with torch.no_grad():
        logp, _, _ = plain_logps(
            model, ids, both_masks, mask.shape[1],
            pixel_values=batch["pixel_values"], temperature=trainer.temperature,
        )  # fmt: skip
    for key in ("old_per_token_logps", "ref_per_token_logps", "sampling_per_token_logps"):
        batch[key] = logp + 0.3 * torch.randn(logp.shape, generator=g, dtype=torch.float64)
    batch["num_items_in_batch"] = mask.sum()

    def given(trainer: GRPOTrainer) -> Any:
        def generate_and_score(inputs: Any) -> dict[str, Any]:
            assert len(inputs) == ROWS
            trainer._metrics["train"]["frac_reward_zero_std"].append(0.25)
            return dict(batch)

        return generate_and_score

    for trainer in made.values():
        trainer._generate_and_score_completions = given(trainer)
    gc.freeze()  # every `train` collects garbage, and looking at all there is takes longer than its step
    yield made
    gc.unfreeze()


def train(
    trainer: GRPOTrainer, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, *, trls: bool
) -> list[Step]:
    """Logged loss and LoRA gradients of every optimizer step, with our loss or with TRL's."""
    watch = Watch()
    with monkeypatch.context() as patch:
        for name, value in options.items():
            patch.setattr(trainer, name, value)
        patch.setattr(trainer, "_entropy_bonus_enabled", trainer.entropy_coef != 0)
        patch.setattr(trainer, "_metrics", {"train": defaultdict(list), "eval": defaultdict(list)})
        if trls:
            patch.setattr(
                trainer, "_get_per_token_logps_and_entropies",
                lambda *a, **k: plain_logps(*a, **(k | {"temperature": trainer.temperature})), raising=False,
            )  # fmt: skip
            patch.setattr(
                GRPOTrainer, "compute_loss",
                lambda self, model, inputs, *a, **k: TRLGRPOTrainer._compute_loss(
                    self, model, inputs | {"pixel_values": pixels_of(inputs)}
                ),
            )  # fmt: skip
        trainer._step, trainer._buffered_inputs = 0, None
        trainer.add_callback(watch)
        trainer.train()
        trainer.remove_callback(watch)
    losses = [log["loss"] for log in watch.logs if "loss" in log]
    return list(zip(losses, watch.grads, strict=True))


def apart(one: Step, other: Step) -> float:
    """The largest distance of two gradients, relative to the largest entry of `other`."""
    largest = max(float(grad.abs().max()) for grad in other[1].values())
    assert largest > 1e-6
    return max(float((one[1][name] - grad).abs().max()) for name, grad in other[1].items()) / largest


# Beside the options: whether TRL's sums over micro-batches are those of the whole (bnpo's never are). An
# entropy bonus is a mean over the tokens of a micro-batch, and a quantile of entropies is that micro-batch's.
OPTIONS: dict[str, tuple[dict[str, Any], bool]] = {
    "plain": ({}, True),
    "sequence, beta": (
        {"importance_sampling_level": "sequence", "beta": 0.1, "off_policy_mask_threshold": 0.02},
        True,
    ),
    "entropy": ({"entropy_coef": 0.05, "top_entropy_quantile": 0.6}, False),
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("loss_type", LOSSES)
def test_a_step_is_trls_however_it_is_cut(
    trainers: dict[str, GRPOTrainer], monkeypatch: pytest.MonkeyPatch, loss_type: str, option: str
) -> None:
    options, adds_up = OPTIONS[option]
    options = options | {"loss_type": loss_type}
    whole: Any = None
    for name, trainer in trainers.items():
        theirs = train(trainer, options, monkeypatch, trls=True)
        ours = train(trainer, options, monkeypatch, trls=False)
        assert len(ours) == len(theirs) == (2 if name in HALVES else 1)
        for our, their in zip(ours, theirs, strict=True):
            assert our[0] == pytest.approx(their[0], rel=1e-6, abs=1e-9), name
            assert apart(our, their) < 1e-6, name
        whole = theirs[0] if name == "8 x 1" else whole
        if name in CUTS and adds_up:
            same = loss_type != "bnpo" or name == "8 x 1"
            assert (apart(ours[0], whole) < 1e-6) == same, name
            assert (ours[0][0] == pytest.approx(whole[0], rel=1e-6)) == same, name
