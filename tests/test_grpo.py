"""Our GRPO step against TRL's own loss on the same rollouts, and what the trainer does around it.

TRL's `_compute_loss` runs unchanged; only its log-probs, which need a GPU kernel, come from a plain
log_softmax of separate rows without padding.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from transformers import TrainerCallback
from trl import GRPOConfig
from trl import GRPOTrainer as TRLGRPOTrainer

from lite_medrl.model.encode import encode_prompts
from lite_medrl.train import grpo as module
from lite_medrl.train.batches import number_groups, split_rows
from lite_medrl.train.columns import to_dataset
from lite_medrl.train.grpo import GRPOTrainer
from lite_medrl.train.rewards import accuracy_reward, format_reward

LOSSES = ["grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo"]
G = 4


def trainer_of(tmp_path: Path, model: Any = None, *, rewards: Any = None, **options: Any) -> GRPOTrainer:
    """A trainer on NF4 with a live adapter; two groups of four a micro-batch."""
    loaded = tiny.loaded()
    settings: dict[str, Any] = {
        "output_dir": str(tmp_path), "max_steps": 1, "num_generations": G,
        "per_device_train_batch_size": 2 * G,
        "max_completion_length": 20, "report_to": "none", "bf16": False, "use_cpu": True,
        "save_strategy": "no",
        "disable_tqdm": True, "max_grad_norm": 0.0, "logging_steps": 1, "gradient_checkpointing": False,
        "learning_rate": 1e-2, "temperature": 1.2, "dataloader_pin_memory": False,
        "per_device_eval_batch_size": 4,
        "num_generations_eval": 2, "log_completions": False,
    }  # fmt: skip
    dataset = to_dataset(tiny.samples(), instruction=tiny.INSTRUCTION, with_completion=False)
    trainer = GRPOTrainer(
        model=tiny.with_lora(loaded.model, scale=0.02) if model is None else model,
        args=GRPOConfig(**(settings | options)),
        processing_class=loaded.processor,
        reward_funcs=rewards or [accuracy_reward, format_reward],
        train_dataset=dataset,
        eval_dataset=dataset.select(range(4)),
    )
    # Exact in fp32, for the tests that make another loss type of this one.
    trainer.args.sapo_temperature_neg = 1.125
    return trainer


def rows(trainer: Any, groups: int = 3, size: int = G) -> list[dict[str, Any]]:
    return [trainer.train_dataset[i] for i in range(groups) for _ in range(size)]


def pixels_of(batch: dict[str, Any]) -> torch.Tensor:
    """Pixel values of every row."""
    return torch.cat([batch["images_G"][g]["pixel_values"] for g in batch["group_ids"].tolist()])


def plain_logps(
    model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, logits_to_keep: int, *,
    pixel_values: torch.Tensor, temperature: float, **ignored: Any,
) -> tuple[torch.Tensor, torch.Tensor, None]:  # fmt: skip
    """Log-probs and entropies [B, C] of each row alone, without padding, from whole logits."""
    split, rows_logp, rows_entropy = input_ids.shape[1] - logits_to_keep, [], []
    for ids, mask, pixels in zip(input_ids, attention_mask.bool(), pixel_values, strict=True):
        count = int(mask[split:].sum())
        logits = model.get_base_model()(input_ids=ids[mask][None], pixel_values=pixels[None]).logits[0]
        logp_CV = (logits[len(logits) - count - 1 : -1] / temperature).log_softmax(-1)
        padding = logits.new_zeros(logits_to_keep - count)
        chosen = logp_CV.gather(1, ids[mask][len(logits) - count :, None]).squeeze(1)
        rows_logp.append(torch.cat([chosen, padding]))
        rows_entropy.append(torch.cat([-(logp_CV.exp() * logp_CV).sum(-1), padding]))
    return torch.stack(rows_logp), torch.stack(rows_entropy), None


# --- the loss against TRL's ---------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> tuple[GRPOTrainer, dict[str, Any]]:
    """A trainer in fp64 and a rollout of four groups, the second of which has no variance."""
    model = tiny.with_lora(tiny.loaded(load_in_4bit=False).model, scale=0.02)
    trainer = trainer_of(tmp_path_factory.mktemp("golden"), model)
    trainer.model.train()
    batch = number_groups(trainer._generate_and_score_completions(rows(trainer, 4)), G)
    tiny.in_fp64(trainer.model)
    batch["images_G"] = [{"pixel_values": one["pixel_values"].double()} for one in batch["images_G"]]
    batch["pixel_values"] = torch.cat([one["pixel_values"] for one in batch["images_G"] for _ in range(G)])
    generator = torch.Generator().manual_seed(0)
    advantage = torch.randn(4 * G, generator=generator, dtype=torch.float64)
    advantage[2], advantage[G : 2 * G] = 0.0, 0.0
    mask = batch["completion_mask"]
    with torch.no_grad():
        logp, _, _ = plain_logps(
            trainer.model, torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1),
            torch.cat([batch["prompt_mask"], mask], 1), mask.shape[1], pixel_values=batch["pixel_values"],
            temperature=trainer.temperature,
        )  # fmt: skip
    batch |= {
        name: logp + 0.3 * torch.randn(logp.shape, generator=generator, dtype=torch.float64)
        for name in ("old_per_token_logps", "ref_per_token_logps", "sampling_per_token_logps")
    }
    assert len(set(mask.sum(1).tolist())) > 1
    assert not batch["prompt_mask"].all()
    trainer.current_gradient_accumulation_steps = 2
    trainer.args.steps_per_generation = 4
    return trainer, batch | {"advantages": advantage, "num_items_in_batch": torch.tensor(301)}


def both(
    trainer: GRPOTrainer, batch: dict[str, Any], monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> list[tuple[float, dict[str, torch.Tensor], dict[str, float]]]:
    """Loss, LoRA gradients and metrics: TRL's, then ours."""
    found = []
    with monkeypatch.context() as patch:
        for name, value in options.items():
            patch.setattr(trainer if hasattr(trainer, name) else trainer.args, name, value)
        patch.setattr(trainer, "_entropy_bonus_enabled", trainer.entropy_coef != 0)
        for compute in (TRLGRPOTrainer._compute_loss, GRPOTrainer.compute_loss):
            patch.setattr(trainer, "_metrics", {"train": defaultdict(list), "eval": defaultdict(list)})
            trainer.model.zero_grad(set_to_none=True)
            if compute is TRLGRPOTrainer._compute_loss:
                patch.setattr(
                    trainer, "_get_per_token_logps_and_entropies",
                    lambda *a, **k: plain_logps(*a, **(k | {"temperature": trainer.temperature})),
                    raising=False,
                )  # fmt: skip
            loss = compute(trainer, trainer.model, dict(batch))
            loss.backward()
            mode = "train" if trainer.model.training else "eval"
            metrics = {name: values[0] for name, values in trainer._metrics[mode].items()}
            found.append((float(loss.detach()), tiny.lora_grads(trainer.model), metrics))
    return found


def assert_same(found: Any, *, metrics: tuple[str, ...] = ()) -> None:
    (loss, grads, theirs), (our_loss, our_grads, ours) = found
    assert our_loss == pytest.approx(loss, rel=1e-7, abs=1e-12)
    largest = max(float(g.abs().max()) for g in grads.values())
    assert largest > 1e-6
    for name, grad in our_grads.items():
        torch.testing.assert_close(grad, grads[name], rtol=1e-6, atol=1e-9 * largest, msg=name)
    for name in metrics:
        assert ours[name] == pytest.approx(theirs[name], rel=1e-5, abs=1e-9), name


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "beta": {"beta": 0.1},
    "sequence": {"importance_sampling_level": "sequence"},
    "delta and epsilon_high": {"delta": 1.3, "epsilon_high": 0.4, "epsilon_low": 0.1},
    "entropy bonus": {"entropy_coef": 0.05},
    "top entropy": {"top_entropy_quantile": 0.5},
    "off-policy mask": {"off_policy_mask_threshold": 0.02},
    "everything": {
        "beta": 0.05,
        "entropy_coef": 0.01,
        "top_entropy_quantile": 0.7,
        "off_policy_mask_threshold": 0.02,
    },
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("loss_type", LOSSES)
def test_loss_and_gradient_are_trls(
    golden: Any, monkeypatch: pytest.MonkeyPatch, loss_type: str, option: str
) -> None:
    trainer, batch = golden
    options = {"loss_type": loss_type} | OPTIONS[option]
    all_rows = ("beta", "entropy bonus", "top entropy", "everything")
    assert_same(
        both(trainer, batch, monkeypatch, options), metrics=("entropy",) if option in all_rows else ()
    )


@pytest.mark.parametrize("option", ["plain", "beta", "entropy bonus"])
@pytest.mark.parametrize("loss_type", LOSSES)
def test_rows_that_were_truncated_and_masked_count_as_in_trl(
    golden: Any, monkeypatch: pytest.MonkeyPatch, loss_type: str, option: str
) -> None:
    trainer, batch = golden
    mask = batch["completion_mask"].clone()
    mask[1], mask[9] = 0, 0
    masked = batch | {"completion_mask": mask}
    assert_same(both(trainer, masked, monkeypatch, {"loss_type": loss_type} | OPTIONS[option]))


@pytest.mark.parametrize("loss_type", LOSSES)
def test_without_old_policy_and_in_evaluation(
    golden: Any, monkeypatch: pytest.MonkeyPatch, loss_type: str
) -> None:
    trainer, batch = golden
    fresh = {
        key: value
        for key, value in batch.items()
        if key not in ("old_per_token_logps", "sampling_per_token_logps")
    }
    assert_same(both(trainer, fresh, monkeypatch, {"loss_type": loss_type}))
    trainer.model.eval()
    try:
        assert_same(both(trainer, batch, monkeypatch, {"loss_type": loss_type}))
    finally:
        trainer.model.train()


def test_clip_and_kl_metrics_are_trls(golden: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, batch = golden
    names = (
        "kl",
        "entropy",
        *(f"clip_ratio/{x}" for x in ("low_mean", "high_mean", "region_mean", "low_min", "high_max")),
    )
    found = both(trainer, batch, monkeypatch, {"loss_type": "dapo", "beta": 0.1})
    assert_same(found, metrics=names)
    assert found[0][2]["clip_ratio/region_mean"] > 0.05


def test_groups_without_variance_never_reach_the_model(golden: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, batch = golden
    seen: list[tuple[int, list[int]]] = []
    real = module.score
    monkeypatch.setattr(
        module, "score", lambda *a, **k: seen.append((len(a[1]["input_ids"]), a[3])) or real(*a, **k)
    )
    both(trainer, batch, monkeypatch, {})
    assert seen == [(3, [0] * G + [1] * G + [2] * G)]  # whole groups, even where one row has no advantage
    (_, _, metrics) = both(trainer, batch, monkeypatch, {})[1]
    assert metrics["frac_rows_skipped"] == 0.25
    both(trainer, batch, monkeypatch, {"beta": 0.1})  # KL has a gradient everywhere
    assert seen[-1] == (4, [g for g in range(4) for _ in range(G)])


def test_equal_rewards_are_no_variance_however_they_are_rounded(tmp_path: Path) -> None:
    """Eight rewards of 0.2 differ from their mean in fp32; TRL's own test for a spread of 0 misses that."""

    def once(prompts: Any, completions: Any, **columns: Any) -> list[float]:
        return [float(i == 8) for i in range(len(completions))]

    def always(prompts: Any, completions: Any, **columns: Any) -> list[float]:
        return [1.0] * len(completions)

    size = {"num_generations": 8, "per_device_train_batch_size": 16, "max_completion_length": 4}
    trainer = trainer_of(tmp_path, rewards=[once, always], reward_weights=[1.0, 0.2], **size)
    trainer.model.train()
    plain = trainer._generate_and_score_completions(rows(trainer, 2, 8))["advantages"].view(2, 8)
    assert (plain[0] != 0).all()  # what TRL leaves of the rounding
    trainer._metrics["train"].clear()
    batch = trainer._scored(rows(trainer, 2, 8), 8)
    assert (batch["advantages"][:8] == 0).all()
    assert torch.equal(batch["advantages"][8:], plain[1])
    assert trainer._metrics["train"]["frac_reward_zero_std"] == [0.5]
    keep_B, _ = trainer._rows_with_gradient(batch)
    assert keep_B.view(2, 8).any(1).tolist() == [False, True]


def test_a_batch_without_any_variance_costs_nothing_and_moves_nothing(
    golden: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, batch = golden
    monkeypatch.setattr(module, "score", None)
    trainer.model.zero_grad(set_to_none=True)
    loss = trainer.compute_loss(trainer.model, batch | {"advantages": torch.zeros(4 * G)})
    loss.backward()
    assert float(loss) == 0.0
    assert all(float(g.abs().max()) == 0.0 for g in tiny.lora_grads(trainer.model).values())
    assert all(p.grad is not None for p in trainer.model.parameters() if p.requires_grad)


def test_a_micro_batch_may_cut_through_groups(golden: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, batch = golden
    for part in split_rows(batch, 8):
        assert len(part["prompt_ids"]) == 2
        if part["advantages"].any():
            assert_same(both(trainer, part, monkeypatch, {"loss_type": "grpo"}))


def test_what_is_not_supported_is_refused(golden: Any, tmp_path: Path) -> None:
    trainer, batch = golden
    right = batch | {"prompt_mask": batch["prompt_mask"].flip(1)}
    with pytest.raises(ValueError, match=r"prompt row \d is padded on the right"):
        trainer.compute_loss(trainer.model, right)
    with pytest.raises(ValueError, match="does not return outputs"):
        trainer.compute_loss(trainer.model, batch, return_outputs=True)
    with pytest.raises(NotImplementedError, match="tool_mask"):
        trainer.compute_loss(trainer.model, batch | {"tool_mask": batch["completion_mask"]})
    for options in (
        {"generation_kwargs": {"num_beams": 2}},
        {"use_adaptive_entropy": True},
    ):
        with pytest.raises(ValueError, match=next(iter(options))):
            trainer_of(tmp_path, **options)


# --- rollouts -----------------------------------------------------------------------------------------------
def test_prompts_are_those_of_evaluation_and_are_processed_once_a_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, given = trainer_of(tmp_path), []
    trainer.model.train()
    real = module.generate
    monkeypatch.setattr(module, "generate", lambda *a, **k: given.append((a[2], k)) or real(*a, **k))
    batch = trainer._generate_and_score_completions(rows(trainer))
    expected = encode_prompts(trainer.processing_class, tiny.samples()[:3], instruction=tiny.INSTRUCTION)
    ((inputs, options),) = given
    assert inputs.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(inputs[name], tensor), name
    assert options["num_generations"] == G
    repeated = torch.arange(3).repeat_interleave(G)
    for name, tensor in {
        "prompt_ids": "input_ids",
        "prompt_mask": "attention_mask",
        "pixel_values": "pixel_values",
    }.items():
        assert torch.equal(batch[name], expected[tensor][repeated]), name


def test_a_rollout_holds_what_was_sampled_and_what_it_earned(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, reward_weights=[1.0, 0.25])
    trainer.model.train()
    batch = trainer._generate_and_score_completions(rows(trainer, 2))
    samples = [s for s in tiny.samples()[:2] for _ in range(G)]
    tokenizer = trainer.processing_class.tokenizer
    texts = [
        tokenizer.decode(ids[mask.bool()], skip_special_tokens=True)
        for ids, mask in zip(batch["completion_ids"], batch["completion_mask"], strict=True)
    ]
    assert [c[0]["content"] for c in trainer._logs["completion"]] == texts
    right = [float(f"<answer> {s.answer} </answer>" in text) for s, text in zip(samples, texts, strict=True)]
    assert list(trainer._logs["rewards"]["accuracy_reward"]) == right
    assert 0 < sum(right) < len(right)
    reward = torch.tensor(right) + 0.25 * torch.tensor(list(trainer._logs["rewards"]["format_reward"]))
    group = reward.view(-1, G)
    expected = ((group - group.mean(1, keepdim=True)) / (group.std(1, keepdim=True) + 1e-4)).flatten()
    torch.testing.assert_close(batch["advantages"], expected)
    logp, _, _ = plain_logps(
        trainer.model.eval(), torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1),
        torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1), batch["completion_ids"].shape[1],
        pixel_values=batch["pixel_values"], temperature=trainer.temperature,
    )  # fmt: skip
    gap = (batch["sampling_per_token_logps"] - logp) * batch["completion_mask"]
    assert float(gap.abs().max()) < 1e-4


class Watch(TrainerCallback):
    """What was logged."""

    def __init__(self) -> None:
        self.logs: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.logs.append(dict(logs))


def run(
    trainer: GRPOTrainer, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[dict[str, Any]], list[int], list[torch.Tensor]]:
    """Trains; inputs of every micro-batch, the steps at which answers were drawn, log-probs before a loss."""
    batches, drawn, logps = [], [], []
    real_loss, real_generate = GRPOTrainer.compute_loss, module.generate

    def compute_loss(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        batches.append(inputs)
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        with torch.no_grad():
            logps.append(
                plain_logps(
                    self.accelerator.unwrap_model(model), ids, mask, inputs["completion_ids"].shape[1],
                    pixel_values=pixels_of(inputs), temperature=self.temperature,
                )[0]
            )  # fmt: skip
        return real_loss(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(GRPOTrainer, "compute_loss", compute_loss)
    monkeypatch.setattr(module, "generate", lambda *a, **k: drawn.append(k["step"]) or real_generate(*a, **k))
    trainer.train()
    return batches, drawn, logps


def test_groups_stay_whole_over_accumulation_and_several_steps_a_generation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(
        tmp_path,
        max_steps=3,
        per_device_train_batch_size=G,
        gradient_accumulation_steps=2,
        steps_per_generation=4,
    )
    batches, drawn, logps = run(trainer, monkeypatch)
    assert len(batches) == 6
    assert drawn == [0, 4]
    for batch in batches:
        assert len(batch["prompt_ids"]) == G
        assert (batch["prompt_ids"] == batch["prompt_ids"][0]).all()
        assert set(batch) & {"pixel_values", "num_images"} == set()  # once a group, in images_G
        assert len(set(batch["group_ids"].tolist())) == 1
        assert abs(float(batch["advantages"].sum())) < 1e-4
    assert [int(b["group_ids"][0]) for b in batches] == [0, 1, 2, 3, 0, 1]
    # The third micro-batch comes after an update: its answers are the old policy's, and it is told so.
    gaps = [
        float(((b["old_per_token_logps"] - p) * b["completion_mask"]).abs().max())
        for b, p in zip(batches, logps, strict=True)
    ]
    assert max(gaps[0], gaps[1], gaps[4], gaps[5]) < 1e-4
    assert min(gaps[2], gaps[3]) > 1e-3


def test_old_logps_stay_while_a_batch_is_used_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(tmp_path, max_steps=4, num_iterations=2)
    batches, drawn, logps = run(trainer, monkeypatch)
    assert drawn == [0, 2]
    for first, second in ((0, 1), (2, 3)):
        assert batches[first]["completion_ids"] is batches[second]["completion_ids"]
        assert torch.equal(batches[first]["old_per_token_logps"], batches[second]["old_per_token_logps"])
        mask = batches[first]["completion_mask"].bool()
        old = batches[first]["old_per_token_logps"][mask]
        torch.testing.assert_close(old, logps[first][mask], rtol=1e-4, atol=1e-5)
        assert float((old - logps[second][mask]).abs().max()) > 1e-3


def test_the_reference_is_a_frozen_copy_of_the_adapter_that_training_starts_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, watch = tiny.with_lora(tiny.loaded().model, scale=0.02), Watch()
    start = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    trainer = trainer_of(tmp_path, model, max_steps=3, beta=0.2)
    trainer.add_callback(watch)
    batches, _, logps = run(trainer, monkeypatch)
    reference = tiny.with_lora(tiny.loaded().model, scale=0.02)
    parameters = dict(trainer.model.named_parameters())
    for name, value in start.items():
        assert torch.equal(parameters[name.replace(".default.", ".ref.")], value), name
        assert not torch.equal(parameters[name], value), name
        assert not parameters[name.replace(".default.", ".ref.")].requires_grad
    for batch in batches:
        expected, _, _ = plain_logps(
            reference, torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1),
            torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1), batch["completion_ids"].shape[1],
            pixel_values=pixels_of(batch), temperature=trainer.temperature,
        )  # fmt: skip
        mask = batch["completion_mask"].bool()
        torch.testing.assert_close(batch["ref_per_token_logps"][mask], expected[mask], rtol=1e-4, atol=1e-5)
    assert (
        float(
            (logps[0] - batches[0]["ref_per_token_logps"])[batches[0]["completion_mask"].bool()].abs().max()
        )
        < 1e-4
    )
    kl = [log["kl"] for log in watch.logs if "kl" in log]
    assert abs(kl[0]) < 1e-7
    assert kl[-1] > 1e-5
    assert trainer.model.active_adapter == "default"


def test_the_adapter_keeps_its_values_and_fp32_when_a_trainer_is_made(tmp_path: Path) -> None:
    model = tiny.with_lora(tiny.loaded().model)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    trainer = trainer_of(tmp_path, model)
    after = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert after.keys() == before.keys()
    for name, parameter in after.items():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, before[name]), name


def test_truncated_completions_may_all_be_masked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(
        tmp_path, max_completion_length=3, mask_truncated_completions=True, num_iterations=2, max_steps=2
    )
    batches, _, _ = run(trainer, monkeypatch)
    assert all(int(b["completion_mask"].sum()) == 0 for b in batches)
    assert all(float(b["old_per_token_logps"].abs().max()) == 0.0 for b in batches)
    assert trainer.state.log_history[0]["loss"] == 0.0


def test_training_raises_the_reward_that_is_asked_for(tmp_path: Path) -> None:
    """A reward for one colour: after some steps the answers name it more often."""

    def says_red(completions: Any, **columns: Any) -> list[float]:
        return [float("red" in c[0]["content"]) for c in completions]

    watch = Watch()
    trainer = trainer_of(
        tmp_path, rewards=[says_red], max_steps=12, learning_rate=3e-2, per_device_train_batch_size=4 * G
    )
    trainer.add_callback(watch)
    trainer.train()
    rewards = [log["reward"] for log in watch.logs if "reward" in log]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.2
    assert {"frac_rows_skipped", "frac_reward_zero_std", "entropy", "completions/mean_length"} <= set(
        watch.logs[0]
    )


def test_evaluation_draws_its_own_number_of_completions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, drawn = trainer_of(tmp_path), []
    real = module.generate
    monkeypatch.setattr(
        module, "generate", lambda *a, **k: drawn.append((a[2], k["num_generations"])) or real(*a, **k)
    )
    found = trainer.evaluate()
    assert [size for _, size in drawn] == [2, 2]  # four questions, two answers each, in two batches
    expected = encode_prompts(trainer.processing_class, tiny.samples()[:4], instruction=tiny.INSTRUCTION)
    assert sorted(row for inputs, _ in drawn for row in unpadded(inputs)) == sorted(unpadded(expected))
    assert len(trainer._logs["completion"]) == 8
    assert 0 <= found["eval_reward"] <= 2
    assert found["eval_completions/mean_length"] > 3


def unpadded(inputs: dict[str, torch.Tensor]) -> list[list[int]]:
    rows_and_masks = zip(inputs["input_ids"], inputs["attention_mask"].bool(), strict=True)
    return [ids[mask].tolist() for ids, mask in rows_and_masks]
