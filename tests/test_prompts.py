"""How a question is worded, and that our road and TRL's word it alike."""

from __future__ import annotations

import pytest
import tiny
from trl.data_utils import prepare_multimodal_messages

from lite_medrl.data.answers import is_correct, parse
from lite_medrl.data.prompts import INSTRUCTION, conversation, messages, question_text, target_text
from lite_medrl.types import ImageRef, Sample

SAMPLE = Sample(
    id="q1", images=(ImageRef("a.png"), ImageRef("b.png")), question="Which side is it ?",
    options=("left lung", "right lung"), answer="right lung", kind="side", modality="CT", source="us",
    licence="CC0",
    reasoning="it lies in the right lung .",
)  # fmt: skip


def test_wording() -> None:
    assert question_text("Why ?", ["x", "y", "z"], "Think.") == "Why ?\nOptions: A. x B. y C. z\nThink."
    assert question_text("Why ?", ["x", "y"], "") == "Why ?\nOptions: A. x B. y"
    assert question_text("Why ?", []) == f"Why ?\n{INSTRUCTION}"
    assert question_text("Why ?", list("0123456789"), "").endswith("I. 8 J. 9")


def test_messages_hold_images_first_and_a_system_turn_if_there_is_one() -> None:
    text = {"type": "text", "text": "Which side is it ?\nOptions: A. left lung B. right lung\nThink."}
    user = {"role": "user", "content": [{"type": "image"}, {"type": "image"}, text]}
    assert messages(SAMPLE, "Think.") == [user]
    system = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    assert messages(SAMPLE, "Think.", "Be brief.") == [system, user]


def test_what_sft_teaches_is_read_as_right() -> None:
    text = target_text(SAMPLE)
    assert text == "<think> it lies in the right lung . </think><answer> right lung </answer>"
    assert target_text(SAMPLE, think=False) == "<answer> right lung </answer>"
    assert target_text(SAMPLE, letter=True).endswith("<answer> B </answer>")
    for letter in (False, True):
        taught = target_text(SAMPLE, letter=letter)
        assert is_correct(taught, SAMPLE)
        assert parse(taught, options=SAMPLE.options).has_format


def test_columns_of_a_row() -> None:
    row = conversation(SAMPLE, "Think.", "Be brief.", letter=True)
    assert row == {
        "prompt": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Which side is it ?\nOptions: A. left lung B. right lung\nThink."},
        ],
        "completion": [
            {
                "role": "assistant",
                "content": "<think> it lies in the right lung . </think><answer> B </answer>",
            }
        ],
        "id": "q1",
        "answer": "right lung",
        "options": ["left lung", "right lung"],
        "kind": "side",
    }


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_trl_renders_the_columns_as_we_render_messages(system: str | None) -> None:
    processor = tiny.make_processor()
    theirs = prepare_multimodal_messages(
        conversation(SAMPLE, "Think.", system)["prompt"], images=[object(), object()]
    )
    rendered = processor.apply_chat_template(theirs, add_generation_prompt=True)
    ours = processor.apply_chat_template(messages(SAMPLE, "Think.", system), add_generation_prompt=True)
    assert rendered == ours
    assert ours.count("<image>") == 2
    assert ours.endswith("Think.<|end|>\n<|assistant|>\n")
    assert ours.startswith("<|system|>\nBe brief.<|end|>\n<|user|>\n" if system else "<|user|>\n<image>")
