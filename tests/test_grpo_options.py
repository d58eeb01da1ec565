"""What our configs add to TRL's: trees on, demanded or off, questions of one image together, silent groups
asked anew.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from test_grpo import G, Watch, rows, trainer_of
from test_sft import trainer_of as sft_trainer_of

import lite_medrl
from lite_medrl.train import grpo as module
from lite_medrl.train.batches import live_groups
from lite_medrl.train.config import GRPOConfig, SFTConfig
from lite_medrl.train.guards import refuse_tools
from lite_medrl.types import ModelError


@pytest.fixture(autouse=True)
def our_configs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The helpers of the neighbouring tests make ours instead of TRL's."""
    monkeypatch.setattr("test_grpo.GRPOConfig", GRPOConfig)
    monkeypatch.setattr("test_sft.SFTConfig", SFTConfig)


def test_the_configs_are_trls_and_checked(tmp_path: Path) -> None:
    assert lite_medrl.GRPOConfig is GRPOConfig
    assert lite_medrl.SFTConfig is SFTConfig
    for config in (GRPOConfig, SFTConfig):
        made = config(output_dir=str(tmp_path), use_cpu=True, bf16=False)
        assert (made.prefix_tree, made.max_tree_tokens, made.group_by_image) == ("auto", 8192, False)
        for options, message in (
            ({"prefix_tree": "yes"}, "prefix_tree='yes': must be one of auto, required, off"),
            ({"max_tree_tokens": 0}, "max_tree_tokens=0: must be 1 or more"),
        ):
            with pytest.raises(ValueError, match=message):
                config(output_dir=str(tmp_path), use_cpu=True, bf16=False, **options)
    for options in (
        {"resample_rounds": -1},
        {"resample_rounds": 1, "scale_rewards": "batch"},
        {"resample_rounds": 1, "multi_objective_aggregation": "normalize_then_sum"},
    ):
        with pytest.raises(ValueError, match="resample_rounds"):
            GRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_type": "sapo", "epsilon": 0.3}, "epsilon=0.3: loss_type='sapo' has no epsilon; leave it 0.2"),
        (
            {"loss_type": "vespo", "epsilon_high": 0.3},
            "epsilon_high=0.3: loss_type='vespo' has no epsilon_high",
        ),
        ({"loss_type": "cispo", "delta": 2.0}, "delta=2.0: loss_type='cispo' has no delta; leave it None"),
        ({"sapo_temperature_pos": 2.0}, "sapo_temperature_pos=2.0: loss_type='dapo' has no sapo_temp"),
        ({"vespo_k_pos": 1.0, "loss_type": "grpo"}, "vespo_k_pos=1.0: loss_type='grpo' has no vespo_k_pos"),
    ],
    ids=lambda x: ",".join(x) if isinstance(x, dict) else "",
)
def test_options_of_other_loss_types_are_refused_at_once(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        trainer_of(tmp_path, **options)


@pytest.mark.parametrize("make", [trainer_of, sft_trainer_of])
def test_packing_that_is_demanded_but_impossible_is_refused_at_once(make: Any, tmp_path: Path) -> None:
    model = tiny.with_lora(tiny.loaded().model)
    model.config.text_config.num_experts = 4
    with pytest.raises(
        ModelError, match="packing was asked for, but is not possible: llava: the load of its"
    ):
        make(tmp_path, model, prefix_tree="required")


def test_trees_change_what_is_computed_and_not_the_loss(tmp_path: Path) -> None:
    losses, savings = [], []
    for mode in ("off", "auto", "required"):
        trainer = trainer_of(tmp_path, prefix_tree=mode)
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 1
        batch = trainer._scored(rows(trainer, 2), G)
        loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
        losses.append((float(loss.detach()), tiny.lora_grads(trainer.model)))
        savings.append(trainer._metrics["train"]["prefix_tree/saving"])
    assert savings[0] == [1.0]
    assert savings[1] == savings[2]
    assert savings[1][0] > 2.0
    for loss, grads in losses[1:]:
        assert loss == pytest.approx(losses[0][0], abs=1e-6)
        for name, grad in grads.items():
            torch.testing.assert_close(grad, losses[0][1][name], rtol=1e-3, atol=1e-6, msg=name)


def test_a_tree_that_does_not_fit_names_the_completion(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, max_tree_tokens=20)
    trainer.model.train()
    batch = trainer._scored(rows(trainer, 2), G)
    with pytest.raises(ValueError, match=r"need a row of .*, but max_tree_tokens is 20"):
        trainer.compute_loss(trainer.model, batch | {"advantages": torch.ones(2 * G)})


@pytest.mark.parametrize("make", [trainer_of, sft_trainer_of])
def test_the_questions_of_one_image_are_drawn_together(make: Any, tmp_path: Path) -> None:
    trainer = make(tmp_path, group_by_image=True)
    drawn = list(trainer._get_train_sampler())
    copies = G if make is trainer_of else 1
    order = [i for n, i in enumerate(drawn) if n % copies == 0]
    assert sorted(set(order)) == sorted(order)  # every row once
    pictures = [trainer.train_dataset[i]["images"][0].tobytes() for i in order]
    changes = sum(a != b for a, b in pairwise(pictures))
    assert changes == len(set(pictures)) - 1
    assert copies == 1 or all(len(set(drawn[n : n + copies])) == 1 for n in range(0, len(drawn), copies))


def test_questions_about_one_image_save_its_tokens(tmp_path: Path) -> None:
    """Supervised rows in the order of their images: fewer tokens, the same loss as separate rows."""
    found = {}
    for mode in ("off", "auto"):
        trainer = sft_trainer_of(tmp_path, group_by_image=True, prefix_tree=mode, max_steps=1,
                                 per_device_train_batch_size=12)  # fmt: skip
        watch = Watch()
        trainer.add_callback(watch)
        trainer.train()
        found[mode] = watch.logs[0]
    assert found["off"]["prefix_tree/saving"] == 1.0
    assert found["auto"]["prefix_tree/saving"] > 1.1
    assert found["auto"]["loss"] == pytest.approx(found["off"]["loss"], rel=1e-5)
    assert found["auto"]["entropy"] == pytest.approx(found["off"]["entropy"], rel=1e-5)


def test_silent_groups_are_asked_anew_with_other_prompts(tmp_path: Path) -> None:
    """A reward that is silent for the first call; fresh prompts then take the places of silent groups."""
    calls: list[list[str]] = []

    def reward(completions: Any, answer: list[str], **columns: Any) -> list[float]:
        calls.append(answer)
        if len(calls) == 1:  # the first group varies, the others do not
            return [float(i == 0) for i in range(len(completions))]
        return [float(i % G == 0 and i < G) for i in range(len(completions))]

    trainer = trainer_of(tmp_path, rewards=[reward], resample_rounds=3, per_device_train_batch_size=3 * G)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    batch = trainer._scored(rows(trainer), G)
    assert live_groups(batch) == [True, False, False]
    first = {key: batch[key][:G].clone() for key in ("completion_ids", "prompt_ids")}
    found = trainer._resampled(batch)
    assert live_groups(found) == [True, True, True]
    assert [len(call) for call in calls] == [3 * G, 2 * G, G]  # two silent groups, then one
    assert trainer._metrics["train"]["groups_resampled"] == [2.0]
    assert int(found["num_items_in_batch"]) == int(found["completion_mask"].sum())
    width = first["completion_ids"].shape[1]
    assert torch.equal(found["completion_ids"][:G, :width], first["completion_ids"])
    loss = trainer.compute_loss(trainer.model, found)
    loss.backward()
    assert all(bool(g.isfinite().all()) for g in tiny.lora_grads(trainer.model).values())
    assert trainer._metrics["train"]["frac_rows_skipped"] == [0.0]


def test_rounds_draw_from_streams_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[Any] = []
    real = module.generate
    monkeypatch.setattr(module, "generate", lambda *a, **k: keys.append(k["keys_P"]) or real(*a, **k))

    def same(completions: Any, **columns: Any) -> list[float]:
        return [1.0] * len(completions)

    trainer = trainer_of(tmp_path, rewards=[same], resample_rounds=2)
    trainer.model.train()
    trainer._resampled(trainer._scored(rows(trainer, 2), G))
    first = keys[0]
    assert len(set(first)) == 2
    assert all(0 <= key < 2**32 for key in first)
    assert [{key >> 32 for key in found} for found in keys[1:]] == [{1}, {2}]
    assert trainer._metrics["train"]["groups_resampled"] == [0.0]
    watch = Watch()
    trainer = trainer_of(tmp_path, rewards=[same], resample_rounds=1)
    trainer.add_callback(watch)
    trainer.train()
    assert watch.logs[0]["loss"] == 0.0


def test_dropout_or_answers_of_others_switch_the_parity_guard_off(tmp_path: Path) -> None:
    """Two passes under dropout differ, and so do log-probs that a user's own rollout hands in."""
    model = tiny.with_lora(tiny.loaded().model, scale=0.05)
    trainer = trainer_of(tmp_path, model)
    trainer.train()
    assert trainer._parity.passed
    for layer in [m for m in model.modules() if hasattr(m, "lora_dropout")]:
        layer.lora_dropout["default"] = torch.nn.Dropout(0.3)
    trainer = trainer_of(tmp_path, model)
    trainer.train()
    assert not trainer._parity.passed
    assert not trainer._corrects({"sampling_per_token_logps": torch.zeros(1)})


def test_old_log_probs_of_separate_rows_keep_to_the_batch_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(
        tmp_path, prefix_tree="off", num_iterations=2, per_device_train_batch_size=G,
        gradient_accumulation_steps=3,
    )  # fmt: skip
    seen: list[int] = []
    text = trainer.model.get_base_model().model.language_model
    text.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs["inputs_embeds"])), with_kwargs=True
    )
    monkeypatch.setattr(module, "generate", rolled(module.generate, seen))
    trainer.model.train()
    batch = trainer._scored(rows(trainer, 3), G)
    assert seen == [G, G, G]
    whole = score_all_at_once(trainer, batch)
    mask = batch["completion_mask"].bool()
    torch.testing.assert_close(batch["old_per_token_logps"][mask], whole, rtol=1e-5, atol=1e-5)


def rolled(generate: Any, seen: list[int]) -> Any:
    """`generate`, after which the notes begin anew."""

    def run(*args: Any, **kwargs: Any) -> Any:
        found = generate(*args, **kwargs)
        seen.clear()
        return found

    return run


def score_all_at_once(trainer: Any, batch: dict[str, Any]) -> torch.Tensor:
    keep = batch["completion_mask"].bool().any(1)
    with torch.no_grad():
        return trainer._score(trainer.model, batch, keep, with_entropy=False).logp_N


def test_tools_are_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path)
    with pytest.raises(NotImplementedError, match="tools: completions with tool results"):
        refuse_tools([print])
    refuse_tools(trainer.tools)
