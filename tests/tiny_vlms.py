"""Tiny random vision-language models of every family that can be packed, in float64, with hand-made pixels.

`make_case` gives a model with two roots: one image under two questions, and two images in one prompt. Pixels
are made by hand because Qwen-VL's processors need torchvision.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any

import pytest
import tiny
import torch
import transformers
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3Config,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SiglipVisionConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

from lite_medrl.model.packed import States
from lite_medrl.model.prefix_tree import Chain, PrefixTree, Question, Root, prefix_trees
from lite_medrl.model.prompt_images import Images, join_images
from medrl_kernels import grouped_logp

F64 = torch.float64
VOCABULARY, IMAGE, HIDDEN = 64, 60, 32
TEXT = {
    "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256,
    "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None, "tie_word_embeddings": False,
}  # fmt: skip
ROPE = {"rope_type": "default", "rope_theta": 100.0}
M_ROPE = ROPE | {"mrope_section": [2, 1, 1]}
SIGLIP = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": 16, "patch_size": 4,
}  # fmt: skip
QWEN_VISION = {
    "depth": 2, "hidden_size": 16, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2,
    "temporal_patch_size": 2, "intermediate_size": 24,
}  # fmt: skip
QWEN_TOKENS = {
    "image_token_id": IMAGE,
    "video_token_id": 61,
    "vision_start_token_id": 62,
    "vision_end_token_id": 63,
}


def make_llava(text: Any) -> Any:
    return LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=SiglipVisionConfig(**SIGLIP | {"patch_size": 8}), text_config=text,
            image_token_index=IMAGE, image_seq_length=4, vision_feature_layer=-1,
            vision_feature_select_strategy="full", tie_word_embeddings=False,
        )
    )  # fmt: skip


def make_gemma3() -> Any:
    text = TEXT | {
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "sliding_window": 5,
        "query_pre_attn_scalar": 8,
    }  # fmt: skip
    vision = SiglipVisionConfig(**SIGLIP, vision_use_head=False)
    config = {"text_config": text, "vision_config": vision, "mm_tokens_per_image": 4}
    return Gemma3ForConditionalGeneration(
        Gemma3Config(**config, image_token_index=IMAGE, tie_word_embeddings=False)
    )


def make_idefics(model: Any, config: Any) -> Any:
    text = LlamaConfig(**TEXT, rope_parameters=ROPE)
    return model(config(vision_config=dict(SIGLIP), text_config=text, image_token_id=IMAGE, scale_factor=2))


def make_internvl() -> Any:
    vision = SIGLIP | {"image_size": (16, 16), "patch_size": (4, 4)}
    text = Qwen2Config(**{k: v for k, v in TEXT.items() if k != "head_dim"}, rope_parameters=ROPE)
    config = {"vision_config": vision, "text_config": text, "image_seq_length": 4}
    return InternVLForConditionalGeneration(
        InternVLConfig(**config, image_token_id=IMAGE, tie_word_embeddings=False)
    )


def make_qwen2_vl() -> Any:
    vision = {
        "depth": 2,
        "embed_dim": 16,
        "hidden_size": HIDDEN,
        "num_heads": 2,
        "patch_size": 4,
        "mlp_ratio": 2,
    }
    text = {k: v for k, v in TEXT.items() if k != "head_dim"} | {"rope_parameters": dict(M_ROPE)}
    return Qwen2VLForConditionalGeneration(
        Qwen2VLConfig(vision_config=vision, text_config=text, **QWEN_TOKENS, tie_word_embeddings=False)
    )


def make_qwen2_5_vl(**more: Any) -> Any:
    vision = QWEN_VISION | {"window_size": 16, "fullatt_block_indexes": [1], "out_hidden_size": HIDDEN}
    text = {k: v for k, v in TEXT.items() if k != "head_dim"} | {"rope_parameters": dict(M_ROPE)} | more
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(vision_config=vision, text_config=text, **QWEN_TOKENS, tie_word_embeddings=False)
    )


def make_qwen3_vl() -> Any:
    vision = QWEN_VISION | {
        "out_hidden_size": HIDDEN, "deepstack_visual_indexes": [0, 1], "num_position_embeddings": 16
    }  # fmt: skip
    text = TEXT | {"rope_parameters": M_ROPE | {"mrope_interleaved": True}}
    return Qwen3VLForConditionalGeneration(
        Qwen3VLConfig(vision_config=vision, text_config=text, **QWEN_TOKENS, tie_word_embeddings=False)
    )


MAKERS: dict[str, Callable[[], Any]] = {
    "llava": lambda: make_llava(Qwen3Config(**TEXT, rope_parameters=ROPE)),
    "llava of Mistral with a sliding window": lambda: make_llava(
        MistralConfig(**TEXT, rope_parameters=ROPE, sliding_window=5)
    ),
    "gemma3": make_gemma3,
    "smolvlm": lambda: make_idefics(SmolVLMForConditionalGeneration, SmolVLMConfig),
    "idefics3": lambda: make_idefics(Idefics3ForConditionalGeneration, Idefics3Config),
    "internvl": make_internvl,
    "qwen2_vl": make_qwen2_vl,
    "qwen2_5_vl": make_qwen2_5_vl,
    "qwen2_5_vl with a sliding window": lambda: make_qwen2_5_vl(
        use_sliding_window=True, sliding_window=5, max_window_layers=1
    ),
    "qwen3_vl": make_qwen3_vl,
}
FAMILIES = sorted(MAKERS)
SIZES = {0: (4, 4), 1: (4, 4), 2: (2, 6)}  # patches of an image of a Qwen-VL; images 1 and 2 share a prompt


@dataclass
class Case:
    """A model with LoRA in float64, its roots, and the images of each root."""

    model: Any
    roots: list[Root]
    images: list[Images]

    def trees(self, max_tokens: int = 1000, merge: bool = False) -> list[PrefixTree]:
        return prefix_trees(self.roots, max_tokens=max_tokens, merge=merge)


def in_fp64(model: Any) -> Any:
    """Float64 throughout: RMS norms compute in fp32 whatever they are cast to."""

    def norm(self: Any, x: torch.Tensor) -> torch.Tensor:
        eps = getattr(self, "variance_epsilon", None) or self.eps
        weight = self.weight + 1 if type(self).__name__.startswith("Gemma") else self.weight
        return weight * x * (x.pow(2).mean(-1, keepdim=True) + eps).rsqrt()

    model = model.double()
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = MethodType(norm, module)
    return model


def make_case(family: str) -> Case:
    torch.manual_seed(0)
    model = MAKERS[family]()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, 0.2)
    model = in_fp64(tiny.with_lora(model)).eval()
    images = [make_images(family, [0]), make_images(family, [1, 2])]
    return Case(model, make_roots(family), images)


def image_tokens(family: str, image: int) -> list[int]:
    """A marker, the image's tokens, a marker."""
    height, width = SIZES[image] if family.startswith("qwen") else (4, 4)
    return [10, *[IMAGE] * (height * width // 4), 11]


def make_images(family: str, numbers: Sequence[int]) -> Images:
    """The image tensors of one prompt."""
    generator = torch.Generator().manual_seed(numbers[0])

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=F64)

    if family.startswith("qwen"):
        grid = torch.tensor([[1, *SIZES[n]] for n in numbers])
        return {"pixel_values": noise(int(grid.prod(1).sum()), 3 * 2 * 4 * 4), "image_grid_thw": grid}
    pixels = noise(len(numbers), 3, 16, 16)
    if family not in ("smolvlm", "idefics3"):
        return {"pixel_values": pixels}
    mask = torch.ones(1, len(numbers), 16, 16, dtype=torch.bool)
    mask[:, 0, :, 12:] = False  # the first image is narrower than its tile
    return {"pixel_values": pixels[None], "pixel_attention_mask": mask}


def make_roots(family: str) -> list[Root]:
    first = (1, 2, *image_tokens(family, 0), 3)
    second = (1, *image_tokens(family, 1), *image_tokens(family, 2), 4, 5)
    return [
        Root(
            first,
            (
                Question((20, 21), (Chain(4, (30, 31, 32)), Chain(0, (33,)), Chain(2, (30, 31, 35, 36, 37)))),
                Question((22,), (Chain(3, (38, 39)),)),  # a group of one
            ),
        ),
        Root(second, (Question((), (Chain(1, (40, 41, 42)), Chain(5, (41, 40)))),)),
    ]


def plain(case: Case) -> torch.Tensor:
    """Log-probs by transformers alone: one unpadded row per completion, in the order of their numbers."""
    found = {}
    for root, images in zip(case.roots, case.images, strict=True):
        for question in root.questions:
            for chain in question.chains:
                ids = torch.tensor([[*root.tokens, *question.tokens, *chain.tokens]])
                kind = case.model.config.model_type
                types = {"gemma3": "token_type_ids"}.get(
                    kind, "mm_token_type_ids" if "qwen" in kind else None
                )
                more = {types: (ids == IMAGE).long()} if types else {}
                logits = case.model(input_ids=ids, **more, **images).logits[0, -len(chain.tokens) - 1 : -1]
                target = torch.tensor(chain.tokens)[:, None]
                found[chain.completion] = logits.log_softmax(-1).gather(1, target).squeeze(1)
    return torch.cat([found[number] for number in sorted(found)])


def logp(case: Case, states: States) -> torch.Tensor:
    head = case.model.get_base_model().get_output_embeddings()
    return grouped_logp(states.hidden_SD, head.weight, states.target_N, states.source_N).logp_N


def grads(case: Case, logp_N: torch.Tensor) -> dict[str, torch.Tensor]:
    """LoRA gradients of a random weighting of the log-probs."""
    case.model.zero_grad(set_to_none=True)
    weight_N = torch.randn(len(logp_N), generator=torch.Generator().manual_seed(5), dtype=F64)
    (logp_N @ weight_N.to(logp_N.dtype)).backward()
    return tiny.lora_grads(case.model)


def rotate_in_fp64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Qwen's vision towers rotate in fp32, which would round differently when images are batched."""

    def rotate(q: Any, k: Any, cos: Any, sin: Any) -> tuple[torch.Tensor, torch.Tensor]:
        cos, sin = cos.unsqueeze(-2).double(), sin.unsqueeze(-2).double()
        half = q.shape[-1] // 2
        q, k = (x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin for x in (q, k))
        return q, k

    for name in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"):
        module = getattr(transformers.models, name)
        module = getattr(module, f"modeling_{name}")
        monkeypatch.setattr(module, "apply_rotary_pos_emb_vision", rotate)


def batch(case: Case, prompts: list[list[int]], images: Sequence[Images]) -> dict[str, torch.Tensor]:
    """Left-padded inputs, the images of all prompts as one batch."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    return {"input_ids": ids, "attention_mask": mask, **join_images(images)}
