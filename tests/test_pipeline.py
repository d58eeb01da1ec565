"""A whole run on the tiny model, through the command line: what it writes, twice, resumed, or refused."""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoProcessor

from lite_medrl import __version__
from lite_medrl.cli import main
from lite_medrl.measure.ask import ask
from lite_medrl.measure.statistics import bootstrap_ci, wilson_ci
from lite_medrl.model.generate import Sampling
from lite_medrl.tools import pipeline
from lite_medrl.tools.closing import baseline, paired_tests
from lite_medrl.tools.compare import Comparison
from lite_medrl.tools.run_folder import is_finished
from lite_medrl.train.grpo import GRPOTrainer
from lite_medrl.train.sft import SFTTrainer

STAGES = [(stage, split) for stage in ("base", "sft", "grpo") for split in ("validation", "test")]
TIMES = ("step_time_s", "tokens_per_s")


def recipe(**sections: dict[str, Any]) -> dict[str, Any]:
    """A few steps of everything; the threshold sends the base to SFT."""
    made: dict[str, Any] = {
        "seed": 5,
        "model": {"model_name_or_path": str(tiny.folder())},
        "lora": {"r": 4, "lora_alpha": 8},
        "data": {"source": str(tiny.data()), "max_validation_samples": 9},
        "prompt": {"instruction": tiny.INSTRUCTION},
        "diagnose": {
            "num_samples": 4, "k": [1, 2, 4], "max_completion_length": 20, "threshold": 0.98,
            "batch_size": 64,
            "bootstrap_samples": 200,
        },
        "sft": {"max_rounds": 1, "max_steps": 3, "learning_rate": 1e-3},
        "grpo": {"max_steps": 3, "learning_rate": 2e-3, "num_generations": 4, "max_completion_length": 20,
                 "per_device_train_batch_size": 16},
    }  # fmt: skip
    return {
        name: made.get(name, {}) | sections.get(name, {}) if name != "seed" else 5
        for name in {**made, **sections}
    }


def write(where: Path, **sections: dict[str, Any]) -> Path:
    path = where / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(**sections)))
    return path


def strict(line: str) -> Any:
    """JSON without NaN or Infinity, which other readers refuse."""

    def refuse(word: str) -> float:
        raise AssertionError(f"{word} is no JSON: {line}")

    return json.loads(line, parse_constant=refuse)


def lines(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        return [strict(line) for line in file]


@dataclass
class Run:
    """A finished run."""

    folder: Path
    recipe: Path

    @property
    def results(self) -> dict[str, Any]:
        return strict((self.folder / "results.json").read_text())

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return lines(self.folder / "metrics.jsonl")

    @property
    def completions(self) -> list[dict[str, Any]]:
        return lines(self.folder / "completions.jsonl")

    def answers(self, stage: str, split: str) -> list[dict[str, Any]]:
        return [r for r in self.completions if (r["stage"], r.get("split")) == (stage, split)]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Run:
    where = tmp_path_factory.mktemp("straight")
    path = write(where)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["/bin/lite-medrl", "run", "mine.yaml"])
        assert main(["run", str(path), "-o", str(where / "run")]) == 0
    return Run(where / "run", path)


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory, straight: Run) -> Run:
    """The same recipe and seed, stopped in the second step of GRPO and gone on with."""
    folder = tmp_path_factory.mktemp("resumed") / "run"
    real, calls = GRPOTrainer.compute_loss, []

    def stop(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GRPOTrainer, "compute_loss", stop)
        assert main(["run", str(straight.recipe), "-o", str(folder)]) == 130
    half = Run(folder, straight.recipe)
    assert [(r["stage"], r["step"]) for r in half.metrics] == [
        ("sft", 1),
        ("sft", 2),
        ("sft", 3),
        ("grpo", 1),
    ]
    assert not (folder / "results.json").exists()
    assert {path.name for path in (folder / "adapters").iterdir()} == {"sft"}
    assert main(["run", str(straight.recipe), "-o", str(folder)]) == 2  # not without --resume
    assert main(["run", str(straight.recipe), "-o", str(folder), "--resume", "seed=6"]) == 2
    half_way = Comparison.open(folder)
    assert half_way.stages == ("base", "sft")
    assert "Missing: GRPO, the report (results.json)." in half_way.notice
    words = shlex.split(half_way.notice.partition("go on with: ")[2])
    assert words[-5:] == ["run", f"{folder}/recipe.yaml", "--output_dir", str(folder), "--resume"]
    assert main(words[-5:]) == 0
    assert Comparison.open(folder).notice == ""
    return half


# --- results.json -------------------------------------------------------------------------------------------
def test_the_run_directory_holds_what_it_should(straight: Run) -> None:
    names = {
        path.relative_to(straight.folder).as_posix() for path in straight.folder.rglob("*") if path.is_file()
    }
    wanted = {
        "recipe.yaml",
        "metrics.jsonl",
        "completions.jsonl",
        "results.json",
        "report.html",
        "progress.json",
    }
    assert {name for name in names if "/" not in name} == wanted
    for stage in ("sft", "grpo"):
        files = {name.rpartition("/")[2] for name in names if name.startswith(f"adapters/{stage}/")}
        assert {
            "adapter_model.safetensors",
            "adapter_config.json",
            "tokenizer.json",
            "processor_config.json",
        } <= files
        assert any("chat_template" in name for name in files)
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl", ".tmp"))]
    report = (straight.folder / "report.html").read_text()
    assert "http://" not in report.replace("http://www.w3.org", "")
    assert "<script src" not in report


def test_the_resolved_recipe_says_where_each_value_is_from(straight: Run) -> None:
    text = (straight.folder / "recipe.yaml").read_text()
    values = yaml.safe_load(text)
    assert values["seed"] == 5
    assert values["grpo"]["max_steps"] == 3
    assert values["grpo"]["epsilon"] == 0.2
    assert "# default" in text
    assert "# recipe.yaml:" in text


def test_stages_agree_with_the_answers_that_were_written(straight: Run) -> None:
    results = straight.results
    assert [(s["stage"], s["split"]) for s in results["stages"]] == STAGES
    for stage in results["stages"]:
        rows = straight.answers(stage["stage"], stage["split"])
        n = 9 if stage["split"] == "validation" else 12
        assert stage["n"] == len(rows) == n
        assert stage["round"] == (0 if stage["stage"] == "base" else 1)
        assert stage["acc_at_1"] == pytest.approx(sum(r["correct"] for r in rows) / n)
        options = [len(r["options"]) for r in rows]
        for k in (1, 2, 4):
            missed = [math.comb(4 - r["num_correct"], k) / math.comb(4, k) for r in rows]
            chance = sum(1 - (1 - 1 / m) ** k for m in options) / n
            assert stage["pass_at_k"][str(k)] == pytest.approx(1 - sum(missed) / n)
            assert stage["chance_pass_at_k"][str(k)] == pytest.approx(chance)
        k = str(stage["rule_k"])
        assert max(int(i) for i, c in stage["chance_pass_at_k"].items() if c < 0.7) == stage["rule_k"]
        reached, chance = stage["pass_at_k"][k], stage["chance_pass_at_k"][k]
        assert stage["support"] == pytest.approx((reached - chance) / (1 - chance))
        assert stage["gap"] == pytest.approx(reached - stage["acc_at_1"])
        assert stage["by_kind"] == {"colour": {"n": n, "acc_at_1": pytest.approx(stage["acc_at_1"])}}
        assert sum(part["n"] for part in stage["by_modality"].values()) == n
        broken = [not (r["greedy"].startswith("<think>") and r["greedy"].endswith("</answer>")) for r in rows]
        assert stage["format_failure_frac"] == pytest.approx(sum(broken) / n)
        for name in ("acc_at_1", "support"):
            low, high = stage[f"{name}_ci95"]
            assert low <= stage[name] <= high
        assert set(stage["pass_at_k_ci95"]) == {"1", "2", "4"}
        for row in rows:
            assert sum(value == row["answer"] for value in row["sampled"]) == row["num_correct"]
            assert len(row["sampled"]) == row["num_samples"] == 4
        assert stage["mean_at_k"] == pytest.approx(stage["pass_at_k"]["1"])
        assert stage["maj_at_k"]["1"] == pytest.approx(sum(r["sampled"][0] == r["answer"] for r in rows) / n)
        assert stage["maj_at_k_tied_frac"].keys() == stage["maj_at_k"].keys() == {"1", "2", "4"}
        assert stage["scores"]["accuracy"] == pytest.approx(stage["acc_at_1"])
        assert stage["scores"]["by_answer_type"].keys() == {"choice"}
        assert stage["scores"]["parse_failure_frac"] == pytest.approx(
            sum(r["failure"] is not None for r in rows) / n
        )
        assert stage["seconds"] > 0


def test_decisions_baselines_and_tests(straight: Run) -> None:
    results = straight.results
    stages = {(s["stage"], s["split"]): s for s in results["stages"]}
    first, second = results["decisions"]
    assert (first["after"], first["split"], first["action"]) == ("base", "validation", "sft")
    assert first["support"] == stages["base", "validation"]["support"] < first["threshold"] == 0.98
    assert first["rule_k"] == stages["base", "validation"]["rule_k"]
    assert first["rule"] == "sft"
    assert second["support"] < 0.98
    assert (second["after"], second["rule"], second["action"]) == ("sft", "sft", "grpo")
    assert "so the rule asks for SFT again, but the recipe's one round of SFT is used up" in second["why"]
    test = tiny.samples("test")
    train = [s.answer for s in tiny.samples()]
    commonest = [max(s.options, key=train.count) == s.answer for s in test]
    baselines = results["baselines"]
    assert baselines["majority"]["acc"] == pytest.approx(sum(commonest) / 12)
    assert baselines["chance"]["acc"] == pytest.approx(sum(1 / len(s.options) for s in test) / 12)
    assert baselines["blank_image"]["stage"] == baselines["shuffled_image"]["stage"] == "grpo"
    relied = results["reliance"]
    assert (relied["stage"], relied["n"]) == ("grpo", 12)
    assert relied["blank"]["accuracy"] == baselines["blank_image"]["acc"]
    assert relied["shuffled"]["accuracy"] == baselines["shuffled_image"]["acc"]
    own = stages["grpo", "test"]["acc_at_1"]
    assert relied["visual_reliance"] == pytest.approx(own - baselines["shuffled_image"]["acc"])
    assert baselines["majority"]["ci95"] == list(wilson_ci(sum(commonest), 12))
    for row in baselines.values():
        assert (row["n"], row["split"]) == (12, "test")
        assert row["ci95"][0] <= row["acc"] <= row["ci95"][1]
    assert set(results["tests"]) == {"sft_vs_base", "grpo_vs_sft", "grpo_vs_base"}
    for name, found in results["tests"].items():
        after, before = (
            [r["correct"] for r in straight.answers(stage, "test")] for stage in name.split("_vs_")
        )
        pairs = list(zip(before, after, strict=True))
        assert (found["b"], found["c"]) == (pairs.count((True, False)), pairs.count((False, True)))
        assert found["difference"] == pytest.approx((sum(after) - sum(before)) / 12)
        assert 0 < found["p"] <= 1


def test_a_baseline_of_rights_and_wrongs_has_wilsons_interval() -> None:
    assert baseline([1.0] * 5)["ci95"] == list(wilson_ci(5, 5))
    assert baseline([0.0, 1.0, 0.0])["ci95"] == list(wilson_ci(1, 3))
    shares = [0.5, 0.25, 0.25]  # chances of guessing
    found = baseline(shares, bootstrap_samples=200, seed=5)
    assert found["ci95"] == list(bootstrap_ci(shares, bootstrap_samples=200, seed=5))
    assert (found["acc"], found["n"]) == (pytest.approx(1 / 3), 3)


def test_what_the_run_cost_and_ran_on(straight: Run) -> None:
    results = straight.results
    seconds = results["seconds"]
    assert set(seconds) == {"load", "diagnose", "sft", "grpo", "report", "total"}
    assert seconds["total"] == pytest.approx(sum(v for k, v in seconds.items() if k != "total"), rel=0.25)
    assert 0.2 < results["peak_gib"]["rss"] < 4
    assert results["peak_gib"]["cuda"] is None
    assert results["versions"]["torch"] == torch.__version__
    assert results["versions"]["lite-medrl"] == __version__
    assert results["machine"]["cpu_cores"] == os.cpu_count()
    ago = datetime.now(UTC) - datetime.fromisoformat(results["date"])
    assert timedelta(seconds=-1) < ago < timedelta(hours=1)
    assert {"transformers", "trl", "peft", "bitsandbytes", "datasets", "python"} <= set(results["versions"])
    assert results["command"] == "lite-medrl run mine.yaml"
    assert results["seed"] == 5
    assert results["model"]["name"] == str(tiny.folder())
    assert (results["model"]["device"], results["model"]["dtype"]) == ("cpu", "float32")
    whole = sum(p.numel() for p in tiny.loaded(load_in_4bit=False).model.parameters())
    trained = sum(
        w.numel() for w in load_file(straight.folder / "adapters/sft/adapter_model.safetensors").values()
    )
    assert results["model"]["trained_parameters"] == trained
    assert results["model"]["parameters"] == whole + trained


# --- the JSONL files ----------------------------------------------------------------------------------------
def test_metrics_have_a_row_a_step(straight: Run) -> None:
    rows = straight.metrics
    assert [(r["stage"], r["round"], r["step"]) for r in rows] == [
        (stage, 1, step) for stage in ("sft", "grpo") for step in (1, 2, 3)
    ]
    for row in rows:
        assert row["step_time_s"] > 0
        assert row["tokens_per_s"] > 0
        assert math.isfinite(row["loss"])
        assert row["grad_norm"] > 0
        assert row["entropy"] > 0
    grpo = [r for r in rows if r["stage"] == "grpo"]
    for row in grpo:
        assert row["reward"] == pytest.approx(row["rewards/accuracy"] + 0.2 * row["rewards/format"])
        assert 0 <= row["frac_reward_zero_std"] <= 1
        assert row["reward_std"] >= 0
        assert 3 < row["completions/mean_length"] <= 20
    assert any(row["frac_reward_zero_std"] < 1 for row in grpo)
    assert [r["learning_rate"] > 0 for r in grpo][-1]


def test_completions_say_what_was_asked_and_answered(straight: Run) -> None:
    samples = {s.id: s for split in ("validation", "test") for s in tiny.samples(split)}
    for stage, split in STAGES:
        rows = straight.answers(stage, split)
        assert [r["id"] for r in rows] == [i for i in samples if i in {r["id"] for r in rows}]
        for row in rows:
            sample = samples[row["id"]]
            assert (row["question"], row["options"], row["answer"]) == (
                sample.question, list(sample.options), sample.answer,
            )  # fmt: skip
            assert (row["kind"], row["modality"], row["num_samples"]) == ("colour", sample.modality, 4)
            assert 0 <= row["num_correct"] <= 4
            assert row["correct"] == (row["parsed"] == sample.answer)
            assert (row["parsed"] is None) == (row["failure"] is not None)
            assert row["images"] == [{"path": sample.images[0].path, "member": None}]
    rollouts = [r for r in straight.completions if r.get("rollout")]
    assert len(rollouts) == 16
    for row in rollouts:
        assert (row["stage"], row["step"]) == ("grpo", 3)
        assert row["rewards"]["format_reward"] in (0, 1)
        assert isinstance(row["advantage"], float)
        assert row["completion"]


def test_two_runs_with_one_seed_agree_but_for_times(straight: Run, resumed: Run) -> None:
    """The second was stopped in GRPO and resumed, so it stands for a resumed run as well."""

    def timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]

    assert timeless(resumed.metrics) == timeless(straight.metrics)
    assert resumed.completions == straight.completions
    for name in ("stages", "decisions", "baselines", "tests", "model", "seed"):
        first, second = straight.results[name], resumed.results[name]
        if name == "stages":
            first, second = (
                [{k: v for k, v in s.items() if k != "seconds"} for s in x] for x in (first, second)
            )
        assert first == second, name
    for stage in ("sft", "grpo"):
        one, two = (
            load_file(r.folder / "adapters" / stage / "adapter_model.safetensors")
            for r in (straight, resumed)
        )
        assert all(torch.equal(one[name], two[name]) for name in one)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_resuming_a_finished_run_leaves_it_as_it_is(
    straight: Run, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    before = contents(straight.folder)
    monkeypatch.setattr("lite_medrl.model.load.load_for", None)  # not even the model is loaded
    assert main(["run", str(straight.recipe), "-o", str(straight.folder), "--resume", "--json"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out) == straight.results
    assert f"{straight.folder} is finished, so it stays as it is; --overwrite makes it again" in err
    assert contents(straight.folder) == before


def test_a_run_without_its_report_is_not_finished(straight: Run, tmp_path: Path) -> None:
    for name in ("report.html", "results.json"):
        folder = tmp_path / name
        shutil.copytree(straight.folder, folder)
        assert is_finished(folder)
        (folder / name).unlink()
        assert not is_finished(folder)
    assert main(["run", str(straight.recipe), "-o", str(folder), "--resume"]) == 0
    assert is_finished(folder)
    assert Run(folder, straight.recipe).results["stages"] == straight.results["stages"]


@pytest.mark.parametrize("verb", ["run", "diagnose"])
def test_there_must_be_a_run_to_resume(verb: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path, folder = write(tmp_path), tmp_path / "run"
    for _ in range(2):  # not there, then empty
        assert main([verb, str(path), "-o", str(folder), "--resume"]) == 2
        assert f"output_dir: {folder} holds no run to go on with; check the path" in capfd.readouterr().err
        assert not folder.exists() or not any(folder.iterdir())
        folder.mkdir(exist_ok=True)


# --- adapters -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_a_saved_adapter_answers_as_it_did(straight: Run, stage: str) -> None:
    folder = straight.folder / "adapters" / stage
    weights = load_file(folder / "adapter_model.safetensors")
    assert {w.dtype for w in weights.values()} == {torch.float32}
    assert not any("ref" in name for name in weights)
    model = PeftModel.from_pretrained(tiny.loaded().model, folder)
    processor = AutoProcessor.from_pretrained(folder)
    asked = ask(
        model, processor, tiny.samples("test"), num_samples=4, sampling=Sampling(20), batch_size=64, seed=5,
        instruction=tiny.INSTRUCTION,
    )  # fmt: skip
    rows = straight.answers(stage, "test")
    assert [(a.greedy, a.num_correct) for a in asked] == [(r["greedy"], r["num_correct"]) for r in rows]
    other = straight.answers("base", "test")
    assert [(r["greedy"], r["num_correct"]) for r in rows] != [(r["greedy"], r["num_correct"]) for r in other]


# --- other roads --------------------------------------------------------------------------------------------
def small(tmp_path: Path, *overrides: str) -> Run:
    path = write(tmp_path, data={"max_test_samples": 4, "max_validation_samples": 4, "max_train_samples": 8})
    overrides = (
        "diagnose.num_samples=2",
        "diagnose.k=[1,2]",
        "sft.max_steps=1",
        "grpo.max_steps=1",
        *overrides,
    )
    assert main(["run", str(path), *overrides, "-o", str(tmp_path / "run")]) == 0
    return Run(tmp_path / "run", path)


def test_two_rounds_of_sft_and_no_grpo(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = small(tmp_path, "diagnose.threshold=0.999", "sft.max_rounds=2", "grpo.enabled=false")
    results = run.results
    assert [s["name"] for s in results["stages"] if s["split"] == "test"] == ["base", "sft", "sft-2"]
    assert [(d["after"], d["rule"], d["action"]) for d in results["decisions"]] == [
        ("base", "sft", "sft"), ("sft", "sft", "sft"), ("sft-2", "sft", "stop"),
    ]  # fmt: skip
    told = capfd.readouterr()
    support = f"support {results['decisions'][2]['support']:.3f} at K = "
    assert f"after sft-2: nothing more is trained, though the rule asks for SFT ({support}" in told.out
    assert "decision after sft-2: nothing more is trained, though the rule asks for SFT. Support" in told.err
    assert "decision after base: SFT, as the rule asks. Support above chance is" in told.err
    assert [(r["stage"], r["round"]) for r in run.metrics] == [("sft", 1), ("sft", 2)]
    assert run.metrics[0]["loss"] != run.metrics[1]["loss"]
    assert set(results["tests"]) == {"sft_vs_base", "sft-2_vs_sft", "sft-2_vs_base"}
    assert [path.name for path in (run.folder / "adapters").iterdir()] == ["sft"]


def test_support_that_is_there_goes_straight_to_grpo(tmp_path: Path) -> None:
    run = small(tmp_path, "diagnose.threshold=0.001", "grpo.beta=0.05", "grpo.num_iterations=2")
    results = run.results
    assert [d["action"] for d in results["decisions"]] == ["grpo"]
    assert [s["name"] for s in results["stages"] if s["split"] == "test"] == ["base", "grpo"]
    assert set(results["tests"]) == {"grpo_vs_base"}
    assert abs(run.metrics[0]["kl"]) < 1e-6
    assert results["model"]["trained_parameters"] < results["model"]["parameters"]


def test_drawing_keeps_file_order_and_is_the_same_each_time() -> None:
    samples = tiny.samples()
    drawn = pipeline.draw(samples, 7, 0)
    assert len(drawn) == 7
    assert drawn == [s for s in samples if s in drawn] == pipeline.draw(samples, 7, 0)
    assert drawn != pipeline.draw(samples, 7, 1)
    assert pipeline.draw(samples, None, 0) == pipeline.draw(samples, 99, 0) == samples


# --- numbers that are not finite ---------------------------------------------------------------------------
def nan_loss(self: Any, loss: torch.Tensor) -> torch.Tensor:
    return loss * math.nan if self.state.global_step == 1 else loss


def nan_gradient(self: Any, loss: torch.Tensor) -> torch.Tensor:
    """A loss that is finite, with an infinite slope."""
    if self.state.global_step != 1:
        return loss
    return loss + sum((p * 0).sum().sqrt() for p in self.model.parameters() if p.requires_grad)


SPOILT = {
    "loss in SFT": (SFTTrainer, nan_loss, [], "sft, step 2: loss is nan and grad_norm is nan; no adapter of"),
    "gradient in SFT": (SFTTrainer, nan_gradient, [], "sft, step 2: grad_norm is nan; no adapter of"),
    "gradient in GRPO": (
        GRPOTrainer, nan_gradient, ["sft.max_rounds=0"], "grpo, step 2: grad_norm is nan; no adapter of",
    ),
    "weights, with no row that shows it": (
        SFTTrainer, nan_gradient, ["sft.logging_steps=50"],
        "sft, after its last step: 28 of its 28 trained tensors are not finite, first base_model.",
    ),
    "weights that GRPO would draw from": (
        GRPOTrainer, nan_gradient, ["sft.max_rounds=0", "grpo.logging_steps=50"],
        "grpo, after step 2: the model's logits are not finite while answers are drawn; no adapter of",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SPOILT)
def test_a_stage_that_loses_its_numbers_ends_with_4_and_saves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], case: str
) -> None:
    trainer, spoil, overrides, told = SPOILT[case]
    real = trainer.compute_loss
    monkeypatch.setattr(trainer, "compute_loss", lambda self, *a, **k: spoil(self, real(self, *a, **k)))
    data = {"max_test_samples": 4, "max_validation_samples": 4, "max_train_samples": 8}
    words = ["run", str(write(tmp_path, data=data)), *overrides, "-o", str(tmp_path / "run"), "--json"]
    assert main(words) == 4
    out, err = capfd.readouterr()
    assert out == ""
    (message,) = [line for line in err.splitlines() if line.startswith("lite-medrl: ")]
    assert message.startswith(f"lite-medrl: numbers that are not finite: {told}")
    assert message.endswith(" and begin again with --overwrite")
    assert "Traceback" not in err
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names <= {"recipe.yaml", "progress.json", "completions.jsonl", "metrics.jsonl"}
    for row in lines(tmp_path / "run" / "metrics.jsonl") if "metrics.jsonl" in names else []:
        assert row["step"] == 1
    assert json.loads((tmp_path / "run" / "progress.json").read_text())["done"] == ["measure base"]


# --- bad input ----------------------------------------------------------------------------------------------
Spoil = Callable[[Path, list[dict[str, Any]]], None]


def huge(folder: Path, rows: list[dict[str, Any]]) -> None:
    Image.new("1", (8001, 5000)).save(folder / "red.png")


def put(name: str, value: Any, row: int = 1) -> Spoil:
    return lambda folder, rows: rows[row].update({name: value})


def content(data: bytes) -> Spoil:
    return lambda folder, rows: (folder / "red.png").write_bytes(data) and None


BAD_DATA: dict[str, tuple[Spoil, str]] = {
    "missing image": (put("image", "gone.png"),
    "sample train-1: image {data}/gone.png: no such file; check the path"),
    "corrupt image": (content(b"\x89PNG\r\n\x1a\n nothing"),
    "image {data}/red.png: cannot be read as PNG, JPEG"),
    "zero-byte image": (content(b""), "image {data}/red.png: the file is empty (0 bytes)"),
    "image over 40 megapixels": (huge, "image {data}/red.png: 8001 x 5000 is over 40 megapixels; shrink it"),
    "gold answer not among the options": (
        put("answer", "purple"), "{data}/data.jsonl:2: gold answer 'purple' is not among the options",
    ),
    "duplicate ids": (put("id", "train-0"), "{data}/data.jsonl:2: id 'train-0' stands in row 1 already"),
    "empty data set": (lambda folder, rows: rows.clear(), "{data}/data.jsonl: the data set is empty"),
    "no test split": (
        lambda folder, rows: [r.update(split="train") for r in rows if r["split"] == "test"] and None,
        "{data}/data.jsonl: no sample in split 'test'; the file has train (24), validation (6)",
    ),
}  # fmt: skip


def refused(words: list[str], where: Path, capfd: pytest.CaptureFixture[str]) -> str:
    """Runs into `where`/run; the message, once the exit code is 2 and stdout is empty."""
    capfd.readouterr()
    assert main(["run", *words, "-o", str(where / "run"), "--json"]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    (message,) = [line for line in err.splitlines() if line.startswith("lite-medrl: ")]
    assert "Traceback" not in err
    return message


@pytest.mark.parametrize("fault", BAD_DATA)
def test_bad_data_is_refused_before_anything_is_written(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], fault: str
) -> None:
    spoil, message = BAD_DATA[fault]
    data = tmp_path / "data"
    data.mkdir()
    rows = [*tiny.rows(18, "train"), *tiny.rows(6, "validation"), *tiny.rows(6, "test")]
    tiny.write_data(data, rows)
    spoil(data, rows)
    (data / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = write(tmp_path, data={"source": str(data / "data.jsonl")})
    assert message.format(data=data) in refused([str(path)], tmp_path, capfd)
    assert {p.name for p in tmp_path.iterdir()} == {"recipe.yaml", "data"}


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_split_whose_images_are_all_broken_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], split: str
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    rows = [*tiny.rows(18, "train"), *tiny.rows(6, "validation"), *tiny.rows(6, "test")]
    path = tiny.write_data(data, rows)
    for row in rows:
        row["image"] = "gone.png" if row["split"] == split else row["image"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = write(tmp_path, data={"source": str(path), "on_error": "skip"})
    told = refused([str(recipe)], tmp_path, capfd)
    assert f"no sample is left in split {split!r}: an image of each of the" in told
    assert f"the first: {path}:" in told
    assert {p.name for p in tmp_path.iterdir()} == {"recipe.yaml", "data"}


BAD_RECIPE = {
    "unknown key": (["grpo.num_generation=4"],
    "unknown key grpo.num_generation; did you mean grpo.num_generations?"),
    "hub id that cannot be loaded": (
        ["model.model_name_or_path=someone/no-such-model"],
        "model.model_name_or_path: cannot load 'someone/no-such-",
    ),
    "folder that is not there": (["model.model_name_or_path=/no/model"],
    "model.model_name_or_path: no folder '/no/mo"),
    "no such data": (["data.source=none.jsonl"],
    "none.jsonl: no such file; give 'embedded' or the path of a .jsonl"),
    "no such layers": (["lora.target_modules=[nothing]"], "lora.target_modules: "),
    "image tokens that are fixed": (["model.max_image_tokens=9"],
    "model.max_image_tokens: SiglipImageProcessor"),
}  # fmt: skip


@pytest.mark.parametrize("fault", BAD_RECIPE)
def test_bad_recipes_are_refused_before_anything_is_written(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], fault: str
) -> None:
    words, message = BAD_RECIPE[fault]
    assert message in refused([str(write(tmp_path)), *words], tmp_path, capfd)
    assert {p.name for p in tmp_path.iterdir()} == {"recipe.yaml"}


def test_packing_that_the_model_cannot_do_is_refused_before_anything_is_written(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "experts"
    shutil.copytree(tiny.folder(), folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["num_experts"] = 4
    (folder / "config.json").write_text(json.dumps(config))
    path = write(tmp_path, model={"model_name_or_path": str(folder)}, grpo={"prefix_tree": "required"})
    message = "packing was asked for, but is not possible: llava: the load of its experts depends on"
    assert message in refused([str(path)], tmp_path, capfd)
    assert {p.name for p in tmp_path.iterdir()} == {"recipe.yaml", "experts"}


def test_an_occupied_directory_stays_as_it_is(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], straight: Run
) -> None:
    path, folder = write(tmp_path), tmp_path / "run"
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    for flags in ([], ["--overwrite"], ["--resume"]):
        message = refused([str(path), *flags], tmp_path, capfd)
        assert (
            f"output_dir: {folder} is not empty and holds no run of lite-medrl; give another folder"
            in message
        )
        assert contents(folder) == {str(folder / "thesis.tex"): b"years of work"}
    shutil.rmtree(folder)
    folder.write_text("a file")
    assert f"output_dir: {folder} is a file" in refused([str(path)], tmp_path, capfd)
    folder.unlink()
    shutil.copytree(straight.folder, folder)
    before = contents(folder)
    message = refused([str(straight.recipe)], tmp_path, capfd)
    assert (
        f"output_dir: {folder} holds a run already; add --resume to go on, --overwrite to replace it"
        in message
    )
    message = refused([str(straight.recipe), "--resume", "seed=9"], tmp_path, capfd)
    assert "was begun with another recipe; --resume needs the same one" in message
    message = refused(
        [str(straight.recipe), "--overwrite", "model.model_name_or_path=/no/model"], tmp_path, capfd
    )
    assert "no folder '/no/model'" in message
    assert contents(folder) == before


def test_diagnose_measures_and_trains_nothing(
    straight: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lite_medrl.train.stages.run_sft", None)
    monkeypatch.setattr("lite_medrl.train.stages.run_grpo", None)
    folder = tmp_path / "run"
    assert main(["diagnose", str(straight.recipe), "-o", str(folder), "--json"]) == 0
    results = json.loads(capfd.readouterr().out)
    assert [(s["stage"], s["split"]) for s in results["stages"]] == [("base", "validation"), ("base", "test")]
    (decision,) = results["decisions"]
    assert decision["rule"] == straight.results["decisions"][0]["rule"] == "sft"
    assert decision["action"] == "stop"
    assert "so the rule asks for SFT; this is a diagnosis, which trains nothing." in decision["why"]
    assert "sft.max_rounds" not in decision["why"]
    for ours, whole in zip(results["stages"], straight.results["stages"], strict=False):
        assert ours["pass_at_k"] == whole["pass_at_k"]
    assert not (folder / "adapters").exists()
    assert (folder / "report.html").stat().st_size > 10_000


def test_faults_may_be_skipped_and_are_counted(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = [*tiny.rows(12, "train"), *tiny.rows(6, "validation"), *tiny.rows(6, "test")]
    path = tiny.write_data(tmp_path, rows)
    rows[1]["answer"], rows[2]["image"], rows[20]["image"] = "purple", "gone.png", "gone.png"
    rows[3] |= {"options": [], "answer": "free", "extra": 1}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = write(tmp_path, data={"source": str(path), "on_error": "skip"})
    assert main(["diagnose", str(recipe), "-o", str(tmp_path / "run"), "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    left_out = found["data"]["left_out"]
    assert found["data"]["source"] == str(path)
    assert {name: part["skipped"] for name, part in left_out.items()} == {
        "train": 2,
        "validation": 0,
        "test": 1,
    }
    assert (left_out["train"]["other_questions"], left_out["train"]["unknown_fields"]) == (1, ["extra"])
    assert left_out["train"]["faults"][0].startswith(f"{path}:2: gold answer 'purple' is not among")
    assert left_out["test"]["faults"][0].startswith(f"{path}:21: sample test-2: image ")
    assert [stage["n"] for stage in found["stages"]] == [6, 5]


def test_a_run_is_not_resumed_on_another_base(
    straight: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(straight.folder, folder)
    progress = json.loads((folder / "progress.json").read_text())
    assert len(progress["base"]) == 16
    assert straight.results["model"]["fingerprint"] == progress["base"]
    (folder / "results.json").unlink()  # as if it had been stopped before its end
    (folder / "progress.json").write_text(json.dumps(progress | {"base": "0" * 16}))
    assert main(["run", str(straight.recipe), "-o", str(folder), "--resume"]) == 2
    assert "was begun on another base" in capsys.readouterr().err


def test_answers_with_odd_line_ends_are_written_and_read_back(tmp_path: Path) -> None:
    """A byte-level tokenizer may spell U+0085 or U+2028, at which str.splitlines would cut a row in two."""
    from lite_medrl.tools.run_folder import append_lines

    rows = [{"split": "test", "name": name, "id": "1", "correct": c, "greedy": "a\u2028b\u0085c\x0c"}
            for name, c in (("base", False), ("sft", True))]  # fmt: skip
    append_lines(tmp_path / "completions.jsonl", rows)
    assert lines(tmp_path / "completions.jsonl") == rows
    stages = [{"name": name, "split": "test"} for name in ("base", "sft")]
    assert paired_tests(tmp_path, stages)["sft_vs_base"]["c"] == 1
