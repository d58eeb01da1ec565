"""What is shipped: the wheel's contents, declared dependencies, pinned versions, and no word of a machine."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lite_medrl import __version__

REPO = Path(__file__).parents[1]
PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Modules whose distribution has another name.
DISTRIBUTION = {"PIL": "pillow", "yaml": "pyyaml"}
# Run by hand, once: it reads carriers that are fetched for it (its own docstring says how).
BUILDER = REPO / "lite_medrl" / "data" / "embedded"


def pins() -> dict[str, str]:
    lines = (REPO / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def declared(*extras: str) -> dict[str, Requirement]:
    lines = [
        *PROJECT["dependencies"],
        *(line for name in extras for line in PROJECT["optional-dependencies"][name]),
    ]
    parsed = [Requirement(line) for line in lines]
    return {canonicalize_name(wanted.name): wanted for wanted in parsed}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    line = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(REPO)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    (path,) = folder.glob("*.whl")
    assert path.name == f"lite_medrl-{__version__}-py3-none-any.whl"
    assert path.stat().st_size < 30 * 2**20
    return zipfile.ZipFile(path)


def test_wheel_holds_both_packages_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    assert {name.split("/")[0] for name in names} == {
        "lite_medrl", "medrl_kernels", f"lite_medrl-{__version__}.dist-info"
    }  # fmt: skip
    sources = {str(path.relative_to(REPO)) for path in (REPO / "lite_medrl").rglob("*.py")}
    sources |= {
        str(path.relative_to(REPO / "kernels")) for path in (REPO / "kernels/medrl_kernels").rglob("*.py")
    }
    assert {name for name in names if name.endswith(".py")} == sources


def test_no_stub_was_written_into_the_package() -> None:
    # gradio writes one beside a module that subclasses its components, and pyright would read that instead.
    assert list((REPO / "lite_medrl").rglob("*.pyi")) == []


def test_wheel_carries_the_embedded_data_and_model(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    for folder in ("lite_medrl/data/embedded", "lite_medrl/model/embedded"):
        files = [
            path for path in (REPO / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts
        ]
        assert {str(path.relative_to(REPO)) for path in files} - names == set()
    data = "lite_medrl/data/embedded"
    for name in ("images.zip", "images.jsonl", "questions.jsonl", "SOURCES.json", "README.md"):
        assert f"{data}/{name}" in names
    assert any(
        name.startswith("lite_medrl/model/embedded/") and name.endswith(".safetensors") for name in names
    )


def test_wheel_metadata(wheel: zipfile.ZipFile) -> None:
    info = f"lite_medrl-{__version__}.dist-info"
    text = wheel.read(f"{info}/METADATA").decode()
    assert "License-Expression: Apache-2.0" in text
    assert "Requires-Python: >=3.11" in text
    assert "lite-medrl = lite_medrl.cli:main" in wheel.read(f"{info}/entry_points.txt").decode()
    assert wheel.read(f"{info}/licenses/LICENSE").decode().lstrip().startswith("Apache License")


def test_pins_lie_in_the_declared_ranges() -> None:
    pinned = pins()
    for name, wanted in declared("demo", "dicom", "notebook", "dev").items():
        if name != "lite-medrl":
            assert name in pinned, f"constraints.txt has no pin of {name}"
            assert wanted.specifier.contains(pinned[name]), f"{name} {pinned[name]} is not {wanted.specifier}"


def test_pinned_versions_are_the_ones_tested() -> None:
    for name, version in pins().items():
        assert importlib.metadata.version(name).split("+")[0] == version, name


def test_every_third_party_import_is_declared() -> None:
    known = set(declared("demo", "dicom", "gpu", "unsloth", "vllm", "offline"))
    for root in (REPO / "lite_medrl", REPO / "kernels" / "medrl_kernels"):
        for path in root.rglob("*.py"):
            if BUILDER in path.parents:
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    names = [node.module]
                for top in {name.partition(".")[0] for name in names} - sys.stdlib_module_names:
                    if top not in ("lite_medrl", "medrl_kernels"):
                        assert canonicalize_name(DISTRIBUTION.get(top, top)) in known, (
                            f"{path.name} imports {top}"
                        )


def tracked() -> list[Path]:
    line = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=REPO)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [path for name in done.stdout.splitlines() if (path := REPO / name).is_file()]


def test_no_file_names_a_machine_or_a_registry() -> None:
    # Written in pieces, so that this file passes too.
    folders = ["/" + name + "/" for name in ("work", "tmp/w", "root", "opt/wheels", "opt/pypi")]
    names = ("pypi", "pythonhosted", "registry.npmjs", "download.pytorch", "deb.debian", "proxy.golang")
    patterns = [r"(?<![\w.$}])" + name for name in folders] + [re.escape(name + ".org") for name in names]
    wanted = re.compile("|".join(patterns))
    found = []
    for path in tracked():
        if path.suffix in (".zip", ".safetensors", ".png", ".jpg"):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            found += [f"{path.relative_to(REPO)}:{number}: {hit.group()}" for hit in wanted.finditer(line)]
    assert found == []


def test_both_commands_set_themselves_up() -> None:
    for target in ("quickstart", "test"):
        line = ["make", "-n", target, "VENV=absent/.venv"]
        plan = subprocess.run(line, capture_output=True, text=True, check=True, cwd=REPO).stdout
        assert (
            plan.index("-m venv absent/.venv")
            < plan.index("constraints.txt torch")
            < plan.index('-e ".[dev]"')
        )
    assert "run examples/quickstart.yaml --output_dir runs/quickstart" in subprocess.run(
        ["make", "-n", "quickstart"], capture_output=True, text=True, check=True, cwd=REPO
    ).stdout  # fmt: skip
    assert "make test" in (REPO / ".ci" / "run").read_text(encoding="utf-8")
    assert (REPO / ".ci" / "run").stat().st_mode & 0o111
