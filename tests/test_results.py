"""docs/results holds what was measured: it meets what is promised, and README says no other figures."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from fuzz_parser import golden

from lite_medrl.data.answers import PROFILES
from lite_medrl.tools.eval_page import page

REPO = Path(__file__).parents[1]
README = " ".join((REPO / "README.md").read_text(encoding="utf-8").split())


def stored(name: str) -> dict[str, Any]:
    return json.loads((REPO / "docs" / "results" / name).read_text(encoding="utf-8"))


def test_the_parser_reads_fifty_thousand_answers_a_second() -> None:
    """At the median of the golden table's passes; plain answers are read faster."""
    found = stored("parser.json")
    table, plain = (found["answers_per_second"][name] for name in ("golden_table", "plain_answers"))
    assert found["profile"] == "lite-v1"
    assert table["min"] <= table["median"] <= table["max"]
    assert table["median"] >= 50_000
    assert plain["median"] > table["median"]
    assert table["passes"] == plain["passes"] == 40


def test_a_million_random_texts_brought_no_exception_under_any_profile() -> None:
    fuzz = stored("parser.json")["fuzz"]
    assert (fuzz["texts"], fuzz["exceptions"]) == (1_000_000, 0)
    assert fuzz["profiles"] == list(PROFILES)
    for counts in (fuzz["found"], fuzz["judged"]):
        for profile in PROFILES:
            assert sum(n for name, n in counts.items() if name.startswith(f"{profile}: ")) == 1_000_000


def test_no_reading_of_the_golden_table_was_wrong() -> None:
    assert stored("parser.json")["golden_table"] == {"cases": len(golden()), "wrong_readings": 0}


def test_a_thousand_questions_with_three_images_take_under_four_minutes() -> None:
    found = stored("eval.json")
    (benchmark,) = found["benchmarks"]
    assert found["images"] == ["real", "blank", "shuffled"]
    assert [found["answered_here"], benchmark["n"], benchmark["closed"]["counted"]] == [1_000] * 3
    assert [benchmark["closed"]["reliance"][name]["n"] for name in ("blank", "shuffled")] == [1_000, 1_000]
    assert (found["shards"], found["cpu_cores"], found["model"]["device"]) == (1, 2, "cpu")
    assert 0 < found["answering_s"] < found["total_s"] < 240


def test_the_stored_page_is_that_of_the_stored_results() -> None:
    assert (REPO / "docs" / "results" / "eval.md").read_text(encoding="utf-8") == page(stored("eval.json"))


def test_readme_quotes_the_rollouts_and_they_are_twice_as_fast() -> None:
    with (REPO / "docs" / "results" / "rollout-cpu.csv").open(encoding="utf-8", newline="") as file:
        rows = {(row["impl"], row["sequences"]): float(row["tokens_per_s"]) for row in csv.DictReader(file)}
    ours, theirs = rows["grouped", "64"], rows["hf", "64"]
    assert ours >= 2 * theirs
    assert f"{ours:,.0f} tokens/s; transformers' `generate`, {theirs:,.0f}" in README


def test_a_hundred_thousand_rows_stay_under_two_gib() -> None:
    found = stored("data_memory.json")
    ways = {way["way"]: way for way in found["ways"]}
    assert (found["rows"], found["limit_gib"], set(ways)) == (
        100_000,
        2,
        {"stream", "view", "list", "nothing"},
    )
    assert all(way["peak_rss_gib"] < 2 for way in ways.values())
    for name in ("stream", "view", "list"):
        assert ways[name]["questions"] == ways[name]["images_decoded"] == 100_000


def test_readme_quotes_the_memory_of_data() -> None:
    largest = max(way["peak_rss_gib"] for way in stored("data_memory.json")["ways"])
    rounded_up = -(-largest * 10 // 1) / 10
    assert f"100,000 questions take less than {rounded_up:.1f} GiB" in README


def test_readme_quotes_the_quickstart() -> None:
    """Its table and its test are compared in test_readme.py; here the sentences around them."""
    pooled = stored("quickstart.json")
    minutes = [run["seconds"]["total"] / 60 for run in pooled["runs"]]
    assert (
        f"`make quickstart` takes about {sum(minutes) / len(minutes):.0f} minutes on two CPU cores" in README
    )
    asked = f"{pooled['split']} split of the same few subjects, {pooled['n_questions']} questions"
    assert f"{asked} under each of {len(pooled['runs'])} seeds" in README
    support = {name: stage["support"] for name, stage in pooled["stages"].items()}
    assert support["base"] < support["sft"] < 0, "README: SFT raises support, though not above guessing"
    assert pooled["stages"]["grpo"]["acc_at_1"] - pooled["stages"]["sft"]["acc_at_1"] == pytest.approx(
        pooled["tests"]["grpo_vs_sft"]["difference"], abs=1e-9
    )
