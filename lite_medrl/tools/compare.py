"""Puts one question to every stage of a run, with one base in memory.

The run's adapters are switched under a lock; the base is the model with its adapters off. A stage that the
run does not have is left out.
"""

from __future__ import annotations

import random
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lite_medrl.data.answers import Answer
from lite_medrl.recipe import load_recipe
from lite_medrl.sections import Recipe
from lite_medrl.tools.run_folder import base_of
from lite_medrl.tools.unfinished import is_empty, notice
from lite_medrl.types import ImageRef, ModelError, RecipeError, Sample

TRAINED = ("sft", "grpo")


@dataclass(frozen=True, slots=True)
class Reply:
    """What one stage said, how it was read, right or wrong where a gold answer is known, and seconds."""

    stage: str
    text: str
    answer: Answer
    correct: bool | None
    seconds: float

    @property
    def is_plain(self) -> bool:
        """Whether the format was kept and the answer could be read."""
        return self.answer.has_format and self.answer.failure is None

    @property
    def reasoning(self) -> str:
        """What stands between the think tags; the whole text where that and the answer do not say it all."""
        if not self.is_plain:
            return self.text.strip()
        return self.text.partition("<think>")[2].partition("</think>")[0].strip()


class Comparison:
    """The loaded base with the adapters of a run; `answer` may be called from several threads.

    `notice` says what is missing of a run that is not finished, and how it goes on; it is "" otherwise.
    """

    def __init__(
        self, loaded: Any, stages: Sequence[str], recipe: Recipe, run_dir: Path, notice: str = ""
    ) -> None:
        self.model, self.processor, self.policy = loaded.model, loaded.processor, loaded.policy
        self.stages, self.recipe, self.run_dir, self.notice = tuple(stages), recipe, run_dir, notice

    @classmethod
    def open(cls, run_dir: Path | str) -> Comparison:
        """Loads the base once, in the precision of the run, and each adapter that the run saved.

        Raises:
            RecipeError: the folder is no run, or one without a finished stage.
            ModelError: the base or an adapter cannot be loaded.
        """
        run_dir = Path(run_dir)
        recipe = recipe_of(run_dir)
        missing = notice(run_dir, recipe)
        if is_empty(run_dir):
            raise RecipeError(f"RUN: no stage of it can be shown yet: {missing}")
        adapters = {stage: folder for stage in TRAINED if (folder := run_dir / "adapters" / stage).is_dir()}
        for folder in adapters.values():
            refuse_incomplete(folder)
        from lite_medrl.model.load import fingerprint, load_for

        loaded = load_for(recipe.model)
        if base_of(run_dir) not in ("", fingerprint(loaded.model)):
            raise ModelError(
                f"{run_dir}: its adapters belong to another version of {recipe.model.model_name_or_path}: "
                "the weights have changed since the run; run it again"
            )
        tuned = with_adapters(loaded.model, adapters)
        tuned = type(loaded)(tuned, loaded.processor, loaded.policy)
        return cls(tuned, ("base", *adapters), recipe, run_dir, missing)

    def watch(self, sample: Sample) -> Iterator[tuple[str, str | Reply]]:
        """Each stage with its greedy answer so far, token after token, and then with its reply."""
        from lite_medrl.measure.ask import drawing, greedy
        from lite_medrl.model.adapters import answering_as
        from lite_medrl.model.encode import encode_prompts, wording
        from lite_medrl.model.stream import stream

        how = {"sampling": greedy(self.recipe), "seed": self.recipe.seed, **drawing(self.recipe.rollout)}
        for stage in self.stages:
            start, text = time.perf_counter(), ""
            inputs = encode_prompts(
                self.processor, [sample], **wording(self.recipe.prompt), device=self.policy.device
            )
            with (
                answering_as(self.model, stage),
                closing(stream(self.model, self.processor, inputs, **how)) as texts,
            ):
                for text in texts:
                    yield stage, text
            yield stage, self.reply(stage, sample, text, time.perf_counter() - start)

    def reply(self, stage: str, sample: Sample, text: str, seconds: float) -> Reply:
        """A stage's whole answer, read; `correct` is None where the sample has no gold answer ("")."""
        from lite_medrl.measure.ask import read

        asked = read(sample, text, [])
        correct = asked.correct if sample.answer else None
        return Reply(stage, text, asked.answer, correct, round(seconds, 2))

    def answer(self, stage: str, sample: Sample) -> Reply:
        """The greedy answer of one stage; `correct` is None where the sample has no gold answer ("").

        Raises DataError for an image that cannot be used.
        """
        from lite_medrl.measure.ask import ask, drawing, greedy
        from lite_medrl.model.adapters import answering_as
        from lite_medrl.model.encode import wording

        sampling = greedy(self.recipe)
        with answering_as(self.model, stage):
            start = time.perf_counter()
            (asked,) = ask(
                self.model, self.processor, [sample], num_samples=0, sampling=sampling, seed=self.recipe.seed,
                **wording(self.recipe.prompt), **drawing(self.recipe.rollout),
            )  # fmt: skip
            seconds = time.perf_counter() - start
        return self.reply(stage, sample, asked.greedy, seconds)

    def answers(self, sample: Sample) -> Iterator[Reply]:
        """The answers of all stages, one after the other."""
        for stage in self.stages:
            yield self.answer(stage, sample)

    def examples(self, count: int, seed: int = 0) -> list[Sample]:
        """At most `count` questions of the test split, each about another image, drawn by chance.

        Raises DataError where the run's data cannot be read any more.
        """
        from lite_medrl.data.sources import load_samples

        data = self.recipe.data
        return spread(load_samples(data.source, data.test_split, kinds=data.kinds), count, seed)


def recipe_of(run_dir: Path) -> Recipe:
    """The resolved recipe that a run keeps in its folder; RecipeError where there is none."""
    if not run_dir.is_dir():
        raise RecipeError(f"RUN: there is no folder {run_dir}; give the output directory of `lite-medrl run`")
    path = run_dir / "recipe.yaml"
    if not path.is_file():
        raise RecipeError(
            f"RUN: {run_dir} holds no run (no recipe.yaml); give the output directory of `lite-medrl run`"
        )
    return load_recipe(path).recipe


def refuse_incomplete(folder: Path) -> None:
    """ModelError for an adapter without its config, or with weights that are not safetensors."""
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise ModelError(f"adapter {folder}: {name} is missing; resume the run or make it again")


def with_adapters(model: Any, adapters: dict[str, Path]) -> Any:
    """The model with each adapter under its stage's name, not training; ModelError where one does not fit."""
    from peft import PeftModel
    from safetensors import SafetensorError

    for stage, folder in adapters.items():
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("error", message="Found missing adapter keys")
                if isinstance(model, PeftModel):
                    missing = model.load_adapter(str(folder), adapter_name=stage).missing_keys
                    if any(f".{stage}." in key for key in missing):
                        raise ValueError(f"it lacks {missing[0]}")
                else:
                    model = PeftModel.from_pretrained(model, str(folder), adapter_name=stage)
        except (OSError, ValueError, KeyError, RuntimeError, UserWarning, SafetensorError) as error:
            why = " ".join(str(error).split())[:300] or type(error).__name__
            raise ModelError(f"adapter {folder}: does not load onto the recipe's model: {why}") from error
    return model.eval()


def spread(samples: Sequence[Sample], count: int, seed: int) -> list[Sample]:
    """At most `count` samples, no image twice, in turn from the modalities and within them from the kinds."""
    shuffled = random.Random(seed).sample(list(samples), len(samples))
    kinds: dict[str, dict[str, list[Sample]]] = defaultdict(lambda: defaultdict(list))
    for sample in shuffled:
        kinds[sample.modality][sample.kind].append(sample)
    queues = [in_turn(list(group.values())) for _, group in sorted(kinds.items())]
    chosen: dict[tuple[ImageRef, ...], Sample] = {}
    for sample in in_turn(queues):
        chosen.setdefault(sample.images, sample)
        if len(chosen) == count:
            break
    return list(chosen.values())


def in_turn(groups: Sequence[Sequence[Sample]]) -> list[Sample]:
    """First of each group, then second of each, and so on until all are used up."""
    longest = max(map(len, groups), default=0)
    return [group[i] for i in range(longest) for group in groups if i < len(group)]
