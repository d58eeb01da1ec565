"""The upper end of the declared TRL range: the comparisons with TRL again, on the version in trl-upper.txt.

`make install` puts it alone into .venv/trl-upper; it is imported instead of the lower end, which
constraints.txt pins, and with that one's transformers and datasets. What runs there is each comparison with
TRL's own code: every loss type, level and option of `grpo_loss`, every seam, both trainers against TRL's
whole step, a script for Qwen-VL, and for every loss type the exact loss of our trainer (plain, with a
reference, with all options at once) and the cuts of a step (plain). The lower end has each option alone too.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest
import tiny
from packaging.requirements import Requirement
from packaging.version import Version
from test_packaging import declared, pins

UPPER = Requirement((tiny.REPO / "tests" / "trl-upper.txt").read_text(encoding="utf-8").strip())
FOLDER = tiny.REPO / ".venv" / "trl-upper"
# Files, and the least number of tests of each that compare with TRL (their names, or their file's, say so).
FEWEST = {
    "test_trl_parity": 400,
    "test_trl_contract": 20,
    "test_trl_golden": 10,
    "test_grpo": 40,
    "test_grpo_accumulation": 8,
    "test_drop_in": 5,
}
CHOSEN = (
    "(trl or test_drop_in) and not (test_grpo_accumulation and not plain) "
    "and not (test_grpo.py and (delta or sequence or entropy or off-policy))"
)
RUN = """
import sys, pytest
code = pytest.main(sys.argv[1:])
trl = sys.modules["trl"]
print("ran on trl", trl.__version__, trl.__file__)
sys.exit(code)
"""


def upper_version() -> Version:
    (pinned,) = UPPER.specifier
    assert (UPPER.name, pinned.operator) == ("trl", "==")
    return Version(pinned.version)


def test_both_ends_of_the_declared_range_are_tested() -> None:
    allowed, lower, upper = declared()["trl"].specifier, Version(pins()["trl"]), upper_version()
    assert lower < upper
    assert allowed.contains(lower)
    assert allowed.contains(upper)
    assert not allowed.contains(f"{lower.major}.{lower.minor - 1}.99")
    assert not allowed.contains(f"{upper.major}.{upper.minor + 1}.0")


def plan(target: str, venv: Path | str) -> str:
    line = ["make", "-n", target, f"VENV={venv}"]
    return subprocess.run(line, capture_output=True, text=True, check=True, cwd=tiny.REPO).stdout


def test_make_installs_the_upper_end_once_and_alone(tmp_path: Path) -> None:
    steps = plan("test", "absent/.venv")
    (line,) = [step for step in steps.splitlines() if "--target absent/.venv/trl-upper" in step]
    assert "--no-deps" in line
    assert "-r tests/trl-upper.txt" in line
    assert " -c " not in line
    assert steps.index('-e ".[dev]"') < steps.index(line) < steps.index("pytest -q")
    assert "trl-upper" not in plan("quickstart", "absent/.venv")
    for stamp in (tmp_path / ".installed", tmp_path / "trl-upper" / ".installed"):
        stamp.parent.mkdir(exist_ok=True)
        stamp.touch()
    assert "pip" not in plan("test", tmp_path)


@pytest.mark.slow
def test_the_upper_end_agrees_too(tmp_path: Path) -> None:
    if not FOLDER.is_dir():
        give_up = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        give_up(f"no {UPPER} in .venv/trl-upper; `make install` puts it there")
    report, roots = tmp_path / "report.xml", [str(FOLDER), os.environ.get("PYTHONPATH", "")]
    files = [f"tests/{name}.py" for name in FEWEST]
    options = ["-q", "-p", "no:cacheprovider", f"--junitxml={report}", "-k", CHOSEN]
    done = subprocess.run(
        [sys.executable, "-c", RUN, *options, *files], cwd=tiny.REPO, capture_output=True, text=True,
        timeout=900, check=False,
        env=os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, roots)), "TINY_FOLDER": str(tiny.folder()),
        },
    )  # fmt: skip
    told = done.stdout[-6000:] + done.stderr[-2000:]
    assert done.returncode == 0, told
    assert f"ran on trl {upper_version()} {FOLDER}{os.sep}" in done.stdout, told
    cases = list(ElementTree.parse(report).iter("testcase"))
    assert not [case.get("name") for case in cases if len(case)], (
        told
    )  # a child says failed, in error or skipped
    ran = Counter(str(case.get("classname")).rpartition(".")[2] for case in cases)
    assert set(ran) == set(FEWEST)
    assert {name: n for name, n in ran.items() if n < FEWEST[name]} == {}
