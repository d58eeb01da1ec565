"""The command lite-medrl: it reads arguments, calls one function of tools/, and prints what comes back.

With --json the result is the only thing on stdout. Exit codes: 0 done, 2 bad input, 3 out of memory, 4 loss
or gradient not finite, 130 interrupted, 141 stdout closed early. Torch and its kin load only once a verb
needs them.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import select
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any, TextIO

from lite_medrl.flags import add_data_flags, add_eval_flags, add_rollout_flags, add_step_flags
from lite_medrl.types import DataError, ModelError, RecipeError

# Read by the libraries when they are imported; a value that the user has set stays.
ENVIRONMENT = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "TOKENIZERS_PARALLELISM": "false",
}
BAD_INPUT, OUT_OF_MEMORY, NOT_FINITE, INTERRUPTED, NOBODY_READS = 2, 3, 4, 130, 141

DATA_FLAGS = {
    "inspect": ("row", "recipe", "model", "thumbnail"),
    "audit": ("against", "train", "test"),
    "convert": ("split",),
}
BENCH = "Measure a stage against the libraries that do the same"
Show = Callable[[Any, str], None]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code (argparse itself exits with 2 on arguments that it cannot read)."""
    try:
        try:
            args = parse(argv)
        except SystemExit:
            print(end="", flush=True)  # the help waits in the buffer
            raise
        code = perform(args)
        print(end="", flush=True)
        return code
    except BrokenPipeError:
        if not nobody_reads():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for what Python flushes when it ends
        return NOBODY_READS


def perform(args: argparse.Namespace) -> int:
    """Run the verb; an error that the user can mend becomes a message and an exit code."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.basicConfig(stream=sys.stderr, format="%(message)s")
    logging.getLogger("lite_medrl").setLevel(logging.INFO)
    # On import it advises a download: of a CPU kernel without backward pass, which the loader keeps out.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    try:
        with results_only(args.json) as out:

            def show(result: Any, text: str) -> None:
                print(json.dumps(result) if args.json else text, file=out, flush=True)

            return args.verb(args, show) or 0
    except (RecipeError, DataError, ModelError) as error:
        return complain(str(error), BAD_INPUT)
    except FloatingPointError as error:
        return complain(f"numbers that are not finite: {error}", NOT_FINITE)
    except KeyboardInterrupt:
        return complain("interrupted", INTERRUPTED)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        advice = "lower grpo.per_device_train_batch_size, diagnose.batch_size or model.max_image_tokens"
        return complain(f"out of memory: {error}\n{advice}", OUT_OF_MEMORY)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Arguments of one verb; recipe overrides may stand anywhere behind the recipe, as key=value or
    --key=value.
    """
    parser = make_parser()
    args, rest = parser.parse_known_args(argv)
    takes_recipe = args.verb in (run, diagnose, evaluate)
    strangers = [word for word in rest if not takes_recipe or "=" not in word]
    if strangers:
        hint = "; set a value of the recipe by key=value: grpo.max_steps=10" if takes_recipe else ""
        parser.error(f"cannot use {' '.join(strangers)}{hint}")
    if takes_recipe:
        args.overrides += rest
    return args


def make_parser() -> argparse.ArgumentParser:
    """The verbs and their flags."""
    parser = argparse.ArgumentParser(
        "lite-medrl", description=first_line(sys.modules["lite_medrl"]), allow_abbrev=False
    )
    parser.add_argument("--version", action=Version, nargs=0, help="print the version")
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")

    def verb(
        function: Callable[[argparse.Namespace, Show], int | None], name: str, among: Any = verbs
    ) -> argparse.ArgumentParser:
        added = among.add_parser(
            name, help=first_line(function), description=first_line(function), allow_abbrev=False
        )
        added.add_argument(
            "--json", action="store_true", help="print the result as JSON on stdout, the rest on stderr"
        )
        added.set_defaults(verb=function)
        return added

    for function in (run, diagnose):
        one = verb(function, function.__name__)
        one.add_argument("recipe", help="YAML file, see examples/")
        one.add_argument(
            "overrides", nargs="*", metavar="key=value", help="values over the recipe's: grpo.max_steps=10"
        )
        one.add_argument(
            "-o", "--output_dir", "--output-dir", type=Path, metavar="DIR",
            help="default: runs/NAME_OF_RECIPE",
        )  # fmt: skip
        one.add_argument(
            "--dry-run", "--dry_run", action="store_true", help="print the resolved recipe and stop"
        )
        again = one.add_mutually_exclusive_group()
        again.add_argument(
            "--overwrite", action="store_true", help="replace an earlier run in DIR (only a run)"
        )
        again.add_argument("--resume", action="store_true", help="go on with the run in DIR")
    two = verb(demo, "demo")
    two.add_argument("run_dir", type=Path, metavar="RUN", help="output directory of a run")
    two.add_argument("--port", type=int, help="default: the first free one from 7860")
    three = verb(data, "data")
    add_data_flags(three)
    four = verb(pool, "pool")
    four.add_argument(
        "run_dirs", nargs="+", type=Path, metavar="RUN", help="finished runs that differ in seed"
    )
    four.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the JSON there as well")
    five = verb(compare, "compare")
    five.add_argument("first", type=Path, metavar="RUN_A", help="output directory of a finished run or eval")
    five.add_argument("second", type=Path, metavar="RUN_B", help="another one, on the same questions")
    five.add_argument("--split", default="test", choices=["test", "validation"], help="default: test")
    five.add_argument("--stage", metavar="NAME", help="base, sft, sft-2, grpo; default: each run's last one")
    add_eval_flags(verb(evaluate, "eval"))
    verb(doctor, "doctor")
    group = verbs.add_parser("bench", help=BENCH, description=BENCH, allow_abbrev=False)
    benches = group.add_subparsers(title="benchmarks", required=True, metavar="BENCHMARK")
    add_step_flags(verb(bench_step, "step", benches))
    add_rollout_flags(verb(bench_rollout, "rollout", benches))
    whole = verb(bench_all, "all", benches)
    whole.add_argument("--tiny", action="store_true", help="small shapes, for a CPU")
    whole.add_argument("--minutes", type=float, help="ends inside about this time (default: 20; tiny: 6)")
    whole.add_argument(
        "-o", "--output", type=Path, default=Path("docs/results"), metavar="DIR",
        help="folder of the CSV files (default: docs/results)",
    )  # fmt: skip
    return parser


def run(args: argparse.Namespace, show: Show) -> None:
    """Diagnose, bridge by SFT where support is weak, sharpen by GRPO, and report."""
    from lite_medrl.recipe import load_recipe, to_yaml

    resolved = load_recipe(args.recipe, args.overrides)
    if args.dry_run:
        result = {"recipe": resolved.recipe.model_dump(), "origins": dict(resolved.origins)}
        show(result, to_yaml(resolved).rstrip())
        return
    from lite_medrl.tools import pipeline
    from lite_medrl.tools.invocation import command

    where = args.output_dir or Path("runs") / Path(args.recipe).stem
    results = pipeline.run(resolved, output_dir=where, overwrite=args.overwrite, resume=args.resume)
    try_it = command("demo", where)
    show(results, f"{table(results)}\nreport: {where / 'report.html'}\ntry it: {try_it}")


def diagnose(args: argparse.Namespace, show: Show) -> None:
    """Measure Acc@1 against Pass@K, say what to train, and train nothing."""
    args.overrides += ["sft.max_rounds=0", "grpo.enabled=false"]
    args.output_dir = args.output_dir or Path("runs") / f"{Path(args.recipe).stem}-diagnose"
    run(args, show)


def demo(args: argparse.Namespace, show: Show) -> None:
    """Ask the models of a run in the browser, their answers side by side."""
    from lite_medrl.tools import demo as page

    if not args.json:
        page.launch(args.run_dir, args.port)
        return
    with page.serve(page.Comparison.open(args.run_dir), args.port) as url, suppress(KeyboardInterrupt):
        show({"run": str(args.run_dir), "url": url}, "")
        threading.Event().wait()


def data(args: argparse.Namespace, show: Show) -> int:
    """List, check, audit, convert and fetch data sources."""
    refuse_strangers(args)
    if args.row is not None or args.recipe or args.model or args.thumbnail:
        from lite_medrl.tools import look

        seen = look.look(
            args.source, row=args.row, recipe=args.recipe, model=args.model, thumbnail=args.thumbnail
        )
        show(seen, look.describe(seen, colour=sys.stdout.isatty()))
        return 0
    args.source = args.source or "embedded"
    if args.what in ("audit", "convert", "fetch"):
        handle_data(args, show)
        return 0
    from lite_medrl.tools import samples

    asked = args.what == "inspect"
    report = samples.inspect(args.source, on_error=args.on_error) if asked else samples.catalogue()
    show(report, samples.describe(report))
    return BAD_INPUT if report.get("stops") else 0


def refuse_strangers(args: argparse.Namespace) -> None:
    """DataError for a flag of `data` that belongs to another of its parts."""
    for part, flags in DATA_FLAGS.items():
        for flag in flags:
            if part != args.what and getattr(args, flag) is not None:
                raise DataError(f"data {args.what} takes no --{flag}; it is for data {part}")


def handle_data(args: argparse.Namespace, show: Show) -> None:
    """The parts of `data` that measure, write or fetch."""
    if args.what == "audit":
        from lite_medrl.tools import audit

        report = audit.audit(
            args.source, against=args.against, train=args.train, test=args.test, on_error=args.on_error
        )
        show(report, audit.describe(report))
    elif args.what == "convert":
        from lite_medrl.tools import convert

        if args.output is None:
            raise DataError("data convert needs --output DIR, the new folder")
        report = convert.convert(
            args.source, args.output, split=args.split, form=args.format, on_error=args.on_error
        )
        show(report, convert.describe(report))
    else:
        from lite_medrl.tools import samples

        report = samples.fetched(args.source, args.output)
        show(report, f"{report['path']}\nin a recipe: data.source: {report['source']}")


def pool(args: argparse.Namespace, show: Show) -> None:
    """Put runs with different seeds together: means, intervals, paired tests."""
    from lite_medrl.measure.pool import describe, pool

    pooled = pool(args.run_dirs)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(pooled, indent=2) + "\n")
    show(pooled, describe(pooled))


def compare(args: argparse.Namespace, show: Show) -> None:
    """Say whether the second of two runs is better, paired question by question."""
    from lite_medrl.tools.compare_runs import compare_runs, describe

    found = compare_runs(args.first, args.second, split=args.split, stage=args.stage)
    show(found, describe(found))


def evaluate(args: argparse.Namespace, show: Show) -> None:
    """Answer benchmarks under a named protocol, with and without the image, and report."""
    from lite_medrl.tools import evaluate as verb
    from lite_medrl.tools.eval_page import describe

    changed = ("max_new_tokens", "num_samples", "temperature", "top_p", "top_k")
    same = ("model", "protocol", "stage", "adapter", "overrides", "split", "questions", "limit", "seed",
            "on_error", "judge")  # fmt: skip
    request = verb.Request(
        benchmarks=args.benchmark,
        images=args.images.split(","),
        changes={name: getattr(args, name) for name in changed},
        **{name: getattr(args, name) for name in same},
    )
    found = verb.evaluate(
        request, args.output_dir, shard=args.shard, resume=args.resume, overwrite=args.overwrite
    )
    show(found, describe(found))


def doctor(args: argparse.Namespace, show: Show) -> int:
    """Check versions, device, memory and disk."""
    from lite_medrl.tools.doctor import describe, examine

    report = examine()
    show(report, describe(report))
    return 0 if report["ok"] else BAD_INPUT


def bench_step(args: argparse.Namespace, show: Show) -> None:
    """Time, memory and numbers of an update: TRL's trainer and ours on the same model and rollouts."""
    from lite_medrl.tools.bench.compare import bench_step as measure

    sizes = ("prompt", "response", "generations", "questions_per_image", "repeats", "threads")
    sizes += ("ragged", "device")
    found = measure(
        tiny=args.tiny,
        shapes=args.shape,
        impls=args.impl,
        phases=args.phase,
        minutes=args.minutes,
        output=args.output,
        **{name: getattr(args, name) for name in sizes},
    )
    show(found.as_json(), found.describe())


def bench_all(args: argparse.Namespace, show: Show) -> int:
    """Every benchmark that can run on this machine: kernels, updates, SFT, rollouts."""
    from lite_medrl.tools.bench.everything import bench_all as measure
    from lite_medrl.tools.bench.everything import describe

    minutes = args.minutes or (6.0 if args.tiny else 20.0)
    result = measure(args.output, tiny=args.tiny, minutes=minutes)
    show(result, describe(result))
    return 1 if result["failed"] else 0


def table(results: dict[str, Any]) -> str:
    """The stages of results.json, one a line, and what was decided after which."""
    from lite_medrl.measure.statistics import too_few

    lines = [f"{'stage':<8}{'split':<12}{'n':>5}  {'Acc@1 [95 %]':<22}{'support':>8}  format failures"]
    for row in results["stages"]:
        low, high = row["acc_at_1_ci95"]
        start = f"{row.get('name', row['stage']):<8}{row['split']:<12}{row['n']:>5}"
        accuracy = f"{row['acc_at_1']:.3f} [{low:.3f}, {high:.3f}]"
        lines.append(f"{start}  {accuracy:<22}{row['support']:>8.3f}  {row['format_failure_frac']:.1%}")
    few = dict.fromkeys(too_few(row["n"]) for row in results["stages"])
    return "\n".join([*lines, *filter(None, few), *map(decision, results.get("decisions", []))])


def decision(row: dict[str, Any]) -> str:
    """One row of "decisions" in results.json as a line."""
    from lite_medrl.tools.report.words import decided

    support = f"support {row['support']:.3f} at K = {row['rule_k']}, threshold {row['threshold']:.3f}"
    return f"after {row['after']}: {decided(row)} ({support})"


def bench_rollout(args: argparse.Namespace, show: Show) -> int:
    """Tokens a second, time to the first one and memory of every generator on the same prompts."""
    from lite_medrl.tools.bench.rollout import describe, run_rollout

    result = run_rollout(args)
    show(result, describe(result["rows"]))
    return 0 if result["rows"] else BAD_INPUT


@contextmanager
def results_only(wanted: bool) -> Iterator[TextIO]:
    """Yields stdout; where `wanted`, what all others print goes to stderr, C libraries and children too."""
    if not wanted:
        yield sys.stdout
        return
    sys.stdout.flush()
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out, redirect_stdout(sys.stderr):
        os.dup2(2, 1)
        try:
            yield out
        finally:
            try:
                out.flush()
            finally:
                os.dup2(out.fileno(), 1)


def nobody_reads() -> bool:
    """Whether the reader of stdout has left, as `| head` does; a pipe to a child may break too."""
    watch = select.poll()
    watch.register(1, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in watch.poll(0))


def complain(text: str, code: int) -> int:
    """One message on stderr, no traceback."""
    print(f"lite-medrl: {text}", file=sys.stderr)
    return code


def out_of_memory(error: Exception) -> bool:
    """Whether Python, CUDA or torch's CPU allocator ran out; by name, so that torch need not be imported."""
    named = type(error).__name__ in ("MemoryError", "OutOfMemoryError")
    return named or "can't allocate memory" in str(error)


def first_line(thing: object) -> str:
    """First sentence of a docstring, without its full stop."""
    return (thing.__doc__ or "").strip().splitlines()[0].rstrip(".")


class Version(argparse.Action):
    """Prints the version and exits."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from lite_medrl import __version__

        print(f"lite-medrl {__version__}")
        parser.exit()


if __name__ == "__main__":
    sys.exit(main())
