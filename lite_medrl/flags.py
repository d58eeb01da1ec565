"""The flags of the verbs that have many: `data`, `eval`, `bench step`, `bench rollout`."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_step_flags(step: argparse.ArgumentParser) -> None:
    """Options of `bench step`; a size that is not given is the model's default."""
    step.add_argument("--tiny", action="store_true", help="a tiny model in fp32, P=512 R=64; for a CPU")
    for name, what in (("shape", "model"), ("impl", "implementation"), ("phase", "phase")):
        step.add_argument(
            f"--{name}", action="append", default=[], metavar="NAME", help=f"only this {what}; repeatable"
        )
    for name, what in (
        ("prompt", "tokens of a prompt, the image's among them"),
        ("response", "tokens of a completion"),
        ("generations", "completions of a question (default: 8)"),
        ("questions-per-image", "questions about the image (default: 1)"),
        ("repeats", "timed steps (default: 5)"),
        ("threads", "threads of the CPU (default: torch's own number; tiny: 1)"),
    ):
        step.add_argument(f"--{name}", type=int, metavar="N", help=what)
    step.add_argument("--ragged", action="store_true", help="prompts and completions of different lengths")
    step.add_argument("--minutes", type=float, help="ends inside this time (default: 10; tiny: 0.75)")
    step.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: auto")
    step.add_argument("-o", "--output", type=Path, metavar="FILE", help="CSV file that gets the rows as well")


def add_data_flags(verb: argparse.ArgumentParser) -> None:
    """What `data` takes: what to do, with which source, and the flags of each."""
    verb.add_argument(
        "what",
        choices=["list", "inspect", "audit", "convert", "fetch"],
        help="list the sets; check a source or show one row; measure overlap, priors and baselines; write a "
        "source as rows and PNG files; download a set",
    )
    verb.add_argument(
        "source", nargs="?",
        help='"embedded" (default, unless --recipe names one), a file or folder of rows, NAME or NAME:PATH '
        "of a set",
    )  # fmt: skip
    verb.add_argument(
        "--on-error", "--on_error", choices=["stop", "skip"], default="stop",
        help="at a row or image that cannot be used: stop (default), or leave it out and count it",
    )  # fmt: skip
    verb.add_argument("--row", metavar="ID", help="inspect: show this row as the model sees it")
    verb.add_argument(
        "--recipe",
        metavar="FILE",
        help="inspect: in the words, the answer style and for the model of a recipe",
    )
    verb.add_argument(
        "--model",
        metavar="NAME",
        help="inspect: by this model's processor (default: the recipe's, or embedded)",
    )
    verb.add_argument(
        "--thumbnail", type=Path, metavar="FILE", help="inspect: write the row's images as a PNG"
    )
    verb.add_argument(
        "--against",
        metavar="SOURCE",
        help="audit: where the test split comes from (default: the same source)",
    )
    verb.add_argument(
        "--train", metavar="SPLIT", help="audit: the split that is learned from (default: train)"
    )
    verb.add_argument("--test", metavar="SPLIT", help="audit: the split that is reported (default: test)")
    verb.add_argument("--split", help="convert: this split only")
    verb.add_argument(
        "--format", choices=["jsonl", "sharegpt"], default="jsonl",
        help="convert: rows of our own (default), or conversations for LLaMA-Factory",
    )  # fmt: skip
    verb.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="DIR",
        help="convert: the new folder; fetch: instead of the cache",
    )


def add_eval_flags(verb: argparse.ArgumentParser) -> None:
    """What `eval` takes: whom, what, under which protocol, how much of it, and where to."""
    verb.add_argument(
        "model", metavar="MODEL", help="a run's folder, a model's folder or hub id, or embedded"
    )
    verb.add_argument("overrides", nargs="*", metavar="key=value", help="as in a recipe: model.dtype=float16")
    verb.add_argument("--stage", metavar="NAME", help="of a run: base, sft or grpo (default: its last one)")
    verb.add_argument("--adapter", type=Path, metavar="DIR", help="an adapter on top of a model")
    verb.add_argument(
        "-b", "--benchmark", "--benchmarks", default="embedded", metavar="A,B",
        help="medvlthinker-6, vqa-rad, slake, ..., any source of `data list`, or a file of your own; "
        "NAME:PATH where its files lie elsewhere (default: embedded)",
    )  # fmt: skip
    verb.add_argument("--protocol", default="lite-v1", metavar="NAME", help="default: lite-v1; see README")
    verb.add_argument("--split", metavar="NAME", help="default: the one that is reported, usually test")
    verb.add_argument("--questions", choices=["closed", "open", "all"], help="default: the benchmark's own")
    verb.add_argument(
        "--images", default="real,blank,shuffled", metavar="A,B",
        help="which images are shown: real, and blank and shuffled to see whether they matter (default: all)",
    )  # fmt: skip
    for name in ("max-new-tokens", "num-samples", "temperature", "top-p", "top-k"):
        kind = float if name in ("temperature", "top-p") else int
        verb.add_argument(
            f"--{name}", f"--{name.replace('-', '_')}", type=kind, metavar="N",
            help="instead of the protocol's; its id says so",
        )  # fmt: skip
    verb.add_argument("--limit", type=int, metavar="N", help="this many questions of each, drawn by chance")
    verb.add_argument("--shard", metavar="I/N", help="this part only; all parts go into one output folder")
    verb.add_argument("--seed", type=int, default=0, metavar="N", help="of the sampled answers (default: 0)")
    verb.add_argument("--judge", metavar="MODEL", help="a local model that judges open answers as well")
    verb.add_argument(
        "--on-error", "--on_error", choices=["stop", "skip"], default="stop",
        help="at a row or image that cannot be used: stop (default), or leave it out and count it",
    )  # fmt: skip
    verb.add_argument(
        "-o", "--output_dir", "--output-dir", type=Path, metavar="DIR", help="default: evals/NAME"
    )
    again = verb.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on with the evaluation in DIR")
    again.add_argument("--overwrite", action="store_true", help="replace the evaluation in DIR")


def add_rollout_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of `bench rollout`."""
    parser.add_argument("--tiny", action="store_true", help="the embedded model, seconds on a CPU")
    parser.add_argument("--model", help="a folder, a hub id, embedded, or qwen3-vl-4b (random weights)")
    parser.add_argument("--impls", metavar="A,B", help="grouped, hf, hf-static, unsloth, vllm; default: all")
    parser.add_argument("--sequences", metavar="N,M", help="answers at once, of 1, 8 and 64; default: all")
    parser.add_argument("--prompt-tokens", "--prompt_tokens", type=int, help="of random weights' prompts")
    parser.add_argument("--new-tokens", "--new_tokens", type=int, help="tokens of an answer")
    parser.add_argument("--repeats", type=int, help="timed calls a row; the median counts (3, with --tiny 2)")
    parser.add_argument("--minutes", type=float, help="no row is begun after this time")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="append the rows to this CSV file")
