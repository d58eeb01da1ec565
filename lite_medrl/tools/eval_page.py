"""An evaluation for people: results.md, and the same in short for the terminal.

No figure stands without its n, interval, protocol, chance line and rate of answers that could not be read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from lite_medrl.measure.published import COLUMN_OF, COLUMNS, NUMBERS, PUBLISHED, TITLES, Published
from lite_medrl.measure.scores import OPEN, PARTS
from lite_medrl.measure.statistics import too_few

Json = dict[str, Any]
SHOWN = {"blank": "a grey image", "shuffled": "another image"}


def page(results: Json) -> str:
    """results.md."""
    blocks = [
        f"# {title(results)}",
        "Research only; no output of a model is a finding. Small brackets: 95 % intervals.",
        headline(results),
        left_out(results),
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
    if mean := results["average"]:
        lines.append(
            f"mean of {len(mean['parts'])} parts, n = {mean['n']}: {interval(mean['accuracy'], mean['ci95'])}"
        )
    lines += notes(results)
    lines.append(f"all figures: {results['output_dir']}/results.md")
    return "\n".join(lines)


def title(results: Json) -> str:
    """Which model, which stage, which protocol."""
    model = results["model"]
    stage = "" if model["stage"] == "base" else f" ({model['stage']})"
    return f"{model['name']}{stage}, protocol {results['protocol']['id']}"


def notes(results: Json) -> list[str]:
    """What was left out of the benchmarks, with the first reasons."""
    found = []
    for name, left in results["left_out"].items():
        if left["skipped"]:
            found.append(f"{name}: {left['skipped']} of {left['rows']} rows skipped, see skipped.jsonl")
            found += [f"  {fault}" for fault in left["faults"][:5]]
        if left["not_asked"]:
            found.append(f"{name}: {left['not_asked']} open questions not asked, as letters are chosen")
        if left["other_questions"]:
            found.append(f"{name}: {left['other_questions']} questions of the other sort left out")
    return found


def left_out(results: Json) -> str:
    """The same as a list; "" where nothing was."""
    return "\n".join(f"{'  ' if line.startswith(' ') else ''}* {line.strip()}" for line in notes(results))


def told(one: Json) -> Iterator[str]:
    """The main figures of one benchmark, a line each."""
    if closed := one.get("closed"):
        yield (
            f"accuracy {interval(closed['accuracy'], closed['ci95'])}, {number(closed)}, chance "
            f"{closed['chance']:.3f}, not readable {closed['parse_failure_frac']:.1%}{few(closed['counted'])}"
        )
        yield from reliance_lines(closed, "image")
    if drawn := one.get("sampled"):
        k = str(drawn["num_samples"])
        yield (
            f"mean@{k} {interval(drawn['mean_at_k'], drawn['mean_at_k_ci95'])}, maj@{k} "
            f"{interval(drawn['maj_at_k'][k], drawn['maj_at_k_ci95'][k])}, Pass@{k} "
            f"{interval(drawn['pass_at_k'][k], drawn['pass_at_k_ci95'][k])} (guessing "
            f"{drawn['chance_pass_at_k'][k]:.3f})"
        )
    if free := one.get("open"):
        scores = ", ".join(f"{name} {mean_of(free[key])}" for key, name in OPEN.items())
        yield (
            f"open questions, n = {free['n']}: {scores}, not readable {free['parse_failure_frac']:.1%}"
            f"{few(free['n'])}"
        )
        yield from reliance_lines(free, "image, open questions")
    yield from (f"note: {text}" for text in one["surprises"])


def reliance_lines(figures: Json, name: str) -> Iterator[str]:
    """What changes without the image, in one line; none where no other image was shown."""
    if not (relied := figures["reliance"]):
        return
    parts = [
        f"{interval(row['accuracy'], row['ci95'])} with {SHOWN[other]}"
        for other in SHOWN
        if (row := relied.get(other))
    ]
    unchanged = [1 - end for end in reversed(relied["image_sensitivity_ci95"])]
    yield f"{name}: {', '.join(parts)}; {interval(relied['unchanged_frac'], unchanged)} of answers unchanged"


def headline(results: Json) -> str:
    """The table of closed questions, one row a benchmark or part."""
    ours = results["protocol"]["profile"] == "lite-v1"
    names = [
        "benchmark", "n", f"accuracy, read by {results['protocol']['profile']}", "chance", "not readable",
        *([] if ours else ["the same, read by lite-v1"]),
        "grey image", "another image", "visual reliance", "answers unchanged",
    ]  # fmt: skip
    rows = [
        [
            one["name"], number(c).removeprefix("n = "), interval(c["accuracy"], c["ci95"]),
            f"{c['chance']:.3f}", f"{c['parse_failure_frac']:.1%}",
            *([] if ours else [interval(c["lite_v1_accuracy"], c["lite_v1_ci95"])]),
            *reliance_cells(results, c["reliance"]),
        ]
        for one in results["benchmarks"] if (c := one.get("closed"))
    ]  # fmt: skip
    if rows and (mean := results["average"]):
        accuracy = interval(mean["accuracy"], mean["ci95"])
        cells = [f"mean of {len(mean['parts'])} parts", str(mean["n"]), accuracy]
        rows.append(cells + [""] * (len(names) - len(cells)))
    return table(names, rows) if rows else ""


def reliance_cells(results: Json, relied: Json | None) -> list[str]:
    """Accuracy with the grey and with another image, what the own image adds, and what stayed."""
    found = relied or {}
    cells = []
    for name in SHOWN:
        if row := found.get(name):
            cells.append(interval(row["accuracy"], row["ci95"]))
        else:
            cells.append("there is none" if name in results["images"] else "not asked")
    other = found.get("shuffled")
    cells.append(signed(other["drop"], other["drop_ci95"]) if other else "")
    if not relied:
        return [*cells, ""]
    unchanged = [1 - end for end in reversed(relied["image_sensitivity_ci95"])]
    return [*cells, interval(relied["unchanged_frac"], unchanged)]


def details(one: Json) -> Iterator[str]:
    """The blocks of one benchmark."""
    yield f"## {one['name']}"
    yield f"{one['title']}. Protocol and n: `{one['id']}`."
    yield "\n".join(f"* {line}" for line in told(one))
    if drawn := one.get("sampled"):
        yield sampled_table(drawn)
    for kind in ("closed", "open"):
        if not (figures := one.get(kind)):
            continue
        if kind == "open":
            yield open_table(figures)
        if figures["reliance"]:
            yield reliance_table(figures["reliance"], kind)
        for part in PARTS:
            if len(groups := figures.get(f"by_{part}", {})) > 1:
                yield parts_table(part, groups, kind)


def sampled_table(drawn: Json) -> str:
    """Pass@K beside its chance line, and maj@K."""
    rows = [
        [
            k, interval(drawn["pass_at_k"][k], drawn["pass_at_k_ci95"][k]),
            f"{drawn['chance_pass_at_k'][k]:.3f}", interval(drawn["maj_at_k"][k], drawn["maj_at_k_ci95"][k]),
            f"{drawn['maj_at_k_tied_frac'][k]:.1%}",
        ]
        for k in drawn["pass_at_k"]
    ]  # fmt: skip
    return table([f"K (n = {drawn['n']})", "Pass@K", "Pass@K of guessing", "maj@K", "votes tied"], rows)


def reliance_table(relied: Json, kind: str) -> str:
    """The conditions against the own image."""
    rows = [
        [
            SHOWN[name], str(row["n"]), f"{row['real_accuracy']:.3f}", interval(row["accuracy"], row["ci95"]),
            signed(row["drop"], row["drop_ci95"]), f"{row['drop_p']:.2g}",
            interval(row["changed_frac"], row["changed_ci95"]),
        ]
        for name in SHOWN if (row := relied.get(name))
    ]  # fmt: skip
    names = [
        f"image shown ({kind} questions)", "n", "with the own image", "with this one", "lost", "McNemar p",
        "answers changed",
    ]  # fmt: skip
    return table(names, rows)


def open_table(free: Json) -> str:
    """Scores of open answers."""
    rows = [[name, mean_of(free[key])] for key, name in OPEN.items()]
    if score := free["protocol_score"]:
        rows.append([f"the protocol's own score (n = {score['n']})", mean_of(score)])
    rows += [[f"the protocol's {name}", mean_of(part)] for name, part in free["protocol_parts"].items()]
    if judge := free.get("judge"):
        name = f"accepted by the judge {judge['model']['name']}"
        rows.append([name, interval(judge["accuracy"], judge["ci95"])])
    return table([f"open questions, n = {free['n']}", "mean"], rows)


def parts_table(part: str, groups: Json, kind: str) -> str:
    """Accuracy (of open questions: exact match and F1) by label."""
    names = [f"{part.replace('kind', 'question type').replace('_', ' ')} ({kind})", "n"]
    if kind == "closed":
        rows = [
            [label, str(row["n"]), interval(row["accuracy"], row["ci95"])] for label, row in groups.items()
        ]
        names.append("accuracy")
    else:
        rows = [
            [label, str(row["n"]), mean_of(row["open"]["exact_match"]), mean_of(row["open"]["f1"])]
            for label, row in groups.items()
        ]
        names += ["exact match", "token F1"]
    failed = [f"{row['parse_failure_frac']:.1%}" for row in groups.values()]
    return table([*names, "not readable"], [[*row, share] for row, share in zip(rows, failed, strict=True)])


def beside_published(results: Json) -> str:
    """What others have published on the same benchmarks, with our row; "" where none is theirs.

    A limited draw of questions is not set beside them.
    """
    ours = {
        COLUMN_OF[one["name"]]: one["closed"]
        for one in results["benchmarks"]
        if one["name"] in COLUMN_OF and "closed" in one and one["closed"]["accuracy"] is not None
    }
    if not ours or results["limit"]:
        return ""
    rows = [published_row(one) for one in PUBLISHED]
    cells = [our_cell(ours.get(name)) for name in COLUMNS]
    values = [100 * c["accuracy"] for c in ours.values()]
    mean = f"{sum(values) / len(values):.2f}" if len(ours) == len(COLUMNS) else ""
    rows.append([f"**{title(results)}**", *cells, mean, results["protocol"]["id"], "measured here"])
    note = (
        "## Beside published figures\n\nPercent of closed questions, as published; none of these was "
        "measured here. A row of another protocol, precision, answer budget or set of questions (another n) "
        "is no yardstick."
    )
    titles = [f"{name} (n = {NUMBERS[key]})" for key, name in zip(COLUMNS, TITLES, strict=True)]
    return f"{note}\n\n{table(['model', *titles, 'mean', 'protocol', 'source'], rows)}"


def our_cell(closed: Json | None) -> str:
    """Our percent of one column with its interval and n; "" where we have none."""
    if closed is None:
        return ""
    low, high = (100 * end for end in closed["ci95"])
    return f"**{100 * closed['accuracy']:.2f}** [{low:.2f}, {high:.2f}], n = {closed['counted']}"


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
    at += f", top_k {protocol['top_k']}" if protocol["top_k"] else ""
    return f"{greedy}; {protocol['num_samples']} samples at {at}"


def interval(value: float | None, ci: Sequence[float] | None) -> str:
    """A fraction with its interval."""
    if value is None or ci is None:
        return "none counted"
    return f"{value:.3f} [{ci[0]:.3f}, {ci[1]:.3f}]"


def mean_of(row: Json) -> str:
    """A mean with its interval."""
    return interval(row["mean"], row["ci95"])


def number(closed: Json) -> str:
    """How many questions, and how many of them the protocol's rule has in its mean."""
    counted = "" if closed["counted"] == closed["n"] else f", of which the rule counts {closed['counted']}"
    return f"n = {closed['n']}{counted}"


def signed(value: float, ci: Sequence[float]) -> str:
    """A difference with its interval."""
    return f"{value:+.3f} [{ci[0]:+.3f}, {ci[1]:+.3f}]"


def few(n: int) -> str:
    """A warning where hardly anything can be said, in brackets."""
    said = too_few(n)
    return f" ({said})" if said else ""


def table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; bars and line breaks in cells are escaped."""
    cells = [[plain(cell) for cell in row] for row in (names, *rows)]
    lines = [cells[0], ["---"] * len(names), *cells[1:]]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


def plain(cell: str) -> str:
    """A text that stays in its cell."""
    return " ".join(cell.replace("|", "\\|").split())
