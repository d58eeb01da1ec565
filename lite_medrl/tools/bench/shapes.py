"""Architectures that the benchmarks build with random weights, so that nothing has to be downloaded.

Their numbers are those of the config.json that each model is published with; "tiny" is a small Qwen3-VL.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from lite_medrl.types import RecipeError

IMAGE, VIDEO, VISION_START, VISION_END = 151655, 151656, 151652, 151653


@dataclass(frozen=True, slots=True)
class Shape:
    """One architecture: where its text and vision configs differ from transformers' defaults."""

    family: str
    text: dict[str, Any]
    vision: dict[str, Any]
    image_token: int = IMAGE
    tied: bool = True

    @property
    def patch_values(self) -> int:
        """Numbers in a flattened patch of pixels: channels, frames, height, width."""
        return 3 * 2 * self.vision["patch_size"] ** 2


def qwen3_vl(
    hidden: int, mlp: int, layers: int, heads: int, *, vision: dict[str, Any], tied: bool = True
) -> Shape:
    """A Qwen3-VL: 8 key-value heads of 128, interleaved M-RoPE, tower features added to the first layers."""
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20]}
    text = {
        "vocab_size": 151936, "hidden_size": hidden, "intermediate_size": mlp, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": 8, "head_dim": 128, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 262144, "rope_parameters": rope | {"mrope_interleaved": True},
    }  # fmt: skip
    tower = {"num_heads": 16, "patch_size": 16, "num_position_embeddings": 2304, "out_hidden_size": hidden}
    return Shape("qwen3_vl", text, tower | vision, tied=tied)


def qwen2_5_vl(
    hidden: int, mlp: int, layers: int, heads: int, kv_heads: int, *, vocabulary: int, tied: bool
) -> Shape:
    """A Qwen2.5-VL: M-RoPE in sections, a tower with windows of attention."""
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    text = {
        "vocab_size": vocabulary, "hidden_size": hidden, "intermediate_size": mlp, "rms_norm_eps": 1e-6,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "max_position_embeddings": 128000, "rope_parameters": rope,
    }  # fmt: skip
    tower = {
        "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "patch_size": 14,
        "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31], "out_hidden_size": hidden,
    }  # fmt: skip
    return Shape("qwen2_5_vl", text, tower, tied=tied)


TOWER_24 = {
    "depth": 24,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "deepstack_visual_indexes": [5, 11, 17],
}
TOWER_27 = {
    "depth": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "deepstack_visual_indexes": [8, 16, 24],
}
TINY_ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [8, 4, 4], "mrope_interleaved": True}
TINY = Shape(
    "qwen3_vl",
    {
        "vocab_size": 512, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 4096,
        "rope_parameters": TINY_ROPE,
    },
    {
        "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 4,
        "num_position_embeddings": 2304, "out_hidden_size": 128, "deepstack_visual_indexes": [0, 1],
    },
    image_token=508,
)  # fmt: skip
SHAPES = {
    "tiny": TINY,
    "qwen3-vl-2b": qwen3_vl(2048, 6144, 28, 16, vision=TOWER_24),
    "qwen3-vl-4b": qwen3_vl(2560, 9728, 36, 32, vision=TOWER_24),
    "qwen3-vl-8b": qwen3_vl(4096, 12288, 36, 32, vision=TOWER_27, tied=False),
    "qwen2.5-vl-3b": qwen2_5_vl(2048, 11008, 36, 16, 2, vocabulary=151936, tied=True),
    "qwen2.5-vl-7b": qwen2_5_vl(3584, 18944, 28, 28, 4, vocabulary=152064, tied=False),
}


def one_of(what: str, name: str, known: Any) -> str:
    """The name, if it is known; RecipeError with the nearest one and all others, if not."""
    if name in known:
        return name
    near = get_close_matches(name, known, n=1, cutoff=0.0)[0]
    raise RecipeError(f"unknown {what} {name!r}: did you mean {near!r}? Known: {', '.join(known)}")
