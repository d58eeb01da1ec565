"""README says what is measured: its table is the stored result, its commands and links exist."""

from __future__ import annotations

import csv
import json
import re
import shlex
from pathlib import Path

import pytest

from lite_medrl.cli import main, parse
from lite_medrl.measure.pool import markdown
from lite_medrl.recipe import load_recipe

REPO = Path(__file__).parents[1]
README = (REPO / "README.md").read_text(encoding="utf-8")


def test_the_results_table_is_the_stored_result() -> None:
    pooled = json.loads((REPO / "docs" / "results" / "quickstart.json").read_text())
    table = README.split("<!-- results:begin -->")[1].split("<!-- results:end -->")[0]
    assert markdown(pooled, device="2 CPU cores", command="make study") in table
    test = pooled["tests"]["grpo_vs_sft"]
    points = ", ".join(f"{100 * bound:.1f}" for bound in test["difference_ci95"])
    told = " ".join(table.split())
    assert f"adds {100 * test['difference']:.1f} points of Acc@1 [{points}] (paired over questions;" in told
    assert f"sign-flip test over questions, p = {test['p_sign_flip']:.1g})" in told


def test_the_times_of_a_step_are_the_stored_ones() -> None:
    told = " ".join(README.split("<!-- step:begin -->")[1].split("<!-- step:end -->")[0].split())
    with (REPO / "docs" / "results" / "bench_step.csv").open(newline="") as file:
        rows = {(r["impl"], r["phase"], r["questions_per_image"]): r for r in csv.DictReader(file)}
    theirs, ours = rows["trl", "update", "1"], rows["lite-medrl", "update", "1"]
    for row in (theirs, ours):
        p50, p20, p80, gib = (float(row[name]) for name in ("p50_s", "p20_s", "p80_s", "peak_gib"))
        assert f"{p50:.2f} s [{p20:.2f}, {p80:.2f}] and {gib:.2f} GiB" in told
        assert f"of {row['repeats']} steps" in told
    diff, grad, largest = (float(ours[name]) for name in ("loss_diff", "grad_diff", "grad_max"))
    assert f"same loss to {diff:.1e}, LoRA gradients to {grad:.1e} of {largest:.1e}" in told
    for phase in ("update", "sft"):
        theirs, ours = (float(rows[impl, phase, "4"]["p50_s"]) for impl in ("trl", "lite-medrl"))
        assert f": {theirs:.2f} s against {ours:.2f} s" in told


def test_make_targets_exist() -> None:
    makefile = (REPO / "Makefile").read_text()
    targets = set(re.findall(r"^make (\w+)", README, re.M))
    assert {"quickstart", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.M), (
            f"README names `make {target}`, the Makefile has none"
        )


def test_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        if not link.startswith("http"):
            assert (REPO / link).exists(), link


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)


def test_commands_can_be_read() -> None:
    lines = [line for block in blocks("bash") for line in block.splitlines() if "lite-medrl" in line]
    lines += re.findall(r"`(\.venv/bin/lite-medrl .*?)`", README)
    verbs = []
    for line in lines:
        program, *words = shlex.split(line, comments=True)
        assert program == ".venv/bin/lite-medrl"
        if words == ["--help"]:
            continue
        verbs.append(parse(words).verb.__name__)
    assert set(verbs) == {"run", "data", "diagnose", "demo", "bench_step", "bench_all", "evaluate"}
    for flag in ("--resume", "--overwrite"):
        assert f"* `{flag}`" in README
        parse(["run", "examples/quickstart.yaml", flag])


def test_its_recipe_and_its_row_can_be_used(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.yaml").write_text(*blocks("yaml"))
    recipe = load_recipe(tmp_path / "mine.yaml").recipe
    assert (recipe.data.source, recipe.grpo.max_steps) == ("my.jsonl", 200)
    (tmp_path / "my.jsonl").write_text(*blocks("json"))
    assert main(["data", "inspect", str(tmp_path / "my.jsonl"), "--json"]) == 2
    (fault,) = json.loads(capfd.readouterr().out)["faults"]
    assert "scan1.png: no such file" in fault["what"]
