"""From samples to the tensors a model reads: token ids padded on the left, and pixel values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from lite_medrl.data.images import load_image
from lite_medrl.data.prompts import INSTRUCTION, messages
from lite_medrl.sections import Prompt
from lite_medrl.types import DataError, ImageRef, Sample


def encode_prompts(
    processor: Any,
    samples: Sequence[Sample],
    *,
    instruction: str = INSTRUCTION,
    system: str | None = None,
    blank: bool | Sequence[bool] = False,
    device: torch.device | str = "cpu",
) -> dict[str, torch.Tensor]:
    """Model inputs for P prompts.

    Args:
        blank: replace every image by a mid-grey one of the same size (the image-reliance baseline); or which
            of the prompts get grey ones.

    Returns:
        input_ids and attention_mask int64 [P, L] (left padded) and what the processor adds, such as
        pixel_values.

    Raises:
        DataError: an image that cannot be used, or a prompt without its image tokens; it names the sample.
    """
    blank_P = [blank] * len(samples) if isinstance(blank, bool) else blank
    opened: dict[ImageRef, Image.Image] = {}
    images = [
        [grey(image) if unseen else image for image in images_of(s, opened)]
        for s, unseen in zip(samples, blank_P, strict=True)
    ]
    texts = [
        processor.apply_chat_template(messages(s, instruction, system), add_generation_prompt=True)
        for s in samples
    ]
    shown = images if any(images) else None
    batch = processor(text=texts, images=shown, padding=True, return_tensors="pt")
    check_image_tokens(processor, batch, samples)
    return {key: value.to(device) for key, value in batch.items() if isinstance(value, torch.Tensor)}


def wording(prompt: Prompt) -> dict[str, Any]:
    """How a recipe puts a question: `instruction` and `system`, as keyword arguments."""
    instruction = INSTRUCTION if prompt.instruction is None else prompt.instruction
    return {"instruction": instruction, "system": prompt.system}


def images_of(sample: Sample, opened: dict[ImageRef, Image.Image] | None = None) -> list[Image.Image]:
    """A sample's images in RGB; those in `opened` are not read again, new ones are put there.

    DataError names the sample and the file whose image cannot be used.
    """
    opened = {} if opened is None else opened
    try:
        for ref in sample.images:
            if ref not in opened:
                opened[ref] = load_image(ref)
    except DataError as error:
        raise DataError(f"sample {sample.id}: {error}") from error
    return [opened[ref] for ref in sample.images]


def grey(image: Image.Image) -> Image.Image:
    """A uniform image of the same size."""
    return Image.new("RGB", image.size, (128, 128, 128))


def check_image_tokens(processor: Any, batch: Any, samples: Sequence[Sample]) -> None:
    """DataError naming the row whose prompt lost its image tokens."""
    image_token = getattr(processor, "image_token_id", None)
    if image_token is None:
        return
    counts = (batch["input_ids"] == image_token).sum(1).tolist()
    for sample, count in zip(samples, counts, strict=True):
        if sample.images and not count:
            raise DataError(
                f"sample {sample.id}: its prompt holds no image token; the chat template dropped the image"
            )


def special_ids(processor: Any, model: Any = None) -> list[int]:
    """Token ids that an answer must never hold: image, pad and all other special tokens but the stops.

    A model adds its image and video tokens, and stops of its own (the end of a turn, where that is not the
    tokenizer's end token).
    """
    tokenizer, config = processor.tokenizer, getattr(model, "config", None)
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    seen = [getattr(config, name, None) for name in ("image_token_id", "video_token_id")]
    banned = added | set(tokenizer.all_special_ids) | {i for i in seen if i is not None}
    return sorted(banned - set(stop_ids(processor, model)))


def stop_ids(processor: Any, model: Any = None) -> list[int]:
    """Token ids that end an answer: the tokenizer's and those of the model's generation config."""
    ids = {processor.tokenizer.eos_token_id}
    declared = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids |= set(declared if isinstance(declared, list) else [declared])
    return sorted(i for i in ids if i is not None)


def check_left_padded(mask_PL: torch.Tensor) -> None:
    """ValueError if any prompt is padded on the right: its last state would be a pad token's."""
    if not bool(mask_PL[:, -1].all()):
        row = int((mask_PL[:, -1] == 0).nonzero()[0])
        raise ValueError(
            f"prompt row {row} is padded on the right; set processor.tokenizer.padding_side = 'left'"
        )
