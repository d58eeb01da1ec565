"""SFT's loss and gradients against a plain log_softmax statement of TRL's maths, on NF4 with an adapter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from transformers import TrainerCallback
from trl import SFTConfig

from lite_medrl.data.prompts import target_text
from lite_medrl.model.encode import encode_prompts
from lite_medrl.train.columns import to_dataset
from lite_medrl.train.sft import SFTTrainer, trained_logps
from lite_medrl.types import Sample


def samples() -> list[Sample]:
    """Every third without reasoning, so that completions differ in length."""
    return [replace(s, reasoning=None) if i % 3 == 0 else s for i, s in enumerate(tiny.samples())]


def trainer_of(tmp_path: Path, model: Any = None, **options: Any) -> SFTTrainer:
    loaded = tiny.loaded()
    dataset = to_dataset(samples(), instruction=tiny.INSTRUCTION, with_completion=True)
    settings: dict[str, Any] = {
        "output_dir": str(tmp_path), "max_length": None, "packing": False, "completion_only_loss": True,
        "max_steps": 1,
        "remove_unused_columns": False, "dataset_kwargs": {"skip_prepare_dataset": True}, "report_to": "none",
        "bf16": False, "use_cpu": True, "save_strategy": "no", "disable_tqdm": True,
        "per_device_train_batch_size": 4,
        "max_grad_norm": 0.0, "logging_steps": 1, "gradient_checkpointing": False, "learning_rate": 1e-3,
        "dataloader_pin_memory": False,
    }  # fmt: skip
    return SFTTrainer(
        model=tiny.with_lora(loaded.model, scale=0.02) if model is None else model,
        args=SFTConfig(**(settings | options)),
        processing_class=loaded.processor,
        train_dataset=dataset,
        eval_dataset=dataset.select(range(6)),
    )


def plain(model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs and entropies of the labelled tokens, from whole logits."""
    rows = {key: value for key, value in inputs.items() if key not in ("labels", "use_cache")}
    logp_BLV = model.get_base_model()(**rows).logits[:, :-1].log_softmax(-1)
    labels = inputs["labels"][:, 1:]
    keep = labels != -100
    logp = logp_BLV.gather(2, labels.clamp(min=0)[..., None]).squeeze(2)[keep]
    return logp, -(logp_BLV.exp() * logp_BLV).sum(-1)[keep]


def test_labels_stand_on_the_completion_and_its_end_only(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path)
    tokenizer, rows = trainer.processing_class.tokenizer, [trainer.train_dataset[i] for i in range(5)]
    batch = trainer.data_collator(rows)
    for labels, ids, mask, sample in zip(
        batch["labels"], batch["input_ids"], batch["attention_mask"], samples()[:5], strict=True
    ):
        told = target_text(sample) + "<|end|>"
        assert tokenizer.decode(labels[labels != -100]) == told
        assert torch.equal(labels[labels != -100], ids[labels != -100])
        alone = encode_prompts(trainer.processing_class, [sample], instruction=tiny.INSTRUCTION)
        assert ids[mask.bool() & (labels == -100)].tolist() == alone["input_ids"][0].tolist()
    pixels = encode_prompts(trainer.processing_class, tiny.samples()[:5])["pixel_values"]
    torch.testing.assert_close(batch["pixel_values"], pixels, rtol=0, atol=0)


@pytest.mark.parametrize("items", [None, 77])
def test_loss_gradient_and_entropy(tmp_path: Path, items: int | None) -> None:
    trainer = trainer_of(tmp_path)
    batch = trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[i] for i in range(4)]))
    logp, entropy = plain(trainer.model, batch)
    expected = -logp.sum() / (items or len(logp))
    expected.backward()
    grads = tiny.lora_grads(trainer.model)
    trainer.model.zero_grad(set_to_none=True)
    trainer.model.train()
    loss = trainer.compute_loss(
        trainer.model, batch, num_items_in_batch=None if items is None else torch.tensor(items)
    )
    loss.backward()
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    for name, grad in tiny.lora_grads(trainer.model).items():
        torch.testing.assert_close(grad, grads[name], rtol=1e-4, atol=1e-6)
    assert trainer._metrics["train"]["entropy"] == [pytest.approx(float(entropy.mean()), rel=1e-5)]
    assert trainer._metrics["train"]["num_tokens"] == [int(batch["attention_mask"].sum())]
    scored, _, _ = trained_logps(trainer.model, batch)
    torch.testing.assert_close(scored, logp, rtol=1e-5, atol=1e-6)


class Watch(TrainerCallback):
    """Keeps the gradients that the optimizer gets, and what was logged."""

    def __init__(self) -> None:
        self.grads: list[dict[str, torch.Tensor]] = []
        self.logs: list[dict[str, float]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.grads.append(tiny.lora_grads(kwargs["model"]))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.logs.append(dict(logs))


def test_accumulated_steps_weigh_every_token_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """2 rows x 3 passes: the gradient is that of the mean over all their tokens, as in TRL."""
    trainer = trainer_of(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=3)
    watch, batches = Watch(), []
    trainer.add_callback(watch)
    real = SFTTrainer.compute_loss
    monkeypatch.setattr(
        SFTTrainer, "compute_loss", lambda self, model, inputs, *a,
        **k: batches.append(dict(inputs)) or real(self, model, inputs, *a, **k)
    )  # fmt: skip
    reference = tiny.with_lora(tiny.loaded().model, scale=0.02).train()
    trainer.train()
    assert len(batches) == 3
    logps = [plain(reference, batch)[0] for batch in batches]
    assert len({len(logp) for logp in logps}) > 1
    loss = -torch.cat(logps).mean()
    loss.backward()
    (grads,) = watch.grads
    for name, grad in tiny.lora_grads(reference).items():
        torch.testing.assert_close(grads[name], grad, rtol=1e-4, atol=1e-6)
    assert watch.logs[0]["loss"] == pytest.approx(float(loss), rel=1e-4)


def test_training_moves_the_adapter_alone_and_lowers_the_evaluation_loss(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, max_steps=8, learning_rate=1e-2, per_device_train_batch_size=8)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    batch = trainer._prepare_inputs(trainer.data_collator([trainer.eval_dataset[i] for i in range(6)]))
    expected = -plain(trainer.model, batch)[0].mean()
    start = trainer.evaluate()["eval_loss"]
    assert start == pytest.approx(float(expected), rel=1e-5)
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.9 * start
    moved = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name, p in trainer.model.named_parameters() if p.requires_grad}


def test_the_adapter_keeps_its_values_and_fp32_when_a_trainer_is_made(tmp_path: Path) -> None:
    """TRL rounds it to bf16, three digits, each time."""
    model = tiny.with_lora(tiny.loaded().model)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    assert any(not torch.equal(p, p.bfloat16().float()) for p in before.values())
    trainer = trainer_of(tmp_path, model)
    after = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert after.keys() == before.keys()
    for name, parameter in after.items():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, before[name]), name


def test_a_row_without_labels_adds_nothing(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path)
    batch = trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[0]]))
    batch["labels"] = torch.full_like(batch["labels"], -100)
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    assert float(loss) == 0.0
    assert all(float(g.abs().max()) == 0.0 for g in tiny.lora_grads(trainer.model).values())


def test_outputs_and_options_that_would_be_ignored_are_refused(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path)
    with pytest.raises(ValueError, match="does not return outputs"):
        trainer.compute_loss(trainer.model, {}, return_outputs=True)
    for options in ({"loss_type": "dft"}, {"label_smoothing_factor": 0.1}):
        with pytest.raises(ValueError, match=next(iter(options))):
            trainer_of(tmp_path, **options)
