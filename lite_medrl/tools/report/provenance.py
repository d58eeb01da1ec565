"""Where figures and images come from: command, versions, time, memory, recipe; sources and licences."""

from __future__ import annotations

from typing import Any

from lite_medrl.data.parts import EMBEDDED
from lite_medrl.tools.report.markup import NONE, Html, join, row_of, tag
from lite_medrl.tools.report.run import Run, read_json
from lite_medrl.tools.report.words import duration

Json = dict[str, Any]
PARTS = {
    "load": "loading",
    "diagnose": "measuring",
    "sft": "SFT",
    "grpo": "GRPO",
    "report": "baselines, tests",
}
RESEARCH_ONLY = "Not a medical device; nothing here may inform the care of a patient."
SAME_PATIENT = (
    "The embedded data come from a few subjects, most of them from one CT. Test images are other slices, "
    "crops or views than the training images, but of the same patients: the figures show what was learned "
    "from these scans, not how a model would do on new patients. Part of the radiographs are semi-synthetic."
)


def notices(run: Run) -> list[Html]:
    """What the reader must know first: research only, and same patient where it is so."""
    found = [tag("p", tag("b", "Research only. "), RESEARCH_ONLY)]
    if run.recipe.data.source == "embedded":
        found.append(tag("p", tag("b", "Same-patient figures. "), SAME_PATIENT))
    return found


def provenance_section(run: Run) -> Html:
    """What made these figures, so that they can be made again."""
    folded = tag("summary", "Recipe as resolved, each value with its origin")
    return join(
        [
            tag("h2", "Provenance"),
            tag(
                "dl",
                *(join([tag("dt", name), tag("dd", told)]) for name, told in facts(run).items()),
                class_="facts",
            ),
            left_out(run),
            times(run.results.get("seconds") or {}),
            tag("details", folded, tag("pre", run.recipe_text, tabindex="0")),
        ]
    )


def facts(run: Run) -> dict[str, object]:
    """Command, date, seed, model, machine, versions."""
    results, model, peak = run.results, run.results["model"], run.results.get("peak_gib") or {}
    memory = [
        f"{name} {peak[key]:.1f} GiB" for key, name in (("rss", "process"), ("cuda", "GPU")) if peak.get(key)
    ]
    counts = (("parameters", "parameters"), ("trained_parameters", "of them trained (LoRA)"))
    sizes = [f"{model[key]:,} {text}" for key, text in counts if model.get(key)]
    used = [str(model[key]) for key in ("device", "dtype") if model.get(key)]
    return {
        "Command": tag("code", results.get("command", NONE)),
        "Finished": results.get("date", NONE),
        "Seed": results.get("seed", NONE),
        "Model": ", ".join([str(model["name"]), *sizes]),
        "Data": run.recipe.data.source,
        "Computed on": ", ".join([*used, *machine(results.get("machine") or {})]) or NONE,
        "Peak memory": ", ".join(memory) or NONE,
        "Versions": ", ".join(f"{name} {v}" for name, v in (results.get("versions") or {}).items()) or NONE,
    }


def machine(row: Json) -> list[str]:
    """Card or CPU, and the number of cores."""
    cores = row.get("cpu_cores")
    return [*filter(None, [row.get("name")]), *([f"{cores} CPU cores"] if cores else [])]


def left_out(run: Run) -> Html | None:
    """What of the data was not used, and the first reasons; None where all of it was."""
    parts = (run.results.get("data") or {}).get("left_out") or {}
    counts = {name: counted(part) for name, part in parts.items()}
    told = "; ".join(f"{name}: {', '.join(count)}" for name, count in counts.items() if count)
    if not told:
        return None
    faults = list(dict.fromkeys(fault for part in parts.values() for fault in part["faults"]))
    reasons = tag("ul", *(tag("li", fault) for fault in faults)) if faults else None
    folded = reasons and tag("details", tag("summary", "first reasons"), reasons)
    return join([tag("p", tag("b", "Left out of the data. "), told, "."), folded])


def counted(part: Json) -> list[str]:
    """What one split lost, in words."""
    skipped, other = part["skipped"], part["other_questions"]
    found = [f"{skipped} row{'s' * (skipped > 1)} with a fault"] if skipped else []
    return [*found, f"{other} open question{'s' * (other > 1)}"] if other else found


def times(seconds: Json) -> Html | None:
    """Where the time went, as a small bar table; None where it was not noted."""
    parts = {name: value for name, value in seconds.items() if name != "total"}
    longest = max(parts.values(), default=0.0) or 1.0
    lines = [row_of(PARTS.get(name, name), [duration(s), bar(s / longest)]) for name, s in parts.items()]
    if "total" in seconds:
        lines.append(row_of("total", [duration(seconds["total"]), ""]))
    return (
        tag("table", tag("caption", "Time of the whole run"), tag("tbody", *lines), class_="times")
        if lines
        else None
    )


def bar(share: float) -> Html:
    """A bar as long as a share of 1."""
    return tag("span", tag("i", style=f"width:{100 * share:.1f}%"), class_="bar")


def sources(run: Run) -> list[Html]:
    """Whose data these are, under which licence."""
    if run.recipe.data.source != "embedded":
        return [
            tag("p", f"Data: {run.data_name}. Their licences are those of the sources named in that file.")
        ]
    items = [
        tag(
            "li",
            tag("b", row["name"]),
            f". Licence: {row['licence']}. {row['attribution']}",
            tag("details", tag("summary", "notice and changes"), tag("p", row["notice"])),
        )
        for row in read_json(EMBEDDED / "SOURCES.json").values()
    ]
    return [tag("h2", "Sources and licences of the embedded data"), tag("ul", *items)]
