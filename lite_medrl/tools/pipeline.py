"""The whole job: measure, bridge by SFT while support is weak, sharpen by GRPO, measure after each, report.

`run` is the only place that writes a run directory. Each finished stage is put down in progress.json with its
adapter, so that an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lite_medrl.recipe import Resolved, to_yaml
from lite_medrl.sections import Recipe
from lite_medrl.tools.progress import Bar, say
from lite_medrl.tools.run_folder import (
    MARKER,
    Json,
    State,
    append_lines,
    base_of,
    load_adapter,
    load_state,
    refuse_occupied,
    save_adapter,
    save_state,
    values_of,
    write_text,
)
from lite_medrl.types import RecipeError, Sample

PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "accelerate")


def run(
    resolved: Resolved,
    *,
    output_dir: Path,
    overwrite: bool = False,
    resume: bool = False,
    command: str | None = None,
) -> Json:
    """Runs the recipe and returns what it wrote to results.json.

    Args:
        command: what results.json gives as the command; the command line when left out.

    Raises:
        RecipeError: the directory holds another run. DataError, ModelError: before anything is written.
        FloatingPointError: a loss, a gradient or trained weights are not finite; that stage is not saved.
    """
    start = time.perf_counter()
    refuse_occupied(output_dir, overwrite=overwrite, resume=resume)
    job = Job.prepare(resolved, output_dir, overwrite=overwrite, resume=resume)
    job.note("load", time.perf_counter() - start)
    job.go()
    return job.finish(start, command or " ".join(["lite-medrl", *sys.argv[1:]]))


def draw(samples: list[Sample], count: int | None, seed: int) -> list[Sample]:
    """At most `count` samples, drawn without replacement and kept in file order."""
    if count is None or count >= len(samples):
        return samples
    return [samples[i] for i in sorted(random.Random(seed).sample(range(len(samples)), count))]


class Job:
    """One run under way: the loaded model, the three sets of questions, and the folder that is written."""

    def __init__(self, resolved: Resolved, folder: Path, loaded: Any, sets: dict[str, list[Sample]]) -> None:
        self.resolved, self.folder, self.sets = resolved, folder, sets
        self.recipe: Recipe = resolved.recipe
        self.model, self.processor, self.policy = loaded.model, loaded.processor, loaded.policy
        self.state = State()
        self.left_out: Json = {}

    @classmethod
    def prepare(cls, resolved: Resolved, folder: Path, *, overwrite: bool, resume: bool) -> Job:
        """Everything that can be refused is refused here, before the folder is touched."""
        from lite_medrl.data.sources import Tally, check_images, load_samples, with_good_images
        from lite_medrl.model.encode import wording
        from lite_medrl.model.load import add_lora, fingerprint, load_for
        from lite_medrl.model.pack_check import require_packable
        from lite_medrl.model.prompt_length import check_prompt_lengths

        recipe, data = resolved.recipe, resolved.recipe.data
        if recipe.rollout.generator == "vllm" and recipe.grpo.enabled and find_spec("vllm") is None:
            raise RecipeError("rollout.generator = 'vllm': vllm is not installed; take generator: grouped")
        if recipe.rollout.vllm:
            from lite_medrl.train.stages import vllm_options

            vllm_options(recipe.rollout.vllm)
        tallies = {name: Tally() for name in ("train", "validation", "test")}
        reading = {"kinds": data.kinds, "on_error": data.on_error}
        sets = {
            name: draw(load_samples(data.source, split, **reading, tally=tallies[name]), limit, seed=0)
            for name, split, limit in (
                ("train", data.train_split, data.max_train_samples),
                ("validation", data.validation_split, data.max_validation_samples),
                ("test", data.test_split, data.max_test_samples),
            )
        }
        for name, samples in sets.items():
            if data.on_error == "skip":
                sets[name] = with_good_images(samples, tallies[name])
            else:
                check_images(samples)
        lora = recipe.lora
        loaded = load_for(recipe.model)
        if "required" in (recipe.sft.prefix_tree, recipe.grpo.prefix_tree):
            require_packable(loaded.model)
        say(f"{recipe.model.model_name_or_path}: {loaded.policy}")
        for samples in sets.values():
            check_prompt_lengths(loaded.model, loaded.processor, samples, **wording(recipe.prompt))
        base = fingerprint(loaded.model)
        peft = add_lora(
            loaded.model,
            r=lora.r,
            lora_alpha=lora.lora_alpha,
            lora_dropout=lora.lora_dropout,
            target_modules=lora.target_modules,
            seed=recipe.seed,
        )
        job = cls(resolved, folder, type(loaded)(peft, loaded.processor, loaded.policy), sets)
        job.left_out = {name: tally.to_json() for name, tally in tallies.items()}
        job.open_folder(base, overwrite=overwrite, resume=resume)
        return job

    def open_folder(self, base: str, *, overwrite: bool, resume: bool) -> None:
        """An empty folder with recipe.yaml, or the state of the run that is resumed."""
        text = to_yaml(self.resolved)
        if resume and (self.folder / MARKER).is_file():
            if values_of(self.folder / "recipe.yaml") != self.recipe.model_dump():
                raise RecipeError(
                    f"output_dir: {self.folder} was begun with another recipe; --resume needs the same one"
                )
            if base_of(self.folder) not in ("", base):
                raise RecipeError(
                    f"output_dir: {self.folder} was begun on another base: the weights of "
                    f"{self.recipe.model.model_name_or_path} have changed since; begin a new run"
                )
            self.state = load_state(self.folder)
            return
        if overwrite and self.folder.exists():
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.state.base = base
        write_text(self.folder / "recipe.yaml", text)
        self.save()

    # --- the story
    # ----------------------------------------------------------------------------------------------
    def go(self) -> None:
        """base -> (SFT while support is weak) -> GRPO, each measured; the decisions say what follows."""
        self.measured("base", 0)
        number = 0
        while self.action(number) == "sft":
            number += 1
            self.trained("sft", number)
            self.measured("sft", number)
        if self.action(number) == "grpo":
            self.trained("grpo", 1)
            self.measured("grpo", 1)

    def action(self, number: int) -> str:
        """What the decision after `number` rounds of SFT was."""
        return next(
            d["action"]
            for d in self.state.decisions
            if d["after"] == stage_name("sft" if number else "base", number)
        )

    def measured(self, stage: str, number: int) -> None:
        """Measures both splits and decides on the validation split, unless that is done already."""
        name = stage_name(stage, number)
        if f"measure {name}" in self.state.done:
            return
        support = self.measure(stage, number, "validation")
        if stage != "grpo":
            self.decide(name, number, support)
        self.measure(stage, number, "test")
        self.state.done.append(f"measure {name}")
        self.save()

    def decide(self, after: str, number: int, support: Any) -> None:
        """Notes what the rule asks for and what the run does within the recipe's limits."""
        from lite_medrl.measure.rule import Limits, decide
        from lite_medrl.tools.report.words import decided

        recipe = self.recipe
        limits = Limits(number, recipe.sft.max_rounds, recipe.grpo.enabled)
        decision = decide(support, recipe.diagnose.threshold, limits)
        row = {"after": after, "split": "validation"} | decision.to_json()
        self.state.decisions.append(row)
        say(f"decision after {after}: {decided(row)}. {row['why']}")

    def measure(self, stage: str, number: int, split: str) -> Any:
        """One diagnosis: asks, scores, appends the stage and its completions; returns the Support."""
        from lite_medrl.measure.ask import ask, drawing
        from lite_medrl.measure.scores import scores
        from lite_medrl.measure.support import diagnose
        from lite_medrl.measure.votes import votes
        from lite_medrl.model.encode import wording
        from lite_medrl.model.generate import Sampling

        name = stage_name(stage, number)
        settings, samples, start = self.recipe.diagnose, self.sets[split], time.perf_counter()
        with Bar(f"measure {name} on {split}", len(samples), "question") as bar:
            asked = ask(
                self.model,
                self.processor,
                samples,
                num_samples=settings.num_samples,
                sampling=Sampling(
                    settings.max_completion_length,
                    settings.temperature,
                    settings.top_p,
                    settings.top_k,
                    settings.min_p,
                    settings.repetition_penalty,
                    tuple(self.recipe.rollout.stop),
                ),
                batch_size=settings.batch_size,
                seed=self.recipe.seed,
                progress=bar.advance,
                **drawing(self.recipe.rollout),
                **wording(self.recipe.prompt),
            )
        support = diagnose(
            [a.correct for a in asked],
            [a.num_correct for a in asked],
            settings.num_samples,
            [len(s.options) for s in samples],
            format_failure_Q=[not a.answer.has_format for a in asked],
            kind_Q=[s.kind for s in samples],
            modality_Q=[s.modality for s in samples],
            ks=settings.k,
            max_chance=settings.max_chance,
            bootstrap_samples=settings.bootstrap_samples,
            seed=self.recipe.seed,
        )
        took = time.perf_counter() - start
        row = {
            "stage": stage,
            "round": number,
            "name": name,
            "split": split,
            **support.to_json(),
            "seconds": took,
        }
        self.state.stages.append(row)
        answers = [self.completion_row(row, a) for a in asked]
        row |= {"scores": scores(answers, seed=self.recipe.seed), **votes(answers, settings.k)}
        self.append("completions.jsonl", answers)
        self.note("diagnose", took)
        found = f"Acc@1 {support.acc_at_1:.3f}, support {support.support:.3f} at K = {support.rule_k}"
        say(f"{name} on {split}: {found}")
        return support

    def trained(self, stage: str, number: int) -> None:
        """Trains a stage and saves its adapter, or loads the adapter of a stage that is already done."""
        from lite_medrl.train.stages import run_grpo, run_sft

        name, adapter = stage_name(stage, number), self.folder / "adapters" / stage
        if f"train {name}" in self.state.done:
            if f"train {self.last_trained()}" == f"train {name}":
                load_adapter(self.model, adapter)
            return
        start, section = time.perf_counter(), getattr(self.recipe, stage)
        work = self.folder / ".trainer"
        with Bar(name, section.max_steps, "step") as bar, removed_at_last(work):

            def write(row: Json) -> None:
                self.append("metrics.jsonl", [row])
                bar.advance(row["step"] - bar.done, row)

            common = (self.model, self.processor, self.sets["train"], self.recipe, self.policy)
            if stage == "sft":
                run_sft(*common, number=number, folder=work, write=write)
            else:
                self.append("completions.jsonl", run_grpo(*common, folder=work, write=write))
        save_adapter(self.model, self.processor, adapter)
        self.note(stage, time.perf_counter() - start)
        self.state.done.append(f"train {name}")
        self.save()

    def last_trained(self) -> str:
        """Name of the newest finished training stage."""
        return [entry.removeprefix("train ") for entry in self.state.done if entry.startswith("train ")][-1]

    # --- the end
    # ------------------------------------------------------------------------------------------------
    def finish(self, start: float, command: str) -> Json:
        """Baselines, tests, results.json, report.html."""
        from lite_medrl.tools.closing import baselines, paired_tests, parameter_counts, peak_gib
        from lite_medrl.tools.report import write_report

        mark = time.perf_counter()
        results = {
            "stages": self.state.stages,
            "decisions": self.state.decisions,
            "baselines": baselines(self),
            "tests": paired_tests(self.folder, self.state.stages),
            "seconds": self.state.seconds,
            "peak_gib": peak_gib(),
            "data": {"source": self.recipe.data.source, "left_out": self.left_out},
            "versions": {name: version(name) for name in PACKAGES} | {"python": sys.version.split()[0]},
            "command": command,
            "seed": self.recipe.seed,
            "model": {
                "name": self.recipe.model.model_name_or_path,
                "fingerprint": self.state.base,
                "device": self.policy.device,
                "dtype": str(self.policy.dtype).removeprefix("torch."),
                **parameter_counts(self.model),
            },
        }
        self.note("report", time.perf_counter() - mark)
        self.state.seconds["total"] = self.state.seconds.get("total", 0.0) + time.perf_counter() - start
        write_text(self.folder / "results.json", json.dumps(results, indent=2) + "\n")
        write_report(self.folder)
        self.state.done.append("report")
        self.save()
        say(f"report: {self.folder / 'report.html'}")
        return results

    # --- small things
    # -------------------------------------------------------------------------------------------
    def completion_row(self, stage: Json, asked: Any) -> Json:
        """One line of completions.jsonl."""
        sample = asked.sample
        return {
            **{key: stage[key] for key in ("stage", "round", "name", "split")},
            "id": sample.id,
            "question": sample.question,
            "options": list(sample.options),
            "answer": sample.answer,
            "kind": sample.kind,
            "modality": sample.modality,
            "source": sample.source,
            "images": [
                {
                    "path": ref.path if self.recipe.data.source != "embedded" else "embedded",
                    "member": ref.member,
                }
                for ref in sample.images
            ],
            "greedy": asked.greedy,
            "parsed": asked.answer.value,
            "correct": asked.correct,
            "failure": asked.answer.failure,
            "num_correct": asked.num_correct,
            "num_samples": asked.num_samples,
            "sampled": list(asked.sampled),
        }

    def append(self, name: str, rows: Sequence[Json]) -> None:
        """Adds rows to a JSONL file of the run."""
        append_lines(self.folder / name, rows)

    def note(self, name: str, seconds: float) -> None:
        """Adds to the seconds spent on a kind of work."""
        self.state.seconds[name] = self.state.seconds.get(name, 0.0) + seconds

    def save(self) -> None:
        """Puts down what is finished."""
        save_state(self.folder, self.state)


@contextmanager
def removed_at_last(folder: Path) -> Iterator[None]:
    """Removes a folder afterwards, whatever happened."""
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def stage_name(stage: str, number: int) -> str:
    """ "base", "sft" (round 1), "sft-2", ..., "grpo"."""
    return f"{stage}-{number}" if stage == "sft" and number > 1 else stage
