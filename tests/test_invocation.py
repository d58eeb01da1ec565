"""A printed command is one that works as typed: by name, by path, or through Python."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lite_medrl.cli import main
from lite_medrl.tools.invocation import command


def program(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\necho called with $*\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with an environment in .venv, none of it on PATH; Python is its own."""
    program(tmp_path / ".venv/bin/lite-medrl")
    python = program(tmp_path / ".venv/bin/python")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setattr(sys, "executable", str(python))
    return tmp_path


WORDS = ("demo", Path("runs/my run"))
CASES = {
    "by make": (".venv/bin/lite-medrl", ".venv/bin/lite-medrl demo 'runs/my run'"),
    "by its whole path": ("{here}/.venv/bin/lite-medrl", ".venv/bin/lite-medrl demo 'runs/my run'"),
    "from another folder": ("{here}/.venv/bin/lite-medrl", "{here}/.venv/bin/lite-medrl demo 'runs/my run'"),
    "on PATH": ("{here}/.venv/bin/lite-medrl", "lite-medrl demo 'runs/my run'"),
    "in this folder": ("./lite-medrl", "./lite-medrl demo 'runs/my run'"),
    "as a module": ("{here}/lite_medrl/__main__.py", ".venv/bin/python -m lite_medrl demo 'runs/my run'"),
    "from a notebook": ("{here}/ipykernel_launcher.py", ".venv/bin/lite-medrl demo 'runs/my run'"),
    "without a script": ("{here}/ipykernel_launcher.py", ".venv/bin/python -m lite_medrl demo 'runs/my run'"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_command_works_as_typed(here: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    started, told = CASES[case]
    if case == "from another folder":
        (here / "elsewhere").mkdir()
        monkeypatch.chdir(here / "elsewhere")
    if case == "on PATH":
        monkeypatch.setenv("PATH", f"{here}/.venv/bin:/usr/bin:/bin")
    if case == "in this folder":
        program(here / "lite-medrl")
    if case == "without a script":
        (here / ".venv/bin/lite-medrl").unlink()
    monkeypatch.setattr(sys, "argv", [started.format(here=here), "run", "mine.yaml"])
    line = command(*WORDS)
    assert line == told.format(here=here)
    done = subprocess.run(line, shell=True, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("demo runs/my run\n")


def test_another_program_of_that_name_on_path_is_not_meant(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(here / "other/lite-medrl")
    monkeypatch.setenv("PATH", f"{here}/other:/usr/bin:/bin")
    monkeypatch.setattr(sys, "argv", [".venv/bin/lite-medrl"])
    assert command("doctor") == ".venv/bin/lite-medrl doctor"


def test_the_last_line_of_a_run(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "mine.yaml").write_text("seed: 1\n")
    monkeypatch.setattr("lite_medrl.tools.pipeline.run", lambda *_, **__: {"stages": []})
    monkeypatch.setattr(sys, "argv", [".venv/bin/lite-medrl", "run", "mine.yaml"])
    assert main(["run", "mine.yaml"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "try it: .venv/bin/lite-medrl demo runs/mine"
