"""The model in the package: small, safe, stock, and made without the questions it will be asked."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

REPO = Path(__file__).parents[1]
FOLDER = REPO / "lite_medrl" / "model" / "embedded"
PACK = REPO / "lite_medrl" / "data" / "embedded"
SCRIPT = REPO / "examples" / "make_embedded_model.py"


def test_size_and_dtype() -> None:
    weights = FOLDER / "model.safetensors"
    assert weights.stat().st_size <= 16e6
    with safe_open(weights, framework="pt") as file:
        shapes = [file.get_slice(name) for name in file.keys()]  # noqa: SIM118 (not a dict)
        count = sum(int(torch_size(part.get_shape())) for part in shapes)
        assert {part.get_dtype() for part in shapes} == {"F16"}
    assert 3e6 <= count <= 8e6


def torch_size(shape: list[int]) -> int:
    """Number of cells."""
    size = 1
    for side in shape:
        size *= side
    return size


def test_it_is_a_stock_class_without_code_of_its_own() -> None:
    config = json.loads((FOLDER / "config.json").read_text())
    assert config["architectures"] == ["LlavaForConditionalGeneration"]
    assert "auto_map" not in json.dumps(config)
    assert not [p.name for p in FOLDER.iterdir() if p.suffix in (".bin", ".pt", ".pkl", ".py")]


def test_it_was_made_from_the_images_of_this_pack() -> None:
    made = json.loads((FOLDER / "training.json").read_text())
    assert made["pack_sha256"] == hashlib.sha256((PACK / "images.jsonl").read_bytes()).hexdigest()
    assert made["steps"] > 500


def test_its_maker_never_opens_the_questions() -> None:
    source = SCRIPT.read_text()
    assert "questions.jsonl" not in source
    assert 'row["split"] == "train"' in source


def test_its_card_says_what_it_does_not_know() -> None:
    card = " ".join((FOLDER / "README.md").read_text().split())
    assert "never seen a medical question" in card
    assert "Research only" in card


@pytest.mark.slow
def test_the_maker_runs_in_seconds_and_resumes(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--work_dir", str(tmp_path / "work"), "--threads", "1"]
    command += ["--output_dir", str(tmp_path / "model"), "--batch_size", "4", "--minutes"]
    subprocess.run([*command, "0.1"], check=True, cwd=REPO, capture_output=True)
    first = json.loads((tmp_path / "model" / "training.json").read_text())
    subprocess.run([*command, "0.16"], check=True, cwd=REPO, capture_output=True)
    second = json.loads((tmp_path / "model" / "training.json").read_text())
    assert second["steps"] > first["steps"] > 0
    assert (tmp_path / "model" / "model.safetensors").stat().st_size < 16e6
