"""How numbers and names are written in a report: percent, points, p values, durations, stages."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]
ALPHA = 0.05  # below it a difference counts as significant
NARROW, MINUS = "\u202f", "\u2212"  # the space before a unit, which never breaks; a real minus sign
BASELINES = {
    "chance": "guessing",
    "majority": "commonest answer",
    "blank_image": "blank image",
    "shuffled_image": "another image",
}


FAILURES = {
    "no_answer": "no answer found",
    "empty_answer": "empty answer",
    "two_answers": "two answers that differ",
    "unknown_option": "outside the options",
    "ambiguous_option": "fits two options",
    "letter_text_conflict": "letter and text disagree",
    "bad_format": "format not kept",
}


def percent(fraction: float) -> str:
    """0.7188 is "71.9 %"."""
    return f"{100 * fraction:.1f}{NARROW}%"


def bounds(low: float, high: float) -> str:
    """An interval of fractions in percent, where a heading says so: "67.7 to 75.8"."""
    return f"{100 * low:.1f} to {100 * high:.1f}"


def interval(low: float, high: float) -> str:
    """An interval of fractions: "67.7 to 75.8 %"."""
    return f"{bounds(low, high)}{NARROW}%"


def signed(points: float) -> str:
    """Percentage points with their sign: "+3.1", and "0.0" without one."""
    return minus(f"{points:+.1f}") if abs(points) >= 0.05 else "0.0"


def minus(text: str) -> str:
    """A number's text with a real minus sign."""
    return text.replace("-", MINUS)


def p_value(p: float) -> str:
    """The text "p < 0.001" or "p = 0.021"; near 0.05 with a digit more, so that it never rounds across."""
    if p < 0.001:
        return "p < 0.001"
    return f"p = {p:.4f}" if 0.045 < p < 0.055 else f"p = {p:.3f}"


def duration(seconds: float) -> str:
    """Seconds as "8.4 s", "83 s", "12 min 5 s" or "3 h 20 min"."""
    if seconds < 120:
        return f"{seconds:.1f}{NARROW}s" if seconds < 10 else f"{seconds:.0f}{NARROW}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 120:
        return f"{minutes}{NARROW}min {rest}{NARROW}s"
    return f"{minutes // 60}{NARROW}h {minutes % 60}{NARROW}min"


def label(name: str) -> str:
    """A stage's name as a reader sees it: "base" is Base, "sft-2" is SFT 2."""
    return "Base" if name == "base" else name.replace("-", " ").upper()


def decided(row: Json) -> str:
    """A decision in a few words: what the run does, and whether the rule asked for that."""
    rule, action = label(row.get("rule", row["action"])), label(row["action"])
    if row["action"] == "stop" and row.get("after") == "base":
        return f"nothing is trained; the rule asks for {rule}"
    if row["action"] == "stop":
        return f"nothing more is trained, though the rule asks for {rule}"
    return f"{action}, as the rule asks" if rule == action else f"{action}, though the rule asks for {rule}"


def baseline_name(key: str, row: Json) -> str:
    """A baseline's name, with the stage where it has one: "blank image (GRPO)"."""
    return BASELINES[key] + (f" ({label(row['stage'])})" if row.get("stage") else "")


def failure(name: str | None) -> str:
    """Why an answer could not be read, in words."""
    return "nothing" if name is None else FAILURES.get(name, words(name))


def words(key: str) -> str:
    """A key of the data as words: "organ_present" is "organ present"."""
    return key.replace("_", " ")
