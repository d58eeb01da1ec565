"""Which test questions does the report show? A spread over what training changed, not a random sample.

Every question has one outcome ("Fixed by SFT", "Broken by training", ...). The gallery takes about as many
of each, spread over images, modalities and kinds, the same every time. It filters by CSS, without a script.
"""

from __future__ import annotations

import base64
import io
import re
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lite_medrl.data.images import load_image
from lite_medrl.data.parts import EMBEDDED
from lite_medrl.tools.report.markup import NONE, Html, join, tag
from lite_medrl.tools.report.svg import sign
from lite_medrl.tools.report.words import failure, label, words
from lite_medrl.types import LETTERS, DataError, ImageRef

Json = dict[str, Any]
MAX_SIDE, MAX_IMAGES, MAX_TEXT = 320, 4, 4000
THOUGHT = re.compile(r"<think>(.*?)</think>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Case:
    """One test question: every stage's row of completions.jsonl, in order, and what became of it."""

    rows: tuple[Json, ...]
    outcome: str


def cases(rows: Sequence[Json], names: Sequence[str]) -> list[Case]:
    """The test questions that every stage in `names` answered, in file order."""
    by_stage: dict[str, dict[str, Json]] = {name: {} for name in names}
    for row in rows:
        if row.get("split") == "test" and row.get("name") in by_stage:
            by_stage[row["name"]][row["id"]] = row
    answered = [tuple(by_stage[name].get(key) for name in names) for key in by_stage[names[0]]]
    whole = [tuple(row for row in found if row) for found in answered if all(found)]
    return [Case(found, outcome([row["correct"] for row in found], names)) for found in whole]


def outcome(right: Sequence[bool], names: Sequence[str]) -> str:
    """What training did to a question, from whether each stage got it right."""
    if len(right) == 1:
        return "Right" if right[0] else "Wrong"
    if not right[-1]:
        return "Broken by training" if any(right) else "Never right"
    first = list(right).index(True)
    if first == 0:
        return "Right from the start"
    only = " only" if first == len(names) - 1 > 1 else ""
    return f"Fixed by {label(names[first])}{only}"


def choose(found: Sequence[Case], size: int) -> list[Case]:
    """About as many cases of each outcome, grouped by outcome, at most `size` in all."""
    groups = {name: [case for case in found if case.outcome == name] for name in outcomes(found)}
    quota: Counter[str] = Counter()
    while quota.total() < min(size, len(found)):
        for name, group in groups.items():
            if quota[name] < len(group) and quota.total() < size:
                quota[name] += 1
    used: Counter[str] = Counter()
    return [case for name, group in groups.items() for case in spread(group, quota[name], used)]


def outcomes(found: Sequence[Case]) -> list[str]:
    """The outcomes that occur: fixed (in the stages' order), broken, wrong, right."""
    order = ("Fixed", "Broken", "Never", "Wrong", "Right")
    names = sorted({case.outcome for case in found})
    return sorted(
        names, key=lambda name: (order.index(name.split()[0]), name.endswith("only"), "GRPO" in name)
    )


def spread(group: Sequence[Case], count: int, used: Counter[str]) -> list[Case]:
    """`count` cases, each time the one whose image, modality and kind were shown least; ties by a hash."""
    left = sorted(group, key=lambda case: zlib.crc32(case.rows[0]["id"].encode("utf-8", "replace")))
    chosen: list[Case] = []
    while left and len(chosen) < count:
        best = min(left, key=lambda case: [used[mark] for mark in marks(case.rows[0])])
        left.remove(best)
        chosen.append(best)
        used.update(marks(best.rows[0]))
    return chosen


def marks(row: Json) -> list[str]:
    """What a gallery should vary, the most important first."""
    return [f"image {row['images']}", f"modality {row['modality']}", f"kind {row['kind']}"]


# --- markup ----------------------------------------------------------------------------------------------
def gallery(rows: Sequence[Json], names: Sequence[str], size: int) -> Html | None:
    """The filter and the cards; None where nothing is to be shown."""
    found = cases(rows, names)
    chosen = choose(found, size)
    if not chosen:
        return None
    kinds, all_of = outcomes(found), Counter(case.outcome for case in found)
    shown = Counter(case.outcome for case in chosen)
    filters = [radio(0, f"All {len(chosen)}", checked=True)]
    filters += [
        radio(i, f"{name} \u00b7 {shown[name]} of {all_of[name]}")
        for i, name in enumerate(kinds, 1)
        if shown[name]
    ]
    told = (
        f"{len(chosen)} of the {len(found)} test questions, about as many of each outcome, spread over "
        "modalities and kinds: not a random sample. The buttons say how often each outcome occurs. Sampled: "
        "how many of the answers drawn at random were right. Slanted: no answer could be read, and why."
    )
    cards = [card(case, 1 + kinds.index(case.outcome)) for case in chosen]
    return join([tag("p", told), *filters, tag("div", *cards, class_="cards")])


def radio(number: int, text: str, *, checked: bool = False) -> Html:
    """One button of the filter; page.css holds the rule that hides the other cards."""
    at = f"show-{number}"
    return join(
        [tag("input", type="radio", name="show", id=at, checked=checked), tag("label", text, for_=at)]
    )


def card(case: Case, number: int) -> Html:
    """One question: image, options with the right one marked, and every stage's answer."""
    row = case.rows[0]
    pictures = [
        picture(image, f"{row['modality']} image of question {row['id']}")
        for image in row["images"][:MAX_IMAGES]
    ]
    more = len(row["images"]) - MAX_IMAGES
    about = f"{words(row['modality'])} \u00b7 {words(row['kind'])} \u00b7 {row['id']}"
    return tag(
        "article",
        tag("div", *pictures, tag("p", f"and {more} more") if more > 0 else None, class_="pictures"),
        tag("div", tag("p", tag("b", case.outcome), f" \u00b7 {about}", class_="about"),
            tag("h3", row["question"]), options(row), answers(case.rows), class_="case"),
        class_=f"card outcome-{number}",
    )  # fmt: skip


def options(row: Json) -> Html:
    """The options, lettered, the right one marked by words as well."""
    items = [
        tag("li", tag("span", letter, class_="letter"), option,
            tag("span", "right answer", class_="note") if option == row["answer"] else None,
            class_="gold" if option == row["answer"] else None)
        for letter, option in zip(LETTERS, row["options"], strict=False)
    ]  # fmt: skip
    gold = tag("p", "Right answer: ", row["answer"]) if not row["options"] else None
    return tag("ul", *items, class_="options") if items else gold or tag("p")


def answers(rows: Sequence[Json]) -> Html:
    """A line a stage: what it answered, right or wrong, how many of the sampled answers were right."""
    head = tag("tr", *(tag("th", name, scope="col") for name in ("Stage", "Answer", "Result", "Sampled")))
    return tag("table", tag("thead", head), tag("tbody", *map(answer, rows)), class_="answers")


def answer(row: Json) -> Html:
    """One stage's line, and below it the reasoning, folded."""
    said = tag("i", failure(row["failure"])) if row["parsed"] is None else shortened(str(row["parsed"]), 300)
    mark = (
        tag("span", "\u2713 right", class_="yes")
        if row["correct"]
        else tag("span", "\u2717 wrong", class_="no")
    )
    drawn = f"{row['num_correct']} of {row['num_samples']}" if row["num_samples"] else NONE
    return join([
        tag("tr", tag("th", sign(row["name"]), label(row["name"]), scope="row"),
            tag("td", tag("span", said, class_="said")), tag("td", mark), tag("td", drawn, class_="number")),
        tag("tr", tag("td", reasoning(row), colspan=4), class_="more"),
    ])  # fmt: skip


def reasoning(row: Json) -> Html:
    """What the model wrote: its thought where the format held, else the whole text."""
    text = str(row["greedy"])
    thought = THOUGHT.search(text)
    plain = thought is not None and row["failure"] is None
    shown = thought[1].strip() if thought and plain else text
    summary = tag("summary", "reasoning" if plain else "whole text")
    return tag("details", summary, tag("div", shortened(shown, MAX_TEXT) or "(empty)", class_="model"))


def shortened(text: str, most: int) -> str:
    """The text, or its beginning with a note of how much is left out."""
    return text if len(text) <= most else f"{text[:most]} \u2026 ({len(text) - most} more characters)"


def picture(image: Mapping[str, Any], alt: str) -> Html:
    """The image inside the page, small and without metadata; where it cannot be read, a note that says so."""
    path = str(EMBEDDED / "images.zip") if image["path"] == "embedded" else image["path"]
    try:
        pixels = load_image(ImageRef(path, image["member"]))
    except DataError as error:
        return tag("p", f"The image could not be shown. {error}", class_="missing")
    pixels.thumbnail((MAX_SIDE, MAX_SIDE))
    buffer = io.BytesIO()
    pixels.save(buffer, "JPEG", quality=88, optimize=True)
    width, height = pixels.size
    source = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    return tag("img", src=source, width=width, height=height, alt=alt)
