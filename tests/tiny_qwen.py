"""A tiny random Qwen3-VL with the stock processor, less its video part (that needs torchvision).

Images of any size become 4 x 4 patches merged 2 x 2; the tokenizer knows bytes and the words of the chat
template.
"""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

IM_START, IM_END, VISION_START, VISION_END, IMAGE, VIDEO, PAD = SPECIALS = (
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<|endoftext|>",
)
TEMPLATE = """{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string -%}{{ message.content }}{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>
{%- elif part.type == 'text' -%}{{ part.text }}{%- endif -%}
{%- endfor -%}{%- endif -%}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}"""


class ImagesOnly(Qwen3VLProcessor):
    """The stock processor without its video part."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        if argument_name == "video_processor":
            return type(argument)
        return super().check_argument_for_proper_class(argument_name, argument)


class NoVideo:
    """Stands where the video processor would be."""

    merge_size = 2
    model_input_names: tuple[str, ...] = ()


def make_processor() -> ImagesOnly:
    """Byte-level tokenizer, left padding."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens([AddedToken(t, special=True) for t in SPECIALS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token=PAD, eos_token=IM_END, padding_side="left",
        extra_special_tokens={
            "image_token": IMAGE, "video_token": VIDEO, "vision_start_token": VISION_START,
            "vision_end_token": VISION_END,
        },
    )  # fmt: skip
    pixels = Qwen2VLImageProcessorPil(
        patch_size=8, merge_size=2, temporal_patch_size=2, size={"shortest_edge": 256, "longest_edge": 4096}
    )
    return ImagesOnly(
        image_processor=pixels, tokenizer=tokenizer, video_processor=NoVideo(), chat_template=TEMPLATE
    )


def make_model(processor: ImagesOnly, seed: int = 0) -> Qwen3VLForConditionalGeneration:
    """Random weights with peaks, and the processor's token ids."""
    ids = processor.tokenizer.convert_tokens_to_ids
    text = {
        "vocab_size": 272, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 1024,
        "pad_token_id": ids(PAD), "bos_token_id": None, "eos_token_id": ids(IM_END), "initializer_range": 0.1,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2],
            "mrope_interleaved": True,
        },
    }  # fmt: skip
    vision = {
        "depth": 3, "hidden_size": 32, "num_heads": 2, "patch_size": 8, "spatial_merge_size": 2,
        "temporal_patch_size": 2, "intermediate_size": 48, "out_hidden_size": 64, "initializer_range": 0.1,
        "deepstack_visual_indexes": [0, 1], "num_position_embeddings": 64,
    }  # fmt: skip
    config = Qwen3VLConfig(
        text_config=text, vision_config=vision, image_token_id=ids(IMAGE), video_token_id=ids(VIDEO),
        vision_start_token_id=ids(VISION_START), vision_end_token_id=ids(VISION_END),
        tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = Qwen3VLForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = ids(IM_END)
    model.generation_config.pad_token_id = ids(PAD)
    return model
