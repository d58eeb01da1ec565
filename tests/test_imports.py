"""Imports go one way: tools -> train, measure -> model, data -> types; and importing costs nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
# What each part may import of the package. Parts of one rank stay apart, but model reads prompts from data.
BESIDE = {"recipe", "sections"}
MAY = {
    "types": set(),
    "sections": {"types"},
    "recipe": {"sections", "types"},
    "data": {"types"},
    "model": {"data", "types"} | BESIDE,
    "train": {"model", "data", "types"} | BESIDE,
    "measure": {"model", "data", "types"} | BESIDE,
    "tools": {"train", "measure", "model", "data", "types"} | BESIDE,
    "cli": {"flags", "tools", "measure", "types"} | BESIDE,
    "flags": set(),
    "__main__": {"cli"},
    "__init__": {"train"},
}
WITH_KERNELS = {"model", "train", "measure", "tools"}
FILES = sorted((REPO / "lite_medrl").rglob("*.py"))
KERNEL_FILES = sorted((REPO / "kernels" / "medrl_kernels").rglob("*.py"))


def imported(path: Path, root: Path) -> Iterator[str]:
    """Absolute dotted names of all that a file imports, inside functions too; `from a import b` gives a.b."""
    package = path.relative_to(root).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = list(package[: len(package) + 1 - node.level]) if node.level else []
            stem = ".".join([*above, node.module] if node.module else above)
            yield from (f"{stem}.{alias.name}" for alias in node.names)


def part_of(path: Path) -> str:
    """types, data, model, ...: the file or folder right below the package."""
    return path.relative_to(REPO / "lite_medrl").with_suffix("").parts[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPO)))
def test_direction(path: Path) -> None:
    own = part_of(path)
    for name in imported(path, REPO):
        top, _, rest = name.partition(".")
        if top == "medrl_kernels":
            assert own in WITH_KERNELS, f"{own} must not import {name}"
        if top != "lite_medrl":
            continue
        other = rest.partition(".")[0]
        if other in MAY:
            assert other == own or other in MAY[own], f"{own} must not import {name}"


@pytest.mark.parametrize("path", KERNEL_FILES, ids=lambda path: path.name)
def test_kernels_need_torch_and_triton_only(path: Path) -> None:
    tops = {name.partition(".")[0] for name in imported(path, REPO / "kernels")}
    assert tops - sys.stdlib_module_names <= {"torch", "triton", "medrl_kernels"}


def test_the_walk_sees_every_kind_of_import(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    path = tmp_path / "a" / "b" / "c.py"
    path.write_text("import x.y\nfrom . import d\nfrom ..e import f\ndef g():\n    from a.h import i\n")
    assert sorted(imported(path, tmp_path)) == ["a.b.d", "a.e.f", "a.h.i", "x.y"]


def test_every_part_has_its_rule() -> None:
    assert {part_of(path) for path in FILES} <= set(MAY)
    assert len(KERNEL_FILES) >= 1


@pytest.mark.parametrize("module", ["lite_medrl", "lite_medrl.cli", "lite_medrl.recipe", "lite_medrl.types"])
def test_import_is_light(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPO)
    heavy = {
        "torch",
        "transformers",
        "trl",
        "peft",
        "datasets",
        "gradio",
        "numpy",
        "PIL",
        "bitsandbytes",
        "triton",
    }
    assert heavy & set(done.stdout.split()) == set()


def test_lazy_names_are_classes_of_their_modules() -> None:
    import lite_medrl

    for name, module in lite_medrl._LAZY.items():
        tree = ast.parse((REPO / (module.replace(".", "/") + ".py")).read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    with pytest.raises(AttributeError, match="no attribute 'Trainer'"):
        _ = lite_medrl.Trainer


# The trap: a package named `kernels` on the path hides Hugging Face's, which transformers looks for.
def test_kernels_is_a_folder_and_never_a_package() -> None:
    assert not (REPO / "kernels" / "__init__.py").exists()
    assert not (REPO / "tests" / "kernels").exists()
    assert not (REPO / "tests" / "__init__.py").exists()
    code = "from importlib.util import find_spec as find; print(getattr(find('kernels'), 'origin', None))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPO)
    assert not done.stdout.startswith(str(REPO / "kernels"))


def test_transformers_imports_from_the_root_of_the_repository() -> None:
    line = [
        sys.executable,
        "-c",
        "import transformers.modeling_utils as m; print(m.PreTrainedModel.__name__)",
    ]
    done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=REPO)
    assert done.stdout.strip() == "PreTrainedModel", done.stderr[-2000:]
