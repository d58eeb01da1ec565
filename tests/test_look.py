"""`data inspect --row --recipe`: the row in the words, the answer style and for the model of a recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_audit import rows_file, smooth

from lite_medrl.cli import main
from lite_medrl.data.prompts import INSTRUCTION
from lite_medrl.data.sources import embedded_samples

ROW = embedded_samples()[5]


def looked(capfd: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["data", "inspect", *words, "--json"]) == 0
    return json.loads(capfd.readouterr().out)


def text_of(found: dict[str, Any], *, trained: bool) -> str:
    """Without spaces, of which the tokenizer's decoder drops some."""
    return "".join(s["text"] for s in found["segments"] if s["trained"] is trained).replace(" ", "")


def recipe_file(folder: Path, text: str) -> str:
    (folder / "mine.yaml").write_text(text)
    return str(folder / "mine.yaml")


def test_a_row_in_the_words_of_a_recipe(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    plain = looked(capfd, "--row", ROW.id)
    assert INSTRUCTION.replace(" ", "") in text_of(plain, trained=False)
    assert (plain["recipe"], plain["source"], plain["model"]) == (None, "embedded", "embedded")
    recipe = recipe_file(
        tmp_path,
        "prompt: {system: you are careful ., instruction: 'think , then answer .', answer_style: letter}\n",
    )
    found = looked(capfd, "--row", ROW.id, "--recipe", recipe)
    read, trained = text_of(found, trained=False), text_of(found, trained=True)
    assert (found["recipe"], found["id"]) == (recipe, ROW.id)
    assert "think,thenanswer." in read
    assert INSTRUCTION.replace(" ", "") not in read
    assert read.index("youarecareful.") < read.index(ROW.question.replace(" ", ""))
    assert trained == f"<think>{ROW.reasoning}</think><answer>{ROW.letter}</answer><|end|>".replace(" ", "")
    assert text_of(plain, trained=True) == trained.replace(
        f"<answer>{ROW.letter}<", f"<answer>{ROW.answer}<".replace(" ", "")
    )
    assert main(["data", "inspect", "--row", ROW.id, "--recipe", recipe]) == 0
    assert f"row {ROW.id}, as embedded sees it under {recipe}: " in capfd.readouterr().out


def test_an_empty_instruction_is_left_out(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    read = text_of(
        looked(capfd, "--row", ROW.id, "--recipe", recipe_file(tmp_path, "prompt: {instruction: ''}\n")),
        trained=False,
    )
    assert INSTRUCTION.replace(" ", "") not in read
    assert ROW.question.replace(" ", "") in read


def test_the_recipes_source_unless_one_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    smooth(1).save(tmp_path / "a.png")
    row = {"id": "1", "image": "a.png", "question": "is it ct ?", "options": [], "answer": "free text"}
    rows = str(rows_file(tmp_path, row))
    recipe = recipe_file(tmp_path, f"data: {{source: {rows}}}\nprompt: {{answer_style: letter}}\n")
    found = looked(capfd, "--recipe", recipe)
    assert (found["source"], found["id"]) == (rows, "1")
    assert text_of(found, trained=True) == "<answer>freetext</answer><|end|>"  # open: no letter
    assert looked(capfd, "embedded", "--row", ROW.id, "--recipe", recipe)["source"] == "embedded"


def test_the_recipes_model_unless_one_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    recipe = recipe_file(tmp_path, f"model: {{model_name_or_path: {tmp_path / 'none'}}}\n")
    assert main(["data", "inspect", "--recipe", recipe]) == 2
    assert f"model.model_name_or_path: no processor for '{tmp_path / 'none'}'" in capfd.readouterr().err
    assert looked(capfd, "--recipe", recipe, "--model", "embedded")["model"] == "embedded"
    recipe = recipe_file(tmp_path, "model: {max_image_tokens: 9}\n")
    assert main(["data", "inspect", "--recipe", recipe]) == 2
    assert "model.max_image_tokens: SiglipImageProcessor" in capfd.readouterr().err


def test_a_recipe_that_cannot_be_used(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "inspect", "--recipe", recipe_file(tmp_path, "prompt: {instructions: x}\n")]) == 2
    assert "did you mean prompt.instruction?" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["audit", "--recipe", "mine.yaml"], "data audit takes no --recipe; it is for data inspect"),
        (["inspect", "--against", "slake"], "data inspect takes no --against; it is for data audit"),
        (["list", "--split", "train"], "data list takes no --split; it is for data convert"),
    ],
)
def test_a_flag_of_another_part_of_data_is_refused(
    words: list[str], told: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", *words]) == 2
    assert told in capfd.readouterr().err
