"""A TRL script for Qwen-VL runs with our trainers after changing the import alone, and computes TRL's loss.

The model is a tiny random Qwen3-VL with its stock processor: images of several sizes, prompts with one or two
of them.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_qwen
import torch
from datasets import Dataset, Features, Image, List, Value
from peft import LoraConfig
from PIL import Image as PILImage
from tiny_vlms import in_fp64, rotate_in_fp64
from trl import GRPOConfig
from trl import GRPOTrainer as TRLGRPOTrainer

from lite_medrl import GRPOTrainer
from lite_medrl.train import grpo as module
from lite_medrl.train.batches import number_groups

G = 4
PICTURES = {"red": (40, 30), "blue": (64, 64), "green": (30, 60)}
QUESTIONS = [
    (["red"], "what colour ?"),
    (["blue", "green"], "which is larger ?"),
    (["red"], "is it red ?"),
    (["green"], "what is it ?"),
]


def dataset() -> Dataset:
    """`prompt` and `images` columns, as TRL's VLM scripts have them, and a column for the reward."""
    pictures = {name: PILImage.new("RGB", size, name) for name, size in PICTURES.items()}
    features = Features(
        {
            "prompt": List({"role": Value("string"), "content": Value("string")}),
            "images": List(Image()),
            "solution": Value("string"),
        }
    )
    rows = [
        {
            "prompt": [{"role": "user", "content": text}],
            "images": [pictures[name] for name in names],
            "solution": names[0],
        }
        for names, text in QUESTIONS
    ]
    return Dataset.from_list(rows, features=features)


def letters_of_the_solution(completions: Any, solution: list[str], **columns: Any) -> list[float]:
    """A plain reward function: TRL's signature, the columns of the data set as keywords."""
    texts = [completion[0]["content"] for completion in completions]
    return [
        sum(letter in text for letter in word) / len(word) for text, word in zip(texts, solution, strict=True)
    ]


def script(trainer_class: type, tmp_path: Path, **options: Any) -> Any:
    """What a TRL user has: nothing here but TRL's own names."""
    processor = tiny_qwen.make_processor()
    settings: dict[str, Any] = {
        "output_dir": str(tmp_path), "max_steps": 2, "num_generations": G, "per_device_train_batch_size": G,
        "gradient_accumulation_steps": 2, "max_completion_length": 8, "learning_rate": 1e-2,
        "report_to": "none", "bf16": False, "use_cpu": True, "save_strategy": "no", "logging_steps": 1,
        "disable_tqdm": True,
    }  # fmt: skip
    return trainer_class(
        model=tiny_qwen.make_model(processor),
        args=GRPOConfig(**settings | options),
        reward_funcs=letters_of_the_solution,
        train_dataset=dataset(),
        processing_class=processor,
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj", "o_proj"], task_type="CAUSAL_LM"),
    )


def test_the_script_runs(tmp_path: Path) -> None:
    trainer = script(GRPOTrainer, tmp_path, max_completion_length=24)
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    logs = [row for row in trainer.state.log_history if "reward" in row]
    assert len(logs) == 2
    assert all(0 < row["reward"] <= 1 for row in logs)
    assert all(row["prefix_tree/saving"] > 1.5 for row in logs)
    assert any(not torch.equal(p, before[n]) for n, p in trainer.model.named_parameters() if n in before)


def rows(trainer: Any) -> list[dict[str, Any]]:
    return [trainer.train_dataset[i] for i in range(4) for _ in range(G)]


def plain_logps(trainer: Any, batch: dict[str, Any]) -> torch.Tensor:
    """Log-probs [B, C] by one stock forward pass a row, without padding."""
    base, found = trainer.model.get_base_model(), []
    for b, group in enumerate(batch["group_ids"].tolist()):
        prompt = batch["prompt_ids"][b][batch["prompt_mask"][b].bool()]
        completion = batch["completion_ids"][b][batch["completion_mask"][b].bool()]
        ids = torch.cat([prompt, completion])[None]
        types = (ids == base.config.image_token_id).int()
        logits = base(input_ids=ids, mm_token_type_ids=types, **batch["images_G"][group]).logits[0]
        logp = (logits[len(prompt) - 1 : -1] / trainer.temperature).log_softmax(-1)
        chosen = logp.gather(1, completion[:, None]).squeeze(1)
        width = batch["completion_ids"].shape[1]
        found.append(torch.nn.functional.pad(chosen, (0, width - len(chosen))))
    return torch.stack(found)


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "cispo"])
def test_loss_and_gradient_are_trls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss_type: str) -> None:
    """Old and reference log-probs too: all four passes go through the trees."""
    trainer = script(GRPOTrainer, tmp_path, loss_type=loss_type, beta=0.1, temperature=1.3)
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    trainer.model.train()
    batch = number_groups(trainer._generate_and_score_completions(rows(trainer)), G)
    rotate_in_fp64(monkeypatch)
    in_fp64(trainer.model)
    assert [len(one["image_grid_thw"]) for one in batch["images_G"]] == [1, 2, 1, 1]
    batch["images_G"] = [one | {"pixel_values": one["pixel_values"].double()} for one in batch["images_G"]]
    batch["advantages"] = torch.randn(4 * G, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        exact = plain_logps(trainer, batch)
    noise = torch.randn(exact.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    batch |= {"old_per_token_logps": exact + 0.2 * noise, "ref_per_token_logps": exact - 0.1 * noise}
    trainer.current_gradient_accumulation_steps = 1
    found = []
    for compute in (TRLGRPOTrainer._compute_loss, GRPOTrainer.compute_loss):
        trainer._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
        trainer.model.zero_grad(set_to_none=True)
        with monkeypatch.context() as patch:
            if compute is TRLGRPOTrainer._compute_loss:
                plain = lambda *a, **k: (plain_logps(trainer, batch), noise.abs(), None)  # noqa: E731
                patch.setattr(trainer, "_get_per_token_logps_and_entropies", plain, raising=False)
            loss = compute(trainer, trainer.model, dict(batch))
        loss.backward()
        found.append((float(loss.detach()), tiny.lora_grads(trainer.model)))
    (loss, grads), (our_loss, our_grads) = found
    assert our_loss == pytest.approx(loss, rel=1e-10)
    assert max(float(g.abs().max()) for g in grads.values()) > 1e-4
    for name, grad in our_grads.items():
        torch.testing.assert_close(grad, grads[name], rtol=1e-8, atol=1e-11, msg=name)


def test_old_and_reference_passes_are_plain_ones(tmp_path: Path) -> None:
    """TRL asks for them with tensors of every row; both read each group's images and prompt once."""
    trainer = script(GRPOTrainer, tmp_path, beta=0.1, num_iterations=2)
    trainer.model.train()
    asked: list[Any] = []
    real = module.score
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "score", lambda *a, **k: asked.append(len(k["images_P"])) or real(*a, **k))
        batch = trainer._scored(rows(trainer), G)
    assert asked == [4, 4]
    with torch.no_grad():
        expected = plain_logps(trainer, batch)
    mask = batch["completion_mask"].bool()
    torch.testing.assert_close(batch["old_per_token_logps"][mask], expected[mask], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(batch["ref_per_token_logps"][mask], expected[mask], rtol=1e-4, atol=1e-4)


def test_every_image_is_processed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = script(GRPOTrainer, tmp_path, max_completion_length=24)
    trainer.model.train()
    kind, seen = type(trainer.processing_class.image_processor), []
    real = kind.preprocess

    def preprocess(self: Any, images: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(sum(len(row) if isinstance(row, list) else 1 for row in images))
        return real(self, images, *args, **kwargs)

    monkeypatch.setattr(kind, "preprocess", preprocess)
    batch = trainer._scored(rows(trainer), G)
    assert seen == [5]  # TRL: 20 for sampling and 20 for training
    assert sum(len(one["pixel_values"]) for one in batch["images_G"]) == sum(
        int(one["image_grid_thw"].prod()) if len(one["image_grid_thw"]) == 1
        else int(one["image_grid_thw"].prod(1).sum())
        for one in batch["images_G"]
    )  # fmt: skip


def test_no_image_token_is_ever_drawn(tmp_path: Path) -> None:
    trainer = script(GRPOTrainer, tmp_path, max_completion_length=40)
    head = trainer.model.get_base_model().lm_head
    image = trainer.processing_class.image_token_id
    head.weight.data[image] = 50 * head.weight.data.abs().max()  # the model would say little else
    trainer.model.train()
    batch = trainer._scored(rows(trainer), G)
    assert not (batch["completion_ids"] == image).any()


def test_a_prompt_that_lost_image_tokens_is_named(tmp_path: Path) -> None:
    trainer = script(GRPOTrainer, tmp_path, max_completion_length=24)
    trainer.model.train()
    batch = trainer._scored(rows(trainer), G)
    batch["advantages"] = torch.ones(4 * G)
    image = trainer.processing_class.image_token_id
    place = int((batch["prompt_ids"][2 * G] == image).nonzero()[0])
    batch["prompt_ids"][2 * G : 3 * G, place] = 65
    with pytest.raises(
        ValueError, match="prompt 2 holds 3 image tokens, but its images make 4; was it trunc"
    ):
        trainer.compute_loss(trainer.model, batch)


def test_number_groups_takes_what_trl_hands_out(tmp_path: Path) -> None:
    """TRL's own tensors, every row with its copy, make the same groups as ours with one copy."""
    trainer = script(GRPOTrainer, tmp_path, max_completion_length=24)
    trainer.model.train()
    batch = trainer._generate_and_score_completions(rows(trainer))
    whole, once = number_groups(batch, G), trainer._scored(rows(trainer), G)
    for a, b in zip(whole["images_G"], once["images_G"], strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)
