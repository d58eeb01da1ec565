"""Throws random texts at every profile of the parser and measures the speed of lite-v1: `make parser`.

The speed is that of one core reading every text of the golden table once a pass, odd ones and common ones
alike; nothing is kept between passes but the options' tables. The random texts come from three mills: any
Unicode, pieces of answers put together, and golden texts with characters dropped, doubled or swapped.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lite_medrl.data.answers import FAILURES, PROFILES, PUBLISHED, Answer, judge, parse
from lite_medrl.data.reading.verdict import AnswerType, Verdict

PIECES = """<think> </think> <answer> </answer> < / > A B C (A) B. D) yes no not answer: is The a an or and
, . - + CT MRI X-ray x ray ultrasound lung left right heart normal abnormal 2 two 1.5 **
\\boxed{ } \uff22 \u00e9 \u00ad \u00df \u0130 because E. coli"""
GOLDEN = Path(__file__).parent / "golden_answers.jsonl"
PASSES = 40
QUESTIONS: tuple[tuple[AnswerType | None, bool], ...] = (
    (None, True), ("choice", True), ("closed", True), ("open", True), (None, False), ("closed", False),
    ("open", False), ("yes_no", False),
)  # fmt: skip
"""What a text may answer: a type (None: told from gold and options), and whether options stand there."""


def golden() -> list[dict[str, Any]]:
    """The rows of the golden table."""
    return [json.loads(line) for line in GOLDEN.read_text(encoding="utf-8").splitlines()]


def noise(count: int, *, seed: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    """`count` random texts, each with the options of some golden row."""
    draw, rows, pieces = random.Random(seed), golden(), [*PIECES.split(), "\n", " "]
    sets = sorted({tuple(row["options"]) for row in rows if row["options"]})
    for number in range(count):
        options = draw.choice(sets)
        if number % 3 == 0:
            text = "".join(chr(_code(draw)) for _ in range(draw.randrange(40)))
        elif number % 3 == 1:
            text = draw.choice(("", " ")).join(draw.choices([*pieces, *options], k=draw.randrange(14)))
        else:
            text = _damaged(draw.choice(rows)["text"], draw)
        yield text, options


def _code(draw: random.Random) -> int:
    """A code point: mostly ASCII, else any, surrogates too."""
    return draw.randrange(128) if draw.random() < 0.5 else draw.randrange(sys.maxunicode + 1)


def _damaged(text: str, draw: random.Random) -> str:
    signs = list(text)
    for _ in range(draw.randrange(1, 4)):
        place = draw.randrange(len(signs) + 1)
        new = draw.choice(([], [chr(_code(draw))], signs[place : place + 1] * 2))
        signs[place : place + draw.randrange(2)] = new
    return "".join(signs)


def fuzz(count: int, *, seed: int) -> dict[str, Any]:
    """Has `count` random texts read and judged under every profile; an exception ends the program."""
    found: Counter[str] = Counter()
    judged: Counter[str] = Counter()
    draw, start = random.Random(seed + 1), time.perf_counter()
    for text, options in noise(count, seed=seed):
        kind, with_options = draw.choice(QUESTIONS)
        gold = draw.choice(("yes", "no")) if kind == "yes_no" else draw.choice(options)
        for profile in PROFILES:
            answer = parse(text, options=options, profile=profile)
            shown = options if with_options else None
            verdict = judge(text, gold, options=shown, answer_type=kind, profile=profile)
            check(answer, options, text)
            check_verdict(verdict, text)
            if kind is None and with_options:
                check_together(answer, verdict, gold, text, profile)
            found[f"{profile}: {answer.failure or answer.how}"] += 1
            judged[
                f"{profile}: {'right' if verdict.correct else 'wrong' if verdict.counted else 'left out'}"
            ] += 1
    return {
        "texts": count,
        "seed": seed,
        "profiles": list(PROFILES),
        "seconds": time.perf_counter() - start,
        "found": dict(sorted(found.items())),
        "judged": dict(sorted(judged.items())),
    }


def check(answer: Answer, options: Sequence[str], text: str) -> None:
    """A reading is one of the options, or else a named failure."""
    assert (answer.value is None) == (answer.failure in FAILURES), text
    assert answer.value is None or answer.value in options, text


def check_verdict(verdict: Verdict, text: str) -> None:
    """Scores and their parts lie between 0 and 1."""
    assert all(0 <= value <= 1 for value in (verdict.score, *verdict.parts.values())), text


def check_together(answer: Answer, verdict: Verdict, gold: str, text: str, profile: str) -> None:
    """What is read as the gold option is right, and what is read as another one, or as none, is not."""
    if answer.failure == "two_answers" and profile in PUBLISHED:
        return  # a rule that would call several options right
    assert verdict.correct == (answer.value == gold), text


def answers_per_second(cases: Sequence[tuple[str, Sequence[str] | None]]) -> list[float]:
    """The rate of each of `PASSES` passes over the cases, after one that is not counted."""
    rates = []
    for _ in range(PASSES + 1):
        start = time.perf_counter()
        for text, options in cases:
            parse(text, options=options)
        rates.append(len(cases) / (time.perf_counter() - start))
    return rates[1:]


def is_wrong(row: dict[str, Any]) -> bool:
    """Whether a golden row is not read as it says."""
    answer = parse(row["text"], options=row["options"])
    told = {"failure": answer.failure} if answer.value is None else {"value": answer.value, "how": answer.how}
    return told != row["lite"]


def spread(rates: Sequence[float]) -> dict[str, float]:
    """Median and extremes over the passes."""
    return {"median": statistics.median(rates), "min": min(rates), "max": max(rates), "passes": len(rates)}


def main() -> None:
    """Measure, then fuzz."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    rows = golden()
    mixed = answers_per_second([(row["text"], row["options"]) for row in rows])
    plain = [
        (f"<think> x </think><answer> {o} </answer>", r["options"]) for r in rows for o in r["options"] or ()
    ]
    result = {
        "command": "make parser",
        "profile": "lite-v1",
        "golden_table": {"cases": len(rows), "wrong_readings": sum(map(is_wrong, rows))},
        "answers_per_second": {
            "golden_table": spread(mixed),
            "plain_answers": spread(answers_per_second(plain)),
        },
        "fuzz": fuzz(args.texts, seed=args.seed) | {"exceptions": 0},
        "device": f"one core, {platform.machine()}",
        "python": platform.python_version(),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if args.output:
        args.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
