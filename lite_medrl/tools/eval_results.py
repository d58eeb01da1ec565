"""From the rows of an evaluation to results.json and results.md, once the answers of all shards are there."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from lite_medrl.tools.eval_folder import Json, Key, gathered, key_of, whole_questions
from lite_medrl.tools.eval_side import finished_results
from lite_medrl.tools.progress import Bar, say
from lite_medrl.tools.run_folder import write_text
from lite_medrl.tools.target import load_target

if TYPE_CHECKING:
    from lite_medrl.tools.evaluate import Job

PACKAGES = ("lite-medrl", "torch", "transformers", "peft", "bitsandbytes")


@dataclass(frozen=True, slots=True)
class Group:
    """The rows of a benchmark, or of one part of it, that have figures of their own."""

    name: str
    place: int
    rows: list[Json]


def finish(job: Job, start: float) -> Json:
    """The figures, written down; or how many questions other shards have still to answer.

    Args:
        start: when this call began, on time.perf_counter's clock.
    """
    rows, expected = gathered(job.folder, job.shard.all_files()), job.expected()
    if missing := len(expected) - len(whole_questions(rows, expected)):
        shard = {"shard": job.shard.number, "missing": missing, "of": len(expected)}
        return {"output_dir": str(job.folder), **shard}
    if not (job.answered or job.judge) and (job.folder / "results.json").is_file():
        say(f"{job.folder} is finished already: its results stay as they are")
        return finished_results(job.folder)
    results = results_of(job, rows, start)
    skipped = [
        json.dumps({"benchmark": one.name, "fault": str(fault)}) + "\n"
        for one, tally in zip(job.benchmarks, job.tallies, strict=True)
        for fault in tally.faults
    ]
    if skipped:
        write_text(job.folder / "skipped.jsonl", "".join(skipped))
    write_text(job.folder / "results.json", json.dumps(results, indent=2) + "\n")
    from lite_medrl.tools.eval_page import page

    write_text(job.folder / "results.md", page(results))
    say(f"results: {job.folder / 'results.md'}")
    return results


def results_of(job: Job, rows: list[Json], start: float) -> Json:
    """All figures, with what they depend on."""
    from lite_medrl.measure.summary import average
    from lite_medrl.tools.closing import peak_gib

    judge = judged_rows(job, rows)
    groups = groups_of(job, rows)
    found = [figures(job, one, judge) for one in groups]
    closed = {one["name"]: one["closed"] for one in found if "closed" in one}
    return {
        "kind": "eval",
        "model": job.model,
        "protocol": job.protocol.to_json() | {"example": job.protocol.words(job.samples[0][0])},
        "images": list(job.images),
        "benchmarks": found,
        "average": average(closed) if len(closed) > 1 else None,
        "left_out": {
            one.name: tally.to_json() | {"not_asked": not_asked(job, place)}
            for place, (one, tally) in enumerate(zip(job.benchmarks, job.tallies, strict=True))
        },
        "limit": job.request.limit,
        "shards": job.shard.count,
        "seed": job.request.seed,
        "answered_here": job.answered,
        "answering_s": job.seconds,
        "total_s": time.perf_counter() - start,
        "peak_gib": peak_gib(),
        "cpu_cores": os.cpu_count(),
        "versions": {name: version(name) for name in PACKAGES} | {"python": sys.version.split()[0]},
        "date": datetime.now(UTC).date().isoformat(),
        "command": " ".join(["lite-medrl", *sys.argv[1:]]),
        "output_dir": str(job.folder),
    }


def groups_of(job: Job, rows: list[Json]) -> list[Group]:
    """The benchmarks in the order asked for, each whole or in the parts of its published table."""
    part_of = {key_of(row): row["part"] for row in rows if row["number"] == 0}
    places = {one.name: place for place, one in enumerate(job.benchmarks)}
    found: dict[tuple[int, str], list[Json]] = {}
    for row in rows:
        found.setdefault((places[row["benchmark"]], part_of[key_of(row)]), []).append(row)

    def order(pair: tuple[int, str]) -> tuple[int, int, str]:
        table = list(job.benchmarks[pair[0]].expected)
        return pair[0], table.index(pair[1]) if pair[1] in table else len(table), pair[1]

    return [
        Group("/".join(filter(None, (job.benchmarks[place].name, part))), place, found[place, part])
        for place, part in sorted(found, key=order)
    ]


def figures(job: Job, group: Group, judge: Judge | None) -> Json:
    """One group's figures, and where its questions are from."""
    from lite_medrl.measure.benchmarks import surprises
    from lite_medrl.measure.summary import summary

    one = job.benchmarks[group.place]
    found = summary(group.rows, seed=job.request.seed)
    part = group.name.removeprefix(one.name).removeprefix("/")
    if judge and "open" in found:
        found["open"]["judge"] = judge.figures({key_of(row) for row in group.rows})
    counts = "+".join(f"{found[kind]['n']}-{kind}" for kind in ("closed", "open") if kind in found)
    return {
        "name": group.name,
        "title": one.title,
        "id": f"{group.name}/{'+'.join(one.splits)}/{counts}/{job.protocol.id}",
        "source": one.source,
        "splits": list(one.splits),
        "surprises": [] if job.request.limit else surprises(one, job.samples[group.place], part=part),
        **found,
    }


def not_asked(job: Job, place: int) -> int:
    """Questions that the protocol cannot ask: those without options where it chooses a letter."""
    return sum(not s.options for s in job.samples[place]) if job.protocol.choose else 0


@dataclass(frozen=True, slots=True)
class Judge:
    """The second model, and its probability that each open answer states the same as the gold one."""

    model: Json
    accepts: dict[Key, float]

    def figures(self, keys: set[Key]) -> Json:
        """Share of these answers that it accepts, with Wilson's interval."""
        from lite_medrl.measure.statistics import wilson_ci

        accepted = [p > 0.5 for key, p in self.accepts.items() if key in keys]
        share, interval = sum(accepted) / len(accepted), wilson_ci(sum(accepted), len(accepted))
        return {"model": self.model, "n": len(accepted), "accuracy": share, "ci95": list(interval)}


def judged_rows(job: Job, rows: list[Json]) -> Judge | None:
    """The judge's word on every open answer; the model that gave them is let go before it is loaded."""
    asked: list[Any] = [r for r in rows if not r["number"] and r["shown"] == "real" and not r["options"]]
    if not (job.judge and asked):
        return None
    from lite_medrl.measure.judge import judged

    del job.loaded
    loaded, model = load_target(job.judge)
    with Bar("judge", sum(row["parsed"] is not None for row in asked), "answer") as bar:
        values = judged(loaded.model, loaded.processor, asked, progress=bar.advance)
    accepts = {key_of(row): value for row, value in zip(asked, values, strict=True)}
    lines = [json.dumps({"benchmark": name, "id": i, "p_yes": p}) for (name, i), p in accepts.items()]
    write_text(job.folder / "judged.jsonl", "\n".join(lines) + "\n")
    return Judge(model, accepts)
