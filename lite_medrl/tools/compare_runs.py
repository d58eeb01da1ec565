"""Is run B better than run A? Two runs or evaluations of the same questions, paired question by question.

Each run brings one stage: the last one measured on the split, or the one named. Only greedy answers are
tested; the sampled ones give mean@K, maj@K and Pass@K beside its chance line. Intervals are Wilson's for an
accuracy and a paired bootstrap over questions for a difference. One of them is called better only where that
interval leaves out 0 and McNemar's exact p is below 0.05; that speaks of two models, not of two recipes,
whose seeds can differ as much.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lite_medrl.measure.pool import read_results
from lite_medrl.measure.reliance import counts
from lite_medrl.measure.scores import OPEN, PARTS, label, scores, token_scores
from lite_medrl.measure.statistics import mcnemar, paired_bootstrap, too_few
from lite_medrl.measure.summary import SAMPLED
from lite_medrl.tools.eval_side import evaluation_side, is_evaluation
from lite_medrl.tools.report.run import read_lines
from lite_medrl.tools.report.words import ALPHA
from lite_medrl.types import RecipeError

Json = dict[str, Any]
SAME = ("question", "options", "answer")
ROW: dict[str, type | tuple[type, ...]] = {
    "id": str, "question": str, "options": list, "answer": str, "kind": str, "modality": str,
    "greedy": str, "failure": (str, type(None)), "correct": bool,
}  # fmt: skip


def compare_runs(first: Path, second: Path, *, split: str = "test", stage: str | None = None) -> Json:
    """Accuracies of both runs, second minus first with its interval, and McNemar's test; whole and in parts.

    Raises RecipeError where a folder holds no finished run or a damaged one, a stage was not measured on the
    split, or the questions differ.
    """
    sides = {"a": _side(first, split, stage), "b": _side(second, split, stage)}
    if is_evaluation(first) != is_evaluation(second):
        raise RecipeError(
            f"{first} and {second}: a run and an evaluation; evaluate both, or compare two runs"
        )
    pairs, free = (_paired(sides, key, (first, second)) for key in ("rows", "open_rows"))
    protocols = dict.fromkeys(side["protocol"] for side in sides.values())
    tested = _tested(pairs)
    return {
        "split": sides["a"]["split"],
        "n": len(pairs),
        "protocol": " and ".join(protocols),
        "one_protocol": len(protocols) == 1,
        "chance": _chance(pairs),
        **sides,
        **tested,
        "verdict": verdict(tested, len(pairs)),
        **{f"by_{part}": _by(part, pairs) for part in PARTS},
        **({"open": _open(free)} if free else {}),
    }


def describe(found: Json) -> str:
    """The comparison as lines of text."""
    sides = (found["a"], found["b"])
    lines = [f"{found['n']} questions of the {found['split']} split, read by {found['protocol']}"]
    if not found["one_protocol"]:
        lines.append("two protocols: the difference is theirs as well as the models'")
    lines += [f"{name}  {_line(side)}" for name, side in zip("AB", sides, strict=True)]
    if found["chance"] is not None:
        lines.append(f"guessing: {found['chance']:.3f}")
    lines += [
        f"{name}  {side['skipped']} rows skipped for a fault"
        for name, side in zip("AB", sides, strict=True)
        if side["skipped"]
    ]
    lines += [text for name, side in zip("AB", sides, strict=True) if (text := _sampled_line(name, side))]
    test = found["mcnemar"]
    lines += [
        f"B - A  {_difference(found)}",
        f"McNemar: {test['b']} right in A only, {test['c']} in B only; p = {test['p']:.2g} exact, "
        f"{test['p_mid']:.2g} mid-p, {test['p_continuity']:.2g} with continuity correction",
    ]
    for part in PARTS:
        for name, row in found[f"by_{part}"].items():
            lines.append(
                f"{part} {name} (n = {row['n']}): {row['a']:.3f} -> {row['b']:.3f}, {_difference(row)}, "
                f"p = {row['mcnemar']['p']:.2g}"
            )
    if free := found.get("open"):
        told = ", ".join(f"{OPEN[key]} {_difference(free[key])}" for key in OPEN)
        lines.append(f"open questions (n = {free['n']}), B - A: {told}")
    return "\n".join([*lines, found["verdict"]])


def verdict(tested: Json, n: int) -> str:
    """Which of the two is better over n questions, in one sentence."""
    if too_few(n):
        return f"{too_few(n)}."
    low, high = tested["difference_ci95"]
    if low <= 0 <= high or tested["mcnemar"]["p"] >= ALPHA:
        return f"No difference can be told from n = {n} questions."
    ahead = [tested["difference"], low, high] if low > 0 else [-tested["difference"], -high, -low]
    points, low, high = (100 * value for value in ahead)
    return (
        f"{'B' if tested['difference'] > 0 else 'A'} is better: {points:+.1f} points [{low:.1f}, {high:.1f}]."
    )


def _side(folder: Path, split: str, stage: str | None) -> Json:
    """One run's stage, or an evaluation: where it is from, its scores, and its rows by question."""
    if is_evaluation(folder):
        return evaluation_side(folder)
    stages = [row for row in read_results(folder)["stages"] if row["split"] == split]
    names = [row["name"] for row in stages]
    if not names or (stage is not None and stage not in names):
        missing = f"stage {stage!r} was not" if names else "nothing was"
        known = f"; measured: {', '.join(names)}" if names else ""
        raise RecipeError(f"{folder}: {missing} measured on the {split} split{known}")
    chosen = stages[names.index(stage)] if stage else stages[-1]
    rows = _rows(folder, split, chosen["name"])
    sampled = {key: chosen[key] for key in SAMPLED if key in chosen}
    _check_sampled(sampled, f"{folder / 'results.json'}: stage {chosen['name']!r}")
    return {
        "run": str(folder),
        "stage": chosen["name"],
        "protocol": "lite-v1",
        "split": split,
        "scores": scores(list(rows.values())),
        **sampled,
        "skipped": _skipped(folder, split),
        "rows": rows,
        "open_rows": {},
    }


def _skipped(folder: Path, split: str) -> int:
    """How many rows of the split a run left out for a fault; 0 where it does not say."""
    left = read_results(folder).get("data", {}).get("left_out", {}).get(split, {})
    return int(left.get("skipped", 0))


def _check_sampled(sampled: Json, where: str) -> None:
    """RecipeError unless the figures by K are there for every K of Pass@K."""
    ks = sampled.get("pass_at_k", {})
    for key in ("pass_at_k", "chance_pass_at_k") if "pass_at_k" in sampled else ():
        values = sampled.get(key)
        if not isinstance(values, dict) or not all(k.isdigit() and k in values for k in ks):
            raise RecipeError(f"{where}: {key} is {values!r:.60}; another version wrote it, so run again")


def _rows(folder: Path, split: str, stage: str) -> dict[str, Json]:
    """Question id -> its line in completions.jsonl."""
    path = folder / "completions.jsonl"
    if not path.is_file():
        raise RecipeError(f"{folder}: no completions.jsonl; it is needed to pair the questions")
    found: dict[str, Json] = {}
    for number, row in read_lines(path):
        if (row.get("split"), row.get("name")) == (split, stage):
            _check_row(row, f"{path}:{number}")
            found[row["id"]] = row
    if not found:
        raise RecipeError(f"{path}: no answers of stage {stage!r} on the {split} split")
    return found


def _check_row(row: Json, where: str) -> None:
    """RecipeError unless a line has all that is compared, in the type that a run writes."""
    for key, kind in ROW.items():
        if key not in row:
            raise RecipeError(f"{where}: lacks {key!r}; another version wrote it, so run again")
        if not isinstance(row[key], kind):
            raise RecipeError(f"{where}: {key!r} is {row[key]!r:.60}; run again with --overwrite")


def _check_alike(first: Mapping[str, Json], second: Mapping[str, Json], folders: tuple[Path, Path]) -> None:
    """RecipeError unless both answered the same questions with the same options and gold answers."""
    for one, other, here, there in ((first, second, *folders), (second, first, *reversed(folders))):
        alone = sorted(one.keys() - other.keys())
        if alone:
            raise RecipeError(
                f"{here} answered {len(alone)} questions that {there} did not, such as {alone[0]!r}; "
                "compare runs of the same data and limits"
            )
    for name, row in first.items():
        for key in SAME:
            if row[key] != second[name][key]:
                raise RecipeError(
                    f"question {name!r} has another {key} in {folders[1]} ({second[name][key]!r}) than in "
                    f"{folders[0]} ({row[key]!r})"
                )


def _paired(sides: Mapping[str, Json], key: str, folders: tuple[Path, Path]) -> list[tuple[Json, Json]]:
    """The answers of both sides to each question, taken out of the sides; those that count on both."""
    rows_a, rows_b = (side.pop(key) for side in sides.values())
    _check_alike(rows_a, rows_b, folders)
    pairs = [(rows_a[name], rows_b[name]) for name in rows_a]
    return [pair for pair in pairs if all(map(counts, pair))]


def _chance(pairs: Sequence[tuple[Json, Json]]) -> float | None:
    """Accuracy of guessing among the options; None where a question has none."""
    options = [len(pair[0]["options"]) for pair in pairs]
    return sum(1 / count for count in options) / len(options) if all(options) else None


def _open(pairs: Sequence[tuple[Json, Json]]) -> Json:
    """Second minus first in the scores of open answers, paired, with intervals."""
    scored = [[token_scores(row["greedy"], row["answer"]) for row in pair] for pair in pairs]
    found: Json = {"n": len(pairs)}
    for name in OPEN:
        both = ([scores[place][name] for scores in scored] for place in (0, 1))
        tested = paired_bootstrap(*both)
        found[name] = {"difference": tested.difference, "difference_ci95": list(tested.ci95)}
    return found


def _tested(pairs: Sequence[tuple[Json, Json]]) -> Json:
    first, second = ([pair[place]["correct"] for pair in pairs] for place in (0, 1))
    difference, exact = paired_bootstrap(first, second), mcnemar(first, second)
    others = {
        f"p_{method.split('-')[0]}": mcnemar(first, second, method=method).p
        for method in ("mid-p", "continuity")
    }
    return {
        "difference": difference.difference,
        "difference_ci95": list(difference.ci95),
        "mcnemar": {"b": exact.b, "c": exact.c, "p": exact.p, **others},
    }


def _by(part: str, pairs: Sequence[tuple[Json, Json]]) -> Json:
    groups: dict[str, list[tuple[Json, Json]]] = {}
    for pair in pairs:
        groups.setdefault(label(pair[0], part), []).append(pair)
    return {name: _group(groups[name]) for name in sorted(groups)}


def _group(pairs: Sequence[tuple[Json, Json]]) -> Json:
    a, b = (sum(pair[place]["correct"] for pair in pairs) / len(pairs) for place in (0, 1))
    return {"n": len(pairs), "a": a, "b": b, **_tested(pairs)}


def _line(side: Json) -> str:
    figures = side["scores"]
    low, high = figures["ci95"]
    return (
        f"{side['run']} ({side['stage']}): accuracy {figures['accuracy']:.3f} [{low:.3f}, {high:.3f}], "
        f"not readable {figures['parse_failure_frac']:.1%}"
    )


def _sampled_line(name: str, side: Json) -> str:
    """mean@K, maj@K, Pass@K and what guessing would reach, for every K; "" where the run has none."""
    if "pass_at_k" not in side:
        return ""
    ks = sorted(side["pass_at_k"], key=int)
    mean = [f"mean@K {side['mean_at_k']:.3f}"] if "mean_at_k" in side else []
    majority = [f"maj@{k} {side['maj_at_k'][k]:.3f}" for k in ks if k in side.get("maj_at_k", {})]
    reached = [f"Pass@{k} {side['pass_at_k'][k]:.3f} (chance {side['chance_pass_at_k'][k]:.3f})" for k in ks]
    return f"{name}  {', '.join([*mean, *majority, *reached])}"


def _difference(row: Json) -> str:
    low, high = row["difference_ci95"]
    return f"{row['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"
