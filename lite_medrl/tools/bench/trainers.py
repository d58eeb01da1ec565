"""TRL's trainers and ours around one model, ready for their loss alone: no data, no sampling, no optimiser.

The losses need a model and a batch, so a tokenizer made here stands in for a processor (Qwen-VL's need
torchvision, which has no CPU build). TRL's fused head needs CUDA; elsewhere `WithLogits` takes its place.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from trl.trainer.utils import entropy_from_logits, selective_log_softmax

from lite_medrl.model.packed import base_of
from lite_medrl.tools.bench.case import Case

PLAIN_HEAD = (
    "TRL's fused head needs CUDA; here TRL's selective_log_softmax and entropy_from_logits do its part on "
    "the logits of the scored positions"
)
UNSLOTH = "Unsloth's trainer on this model; its loader, and so its layer kernels, are not used"


class WithLogits:
    """A model as TRL calls it (`fused_lm_head=True`), with logits of the scored positions and no kernel.

    TRL's losses take the model as an argument, so nothing of TRL is changed. Entropies carry no gradient, as
    they are only metrics here.
    """

    def __init__(self, model: Any, temperature: float = 1.0) -> None:
        self.model, self.temperature = model, temperature

    def __call__(self, *, labels: Tensor, fused_lm_head: bool, **inputs: Any) -> SimpleNamespace:
        """log_probs, entropy, is_top1, label_mask [B, L - 1]: what TRL reads of a FusedCausalLMOutput."""
        base, target_BL = base_of(self.model), labels[:, 1:]
        mask_BL = target_BL != -100
        hidden_BLD = base.model(**inputs | {"use_cache": False}).last_hidden_state[:, :-1]
        logits_1NV = base.get_output_embeddings()(hidden_BLD[mask_BL])[None]
        target_1N = target_BL[mask_BL][None]
        logp_1N = selective_log_softmax(logits_1NV, target_1N, temperature=self.temperature)
        with torch.no_grad():
            entropy_1N = entropy_from_logits(logits_1NV / self.temperature)
            is_top1_1N = logits_1NV.argmax(-1) == target_1N

        def spread(values_1N: Tensor) -> Tensor:
            return values_1N.new_zeros(mask_BL.shape).masked_scatter(mask_BL, values_1N[0])

        return SimpleNamespace(
            log_probs=spread(logp_1N),
            entropy=spread(entropy_1N),
            is_top1=spread(is_top1_1N),
            label_mask=mask_BL,
        )


def model_for_loss(trainer: Any, impl: str) -> Any:
    """What a trainer's loss is given: the model under its loop's mixed precision, or `WithLogits`."""
    model = trainer.accelerator.prepare_model(trainer.model)
    if impl == "trl" and trainer.accelerator.device.type != "cuda":
        return WithLogits(model, getattr(trainer, "temperature", 1.0))
    return model


def note_on(impl: str, model: Any) -> str:
    """What a reader of the row has to know."""
    return UNSLOTH if impl == "unsloth" else PLAIN_HEAD if isinstance(model, WithLogits) else ""


def make_trainer(impl: str, phase: str, model: Any, case: Case, folder: Path) -> Any:
    """The GRPO trainer of an implementation, or its SFT trainer for the phase "sft", in training mode."""
    make = sft_trainer if phase == "sft" else grpo_trainer
    trainer = make(impl, model, case, folder)
    trainer.current_gradient_accumulation_steps = 1  # set by the training loop, as is the next
    if case.gradient_checkpointing:
        trainer.model.gradient_checkpointing_enable({"use_reentrant": False})
    trainer.model.train()
    return trainer


def grpo_trainer(impl: str, model: Any, case: Case, folder: Path) -> Any:
    """A GRPOTrainer whose batch is all rows at once."""
    import trl

    from lite_medrl.train.config import GRPOConfig
    from lite_medrl.train.grpo import GRPOTrainer

    rows = case.rows("update")
    ours = impl.startswith("lite-medrl")
    config = (GRPOConfig if ours else trl.GRPOConfig)(
        **shared_config(impl, case, folder, rows),
        num_generations=case.generations,
        max_completion_length=case.response,
        log_completions=False,
    )
    return (GRPOTrainer if ours else trl.GRPOTrainer)(
        model=model,
        args=config,
        processing_class=make_tokenizer(),
        reward_funcs=[no_reward],
        train_dataset=Dataset.from_dict({"prompt": ["1"] * rows}),
    )


def sft_trainer(impl: str, model: Any, case: Case, folder: Path) -> Any:
    """An SFTTrainer; its data set is a placeholder."""
    import trl

    from lite_medrl.train.config import SFTConfig
    from lite_medrl.train.sft import SFTTrainer

    ours = impl.startswith("lite-medrl")
    config = (SFTConfig if ours else trl.SFTConfig)(
        **shared_config(impl, case, folder, case.rows("sft")),
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    return (SFTTrainer if ours else trl.SFTTrainer)(
        model=model,
        args=config,
        processing_class=make_tokenizer(),
        train_dataset=Dataset.from_dict({"input_ids": [[1, 2]], "labels": [[1, 2]]}),
    )


def shared_config(impl: str, case: Case, folder: Path, rows: int) -> dict[str, Any]:
    """TrainingArguments of all trainers, and the switch of ours."""
    own = {"prefix_tree": "off"} if impl == "lite-medrl-separate" else {}
    return own | {
        "output_dir": str(folder),
        "max_steps": 1,
        "per_device_train_batch_size": rows,
        "bf16": case.dtype == "bfloat16",
        "fp16": case.dtype == "float16",
        "use_cpu": case.device == "cpu",
        "gradient_checkpointing": case.gradient_checkpointing,
        "report_to": "none",
        "disable_tqdm": True,
        "seed": case.seed,
    }


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Some words; padding has the id 0."""
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<end>": 1, "1": 2}, unk_token="<end>"))
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<end>", padding_side="left"
    )


def no_reward(completions: list[Any], **columns: Any) -> list[float | None]:
    """Never called: nothing is sampled."""
    return [0.0] * len(completions)
