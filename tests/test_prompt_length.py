"""Prompts that fill the model's context are found before anything is computed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import tiny_qwen
import torch
from PIL import Image

from lite_medrl.measure.ask import ask
from lite_medrl.model import prompt_length as module
from lite_medrl.model.encode import encode_prompts
from lite_medrl.model.generate import Sampling
from lite_medrl.model.packed import base_of
from lite_medrl.model.prompt_length import check_prompt_lengths
from lite_medrl.recipe import load_recipe
from lite_medrl.tools.pipeline import Job
from lite_medrl.types import DataError, ImageRef, Sample


def with_images(folder: Path, sizes: list[list[tuple[int, int]]]) -> list[Sample]:
    """A question for each list of sizes."""
    samples = []
    for n, of_one in enumerate(sizes):
        refs = []
        for i, size in enumerate(of_one):
            Image.new("RGB", size, "red").save(folder / f"{n}-{i}.png")
            refs.append(ImageRef(str(folder / f"{n}-{i}.png")))
        question = " ".join(["what is it ?"] * (n + 1))
        samples.append(replace(tiny.samples("test")[0], id=f"q{n}", images=tuple(refs), question=question))
    return samples


@pytest.mark.parametrize("kind", ["llava", "qwen"])
def test_the_lengths_are_the_processors(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One token of context less than the longest prompt needs, and it is refused; with it, it is not."""
    monkeypatch.setattr(module, "LARGEST", 10**6)
    processor: Any = tiny.make_processor() if kind == "llava" else tiny_qwen.make_processor()
    sizes = [[(40, 30)], [(64, 64), (200, 90)], [(90, 200)], [(40, 30), (40, 30)]]
    for sample in with_images(tmp_path, sizes):
        length = encode_prompts(processor, [sample])["input_ids"].shape[1]
        text = SimpleNamespace(max_position_embeddings=length)
        model = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda text=text: text))
        message = f"sample {sample.id}: its prompt has {length} tokens, but the model's context holds"
        with pytest.raises(DataError, match=message):
            check_prompt_lengths(model, processor, [sample])
        text.max_position_embeddings += 1
        check_prompt_lengths(model, processor, [sample])
        check_prompt_lengths(model, processor, [replace(sample, images=())])


def test_images_are_opened_only_where_their_size_can_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(module, "images_of", lambda sample: opened.append(sample.id) or [])
    text = SimpleNamespace(max_position_embeddings=300)
    model = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: text))
    check_prompt_lengths(model, tiny.make_processor(), tiny.samples("test"))
    text.max_position_embeddings = 32768
    check_prompt_lengths(model, tiny_qwen.make_processor(), tiny.samples("test"))
    assert not opened
    text.max_position_embeddings = None
    check_prompt_lengths(model, None, tiny.samples("test"))


def test_the_last_question_is_refused_before_the_first_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny.loaded()

    def forward(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a forward pass ran")

    monkeypatch.setattr(base_of(loaded.model).model, "forward", forward)
    long = replace(tiny.samples("test")[-1], question="which colour ? " * 300)
    with pytest.raises(DataError, match=rf"sample {long.id}: its prompt has \d+ tokens"):
        ask(
            loaded.model, loaded.processor, [*tiny.samples("test")[:-1], long], num_samples=1,
            sampling=Sampling(4), batch_size=2,
        )  # fmt: skip


def test_a_run_is_refused_before_it_writes_anything(tmp_path: Path) -> None:
    """Training questions too, which nobody measures."""
    rows = [*tiny.rows(4, "train"), *tiny.rows(4, "validation"), *tiny.rows(4, "test")]
    rows[3]["question"] = "which colour ? " * 300
    data = tiny.write_data(tmp_path, rows)
    path = tmp_path / "recipe.yaml"
    path.write_text(f"model: {{model_name_or_path: {tiny.folder()}}}\ndata: {{source: {data}}}\n")
    with pytest.raises(DataError, match="sample train-3: its prompt has"):
        Job.prepare(load_recipe(path), tmp_path / "run", overwrite=False, resume=False)
    assert not (tmp_path / "run").exists()
    assert torch.is_grad_enabled()
