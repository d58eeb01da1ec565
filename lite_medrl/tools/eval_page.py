"""An evaluation for people: results.md, and the same in short for the terminal.

No figure stands without its n, interval, protocol, chance line and rate of answers that could not be read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from lite_medrl.measure.published import COLUMN_OF, COLUMNS, PUBLISHED, TITLES, Published
from lite_medrl.measure.scores import PARTS
from lite_medrl.measure.statistics import too_few

Json = dict[str, Any]


def page(results: Json) -> str:
    """results.md."""
    blocks = [
        f"# {title(results)}",
        "Research only; no output of a model is a finding.",
        headline(results),
        *(block for one in results["benchmarks"] for block in details(one)),
        beside_published(results),
        provenance(results),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def describe(results: Json) -> str:
    """A few lines for the terminal."""
    if "missing" in results:
        return (
            f"shard {results['shard']} is done; {results['missing']} of {results['of']} questions are still "
            f"missing from other shards in {results['output_dir']}"
        )
    lines = [f"{title(results)}"]
    for one in results["benchmarks"]:
        lines += [one["id"], *(f"  {line}" for line in told(one))]
    if results["average"]:
        mean = results["average"]
        lines.append(f"mean of {len(mean['parts'])} parts: {interval(mean['accuracy'], mean['ci95'])}")
    lines.append(f"all figures: {results['output_dir']}/results.md")
    return "\n".join(lines)


def title(results: Json) -> str:
    """Which model, which stage, which protocol."""
    model = results["model"]
    stage = "" if model["stage"] == "base" else f" ({model['stage']})"
    return f"{model['name']}{stage}, protocol {results['protocol']['id']}"


def told(one: Json) -> Iterator[str]:
    """The main figures of one benchmark, a line each."""
    if closed := one.get("closed"):
        yield (
            f"accuracy {interval(closed['accuracy'], closed['ci95'])}, n = {closed['n']}, chance "
            f"{closed['chance']:.3f}, not readable {closed['parse_failure_frac']:.1%}{few(closed['n'])}"
        )
    if drawn := one.get("sampled"):
        k = str(drawn["num_samples"])
        yield (
            f"mean@{k} {drawn['mean_at_k']:.3f}, maj@{k} {drawn['maj_at_k'][k]:.3f}, Pass@{k} "
            f"{drawn['pass_at_k'][k]:.3f} (chance {drawn['chance_pass_at_k'][k]:.3f})"
        )
    if free := one.get("open"):
        yield (
            f"open questions, n = {free['n']}: exact match "
            f"{interval(free['exact_match']['mean'], free['exact_match']['ci95'])}, token F1 "
            f"{free['f1']['mean']:.3f}, recall {free['recall']['mean']:.3f}{few(free['n'])}"
        )
    if relied := one.get("reliance"):
        yield f"image: {reliance_line(relied)}"
    yield from (f"note: {text}" for text in one["surprises"])
    if left := one["left_out"]["skipped"]:
        yield f"note: {left} rows skipped for a fault"


def reliance_line(relied: Json) -> str:
    """What changes without the image, in one line."""
    parts = []
    for name in ("blank", "shuffled"):
        if name in relied:
            shown = {"blank": "a grey image", "shuffled": "another image"}[name]
            parts.append(f"{relied[name]['accuracy']:.3f} with {shown}")
    parts.append(f"{relied['unchanged_frac']:.1%} of answers do not change")
    return ", ".join(parts)


def headline(results: Json) -> str:
    """The table of closed questions, one row a benchmark or part."""
    rows = [
        [
            one["name"], str(c["n"]), interval(c["accuracy"], c["ci95"]), f"{c['chance']:.3f}",
            f"{c['parse_failure_frac']:.1%}", *also_ours(results, c), *shown_without(one.get("reliance")),
        ]
        for one in results["benchmarks"] if (c := one.get("closed"))
    ]  # fmt: skip
    if results["average"]:
        mean = results["average"]
        name = f"mean of {len(mean['parts'])} parts"
        rows.append([name, "", interval(mean["accuracy"], mean["ci95"])])
    if not rows:
        return ""
    names = [
        "benchmark", "n", f"accuracy ({results['protocol']['name']}) [95 %]", "chance", "not readable",
        *(["read by lite-v1 [95 %]"] if not reads_as_ours(results) else []),
        "grey image", "another image", "answers unchanged",
    ]  # fmt: skip
    return table(names, [[*row, *[""] * (len(names) - len(row))] for row in rows])


def reads_as_ours(results: Json) -> bool:
    """Whether the protocol reads answers by our rule."""
    return results["protocol"]["profile"] == "lite-v1"


def also_ours(results: Json, closed: Json) -> list[str]:
    """What our rule says of the same answers, where the protocol has a rule of its own."""
    if reads_as_ours(results):
        return []
    return [interval(closed["lite_v1_accuracy"], closed["lite_v1_ci95"])]


def shown_without(relied: Json | None) -> list[str]:
    """Accuracy with the grey and with another image, and the share of answers that stayed."""
    if relied is None:
        return ["not asked"] * 3
    cells = [f"{relied[name]['accuracy']:.3f}" if name in relied else "" for name in ("blank", "shuffled")]
    return [*cells, f"{relied['unchanged_frac']:.1%}"]


def details(one: Json) -> Iterator[str]:
    """The blocks of one benchmark."""
    yield f"## {one['name']}"
    yield f"{one['title']}. Protocol and n: `{one['id']}`."
    yield "\n".join(f"* {line}" for line in told(one))
    if drawn := one.get("sampled"):
        yield sampled_table(drawn)
    if relied := one.get("reliance"):
        yield reliance_table(relied)
    if free := one.get("open"):
        yield open_table(free)
    if closed := one.get("closed"):
        for part in PARTS:
            name, groups = part.replace("kind", "question type").replace("_", " "), closed[f"by_{part}"]
            if len(groups) > 1:
                yield parts_table(name, groups)


def sampled_table(drawn: Json) -> str:
    """Pass@K beside its chance line, and maj@K."""
    rows = [
        [
            k, interval(drawn["pass_at_k"][k], drawn["pass_at_k_ci95"][k]),
            f"{drawn['chance_pass_at_k'][k]:.3f}", f"{drawn['maj_at_k'][k]:.3f}",
            f"{drawn['maj_at_k_tied_frac'][k]:.1%}",
        ]
        for k in drawn["pass_at_k"]
    ]  # fmt: skip
    return table(["K", "Pass@K [95 %]", "Pass@K of guessing", "maj@K", "of them tied"], rows)


def reliance_table(relied: Json) -> str:
    """The conditions against the own image."""
    rows = [
        [
            {"blank": "grey", "shuffled": "another question's"}[name], str(row["n"]),
            interval(row["accuracy"], row["ci95"]), signed(row["drop"], row["drop_ci95"]),
            f"{row['drop_p']:.2g}", interval(row["changed_frac"], row["changed_ci95"]),
        ]
        for name in ("blank", "shuffled") if (row := relied.get(name))
    ]  # fmt: skip
    names = ["image shown", "n", "accuracy [95 %]", "lost against the own image [95 %]", "McNemar p",
             "answers changed [95 %]"]  # fmt: skip
    return table(names, rows)


def open_table(free: Json) -> str:
    """Scores of open answers."""
    rows = [
        [name, interval(free[key]["mean"], free[key]["ci95"])]
        for key, name in (("exact_match", "exact match"), ("f1", "token F1"), ("recall", "token recall"))
    ]
    if free["protocol_score"] is not None:
        rows.append(["the protocol's own score", f"{free['protocol_score']:.3f}"])
    if judge := free.get("judge"):
        rows.append(
            [f"accepted by the judge {judge['model']['name']}", interval(judge["accuracy"], judge["ci95"])]
        )
    return table([f"open questions, n = {free['n']}", "mean [95 %]"], rows)


def parts_table(name: str, groups: Json) -> str:
    """Accuracy by label."""
    rows = [
        [
            label,
            str(g["n"]),
            interval(g["accuracy"], g["ci95"]),
            f"{g['parse_failure_frac']:.1%}",
        ]
        for label, g in groups.items()
    ]
    return table([name, "n", "accuracy [95 %]", "not readable"], rows)


def beside_published(results: Json) -> str:
    """What others have published on the same benchmarks, with our row; "" where none is theirs."""
    ours = {
        COLUMN_OF[one["name"]]: 100 * one["closed"]["accuracy"]
        for one in results["benchmarks"]
        if one["name"] in COLUMN_OF and "closed" in one and one["closed"]["accuracy"] is not None
    }
    if not ours:
        return ""
    rows = [published_row(one) for one in PUBLISHED]
    mean = f"{sum(ours.values()) / len(ours):.2f}" if len(ours) == len(COLUMNS) else ""
    cells = [f"**{ours[name]:.2f}**" if name in ours else "" for name in COLUMNS]
    rows.append([f"**{title(results)}**", *cells, mean, results["protocol"]["id"], "measured here"])
    note = (
        "## Beside published figures\n\nPercent of closed questions, as published; none of these was "
        "measured here. A row of another protocol, precision, answer budget or set of questions is no "
        "yardstick."
    )
    return f"{note}\n\n{table(['model', *TITLES, 'mean', 'protocol', 'source'], rows)}"


def published_row(one: Published) -> list[str]:
    """A row of the table of published figures."""
    source = one.source if one.certain else f"{one.source} (not from the authors)"
    return [one.model, *(f"{value:.2f}" for value in one.percent), f"{one.mean:.2f}", one.protocol, source]


def provenance(results: Json) -> str:
    """How the figures came about."""
    protocol, model = results["protocol"], results["model"]
    precision = f"{'4-bit, ' if model['load_in_4bit'] else ''}{model['dtype']} on {model['device']}"
    versions = ", ".join(f"{name} {value}" for name, value in results["versions"].items())
    lines = [
        f"protocol: {protocol['id']} ({protocol['source']}); answers: {drawing(protocol)}; read by "
        f"`{protocol['profile']}`",
        f"model: {model['name']}, weights {model['fingerprint']}, stage {model['stage']}, adapter "
        f"{model['adapter'] or 'none'}, {precision}",
        f"seed {results['seed']}, limit {results['limit'] or 'none'}, {results['date']}, {versions}",
        f"time: {results['total_s']:.0f} s, of them {results['answering_s']:.0f} s for the answers to "
        f"{results['answered_here']} questions; {results['cpu_cores']} CPU cores, peak memory "
        f"{results['peak_gib']['rss']:.1f} GiB",
        f"command: `{results['command']}`",
    ]
    if protocol["note"]:
        lines.insert(1, f"note on the protocol: {protocol['note']}")
    example = "\n".join(f"    {line}" for line in protocol["example"].splitlines())
    told = "\n".join(f"* {line}" for line in lines)
    return f"## How\n\n{told}\n\nThe first question as it was put:\n\n{example}"


def drawing(protocol: Json) -> str:
    """How answers are drawn, in words."""
    if protocol["choose"]:
        return "the likeliest letter"
    greedy = f"greedy, up to {protocol['max_new_tokens']} tokens"
    if not protocol["num_samples"]:
        return greedy
    at = f"temperature {protocol['temperature']}, top_p {protocol['top_p']}"
    return f"{greedy}; {protocol['num_samples']} samples at {at}"


def interval(value: float | None, ci: Sequence[float] | None) -> str:
    """A fraction with its interval."""
    if value is None or ci is None:
        return "none counted"
    return f"{value:.3f} [{ci[0]:.3f}, {ci[1]:.3f}]"


def signed(value: float, ci: Sequence[float]) -> str:
    """A difference with its interval."""
    return f"{value:+.3f} [{ci[0]:+.3f}, {ci[1]:+.3f}]"


def few(n: int) -> str:
    """A warning where hardly anything can be said, in brackets."""
    told = too_few(n)
    return f" ({told})" if told else ""


def table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; bars in cells are escaped."""
    cells = [names, ["---"] * len(names), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells)
