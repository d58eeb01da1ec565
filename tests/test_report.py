"""The report shows what the run's files say, escapes what the model said, loads nothing, and copes with less than all."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from lite_medrl.data.answers import parse
from lite_medrl.data.sources import load_samples
from lite_medrl.measure.statistics import bootstrap_ci, mcnemar
from lite_medrl.measure.support import decide, diagnose, majority_baseline
from lite_medrl.recipe import load_recipe, to_yaml
from lite_medrl.types import Sample

REPO = Path(__file__).parents[1]
Json = dict[str, Any]
SKILL = {"base": -0.9, "sft": 1.1, "sft-2": 1.3, "grpo": 1.9}
HOSTILE = "<think> <script>alert('x')</script> & \u202e </think><answer> </td><img src=x onerror=alert(1)> </answer>"


def fake_run(
    folder: Path, names: Sequence[str] = ("base", "sft", "grpo"), *, n: int = 120, overrides: Sequence[str] = (),
    bootstrap_samples: int = 100, seed: int = 0, skill: dict[str, float] = SKILL,
) -> Json:  # fmt: skip
    """Writes a run folder such as the pipeline leaves, about real test questions with made-up answers; its results."""
    folder.mkdir(parents=True, exist_ok=True)
    resolved = load_recipe(REPO / "examples" / "quickstart.yaml", overrides)
    (folder / "recipe.yaml").write_text(to_yaml(resolved), encoding="utf-8")
    drawn = random.Random(seed)
    sets = {split: drawn.sample(load_samples("embedded", split), n) for split in ("validation", "test")}
    stages, decisions, lines = [], [], []
    for i, name in enumerate(names):
        stage, number = name.partition("-")[0], int(name.partition("-")[2] or (0 if name == "base" else 1))
        for split, samples in sets.items():
            answered = [made_up_answer(sample, name, skill[name], seed) for sample in samples]
            support = diagnose(
                [a["correct"] for a in answered], [a["num_correct"] for a in answered], 16, [len(s.options) for s in samples],
                format_failure_Q=[a.pop("broken") for a in answered], kind_Q=[s.kind for s in samples],
                modality_Q=[s.modality for s in samples], bootstrap_samples=bootstrap_samples,
            )  # fmt: skip
            head = {"stage": stage, "round": number, "name": name, "split": split}
            stages.append(head | support.to_json() | {"seconds": 31.4 + 2 * i})
            lines += [head | a for a in answered]
            if split == "validation" and stage != "grpo":
                row = {"after": name, "split": split} | decide(support, 0.5).to_json()
                row["action"] = names[i + 1].partition("-")[0] if i + 1 < len(names) else "grpo"
                decisions.append(row)
    if "grpo" in names:
        lines += [{"stage": "grpo", "rollout": True, "step": 80, "completion": HOSTILE, "advantage": 0.5, "rewards": {"a": 1.0}}]
    results = {
        "stages": stages, "decisions": decisions, "baselines": baselines(sets["test"], names[-1]), "tests": tests(lines, names),
        "seconds": {"load": 3.1, "diagnose": 190.5, "sft": 61.0, "grpo": 122.4, "report": 14.9, "total": 392.2},
        "peak_gib": {"rss": 2.31, "cuda": None}, "versions": {"torch": "2.13.0", "trl": "1.15.0", "python": "3.11.2"},
        "command": "lite-medrl run examples/quickstart.yaml --output_dir runs/quickstart", "seed": 0,
        "model": {"name": "embedded", "device": "cpu", "dtype": "float32", "parameters": 6_400_000, "trained_parameters": 310_000},
    }  # fmt: skip
    write_lines(folder / "completions.jsonl", lines)
    write_lines(folder / "metrics.jsonl", made_up_metrics(names, drawn))
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return results


def made_up_answer(sample: Sample, name: str, skill: float, seed: int) -> Json:
    """A row of completions.jsonl: questions differ in difficulty, a better stage is right more often."""
    own, shared = random.Random(f"{sample.id} {name} {seed}"), random.Random(f"{sample.id} {seed}")
    hard, kind = shared.gauss(0, 1.6), random.Random(sample.kind).gauss(0, 0.9)
    guess = 1 / len(sample.options)
    p = guess + (1 - guess) / (1 + math.exp(-(skill + 0.3 - hard - kind)))
    p = min(max(p - 0.35 * guess, 0.02), 0.99)
    told = sample.answer if own.random() < p else own.choice([o for o in sample.options if o != sample.answer])
    broken = own.random() < (0.3 if name == "base" else 0.01)
    text = f"<think> {sample.reasoning} </think><answer> {told} </answer>" if not broken else f"{told} {told} the the"
    read = parse(text, options=sample.options)
    member = sample.images[0].member
    return {
        "id": sample.id, "question": sample.question, "options": list(sample.options), "answer": sample.answer,
        "kind": sample.kind, "modality": sample.modality, "source": sample.source,
        "images": [{"path": "embedded", "member": member}], "greedy": text, "parsed": read.value,
        "correct": read.value == sample.answer, "failure": read.failure,
        "num_correct": sum(own.random() < p * (0.85 if name == "base" else 1) for _ in range(16)), "num_samples": 16,
        "broken": not read.has_format,
    }  # fmt: skip


def baselines(test: Sequence[Sample], last: str) -> Json:
    right = {
        "majority": majority_baseline(load_samples("embedded", "train"), test),
        "blank_image": np.array([random.Random(s.id).random() < 1.3 / len(s.options) for s in test]),
        "chance": np.array([1 / len(s.options) for s in test]),
    }
    found: Json = {
        name: {"acc": float(values.mean()), "ci95": list(bootstrap_ci(values, bootstrap_samples=100)), "n": len(test), "split": "test"}
        for name, values in right.items()
    }  # fmt: skip
    found["blank_image"]["stage"] = last
    return found


def tests(lines: Sequence[Json], names: Sequence[str]) -> Json:
    right = {name: [row["correct"] for row in lines if row.get("name") == name and row["split"] == "test"] for name in names}
    pairs = [*zip(names, names[1:], strict=False), *([(names[0], names[-1])] if len(names) > 2 else [])]
    return {f"{b}_vs_{a}": asdict(mcnemar(right[a], right[b])) for a, b in pairs}


def made_up_metrics(names: Sequence[str], drawn: random.Random) -> list[Json]:
    rows: list[Json] = []
    for name in names:
        number = int(name.partition("-")[2] or 1)
        if name.startswith("sft"):
            start = 2.4 if number == 1 else 0.6
            rows += [
                {"stage": "sft", "round": number, "step": s, "loss": 0.25 + start * math.exp(-s / 25) + drawn.gauss(0, 0.05)}
                for s in range(1, 151)
            ]  # fmt: skip
        elif name == "grpo":
            for s in range(1, 81):
                right = 0.70 + 0.1 * s / 80 + drawn.gauss(0, 0.04)
                rows.append({
                    "stage": "grpo", "round": 1, "step": s, "loss": drawn.gauss(0, 0.01), "rewards/accuracy": right,
                    "rewards/format": 0.985 + drawn.gauss(0, 0.006), "reward": right + 0.197, "entropy": 0.4 - 0.2 * s / 80 + drawn.gauss(0, 0.02),
                    "frac_reward_zero_std": 0.3 + 0.25 * s / 80 + drawn.gauss(0, 0.07), "completions/mean_length": 17 + drawn.gauss(0, 0.4),
                })  # fmt: skip
    return rows


def write_lines(path: Path, rows: Sequence[Json]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
