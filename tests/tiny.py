"""A tiny LLaVA of stock classes (Segformer tower, Qwen3 text, 79,000 parameters), processor and questions.

`folder()` is the model on disk, made once a session. A random one answers noise, so it is schooled for
seconds to answer in format; which colour it names stays half a guess, so that rewards vary. `make_model`
gives a random one.
"""

from __future__ import annotations

import atexit
import functools
import importlib.util
import json
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path
from types import MethodType, ModuleType
from typing import Any

import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen3Config,
    SegformerConfig,
)
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm, Qwen3RotaryEmbedding
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from lite_medrl.data.prompts import question_text, target_text
from lite_medrl.data.sources import load_samples
from lite_medrl.model.load import Loaded, load
from lite_medrl.types import Sample

SIZE, CELL, TOKENS = 32, 16, 4  # pixels of an image, pixels of an image token, image tokens
COLOURS = {"red": (230, 30, 30), "green": (30, 200, 40), "blue": (40, 60, 230), "grey": (128, 128, 128)}
INSTRUCTION = "think , then answer ."
REPO = Path(__file__).parents[1]


@functools.cache
def maker() -> ModuleType:
    """examples/make_embedded_model.py as a module: its chat template and tokens are the embedded model's."""
    spec = importlib.util.spec_from_file_location("maker", REPO / "examples" / "make_embedded_model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["maker"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@functools.cache
def scratch() -> Path:
    """A directory of this test session."""
    path = Path(tempfile.mkdtemp(prefix="tiny-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def rows(count: int, split: str, seed: int = 0) -> list[dict[str, Any]]:
    """Questions about one colour; every row of a split has its own id and one of four images."""
    rng, made = random.Random(f"{split} {seed}"), []
    for i in range(count):
        colour = rng.choice(list(COLOURS))
        options = rng.sample(list(COLOURS), rng.randint(2, 4))
        if colour not in options:
            options[rng.randrange(len(options))] = colour
        made.append(
            {"id": f"{split}-{i}", "image": f"{colour}.png", "question": rng.choice(["which colour ?",
            "what is it ?"]),
             "options": options, "answer": colour, "reasoning": f"it is {colour} .", "kind": "colour",
             "split": split,
             "modality": rng.choice(["photo", "scan"]), "source": "made up", "licence": "CC0"}
        )  # fmt: skip
    return made


def write_data(where: Path, made: list[dict[str, Any]]) -> Path:
    """data.jsonl with these rows, and the four images beside it (one of them greyscale)."""
    for name, colour in COLOURS.items():
        image = Image.new("RGB", (SIZE + 8, SIZE), colour)
        (image.convert("L") if name == "grey" else image).save(where / f"{name}.png")
    path = where / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
    return path


@functools.cache
def data() -> Path:
    """A data set: 24 training, 12 validation, 12 test questions."""
    return write_data(scratch(), [*rows(24, "train"), *rows(12, "validation"), *rows(12, "test")])


@functools.cache
def samples(split: str = "train") -> list[Sample]:
    """The samples of a split of `data()`."""
    return load_samples(str(data()), split)


def make_processor() -> LlavaProcessor:
    """Byte-level BPE on the words of the questions; left padding, as the loader sets it."""
    text = [question_text(r["question"], r["options"], INSTRUCTION) for r in rows(40, "train")]
    text += [f"<think> {r['reasoning']} </think><answer> {r['answer']} </answer>" for r in rows(40, "train")]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        text, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False)
    )
    bpe.add_special_tokens([AddedToken(t, special=True) for t in maker().SPECIALS])
    bpe.add_tokens([AddedToken(t, special=False, normalized=False) for t in maker().TAGS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<|pad|>", eos_token="<|end|>", padding_side="left",
        extra_special_tokens={"image_token": "<image>"}, model_max_length=512,
    )  # fmt: skip
    return LlavaProcessor(
        image_processor=SiglipImageProcessorPil(size={"height": SIZE, "width": SIZE}), tokenizer=tokenizer,
        patch_size=CELL, vision_feature_select_strategy="full", chat_template=maker().TEMPLATE,
        image_token="<image>",
    )  # fmt: skip


def make_model(processor: LlavaProcessor, seed: int = 0) -> LlavaForConditionalGeneration:
    """Random weights, large enough for a distribution with peaks; more rows of vocabulary than tokens."""
    tokenizer = processor.tokenizer
    text = Qwen3Config(
        vocab_size=384, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=512, tie_word_embeddings=True,
        initializer_range=0.15, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None, rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )  # fmt: skip
    vision = SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[1, 1], hidden_sizes=[16, 32], patch_sizes=[7, 3],
        strides=[4, 4], num_attention_heads=[1, 2], mlp_ratios=[2, 2], hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, drop_path_rate=0.0, reshape_last_stage=False, hidden_size=32,
        initializer_range=0.1,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1, vision_feature_select_strategy="full", image_seq_length=TOKENS,
        tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(seed)
    return LlavaForConditionalGeneration(config)


def school(model: Any, processor: LlavaProcessor, steps: int = 150) -> None:
    """Teaches the format; the colours it is told are wrong half of the time, so it goes on guessing."""
    from lite_medrl.model.encode import encode_prompts

    rng, train = random.Random(0), samples()
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for step in range(steps):
        batch = rng.sample(train, 8)
        inputs = encode_prompts(processor, batch, instruction=INSTRUCTION)
        answers = [
            target_text(s).replace(s.answer, rng.choice([s.answer, *s.options])) + "<|end|>" for s in batch
        ]
        told = processor.tokenizer(answers, padding=True, padding_side="right", return_tensors="pt")
        labels = told["input_ids"].masked_fill(told["attention_mask"] == 0, -100)
        inputs["labels"] = torch.cat([torch.full_like(inputs["input_ids"], -100), labels], 1)
        for key in ("input_ids", "attention_mask"):
            inputs[key] = torch.cat([inputs[key], told[key]], 1)
        for group in optimiser.param_groups:
            group["lr"] = 3e-3 * min(1.0, 2 * (1 - step / steps))
        model(**inputs).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
    model.eval()


@functools.cache
def folder() -> Path:
    """The schooled model and its processor, saved; TINY_FOLDER lends a child process that of its parent."""
    torch.set_num_threads(1)
    if lent := os.environ.get("TINY_FOLDER"):
        return Path(lent)
    processor = make_processor()
    model = make_model(processor)
    school(model, processor)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    path = scratch() / "model"
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return path


def loaded(*, load_in_4bit: bool = True) -> Loaded:
    """The schooled model, fresh from disk."""
    return load(str(folder()), load_in_4bit=load_in_4bit)


def with_lora(model: Any, *, scale: float = 0.05, seed: int = 0) -> Any:
    """LoRA whose B is not zero, so that the adapter matters."""
    from lite_medrl.model.load import add_lora

    peft = add_lora(model, r=4, lora_alpha=8, lora_dropout=0.0, target_modules="language-linear", seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    for name, parameter in peft.named_parameters():
        if "lora_B" in name:
            parameter.data = scale * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return peft


def in_fp64(model: Any) -> Any:
    """The model in float64 throughout: Qwen3 computes norms and rotations in fp32 whatever it is cast to."""

    def norm(self: Any, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x * (x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon).rsqrt()

    def rotation(self: Any, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angle = position_ids[..., None].double() * self.inv_freq.double()
        return torch.cat([angle, angle], -1).cos(), torch.cat([angle, angle], -1).sin()

    model = model.double()
    for module in model.modules():
        if isinstance(module, Qwen3RMSNorm):
            module.forward = MethodType(norm, module)
        if isinstance(module, Qwen3RotaryEmbedding):
            module.forward = MethodType(rotation, module)
    return model


def lora_grads(model: Any) -> dict[str, torch.Tensor]:
    """Gradients of the trainable parameters; zeros where there is none."""
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in model.named_parameters()
        if p.requires_grad
    }
