"""Published wordings, letter by letter, against texts written out by hand from their sources."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lite_medrl.data import wordings
from lite_medrl.measure.protocols import PROTOCOLS, lite, protocol, worded
from lite_medrl.sections import Prompt
from lite_medrl.types import ImageRef, RecipeError, Sample

CHOICE = Sample(
    "q1", (ImageRef("a.png"),), "What is it?", ("CT", "MRI"), "MRI", "modality", "ct", "own", "CC0"
)
YES_NO = replace(CHOICE, question="Is it CT?", options=("yes", "no"), answer="no")
OPEN = replace(CHOICE, question="Which organ?", options=(), answer="liver")


def test_medvlthinker_keeps_its_backslash() -> None:
    assert wordings.medvlthinker(CHOICE) == (
        "You will solve a problem/request. You should provide your thoughts within <think> </think> tags "
        "before providing the answer.\\nWrite your final answer within <answer> </answer> tags."
        "\n\nQuestion: What is it?\n\nOptions:\n\nA. CT\n\nB. MRI"
    )


def test_medbridgerl_lacks_a_space() -> None:
    think = (
        "\nFirst output the thinking process in <think> </think> tags,Then output the final answer in "
        "<answer> </answer> tags.\nIMPORTANT: In <answer>, output ONLY the "
    )
    assert wordings.medbridgerl(CHOICE) == (
        f"What is it?\n\nOptions:\nA. CT\nB. MRI{think}single option letter, for example <answer>A</answer>"
    )
    assert wordings.medbridgerl(OPEN) == f"Which organ?{think}short final answer, no extra words."


def test_medevalkit_asks_by_answer_type() -> None:
    assert wordings.medevalkit(CHOICE) == (
        "\nQuestion: What is it?\nOptions: \nA. CT\nB. MRI\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert wordings.medevalkit(YES_NO) == "Is it CT?\nPlease output 'yes' or 'no'(no extra output)."
    assert wordings.medevalkit(OPEN) == "Which organ?\nPlease answer the question concisely."


def test_the_others() -> None:
    assert wordings.letter_only(CHOICE) == (
        "What is it?\nA. CT\nB. MRI\nAnswer with the option's letter from the given choices directly."
    )
    assert wordings.bare(CHOICE) == "What is it?"
    assert lite(CHOICE, "Think.") == "What is it?\nOptions: A. CT B. MRI\nThink."


def test_a_changed_value_stands_in_the_id() -> None:
    plain = protocol("medbridgerl")
    assert (plain.id, plain.num_samples, plain.temperature, plain.top_p) == ("medbridgerl", 16, 0.7, 0.9)
    same = protocol("medbridgerl", {"num_samples": 16, "temperature": None})
    assert same == plain
    changed = protocol("medbridgerl", {"num_samples": 4, "max_new_tokens": 10})
    assert changed.id == "medbridgerl[num_samples=4,max_new_tokens=10]"
    assert (changed.num_samples, changed.max_new_tokens, changed.temperature) == (4, 10, 0.7)


def test_our_own_protocol_asks_as_the_run_was_trained() -> None:
    told = worded(protocol("lite-v1"), Prompt(instruction="Say it .", system="Be brief."))
    assert told.words(CHOICE) == "What is it?\nOptions: A. CT B. MRI\nSay it ."
    assert told.system == "Be brief."
    other = worded(protocol("lite-v1"), Prompt(instruction="Say that ."))
    assert told.id.startswith("lite-v1[prompt=")
    assert told.id != other.id
    assert worded(protocol("lite-v1"), Prompt()) == protocol("lite-v1")
    ended = worded(protocol("lite-v1"), Prompt(), ["</answer>"])
    assert (ended.stop, ended.id) == (("</answer>",), "lite-v1[stop=['</answer>']]")
    assert worded(protocol("medbridgerl"), Prompt(), ["</answer>"]).stop == ()
    assert worded(protocol("medvlthinker"), Prompt(instruction="x")) == protocol("medvlthinker")


@pytest.mark.parametrize(
    ("name", "changes", "told"),
    [
        ("medvlthinkr", {}, "did you mean medvlthinker"),
        ("zzz", {}, "there are lite-v1, letter-logprob"),
        ("lite-v1", {"max_new_tokens": 0}, "--max-new-tokens: must be 1 or more, got 0"),
        ("lite-v1", {"num_samples": -1}, "--num-samples: must be 0 or more"),
        ("lite-v1", {"temperature": 0.0}, "--temperature: must be above 0"),
        ("lite-v1", {"top_p": 1.5}, "--top-p: must lie in"),
        ("letter-logprob", {"num_samples": 4}, "draws no answers, so num_samples cannot be set"),
    ],
)
def test_bad_protocols(name: str, changes: dict[str, float], told: str) -> None:
    with pytest.raises(RecipeError, match=told.replace("(", r"\(")):
        protocol(name, changes)


def test_every_protocol_names_its_source_and_a_reading_rule() -> None:
    from lite_medrl.data.answers import PROFILES

    for one in PROTOCOLS.values():
        assert one.source
        assert one.profile in PROFILES
        assert one.id == one.name
