"""The model, the prompts and the adapter that every generator of the rollout benchmark is given.

The embedded model (or a folder, or a hub id) with its own processor and real questions; or random weights of
the shape of a published model, for machines that download nothing: time does not depend on the weights'
values.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from torch import Tensor, nn

from lite_medrl.data.sources import load_samples
from lite_medrl.model.encode import encode_prompts, special_ids
from lite_medrl.model.load import (
    add_lora,
    held_weight,
    hold_dequantised,
    keep_canonical_nf4,
    load,
    lora_targets,
    policy_for_machine,
    text_model,
)
from lite_medrl.types import RecipeError

# Text and vision towers as the models' authors publish them; small ones are for tests.
QWEN3_VL_4B = {
    "text": {
        "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "max_position_embeddings": 262144,
        "mrope_section": [24, 20, 20], "rope_theta": 5e6,
    },
    "vision": {
        "depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16, "patch_size": 16,
        "out_hidden_size": 2560, "deepstack_visual_indexes": [5, 11, 17], "num_position_embeddings": 2304,
    },
}  # fmt: skip
QWEN3_VL_TINY = {  # widths in whole blocks of 64: bitsandbytes unpacks others wrongly on a CPU
    "text": {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 272, "max_position_embeddings": 2048,
        "mrope_section": [4, 2, 2], "rope_theta": 1e4,
    },
    "vision": {
        "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "patch_size": 8,
        "out_hidden_size": 64, "deepstack_visual_indexes": [0], "num_position_embeddings": 64,
    },
}  # fmt: skip
SHAPES = {"qwen3-vl-4b": QWEN3_VL_4B, "qwen3-vl-tiny": QWEN3_VL_TINY}
IMAGE, VIDEO, VISION_START, VISION_END, PAD = 1, 2, 3, 4, 0


@dataclass(frozen=True)
class Subject:
    """What is measured: a model with a live adapter, and inputs for any number of prompts.

    `path` is what others load it from (None for random weights); no answer ends before its time.
    """

    name: str
    model: Any
    processor: Any
    inputs: dict[str, Tensor]
    dtype: torch.dtype
    path: str | None = None

    def first(self, prompts: int) -> dict[str, Tensor]:
        """Inputs of the first prompts; their images follow each other, the same number for each."""
        total = len(self.inputs["input_ids"])
        return {key: value[: len(value) * prompts // total] for key, value in self.inputs.items()}


def make_subject(name: str, *, prompts: int, prompt_tokens: int, rank: int = 16) -> Subject:
    """The model `name` ("embedded", a folder, a hub id, or one of SHAPES) on this machine."""
    make = random_subject if name in SHAPES else loaded_subject
    found = make(name, prompts, prompt_tokens)
    peft = add_lora(
        found.model, r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="language-linear", seed=0
    )
    for key, parameter in peft.named_parameters():
        if "lora_B" in key:
            nn.init.normal_(parameter, std=1e-3)
    peft.eval()
    found.model.generation_config.eos_token_id = None
    return Subject(name, peft, endless(found.processor), found.inputs, found.dtype, found.path)


def loaded_subject(name: str, prompts: int, prompt_tokens: int) -> Subject:
    """A model from disk or hub, with questions of the embedded data set."""
    loaded = load(name)
    samples = load_samples("embedded", "train")[:prompts]
    inputs = encode_prompts(loaded.processor, samples, device=loaded.policy.device)
    keep = ("input_ids", "attention_mask", "pixel_values", "image_grid_thw")
    inputs = {key: value for key, value in inputs.items() if key in keep}
    return Subject(name, loaded.model, loaded.processor, inputs, loaded.policy.dtype, name)


def random_subject(name: str, prompts: int, prompt_tokens: int) -> Subject:
    """Random weights in NF4; each prompt is one square image of about half of its tokens, and text."""
    policy = policy_for_machine()
    with torch.device(policy.device):
        torch.manual_seed(0)
        model = qwen3_vl(SHAPES[name], policy.dtype).eval()
    quantise(model, policy.dtype)
    vision = model.config.vision_config
    side = max(1, int((prompt_tokens / 2) ** 0.5))
    head = [VISION_START, *[IMAGE] * side**2, VISION_END]
    if prompt_tokens <= len(head):
        raise RecipeError(
            f"--prompt-tokens {prompt_tokens}: a prompt needs an image and a word, so 8 or more"
        )
    generator = torch.Generator().manual_seed(1)
    words = torch.randint(8, 200, (prompts, prompt_tokens - len(head)), generator=generator)
    ids = torch.cat([torch.tensor(head).expand(prompts, -1), words], 1)
    patches = (2 * side) ** 2
    width = 3 * vision.temporal_patch_size * vision.patch_size**2
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(prompts * patches, width, generator=generator).to(policy.dtype),
        "image_grid_thw": torch.tensor([[1, 2 * side, 2 * side]] * prompts),
    }
    inputs = {key: value.to(policy.device) for key, value in inputs.items()}
    tokenizer = SimpleNamespace(
        eos_token_id=None, pad_token_id=PAD, all_special_ids=[PAD, IMAGE, VIDEO, VISION_START, VISION_END],
        added_tokens_decoder={}, batch_decode=lambda rows: ["" for _ in rows],
    )  # fmt: skip
    return Subject(name, model, SimpleNamespace(tokenizer=tokenizer), inputs, policy.dtype)


def qwen3_vl(shape: dict[str, dict[str, Any]], dtype: torch.dtype = torch.float32) -> Any:
    """A Qwen3-VL of this shape, head tied to the embedding; weights are made in this dtype."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    text = dict(shape["text"])
    rope = {"rope_type": "default", "mrope_interleaved": True}
    rope |= {key: text.pop(key) for key in ("mrope_section", "rope_theta")}
    config = Qwen3VLConfig(
        text_config=text | {"rope_parameters": rope, "pad_token_id": PAD, "tie_word_embeddings": True},
        vision_config=shape["vision"] | {"spatial_merge_size": 2, "temporal_patch_size": 2},
        image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END, tie_word_embeddings=True,
    )  # fmt: skip
    return Qwen3VLForConditionalGeneration._from_config(config, dtype=dtype)


def quantise(model: Any, dtype: torch.dtype) -> None:
    """Puts the language model's linear layers in NF4, double-quantised, in place."""
    for name in lora_targets(model):
        old: Any = model.get_submodule(name)
        bias = old.bias is not None
        new: Any = Linear4bit(old.in_features, old.out_features, bias, compute_dtype=dtype, quant_type="nf4")
        make: Any = Params4bit
        new.weight = make(old.weight.data.cpu(), requires_grad=False, quant_type="nf4", module=new)
        new.bias = old.bias
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, new.to(old.weight.device))
    model.is_loaded_in_4bit = True
    keep_canonical_nf4(model)
    if model.device.type == "cpu":
        hold_dequantised(model)


def endless(processor: Any) -> Any:
    """As much of the processor as a generator needs, without an end token: answers have their full length."""
    tokenizer = processor.tokenizer
    banned = {*special_ids(processor), *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])}
    stub = SimpleNamespace(
        eos_token_id=None, pad_token_id=tokenizer.pad_token_id, all_special_ids=sorted(banned),
        added_tokens_decoder={}, batch_decode=tokenizer.batch_decode,
    )  # fmt: skip
    return SimpleNamespace(tokenizer=stub, whole=processor)


def weight_bytes(model: Any) -> int:
    """Bytes of the weights that one decode step reads: decoder and head, as they lie in memory."""
    base = model.get_base_model()
    text: Any = text_model(model)
    held = [found[0] for m in text.modules() if isinstance(m, Linear4bit) and (found := held_weight(m))]
    unpacked = {m.weight.data_ptr() for m in text.modules() if isinstance(m, Linear4bit) and held_weight(m)}
    embedding = text.get_input_embeddings().weight
    rest = [p for p in text.parameters() if p is not embedding and p.data_ptr() not in unpacked]
    tensors = [*held, *rest, base.get_output_embeddings().weight]
    return sum(x.nbytes for x in tensors)
