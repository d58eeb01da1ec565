"""`bench all` runs each benchmark in its own process, keeps its rows, and names the one that failed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lite_medrl.tools.bench import everything
from lite_medrl.tools.bench.everything import Part, bench_all, describe, parts, run

REPO = Path(__file__).parents[1]


def test_what_runs_in_a_checkout_and_outside_of_one(tmp_path: Path) -> None:
    names = [part.name for part in parts(tmp_path, REPO, tiny=True)]
    assert names[0] == "kernels"
    outside = parts(tmp_path, tmp_path, tiny=True)
    assert [part.name for part in outside] == names[1:]
    for part in parts(tmp_path, REPO, tiny=False):
        assert "--tiny" not in part.words
    assert sum("--tiny" in part.words for part in outside) == 5


def test_every_part_is_a_command_that_exists(tmp_path: Path) -> None:
    from lite_medrl.cli import parse

    for tiny in (True, False):
        for part in parts(tmp_path, tmp_path, tiny=tiny):
            args = parse([*part.words[2:], "--minutes", "1.5", "--json"])  # without "-m lite_medrl"
            assert (args.minutes, args.json, args.tiny) == (1.5, True, tiny)


def test_rows_are_kept_failures_named_and_time_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def fake(words: list[str], **options: Any) -> Any:
        asked.append((words, options["timeout"]))
        if "sft" in words:
            return SimpleNamespace(returncode=3, stdout="", stderr="one\ntwo\nout of memory: 9 GiB\nlower it")
        if "rollout" in words:
            raise subprocess.TimeoutExpired(words, options["timeout"])
        return SimpleNamespace(returncode=0, stdout=json.dumps({"rows": [{"impl": "x"}]}), stderr="")

    monkeypatch.setattr(everything.subprocess, "run", fake)
    found = bench_all(tmp_path / "new", tiny=True, minutes=10, repository=tmp_path)
    assert list(found["rows"]) == ["update", "update, short answers", "update, four questions an image"]
    assert found["rows"]["update"] == [{"impl": "x"}]
    assert found["failed"]["SFT"] == "exit code 3: two | out of memory: 9 GiB | lower it"
    assert "timed out" in found["failed"]["rollout"]
    assert (tmp_path / "new").is_dir()
    minutes = [float(words[words.index("--minutes") + 1]) for words, _ in asked if "--minutes" in words]
    assert minutes[0] == pytest.approx(10 * 0.2 / 0.8, rel=0.01)
    assert all(words[0] == sys.executable and words[-1] == "--json" for words, _ in asked)
    assert "SFT                               failed: exit code 3" in describe(found)


def test_a_part_that_prints_rows_alone() -> None:
    part = Part("kernels", ["-c", "print('[{\"op\": 1}]')"], 1.0)
    assert run(part, 20.0).rows == [{"op": 1}]


def test_a_red_row_costs_neither_rows_nor_verdicts(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"impl": "triton", "check": "ok"}, {"impl": "liger", "check": "wrong: 3 > 1"}]
    figures = [
        {"figure": "a", "measured": 0.5, "verdict": "met"},
        {"figure": "b", "measured": None, "verdict": "not measured"},
    ]
    printed = json.dumps({"rows": rows, "figures": figures})
    done = SimpleNamespace(returncode=1, stdout=printed, stderr="")
    monkeypatch.setattr(everything.subprocess, "run", lambda *a, **k: done)
    found = run(Part("kernels", ["x.py"], 1.0), 20.0)
    assert found.rows == rows
    assert found.verdicts == ["a: met (measured: 0.5)", "b: not measured (not measured)"]
    assert found.fault == "1 rows are red, the first: liger: wrong: 3 > 1"


def test_a_rollouts_goals_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"impl": "grouped", "sequences": 64, "times_hf": 6.0, "roofline_frac": None, "device": "card"}
    done = SimpleNamespace(returncode=0, stdout=json.dumps({"rows": [row]}), stderr="")
    monkeypatch.setattr(everything.subprocess, "run", lambda *a, **k: done)
    found = run(Part("rollout", ["-m", "lite_medrl", "bench", "rollout"], 1.0), 20.0)
    assert found.verdicts == [
        "64 sequences: 6.00 x hf (goal: 5.00 x hf, reached)",
        "64 sequences: not measured (goal: 50% of the roofline)",
    ]
