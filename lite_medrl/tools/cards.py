"""Answers and samples as HTML, for the demo and for notebooks: strings in, strings out, every text escaped."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from lite_medrl.types import Sample

if TYPE_CHECKING:
    from lite_medrl.tools.compare import Reply

NAMES = {"base": "Base", "sft": "SFT", "grpo": "GRPO"}
ABOUT = {"base": "before training", "sft": "shown worked answers", "grpo": "rewarded for right answers"}
FAILURES = {
    "no_answer": "no answer found",
    "empty_answer": "empty answer",
    "two_answers": "two answers that differ",
    "unknown_option": "none of the options",
    "ambiguous_option": "fits two options",
    "letter_text_conflict": "letter and text disagree",
    "bad_format": "format not kept",
}
NOTICE = (
    "Research only: not a medical device, and no basis for any decision about a person. "
    "Do not use images that could identify somebody."
)

STYLE = """
.lm-cards, .lm-sheet { display: grid; gap: 14px; margin: 4px 0 10px; font-family: ui-sans-serif, system-ui, sans-serif; }
.lm-cards { grid-template-columns: repeat(auto-fit, minmax(230px, 1fr)); }
.lm-sheet { grid-template-columns: repeat(auto-fill, minmax(210px, 1fr)); }
.lm-card, .lm-item { border: 1px solid color-mix(in srgb, currentColor 16%, transparent); border-radius: 14px;
  overflow: hidden; display: flex; flex-direction: column; min-width: 0; }
.lm-card { border-top: 4px solid var(--lm-stage); padding: 14px 16px 12px; gap: 8px; min-height: 168px; }
.lm-base { --lm-stage: #64748b; } .lm-sft { --lm-stage: #0284c7; } .lm-grpo { --lm-stage: #7c3aed; }
.lm-head { display: flex; align-items: baseline; gap: 8px; flex-wrap: wrap; }
.lm-head b { font-size: 15px; letter-spacing: .02em; }
.lm-head span, .lm-foot, .lm-small { font-size: 12.5px; opacity: .68; }
.lm-answer { font-size: 25px; line-height: 1.22; font-weight: 650; overflow-wrap: anywhere; }
.lm-answer small { font-weight: 500; opacity: .5; margin-right: 7px; font-size: 17px; }
.lm-none { opacity: .5; font-weight: 500; font-style: italic; font-size: 20px; }
.lm-chips { display: flex; flex-wrap: wrap; gap: 6px; min-height: 23px; }
.lm-chip { font-size: 12px; font-weight: 600; line-height: 1; padding: 6px 10px; border-radius: 99px; color: #fff; }
.lm-right { background: #15803d; } .lm-wrong { background: #b91c1c; } .lm-format { background: #a16207; }
.lm-card details { margin-top: auto; font-size: 14px; border-top: 1px solid color-mix(in srgb, currentColor 12%, transparent);
  padding-top: 8px; }
.lm-card summary { cursor: pointer; opacity: .8; font-size: 13px; }
.lm-thought { margin: 8px 0 2px; white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.45;
  max-height: 240px; overflow: auto; }
.lm-gold { font-size: 15px; margin: 2px 0 10px; font-family: ui-sans-serif, system-ui, sans-serif; }
.lm-gold b { font-weight: 650; }
.lm-waiting .lm-answer { animation: lm-pulse 1.2s ease-in-out infinite; }
.lm-idle { border-style: dashed; border-top-style: solid; }
@keyframes lm-pulse { 50% { opacity: .25; } }
@media (prefers-reduced-motion: reduce) { .lm-waiting .lm-answer { animation: none; } }
.lm-item img { width: 100%; aspect-ratio: 1; object-fit: contain; background: #000; display: block; }
.lm-item div { padding: 10px 12px 12px; font-size: 14px; line-height: 1.4; }
.lm-item ol { list-style: upper-alpha; margin: 6px 0 6px 20px; padding: 0; }
.lm-item li.lm-is-gold { font-weight: 700; } .lm-item li.lm-is-gold::after { content: "  \\2713"; color: #15803d; }
"""


def cards(stages: Sequence[str], replies: Sequence[Reply], *, asked: bool = True) -> str:
    """One card a stage: its reply, or where there is none yet that it is waited for (or not asked)."""
    got = {reply.stage: reply for reply in replies}
    inner = "".join(filled(got[stage]) if stage in got else blank(stage, asked=asked) for stage in stages)
    return f'<div class="lm-cards" aria-live="polite">{inner}</div>'


def filled(reply: Reply) -> str:
    """A card with an answer in it."""
    return (
        f'<section class="lm-card lm-{escape(reply.stage)}">{head(reply.stage)}{answer(reply)}'
        f'<div class="lm-chips">{chips(reply)}</div>'
        f"<details><summary>{'Reasoning' if reply.answer.has_format else 'All it wrote'}</summary>"
        f'<div class="lm-thought">{escape(reply.reasoning) or "(nothing)"}</div></details>'
        f'<div class="lm-foot">{reply.seconds:.2f} s</div></section>'
    )


def blank(stage: str, *, asked: bool) -> str:
    """A card without an answer."""
    state, words = ("lm-waiting", "thinking ...") if asked else ("lm-idle", "not asked yet")
    return (
        f'<section class="lm-card lm-{escape(stage)} {state}">{head(stage)}'
        f'<div class="lm-answer"><span class="lm-none">{words}</span></div></section>'
    )


def head(stage: str) -> str:
    """Name of a stage and what it is."""
    return (
        f'<div class="lm-head"><b>{escape(NAMES.get(stage, stage))}</b><span>{ABOUT.get(stage, "")}</span></div>'
    )


def answer(reply: Reply) -> str:
    """The answer in large letters, with the letter of its option."""
    if reply.answer.value is None:
        return '<div class="lm-answer"><span class="lm-none">no answer</span></div>'
    letter = f"<small>{escape(reply.answer.label)}</small>" if reply.answer.label else ""
    return f'<div class="lm-answer">{letter}{escape(reply.answer.value)}</div>'


def chips(reply: Reply) -> str:
    """Right or wrong, and what went wrong with the format."""
    found = []
    if reply.correct is not None:
        found.append(("lm-right", "\u2713 right") if reply.correct else ("lm-wrong", "\u2717 wrong"))
    if not reply.answer.has_format:
        found.append(("lm-format", "format not kept"))
    if reply.answer.failure:
        found.append(("lm-format", FAILURES.get(reply.answer.failure, reply.answer.failure)))
    return "".join(f'<span class="lm-chip {kind}">{escape(words)}</span>' for kind, words in dict.fromkeys(found))


def gold(sample: Sample) -> str:
    """The gold answer of a sample with its letter; nothing where it has none."""
    if not sample.answer:
        return ""
    return f'<div class="lm-gold">Gold answer: <b>{sample.letter}. {escape(sample.answer)}</b></div>'


def answered(stages: Sequence[str], replies: Sequence[Reply], sample: Sample) -> str:
    """Gold answer and cards of one question."""
    return gold(sample) + cards(stages, replies)


def sheet(samples: Sequence[Sample]) -> str:
    """Samples with image, question, options (the gold one ticked), as one piece of HTML with its style."""
    return f'<style>{STYLE}</style><div class="lm-sheet">{"".join(map(item, samples))}</div>'


def question(stages: Sequence[str], replies: Sequence[Reply], sample: Sample) -> str:
    """A question with its answers, as one piece of HTML with its style."""
    return f"{sheet([sample])}{cards(stages, replies)}"


def item(sample: Sample) -> str:
    """One sample of a sheet."""
    options = "".join(
        f"<li{' class=lm-is-gold' if option == sample.answer else ''}>{escape(option)}</li>" for option in sample.options
    )
    small = f"{sample.modality}, {sample.kind.replace('_', ' ')}, {sample.licence}"
    return (
        f'<div class="lm-item"><img alt="image of {escape(sample.id)}" src="{data_uri(sample)}">'
        f'<div>{escape(sample.question)}<ol>{options}</ol><span class="lm-small">{escape(small)}</span></div></div>'
    )


def data_uri(sample: Sample) -> str:
    """The sample's first image as a PNG inside the page."""
    from lite_medrl.data.images import load_image

    buffer = io.BytesIO()
    load_image(sample.images[0]).save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def framed(path: Path, height_px: int = 760) -> str:
    """A page from disk in a frame of its own, so that its style stays apart from the notebook's."""
    inner = escape(path.read_text(encoding="utf-8"))
    return (
        f'<iframe srcdoc="{inner}" title="{escape(path.name)}" sandbox="allow-scripts" '
        f'style="width:100%;height:{height_px}px;border:1px solid #8884;border-radius:12px"></iframe>'
    )
