"""Answers and samples as HTML, for the demo and for notebooks: a card a stage, a sheet of samples.

Texts are escaped by markup.tag, so nothing that a model writes can become markup.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from lite_medrl.tools.report.markup import Html, join, tag
from lite_medrl.tools.report.words import failure, label, words
from lite_medrl.types import Sample

if TYPE_CHECKING:
    from lite_medrl.tools.compare import Reply

ABOUT = {"base": "before training", "sft": "shown worked answers", "grpo": "rewarded for right answers"}
NOTICE = (
    "Research only: not a medical device, and no basis for any decision about a person. "
    "Do not use images that could identify somebody."
)


def style() -> str:
    """The style sheet of all that this file makes."""
    return Path(__file__).with_name("cards.css").read_text(encoding="utf-8")


# --- answers -----------------------------------------------------------------------------------------
def answered(
    stages: Sequence[str],
    replies: Sequence[Reply],
    sample: Sample,
    writing: Mapping[str, str] = MappingProxyType({}),
) -> Html:
    """The gold answer, where one is known, over a card a stage; stages without a reply are waited for.

    `writing` holds what a stage has written so far.
    """
    got = {reply.stage: reply for reply in replies}
    inner = [
        filled(got[stage])
        if stage in got
        else blank(stage, "lm-waiting", f"{writing.get(stage) or 'thinking'} \u2026")
        for stage in stages
    ]
    return join([gold(sample), tag("div", *inner, class_="lm-cards", aria_live="polite")])


def idle(stages: Sequence[str]) -> Html:
    """Cards before a question is asked."""
    return tag("div", *(blank(stage, "lm-idle", "not asked yet") for stage in stages), class_="lm-cards")


def filled(reply: Reply) -> Html:
    """A card with an answer in it; the reasoning is folded."""
    wrote = "Reasoning" if reply.is_plain else "All it wrote"
    return tag(
        "section", head(reply.stage), answer(reply), tag("div", *chips(reply), class_="lm-chips"),
        tag("details", tag("summary", wrote),
            tag("div", reply.reasoning or "(nothing)", class_="lm-thought")),
        tag("div", f"{reply.seconds:.2f} s", class_="lm-foot"), class_=f"lm-card lm-{reply.stage}",
    )  # fmt: skip


def blank(stage: str, state: str, text: str) -> Html:
    """A card without an answer."""
    inside = tag("div", tag("span", text, class_="lm-none"), class_="lm-answer")
    return tag("section", head(stage), inside, class_=f"lm-card lm-{stage} {state}")


def head(stage: str) -> Html:
    """Name of a stage and what it is."""
    return tag("div", tag("b", label(stage)), tag("span", ABOUT.get(stage)), class_="lm-head")


def answer(reply: Reply) -> Html:
    """The answer in large letters, after the letter of its option, or why none could be read."""
    if reply.answer.value is None:
        return tag("div", tag("span", failure(reply.answer.failure), class_="lm-none"), class_="lm-answer")
    letter = tag("small", reply.answer.label) if reply.answer.label else None
    return tag("div", letter, reply.answer.value, class_="lm-answer")


def chips(reply: Reply) -> list[Html]:
    """Right or wrong where that is known, and what is wrong with the format."""
    found = []
    if reply.correct is not None:
        found.append(("right", "\u2713 right") if reply.correct else ("wrong", "\u2717 wrong"))
    if not reply.answer.has_format:
        found.append(("format", "format not kept"))
    return [tag("span", text, class_=f"lm-chip lm-{kind}") for kind, text in found]


def gold(sample: Sample) -> Html | None:
    """The gold answer with its letter; None where there is none."""
    if not sample.answer:
        return None
    return tag("div", "Gold answer: ", tag("b", f"{sample.letter}. {sample.answer}"), class_="lm-gold")


# --- samples, for notebooks --------------------------------------------------------------------------
def sheet(samples: Sequence[Sample]) -> Html:
    """Samples side by side with image, question and options (the gold one ticked), with their style."""
    one = " lm-one" if len(samples) == 1 else ""
    return join([tag("style", Html(style())), tag("div", *map(item, samples), class_=f"lm-sheet{one}")])


def case(stages: Sequence[str], replies: Sequence[Reply], sample: Sample) -> Html:
    """A sample and every stage's answer to it, with their style."""
    return join([sheet([sample]), answered(stages, replies, sample)])


def item(sample: Sample) -> Html:
    """One sample of a sheet."""
    gold_class = dict.fromkeys([sample.answer], "lm-is-gold")
    options = [tag("li", option, class_=gold_class.get(option)) for option in sample.options]
    about = f"{words(sample.modality)} \u00b7 {words(sample.kind)} \u00b7 {sample.source}, {sample.licence}"
    picture = tag("img", alt=f"image of question {sample.id}", src=data_uri(sample))
    told = tag("div", sample.question, tag("ol", *options), tag("span", about, class_="lm-small"))
    return tag("div", picture, told, class_="lm-item")


def data_uri(sample: Sample) -> str:
    """The sample's first image as a PNG inside the page."""
    from lite_medrl.data.images import load_image

    buffer = io.BytesIO()
    load_image(sample.images[0]).save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def framed(path: Path | str, height_px: int = 800) -> Html:
    """A page from disk in a frame without rights, so that its style stays apart from the notebook's."""
    look = f"width:100%;height:{height_px}px;border:1px solid #8884;border-radius:12px"
    text = Path(path).read_text(encoding="utf-8")
    return tag("div", tag("iframe", srcdoc=text, title=Path(path).name, sandbox="", style=look))
