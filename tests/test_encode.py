"""Samples to model inputs: every token and pixel where it belongs, on the left what is padding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from PIL import Image

from lite_medrl.data.prompts import messages
from lite_medrl.model.encode import check_left_padded, encode_prompts, grey, stop_ids, wording
from lite_medrl.sections import Prompt
from lite_medrl.types import DataError, ImageRef


@pytest.fixture(scope="module")
def processor() -> Any:
    return tiny.make_processor()


def test_prompts_are_padded_on_the_left_and_say_what_was_asked(processor: Any) -> None:
    samples = tiny.samples()[:6]
    inputs = encode_prompts(processor, samples, instruction=tiny.INSTRUCTION, system="Be brief .")
    lengths = inputs["attention_mask"].sum(1).tolist()
    assert len(set(lengths)) > 1
    width = inputs["input_ids"].shape[1]
    for sample, ids, mask, length in zip(
        samples, inputs["input_ids"], inputs["attention_mask"], lengths, strict=True
    ):
        assert mask.tolist() == [0] * (width - length) + [1] * length
        assert ids[: width - length].tolist() == [processor.tokenizer.pad_token_id] * (width - length)
        text = processor.apply_chat_template(
            messages(sample, tiny.INSTRUCTION, "Be brief ."), add_generation_prompt=True
        )
        assert processor.tokenizer.decode(ids[mask.bool()]) == text.replace(
            "<image>", "<image>" * tiny.TOKENS
        )


def test_pixels_are_the_images_own_in_the_samples_order(processor: Any) -> None:
    samples = tiny.samples()[:6]
    pixels = encode_prompts(processor, samples)["pixel_values"]
    assert pixels.shape == (6, 3, tiny.SIZE, tiny.SIZE)
    for sample, image in zip(samples, pixels, strict=True):
        colour = torch.tensor(tiny.COLOURS[sample.answer]) / 127.5 - 1
        torch.testing.assert_close(image, colour[:, None, None].expand_as(image), atol=0.01, rtol=0)


def test_blank_images_are_mid_grey_and_of_the_same_size(processor: Any) -> None:
    blank = grey(Image.new("RGB", (5, 9), "red"))
    assert (blank.size, blank.getcolors()) == ((5, 9), [(45, (128, 128, 128))])
    samples = tiny.samples()[:4]
    seen, blind = encode_prompts(processor, samples), encode_prompts(processor, samples, blank=True)
    assert torch.equal(seen["input_ids"], blind["input_ids"])
    torch.testing.assert_close(
        blind["pixel_values"], torch.full_like(seen["pixel_values"], 128 / 127.5 - 1), atol=1e-6, rtol=0
    )


def test_two_images_come_in_order(processor: Any) -> None:
    red, blue = (next(s for s in tiny.samples() if s.answer == colour) for colour in ("red", "blue"))
    inputs = encode_prompts(processor, [replace(red, images=(*red.images, *blue.images)), blue, red])
    count = (inputs["input_ids"] == processor.image_token_id).sum(1).tolist()
    assert count == [2 * tiny.TOKENS, tiny.TOKENS, tiny.TOKENS]
    first, second, third, fourth = inputs["pixel_values"][:, 0, 0, 0].tolist()
    assert first == fourth > 0.7
    assert second == third < -0.6


def test_a_template_that_drops_the_image_is_noticed(processor: Any) -> None:
    mute = tiny.make_processor()
    mute.chat_template = mute.chat_template.replace("<image>", "")
    with pytest.raises((DataError, ValueError), match=r"train-0.*image token"):
        encode_prompts(mute, tiny.samples()[:2])


def test_a_recipes_wording() -> None:
    assert wording(Prompt())["instruction"].startswith("First think about the image")
    assert wording(Prompt(instruction="", system="x")) == {"instruction": "", "system": "x"}


def test_padding_on_the_right_is_refused() -> None:
    check_left_padded(torch.tensor([[0, 1, 1], [1, 1, 1]]))
    with pytest.raises(ValueError, match=r"prompt row 1 is padded on the right.*padding_side = 'left'"):
        check_left_padded(torch.tensor([[0, 1, 1], [1, 1, 0]]))


def test_end_tokens_are_the_tokenizers_and_the_models(processor: Any) -> None:
    end = processor.tokenizer.eos_token_id
    for declared, more in ((None, []), (end, []), (7, [7]), ([7, end, 9], [7, 9])):
        model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=declared))
        assert stop_ids(processor, model) == sorted([end, *more])
    assert stop_ids(processor) == [end]


def test_an_image_that_cannot_be_read_is_named_with_its_sample(processor: Any, tmp_path: Path) -> None:
    path = tmp_path / "lost.png"
    path.write_bytes(b"no image")
    bad = replace(tiny.samples()[1], id="q7", images=(ImageRef(str(path)),))
    with pytest.raises(DataError, match=rf"^sample q7: image {path}: cannot be read as PNG") as caught:
        encode_prompts(processor, [tiny.samples()[0], bad])
    assert "BytesIO" not in str(caught.value)
