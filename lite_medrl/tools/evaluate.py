"""The verb `eval`: questions of benchmarks, answers of a model under a protocol, figures fit for publishing.

Answers are put down row by row, so that a stopped evaluation goes on; figures are made from the rows alone
(eval_results.py), once all shards are there.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lite_medrl.tools import eval_folder
from lite_medrl.tools.eval_folder import Json, Key, Shard
from lite_medrl.tools.progress import Bar
from lite_medrl.tools.run_folder import append_lines
from lite_medrl.tools.target import Target, load_target, target
from lite_medrl.types import RecipeError, Sample


@dataclass(frozen=True, slots=True)
class Request:
    """What the command line asked for; `changes` are values of the protocol, None where it keeps its own."""

    model: str
    benchmarks: str = "embedded"
    protocol: str = "lite-v1"
    stage: str | None = None
    adapter: Path | None = None
    overrides: Sequence[str] = ()
    split: str | None = None
    questions: Any = None
    images: Sequence[str] = ("real", "blank", "shuffled")
    changes: Json = field(default_factory=dict)
    limit: int | None = None
    seed: int = 0
    on_error: Any = "stop"
    judge: str | None = None


def evaluate(
    request: Request,
    folder: Path | None = None,
    *,
    shard: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> Json:
    """Answers this shard's questions and returns the figures, or {"missing": ..} while other shards are open.

    Raises RecipeError for a request that cannot be met, DataError and ModelError for what cannot be read;
    all before anything is written.
    """
    from lite_medrl.tools.eval_results import finish

    start = time.perf_counter()
    job = Job(request, Shard.read(shard), folder)
    job.prepare(resume=resume, overwrite=overwrite)
    job.answer()
    return finish(job, start)


class Job:
    """One evaluation under way: whom it asks, what, how, and where the answers go."""

    def __init__(self, request: Request, shard: Shard, folder: Path | None) -> None:
        from lite_medrl.measure.benchmarks import benchmarks
        from lite_medrl.measure.protocols import protocol, worded

        self.request, self.shard = request, shard
        self.target: Target = target(
            request.model, stage=request.stage, adapter=request.adapter, overrides=request.overrides
        )
        self.judge = judge_of(request.judge)
        self.images = checked_images(request.images)
        if request.seed < 0:
            raise RecipeError(f"--seed: must be 0 or more, got {request.seed}")
        self.benchmarks = benchmarks(request.benchmarks, split=request.split, questions=request.questions)
        names = [one.name for one in self.benchmarks]
        changes = dict(request.changes)
        if self.target.run and request.protocol == "lite-v1" and changes.get("max_new_tokens") is None:
            changes["max_new_tokens"] = self.target.recipe.diagnose.max_completion_length
        self.protocol = worded(
            protocol(request.protocol, changes), self.target.recipe.prompt, self.target.recipe.rollout.stop
        )
        self.folder = folder or Path("evals") / safe(
            f"{self.target.label}-{'+'.join(names)}-{request.protocol}"
        )

    def prepare(self, *, resume: bool, overwrite: bool) -> None:
        """Everything that can be refused is refused here; then the folder is begun."""
        from lite_medrl.data.sources import Tally
        from lite_medrl.measure.benchmarks import questions_of
        from lite_medrl.measure.evaluate import check_lengths
        from lite_medrl.measure.shown import exchange

        self.tallies = [Tally() for _ in self.benchmarks]
        checked = [
            questions_of(one, limit=self.request.limit, on_error=self.request.on_error, tally=tally)
            for one, tally in zip(self.benchmarks, self.tallies, strict=True)
        ]
        self.samples = [one.samples for one in checked]
        self.digests = [digest(one) for one in checked]
        self.exchanges = [exchange(samples, self.request.seed) for samples in self.samples]
        if not self.expected():
            raise RecipeError(
                f"--protocol {self.protocol.name}: chooses a letter, but no question has options"
            )
        self.loaded, self.model = load_target(self.target)
        for samples, exchanged in zip(self.samples, self.exchanges, strict=True):
            check_lengths(self.loaded, samples, self.protocol, exchanged, self.images)
        eval_folder.open_folder(self.folder, self.setup(), self.shard, resume=resume, overwrite=overwrite)

    def setup(self) -> Json:
        """What the answers depend on; all shards must agree on it."""
        return {
            "model": self.model,
            "protocol": self.protocol.to_json(),
            "benchmarks": [[one.name, *one.splits, one.questions] for one in self.benchmarks],
            "limit": self.request.limit,
            "images": list(self.images),
            "questions": self.digests,
            "seed": self.request.seed,
            "shards": self.shard.count,
            "version": version("lite-medrl"),
        }

    def expected(self) -> dict[Key, int]:
        """How many rows each question gets."""
        from lite_medrl.measure.evaluate import samples_of

        shuffled = "shuffled" in self.images
        always = len(self.images) - shuffled
        return {
            (one.name, s.id): always + (shuffled and exchange.possible(s)) + samples_of(self.protocol, s)
            for one, samples, exchange in zip(self.benchmarks, self.samples, self.exchanges, strict=True)
            for s in samples
            if s.options or not self.protocol.choose
        }

    def own(self, place: int) -> list[Sample]:
        """This shard's questions of a benchmark: every count-th image with all of its questions."""
        order = {images: i for i, images in enumerate(dict.fromkeys(s.images for s in self.samples[place]))}
        return [s for s in self.samples[place] if order[s.images] % self.shard.count == self.shard.number - 1]

    def answer(self) -> None:
        """Draws the answers that this shard still lacks and adds their rows to its file."""
        path, expected = self.folder / self.shard.file, self.expected()
        done = eval_folder.finished(path, expected)
        start, self.answered = time.perf_counter(), 0
        for place, one in enumerate(self.benchmarks):
            wanted = [s for s in self.own(place) if (one.name, s.id) in expected]
            left = [s for s in wanted if (one.name, s.id) not in done]
            with Bar(f"eval {one.name}", len(wanted), "question") as bar:
                bar.advance(len(wanted) - len(left))
                self.answer_some(place, left, path, bar)
        self.seconds = time.perf_counter() - start

    def answer_some(self, place: int, left: list[Sample], path: Path, bar: Bar) -> None:
        """The questions of one benchmark, batch after batch."""
        from lite_medrl.measure.ask import drawing
        from lite_medrl.measure.evaluate import Answerer, evaluate

        recipe, one = self.target.recipe, self.benchmarks[place]
        answerer = Answerer(
            self.loaded.model,
            self.loaded.processor,
            self.protocol,
            recipe.diagnose.batch_size,
            self.request.seed,
            **drawing(recipe.rollout),
        )
        for rows in evaluate(answerer, left, self.exchanges[place], shown=self.images, part=one.part):
            append_lines(path, [{"benchmark": one.name, **row} for row in rows])
            count = len({row["id"] for row in rows})
            self.answered += count
            bar.advance(count)


def judge_of(model: str | None) -> Target | None:
    """The judge; what can be refused without loading it is refused here, before hours of answers."""
    from lite_medrl.model.load import refuse_unsafe

    if model is None:
        return None
    if model != "embedded":
        refuse_unsafe(model)
    return target(model)


def checked_images(images: Sequence[str]) -> tuple[Any, ...]:
    """The images to show, the own one always first; RecipeError for a name that is none."""
    from lite_medrl.measure.shown import SHOWN

    if "real" not in images or any(name not in SHOWN for name in images):
        raise RecipeError(f"--images: must be real, alone or with blank, shuffled, got {','.join(images)!r}")
    return tuple(name for name in SHOWN if name in images)


def safe(name: str) -> str:
    """A name fit for a folder."""
    return "".join(sign if sign.isalnum() or sign in "-_.+@" else "-" for sign in name)


def digest(checked: Any) -> str:
    """16 hex digits of the questions, their options, gold answers and pixels."""
    sha = hashlib.sha256()
    for s in checked.samples:
        images = [checked.digests[ref] for ref in s.images]
        sha.update(json.dumps([s.id, s.question, s.options, s.answer, images]).encode())
    return sha.hexdigest()[:16]
