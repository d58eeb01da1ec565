"""The sections of a recipe: every key, its default, what it means and what it may be.

Names are TRL's and transformers' where they have one; the defaults are meant for a 4B model on one GPU.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

Schedule = Literal["constant", "constant_with_warmup", "linear", "cosine"]


class Section(BaseModel):
    """A frozen part of a recipe: unknown keys fail, defaults are checked, docstrings are descriptions."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        validate_default=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


class Model(Section):
    """Which model is loaded, and in what precision."""

    model_name_or_path: str = Field(default="embedded", min_length=1)
    """A hub id, a folder, or "embedded" for the tiny model inside the package."""
    revision: str | None = None
    """Branch, tag or commit on the hub; None takes the newest."""
    load_in_4bit: bool = True
    """Hold the language model's frozen weights in 4 bits; tower and projector stay as they are."""
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    """Code book of the 4-bit weights."""
    bnb_4bit_use_double_quant: bool = True
    """Quantise the block scales too: 0.4 bits less a weight."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Compute precision; "auto" is float32 on a CPU, bfloat16 where the card has it, else float16."""
    attn_implementation: str = "sdpa"
    """Attention code in transformers' words: sdpa, eager, flash_attention_2."""
    max_image_tokens: int | None = Field(default=None, ge=1)
    """Shrink images until each costs at most this many tokens; None leaves it to the processor."""
    gradient_checkpointing: Literal["auto"] | bool = "auto"
    """Recompute activations in the backward pass: true, false, or "auto", which does so on CUDA."""


class LoRA(Section):
    """The trained part: low-rank updates beside frozen linear layers."""

    r: int = Field(default=16, ge=1)
    """Rank of an update."""
    lora_alpha: int = Field(default=32, ge=1)
    """An update is scaled by lora_alpha / r."""
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout before an update; 0 keeps rollout and training alike."""
    target_modules: str | list[str] = "language-linear"
    """Layers that get one: "language-linear" (all of the language model), or peft's names or pattern."""


class Data(Section):
    """Which questions are learned from, decided on and reported."""

    source: str = Field(default="embedded", min_length=1)
    """"embedded", a file or folder of rows, or the name of a set, as NAME or NAME:PATH (see README)."""
    train_split: str = Field(default="train", min_length=1)
    """Split that SFT and GRPO learn from."""
    validation_split: str = Field(default="validation", min_length=1)
    """Split that the decisions are made on."""
    test_split: str = Field(default="test", min_length=1)
    """Split that the report is about; nothing is chosen on it."""
    max_train_samples: int | None = Field(default=None, ge=1)
    """Draw at most this many training questions; None takes all."""
    max_validation_samples: int | None = Field(default=None, ge=1)
    """Draw at most this many validation questions; None takes all."""
    max_test_samples: int | None = Field(default=None, ge=1)
    """Draw at most this many test questions; None takes all."""
    kinds: list[str] | None = None
    """Keep these kinds of question only; None keeps all."""
    on_error: Literal["stop", "skip"] = "stop"
    """At a row or image that cannot be used, stop, or leave it out and count it in results.json."""


class Prompt(Section):
    """How a sample is put to the model."""

    system: str | None = None
    """Text of the system turn; None leaves it out."""
    instruction: str | None = None
    """Last line of the user turn; None takes the built-in one (reason in think tags, then answer)."""
    answer_style: Literal["option_text", "letter"] = "option_text"
    """What stands in the answer tags: the option's text or its letter."""


class Rollout(Section):
    """How answers are generated, in training and in measuring."""

    generator: Literal["grouped", "hf", "vllm"] = "grouped"
    """grouped: prompts pass through the model once; hf: transformers' own; vllm: TRL's, in training only."""
    max_cache_gib: float | None = Field(default=None, gt=0)
    """Keys and values held at once; what does not fit waits. None takes most of the memory that is free."""
    stop: list[Annotated[str, Field(min_length=1)]] = []
    """Texts that end an answer, which keeps them; the model's own stop tokens end it in any case."""
    vllm: dict[str, Any] = {}
    """TRL's vllm_* options, under TRL's names, for generator vllm; vllm_mode is colocate if left out."""


class Diagnose(Section):
    """The measurement before each decision: greedy Acc@1 against sampled Pass@K."""

    num_samples: int = Field(default=16, ge=1)
    """Answers drawn a question for Pass@K."""
    k: list[int] = Field(default=[1, 2, 4, 8, 16], min_length=1)
    """The K of Pass@K, ascending, none above num_samples."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling; 1 is off."""
    top_k: int = Field(default=0, ge=0)
    """Sample from the k likeliest tokens; 0 is off."""
    min_p: float | None = Field(default=None, ge=0, le=1)
    """Sample from tokens at least this share as likely as the likeliest; None is off."""
    repetition_penalty: float = Field(default=1.0, gt=0)
    """Above 1, tokens that stand in the prompt or the answer already become less likely."""
    max_completion_length: int = Field(default=256, ge=1)
    """Tokens an answer may have."""
    threshold: float = Field(default=0.5, gt=0, lt=1)
    """Chance-corrected support below this asks for SFT, at or above it for GRPO."""
    max_chance: float = Field(default=0.7, gt=0, lt=1)
    """The rule's K is the largest whose chance line stays under this."""
    bootstrap_samples: int = Field(default=2000, ge=100)
    """Resamples of the questions behind each 95 % interval."""
    batch_size: int = Field(default=64, ge=1)
    """Completions generated at once."""

    @field_validator("k")
    @classmethod
    def _k_fits(cls, k: list[int], info: ValidationInfo) -> list[int]:
        if k[0] < 1 or any(a >= b for a, b in pairwise(k)):
            raise ValueError("must ascend from 1 or more, without repeats")
        if k[-1] > info.data.get("num_samples", k[-1]):
            raise ValueError(
                f"goes above diagnose.num_samples ({info.data['num_samples']}); lower it or draw more"
            )
        return k


class Training(Section):
    """What SFT and GRPO have in common."""

    max_steps: int = Field(default=200, ge=1)
    """Optimizer steps (of each round, for SFT)."""
    learning_rate: float = Field(default=2e-4, gt=0)
    """Peak learning rate."""
    lr_scheduler_type: Schedule = "cosine"
    """Shape of the learning rate after the warm-up."""
    warmup_ratio: float = Field(default=0.03, ge=0, lt=1)
    """Share of the steps over which the learning rate rises from 0."""
    per_device_train_batch_size: int = Field(default=8, ge=1)
    """Rows in one forward pass."""
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    """Forward passes in one optimizer step."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decay of the LoRA weights."""
    logging_steps: int = Field(default=1, ge=1)
    """Steps between two rows of metrics.jsonl."""
    prefix_tree: Literal["auto", "required", "off"] = "auto"
    """Compute what rows share (image, prompt) once: where the model allows it, or else fail, or never."""
    max_tree_tokens: int = Field(default=8192, ge=1)
    """Tokens of one packed row, and of packed rows that go through the model together."""
    group_by_image: bool = False
    """Draw the questions about one image one after the other, so that a batch holds them together."""


class SFT(Training):
    """The bridge: supervised fine-tuning on written reasoning and gold answers, where support is weak."""

    max_rounds: int = Field(default=2, ge=0)
    """Times that measuring may send the model to SFT; 0 never does."""


class Reward(Section):
    """One reward function and its weight in the sum."""

    name: Literal["accuracy", "format"]
    """accuracy: the parsed answer is the gold option. format: think and answer tags, once each, in order."""
    weight: float = Field(default=1.0, ge=0)
    """Factor in the sum."""


class GRPO(Training):
    """The sharpening: group-relative policy optimisation, where support is there."""

    enabled: bool = True
    """Whether GRPO runs at all."""
    learning_rate: float = Field(default=1e-5, gt=0)
    """Peak learning rate."""
    warmup_ratio: float = Field(default=0.05, ge=0, lt=1)
    """Share of the steps over which the learning rate rises from 0."""
    num_generations: int = Field(default=8, ge=2)
    """Completions in a group, all for one prompt."""
    per_device_train_batch_size: int = Field(default=8, ge=1)
    """Completions (not prompts) in one forward pass, as in TRL; whole groups."""
    max_completion_length: int = Field(default=256, ge=1)
    """Tokens a completion may have."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling; 1 is off."""
    top_k: int = Field(default=0, ge=0)
    """Sample from the k likeliest tokens; 0 is off."""
    min_p: float | None = Field(default=None, ge=0, le=1)
    """Sample from tokens at least this share as likely as the likeliest; None is off."""
    repetition_penalty: float = Field(default=1.0, gt=0)
    """Above 1, tokens that stand in the prompt or the completion already become less likely."""
    beta: float = Field(default=0.0, ge=0)
    """Weight of the KL term to the adapter that GRPO started from; 0 saves its forward pass."""
    epsilon: float = Field(default=0.2, gt=0)
    """The probability ratio is clipped at 1 - epsilon."""
    epsilon_high: float | None = Field(default=None, gt=0)
    """The probability ratio is clipped at 1 + epsilon_high; None takes epsilon."""
    delta: float | None = Field(default=None, gt=1)
    """Upper bound of the ratio where the advantage is negative (two-sided clipping); None is off."""
    loss_type: Literal["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo"] = "dapo"
    """How token losses are clipped and averaged, in TRL's words."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """Divide advantages by the standard deviation of the group, of the batch, or not at all (Dr. GRPO)."""
    importance_sampling_level: Literal["token", "sequence"] = "token"
    """One ratio a token (GRPO) or a completion (GSPO)."""
    num_iterations: int = Field(default=1, ge=1)
    """Updates made from one batch of completions."""
    mask_truncated_completions: bool = False
    """Leave completions that hit max_completion_length out of the loss."""
    resample_rounds: int = Field(default=0, ge=0)
    """Rounds in which groups of equal rewards are replaced by fresh prompts; 0 leaves them out instead."""
    rewards: list[Reward] = Field(
        default=[Reward(name="accuracy", weight=1.0), Reward(name="format", weight=0.2)], min_length=1
    )
    """Reward functions; their weighted sum is the reward."""

    @field_validator("num_generations")
    @classmethod
    def _whole_groups(cls, group: int, info: ValidationInfo) -> int:
        size = info.data.get("per_device_train_batch_size", group)
        if size % group:
            fits = f"{size - size % group or group} or {size - size % group + group}"
            raise ValueError(f"does not divide grpo.per_device_train_batch_size ({size}); set that to {fits}")
        return group

    @field_validator("resample_rounds")
    @classmethod
    def _groups_stand_alone(cls, rounds: int, info: ValidationInfo) -> int:
        if rounds and info.data.get("scale_rewards") == "batch":
            raise ValueError(
                "cannot be used with grpo.scale_rewards = batch; take group or none, or leave it 0"
            )
        return rounds

    @field_validator("rewards")
    @classmethod
    def _something_to_earn(cls, rewards: list[Reward]) -> list[Reward]:
        names = [reward.name for reward in rewards]
        if len(set(names)) < len(names):
            raise ValueError("names a reward twice; keep one and set its weight")
        if not any(reward.weight for reward in rewards):
            raise ValueError("has no weight above 0, so nothing could be learned")
        return rewards


class Report(Section):
    """What report.html shows."""

    gallery_size: int = Field(default=24, ge=0)
    """Test images shown with the answers of every stage."""
    title: str | None = None
    """Heading; None makes one from model and data."""


class Recipe(Section):
    """A whole run."""

    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of everything drawn by chance."""
    model: Model = Model()
    lora: LoRA = LoRA()
    data: Data = Data()
    prompt: Prompt = Prompt()
    rollout: Rollout = Rollout()
    diagnose: Diagnose = Diagnose()
    sft: SFT = SFT()
    grpo: GRPO = GRPO()
    report: Report = Report()
