"""A vision-language model of a given shape with random weights and a LoRA that matters, on one device.

No full-precision model ever exists: modules are made on the meta device, then each weight is drawn on its own
and, where it is to be quantised, packed to NF4 before the next one is drawn. So a model of 8 billion
parameters needs its NF4 size and one matrix more. Time and memory do not depend on what the weights are.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from accelerate import init_empty_weights
from bitsandbytes.nn import Linear4bit, Params4bit
from torch import nn
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from lite_medrl.model.load import add_lora, keep_canonical_nf4, text_model
from lite_medrl.tools.bench.shapes import VIDEO, VISION_END, VISION_START, Shape

CLASSES = {
    "qwen3_vl": (Qwen3VLConfig, Qwen3VLForConditionalGeneration),
    "qwen2_5_vl": (Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration),
}
LORA_B_STD = 0.02  # of the order of what a few hundred steps leave


def on_meta(shape: Shape) -> Any:
    """The model without memory for its weights; what is computed from the config (rotations) is there."""
    make_config, make_model = CLASSES[shape.family]
    # Numbers of a small vocabulary lie just above its image token.
    others = (VIDEO, VISION_START, VISION_END) if shape.image_token > 10**4 else range(509, 512)
    tokens = dict(
        zip(("video_token_id", "vision_start_token_id", "vision_end_token_id"), others, strict=True)
    )
    config = make_config(
        text_config=shape.text | {"pad_token_id": 0, "tie_word_embeddings": shape.tied},
        vision_config=dict(shape.vision),
        image_token_id=shape.image_token,
        tie_word_embeddings=shape.tied,
        **tokens,
    )
    config._attn_implementation = "sdpa"
    with init_empty_weights(include_buffers=False):
        return make_model(config)


def make_base(
    shape: Shape, *, device: torch.device | str, dtype: torch.dtype, quantised: bool, seed: int = 0
) -> Any:
    """The frozen base: linear layers of the text model in NF4 where `quantised`, all else in `dtype`.

    Weights are normal with transformers' standard deviation of 0.02; norms are 1, biases 0.
    """
    model = on_meta(shape)
    generator = torch.Generator(device).manual_seed(seed)

    def draw(weight: torch.Tensor) -> torch.Tensor:
        made = torch.empty(weight.shape, dtype=dtype, device=device)
        return made.normal_(0.0, 0.02, generator=generator)

    if quantised:
        for module in list(text_model(model).modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(module, name, in_nf4(child, draw(child.weight)))
        model.is_loaded_in_4bit = True  # PEFT and TRL look here
    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            if weight.is_meta:
                is_norm = name == "weight" and weight.ndim == 1
                value = draw(weight) if weight.ndim > 1 else draw(weight).fill_(float(is_norm))
                setattr(module, name, nn.Parameter(value, requires_grad=False))
    model.tie_weights()
    keep_canonical_nf4(model)
    return model.to(device).eval()


def in_nf4(layer: nn.Linear, weight: torch.Tensor) -> Linear4bit:
    """The layer with this weight in NF4, double quantised; a bias is 0."""
    with torch.device("meta"):
        made = Linear4bit(
            layer.in_features,
            layer.out_features,
            bias=layer.bias is not None,
            compute_dtype=weight.dtype,
            quant_type="nf4",
        )
    make: Any = Params4bit  # its stubs know neither argument
    made.weight = make(weight, quant_type="nf4", module=made).to(weight.device)  # packs
    if layer.bias is not None:
        made.bias = nn.Parameter(weight.new_zeros(layer.out_features), requires_grad=False)
    return made


def with_lora(model: Any, *, r: int = 16, seed: int = 0) -> Any:
    """A LoRA on the text model's linear layers; its B is not zero, so its A has a gradient too."""
    peft = add_lora(
        model, r=r, lora_alpha=2 * r, lora_dropout=0.0, target_modules="language-linear", seed=seed
    )
    generator = torch.Generator().manual_seed(seed + 1)
    for name, weight in peft.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            std = LORA_B_STD if "lora_B" in name else 1 / math.sqrt(3 * weight.shape[1])  # kaiming_uniform's
            weight.data = (std * torch.randn(weight.shape, generator=generator)).to(weight.device)
    return peft
