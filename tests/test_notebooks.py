"""The notebooks: calls and prose without stored outputs; each runs from top to bottom on a short recipe."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient
from test_demo import tiny_model

from lite_medrl.recipe import load_recipe
from lite_medrl.tools.shorten import FEWEST, shortened

REPO = Path(__file__).parents[1]
NOTEBOOKS = sorted((REPO / "notebooks").glob("*.ipynb"))
# Small enough for seconds; the numbers mean nothing.
SMALL = [
    "data.max_train_samples=64",
    "data.max_validation_samples=8",
    "data.max_test_samples=10",
    "diagnose.num_samples=2",
    "diagnose.k=[1,2]",
    "diagnose.max_completion_length=16",
    "diagnose.bootstrap_samples=100",
    "sft.max_rounds=1",
    "sft.max_steps=3",
    "sft.per_device_train_batch_size=4",
    "grpo.max_steps=2",
    "grpo.num_generations=2",
    "grpo.per_device_train_batch_size=4",
    "grpo.max_completion_length=16",
    "report.gallery_size=3",
]
LOGIC = (ast.FunctionDef, ast.ClassDef, ast.For, ast.While, ast.If, ast.Try, ast.Lambda, ast.comprehension)


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def tagged(notebook: Any, tag: str) -> list[int]:
    """Places of the cells with a tag."""
    return [i for i, cell in enumerate(notebook.cells) if tag in cell.metadata.get("tags", [])]


def test_there_is_a_quickstart() -> None:
    assert [path.name for path in NOTEBOOKS][:1] == ["01_quickstart.ipynb"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_nothing_is_stored_but_source(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert path.stat().st_size < 40_000
    assert len(tagged(notebook, "install")) == len(tagged(notebook, "parameters")) == 1


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_opens_in_colab_from_the_repository_that_it_clones(path: Path) -> None:
    notebook = read(path)
    badge = re.search(
        r"colab\.research\.google\.com/github/([\w-]+/[\w-]+)/blob/main/(\S+?)\"", notebook.cells[0].source
    )
    assert badge is not None
    assert badge[2] == f"notebooks/{path.name}"
    (install,) = tagged(notebook, "install")
    assert f"https://github.com/{badge[1]}.git" in notebook.cells[install].source
    assert "not a medical device" in notebook.cells[0].source.lower()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_holds_calls_and_prose_no_logic(path: Path) -> None:
    notebook = read(path)
    (install,) = tagged(notebook, "install")
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "code" and number != install:
            tree = ast.parse(TransformerManager().transform_cell(cell.source))
            assert [type(node).__name__ for node in ast.walk(tree) if isinstance(node, LOGIC)] == [], number


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_from_top_to_bottom(path: Path, tmp_path: Path) -> None:
    notebook, run = read(path), tmp_path / "run"
    overrides = [*SMALL, f"model.model_name_or_path={tiny_model(tmp_path)}"]
    (settings,) = tagged(notebook, "parameters")
    injected = nbformat.v4.new_code_cell(f"OVERRIDES, RUN = {overrides!r}, {str(run)!r}")
    notebook.cells.insert(settings + 1, injected)
    NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
    ).execute()

    results = json.loads((run / "results.json").read_text())
    stages = [row["name"] for row in results["stages"] if row["split"] == "test"]
    assert stages == ["base", "sft", "grpo"]
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    text, html = said(cells, "text"), said(cells, "html")
    assert results["decisions"][0]["why"] in html
    assert all(re.search(rf"^{stage} +test +10 ", text, re.MULTILINE) for stage in stages)
    assert html.count("<svg") >= 3
    assert html.count("data:image/png;base64,") == 7
    assert html.count('class="lm-card lm-') == html.count('class="lm-foot"') == 3
    assert "srcdoc=" in html
    assert (tmp_path / "run.zip").stat().st_size > 10_000


def said(cells: list[Any], kind: str) -> str:
    """All that the cells printed ("text") or displayed ("html")."""
    outputs = [output for cell in cells for output in cell.outputs]
    if kind == "text":
        return "".join(output.text for output in outputs if output.output_type == "stream")
    return "".join(output.data.get("text/html", "") for output in outputs if "data" in output)


# --- the shortening behind the MINUTES field -------------------------------------------------------
def test_a_run_of_full_length_is_not_cut() -> None:
    recipe = load_recipe(REPO / "examples" / "quickstart.yaml").recipe
    (settings,) = tagged(read(REPO / "notebooks" / "01_quickstart.ipynb"), "parameters")
    cell = read(REPO / "notebooks" / "01_quickstart.ipynb").cells[settings].source
    minutes = re.search(r"^MINUTES = (\d+) ", cell, re.MULTILINE)
    assert minutes is not None
    assert shortened(recipe, int(minutes[1])) == shortened(recipe, 60) == []


def test_steps_and_questions_shrink_alike_but_not_to_nothing() -> None:
    path = REPO / "examples" / "quickstart.yaml"
    steps = [
        "sft.max_steps=100",
        "grpo.max_steps=50",
        "data.max_test_samples=500",
        "data.max_validation_samples=200",
    ]
    recipe = load_recipe(path, steps).recipe
    assert shortened(recipe, 3) == [
        "data.max_validation_samples=100",
        "data.max_test_samples=250",
        "sft.max_steps=50",
        "grpo.max_steps=25",
    ]
    assert shortened(recipe, 0.001) == [f"{key}={fewest}" for key, fewest in FEWEST.items()]
    assert load_recipe(path, [*steps, *shortened(recipe, 0.001)]).recipe.grpo.max_steps == 10


def test_small_and_unset_values_stay_as_they_are() -> None:
    path = REPO / "examples" / "quickstart.yaml"
    recipe = load_recipe(path, [*SMALL, "data.max_test_samples=null"]).recipe
    assert shortened(recipe, 1) == []
    with pytest.raises(ValueError, match="above 0"):
        shortened(recipe, 0)
