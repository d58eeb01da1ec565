"""Does every prompt leave room for an answer in the model's context? Asked of all questions before the first
forward pass, so that no run ends at its five hundredth.

A prompt is as long as its text and what the processor puts in for its images. The texts are tokenised; how
much an image adds is found on a blank one, once where the processor makes all images alike, else once for
each size, for which images are opened. Where even the largest images leave room, none is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from lite_medrl.data.prompts import INSTRUCTION, messages
from lite_medrl.model.encode import images_of
from lite_medrl.model.packed import base_of
from lite_medrl.types import DataError, Sample

Sizes = tuple[tuple[int, int], ...]
PROBES = ((64, 64), (900, 300))
LARGEST = 16384  # tokens of an image, as Qwen-VL's processors limit it


def context_of(model: Any) -> int | None:
    """Tokens of prompt and answer together; None where the config does not say."""
    return getattr(base_of(model).config.get_text_config(), "max_position_embeddings", None)


def too_long(what: str, length: int, context: int) -> DataError:
    """The error of a prompt that fills the context."""
    return DataError(
        f"{what} has {length} tokens, but the model's context holds {context} with the answer; shorten the "
        "question, or set model.max_image_tokens"
    )


def check_prompt_lengths(
    model: Any,
    processor: Any,
    samples: Sequence[Sample],
    *,
    instruction: str = INSTRUCTION,
    system: str | None = None,
) -> None:
    """DataError naming the first sample whose prompt fills the model's context."""
    context = context_of(model)
    if context is None or not samples:
        return
    texts = [
        processor.apply_chat_template(messages(s, instruction, system), add_generation_prompt=True)
        for s in samples
    ]
    written = [len(ids) for ids in processor.tokenizer(texts)["input_ids"]]
    if max(n + LARGEST * len(s.images) for n, s in zip(written, samples, strict=True)) < context:
        return
    added = adder(processor)
    for sample, text, length in zip(samples, texts, written, strict=True):
        total = length + (added(sample, text) if sample.images else 0)
        if total >= context:
            raise too_long(f"sample {sample.id}: its prompt", total, context)


def adder(processor: Any) -> Callable[[Sample, str], int]:
    """How many tokens the images of a sample add to its text."""
    found: dict[Sizes, int] = {}
    alike: list[bool] = []  # whether an image's size changes nothing, once that is known

    def of_sizes(sizes: Sizes, text: str) -> int:
        if sizes not in found:
            blank = [Image.new("RGB", size, (128, 128, 128)) for size in sizes]
            whole = processor(text=[text], images=[blank])["input_ids"][0]
            found[sizes] = len(whole) - len(processor.tokenizer([text])["input_ids"][0])
        return found[sizes]

    def added(sample: Sample, text: str) -> int:
        count = len(sample.images)
        if not alike:
            alike.append(len({of_sizes((size,) * count, text) for size in PROBES}) == 1)
        sizes = (PROBES[0],) * count if alike[0] else tuple(image.size for image in images_of(sample))
        return of_sizes(sizes, text)

    return added
