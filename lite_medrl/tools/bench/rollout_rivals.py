"""The generators that the rollout benchmark compares: each takes prompts and draws answers of a fixed length.

All answer the same prompts with the same 4-bit weights and the same live adapter. Unsloth and vLLM load the
model by themselves, so they need a folder or hub id; who cannot be measured has no row, and the log says
why.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch

from lite_medrl.model.encode import special_ids
from lite_medrl.model.generate import Sampling, generate
from lite_medrl.tools.bench.rollout_models import Subject

Draw = Callable[[int, int, int], Any]  # (prompts, answers to each, tokens of an answer)
NAMES = ("grouped", "hf", "hf-static", "unsloth", "vllm")


class LeftOut(Exception):
    """Why a generator cannot be measured here."""


def rival(name: str, subject: Subject) -> Draw:
    """The generator of this name, ready to draw; LeftOut says why there is none."""
    if name == "grouped":
        return lambda prompts, answers, length: generate(
            subject.model, subject.processor, subject.first(prompts), num_generations=answers,
            sampling=Sampling(length),
        )  # fmt: skip
    if name.startswith("hf"):
        options = {"cache_implementation": "static"} if name == "hf-static" else {}
        return lambda prompts, answers, length: by_hf(
            subject.model, subject, prompts, answers, length, options
        )
    if find_spec(name) is None:
        raise LeftOut(f"{name} is not installed")
    if subject.path is None or subject.path == "embedded":
        raise LeftOut(f"{name} loads a model by itself; give a folder or a hub id")
    return (unsloth if name == "unsloth" else vllm)(subject)


@torch.no_grad()
def by_hf(
    model: Any, subject: Subject, prompts: int, answers: int, length: int, options: dict[str, Any]
) -> Any:
    """transformers' generate over prompts that are repeated for each answer."""
    inputs = subject.first(prompts)
    image_token = getattr(model.config, "image_token_id", None)
    if "image_grid_thw" in inputs:
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == image_token).int()
    torch.manual_seed(0)
    return model.generate(
        **inputs, do_sample=True, top_k=0, num_return_sequences=answers, max_new_tokens=length,
        min_new_tokens=length, suppress_tokens=special_ids(subject.processor),
        pad_token_id=subject.processor.tokenizer.pad_token_id, **options,
    )  # fmt: skip


def unsloth(subject: Subject) -> Draw:
    """Unsloth's patched model with the same adapter, through its generate."""
    from peft import PeftModel
    from unsloth import FastVisionModel  # pyright: ignore[reportMissingImports]

    base, _ = FastVisionModel.from_pretrained(subject.path, load_in_4bit=True)
    model = FastVisionModel.for_inference(PeftModel.from_pretrained(base, saved_adapter(subject)))
    return lambda prompts, answers, length: by_hf(model, subject, prompts, answers, length, {})


def vllm(subject: Subject) -> Draw:
    """vLLM in this process on bitsandbytes weights, with the adapter beside them; prompts as token ids."""
    from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports]
    from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]

    from lite_medrl.data.images import load_image
    from lite_medrl.data.prompts import messages
    from lite_medrl.data.sources import load_samples

    engine = LLM(subject.path, quantization="bitsandbytes", enable_lora=True, max_lora_rank=64)
    adapter = LoRARequest("measured", 1, saved_adapter(subject))
    samples = load_samples("embedded", "train")[: len(subject.inputs["input_ids"])]
    template = subject.processor.whole.apply_chat_template
    asked = [
        {"prompt": template(messages(s), add_generation_prompt=True),
         "multi_modal_data": {"image": [load_image(ref) for ref in s.images]}}
        for s in samples
    ]  # fmt: skip

    def draw(prompts: int, answers: int, length: int) -> Any:
        params = SamplingParams(n=answers, temperature=1.0, max_tokens=length, ignore_eos=True, seed=0)
        return engine.generate(asked[:prompts], params, lora_request=adapter, use_tqdm=False)

    return draw


def saved_adapter(subject: Subject) -> str:
    """A folder with the adapter, for generators that load it themselves."""
    folder = tempfile.mkdtemp(prefix="lite-medrl-adapter-")
    subject.model.save_pretrained(folder)
    return folder
