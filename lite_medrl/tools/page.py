"""The demo's page: one image and question, the answers of every stage of a run side by side.

What a visitor sends is treated as hostile: files pass data.images, addresses are not fetched, texts are cut to size,
and all that a model writes is escaped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from lite_medrl.data.images import load_image
from lite_medrl.tools import cards
from lite_medrl.tools.compare import Comparison, Reply
from lite_medrl.types import LETTERS, DataError, ImageRef, Sample

EXAMPLES, MAX_QUESTION, MAX_OPTION = 12, 600, 120
HINT = "Pick an image of the test split (no stage has seen it) or drop in your own."
PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}

STYLE = """
gradio-app, .gradio-container, .gradio-container .app, .gradio-container .app > .wrap, .gradio-container main,
.gradio-container main > .column { min-width: 0 !important; width: 100%; }
.gradio-container { max-width: 1180px !important; margin: 0 auto !important; }
.gradio-container .app { padding: 20px 18px 40px !important; }
.lm-title { display: flex; flex-wrap: wrap; align-items: baseline; gap: 4px 14px; }
.lm-title h1 { font-size: 25px; font-weight: 700; margin: 0; letter-spacing: -.015em; }
.lm-title span { opacity: .72; font-size: 14.5px; }
.lm-scores { display: flex; flex-wrap: wrap; gap: 8px; margin-top: 12px; font-size: 13px; }
.lm-scores span { padding: 4px 11px; border-radius: 99px; border: 1px solid color-mix(in srgb, currentColor 18%, transparent); }
.lm-banner { margin-top: 12px; padding: 10px 14px; border-radius: 10px; font-size: 14px; line-height: 1.4;
  background: #fef3c7; color: #713f12; border: 1px solid #fcd34d; }
.dark .lm-banner { background: #422006; color: #fde68a; border-color: #854d0e; }
.lm-note { padding: 12px 16px; border-radius: 12px; font-size: 15px; background: #fee2e2; color: #7f1d1d;
  border: 1px solid #fca5a5; margin: 2px 0 12px; overflow-wrap: anywhere; }
.dark .lm-note { background: #450a0a; color: #fecaca; border-color: #991b1b; }
.lm-legal { font-size: 12.5px; opacity: .65; line-height: 1.5; overflow-wrap: anywhere; }
.lm-label { font-size: 13.5px; opacity: .8; margin: 4px 0 -6px; }
#ask { font-size: 17px; padding: 13px; }
#examples { border: none; border-radius: 0; }
#examples .grid-wrap { height: auto; min-height: 0; max-height: none; overflow: auto hidden; padding: 3px; }
#examples .grid-container { display: grid; grid-template-columns: repeat(12, minmax(76px, 1fr)); gap: 9px; }
#examples .gallery-item { width: auto; }
#examples button.thumbnail-item { width: 100%; height: auto; aspect-ratio: 1; border-radius: 10px; }
#examples button.thumbnail-item img { width: 100%; height: 100%; object-fit: cover; }
#image .image-frame, #image .image-frame > div { width: 100%; height: 100%; }
#image .image-frame img { width: 100%; height: 100%; object-fit: contain; background: #000; }
"""


class Upload(gr.Image):
    """gradio's image box, but it hands on the path of the upload unopened and refuses to fetch an address."""

    def get_block_name(self) -> str:
        """Drawn as gradio's own image box."""
        return "image"

    def preprocess(self, payload: Any) -> str | None:
        """Path of the uploaded file; data.images opens it."""
        return payload and payload.path

    async def async_move_resource_to_block_cache(self, url_or_file_path: str | Path | None) -> str | None:
        """As gradio's, for files only."""
        if "://" in str(url_or_file_path):
            raise gr.Error("addresses are not fetched; upload the file", print_exception=False)
        return await super().async_move_resource_to_block_cache(url_or_file_path)


class Desk:
    """What the page's events call: fills in an example, and asks; texts in, HTML out."""

    def __init__(self, comparison: Comparison, samples: Sequence[Sample]) -> None:
        self.comparison, self.samples = comparison, samples
        self.idle = cards.cards(comparison.stages, [], asked=False)

    def pick(self, event: gr.SelectData) -> tuple[Any, str, str, int, str]:
        """Image, question, options and number of an example, and empty cards."""
        sample = self.samples[event.index]
        return picture(sample), sample.question, "\n".join(sample.options), event.index, self.idle

    def ask(self, path: str | None, question: str, options: str, place: int | None) -> Iterator[str]:
        """The cards, again after each answer; a notice where the question cannot be put."""
        stages, replies = self.comparison.stages, list[Reply]()
        try:
            sample = self.sample(path, question, options, place)
            yield cards.answered(stages, replies, sample)
            for reply in self.comparison.answers(sample):
                replies.append(reply)
                yield cards.answered(stages, replies, sample)
        except DataError as error:
            text = str(error).replace(str(path), Path(path).name if path else "")
            yield f'<div class="lm-note" role="alert">{escape(text)}</div>{self.idle}'

    def sample(self, path: str | None, question: str, options: str, place: int | None) -> Sample:
        """The example where nothing was changed, else a sample without a gold answer; DataError says why not."""
        question = (question or "").strip()
        lines = tuple(line.strip() for line in (options or "").splitlines() if line.strip())
        if not path:
            raise DataError("Pick an example or upload an image first.")
        refuse(question, lines)
        known = None if place is None else self.samples[place]
        if known and (known.question, known.options) == (question, lines):
            return known
        return Sample(
            id="asked", images=(ImageRef(path),), question=question, options=lines, answer="", kind="asked",
            modality="unknown", source="upload", licence="unknown", split="test",
        )  # fmt: skip


def refuse(question: str, options: Sequence[str]) -> None:
    """DataError, in words for the page, for a question that cannot be put."""
    if not question:
        raise DataError("Type a question first.")
    if len(options) == 1 or len(options) > len(LETTERS):
        raise DataError(f"Give 2 to {len(LETTERS)} options, one a line, or none at all; there are {len(options)}.")
    if len(set(options)) < len(options):
        raise DataError("An option stands twice; drop one.")
    if len(question) > MAX_QUESTION or max(map(len, options), default=0) > MAX_OPTION:
        raise DataError(f"Too long: a question may have {MAX_QUESTION} characters, an option {MAX_OPTION}.")


def build(comparison: Comparison) -> gr.Blocks:
    """The page, not yet served."""
    samples, trouble = examples(comparison)
    desk = Desk(comparison, samples)
    with gr.Blocks(title="lite-medrl demo", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.HTML(header(comparison), padding=False)
        chosen = gr.State(None)
        gr.HTML(f'<div class="lm-label">{escape(trouble or HINT)}</div>', padding=False)
        strip = gallery(samples)
        with gr.Row(equal_height=True):
            image = image_box()
            with gr.Column(scale=5, min_width=280):
                question, options = text_boxes()
                button = gr.Button("Ask", variant="primary", elem_id="ask")
        replies = gr.HTML(desk.idle, elem_id="replies", padding=False)
        gr.HTML(footer(comparison, samples), padding=False)
        strip.select(desk.pick, None, [image, question, options, chosen, replies], **PRIVATE)
        image.input(lambda: (None, desk.idle), None, [chosen, replies], **PRIVATE)
        button.click(desk.ask, [image, question, options, chosen], replies, concurrency_limit=1, **PRIVATE)
    return page


def gallery(samples: Sequence[Sample]) -> gr.Gallery:
    """The strip of examples; a click fills one in."""
    return gr.Gallery(
        value=[picture(sample) for sample in samples], visible=bool(samples), show_label=False, container=False,
        allow_preview=False, columns=EXAMPLES, object_fit="cover", format="png", buttons=[], interactive=False,
        elem_id="examples",
    )  # fmt: skip


def image_box() -> Upload:
    """Where the image goes; no camera."""
    with gr.Column(scale=4, min_width=280):
        return Upload(
            label="Image", sources=["upload", "clipboard"], height=330, buttons=["fullscreen"], format="png",
            placeholder="Drop an image here, or pick one above", elem_id="image",
        )  # fmt: skip


def text_boxes() -> tuple[gr.Textbox, gr.Textbox]:
    """Question and options."""
    question = gr.Textbox(
        label="Question", lines=2, max_length=MAX_QUESTION, placeholder="what does the image show ?",
        elem_id="question",
    )  # fmt: skip
    options = gr.Textbox(
        label="Options, one a line (none: free answer)", lines=5, max_lines=10, placeholder="lung\nliver\nspleen",
        max_length=len(LETTERS) * (MAX_OPTION + 1), elem_id="options",
    )  # fmt: skip
    return question, options


def theme() -> gr.themes.Base:
    """Plain, with the system's own fonts, so that no font is fetched."""
    return gr.themes.Base(
        primary_hue="teal", neutral_hue="slate", radius_size="lg",
        font=["ui-sans-serif", "system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"],
    ).set(button_primary_background_fill="*primary_700", button_primary_background_fill_hover="*primary_800")  # fmt: skip


def examples(comparison: Comparison) -> tuple[list[Sample], str]:
    """Samples to pick from, or none and why."""
    try:
        return comparison.examples(EXAMPLES), ""
    except DataError as error:
        return [], f"No examples: {error}"


def picture(sample: Sample) -> Any:
    """The first image of a sample, decoded."""
    return load_image(sample.images[0])


def header(comparison: Comparison) -> str:
    """Title, the run's own scores on the test split, and the notice."""
    name = escape(comparison.run_dir.resolve().name)
    missing = [cards.NAMES[stage] for stage in ("sft", "grpo") if stage not in comparison.stages]
    absent = f" This run has no {' and no '.join(missing)} stage." if missing else ""
    return (
        f'<div class="lm-title"><h1>lite-medrl</h1><span>run <b>{name}</b>: one question, the answer of every stage.'
        f"{absent}</span></div>"
        f'<div class="lm-scores">{scores(comparison.run_dir)}</div>'
        f'<div class="lm-banner" role="note">{cards.NOTICE}</div>'
    )


def scores(run_dir: Path) -> str:
    """Acc@1 of each stage on the test split with its interval, from results.json; empty while there is none."""
    path = run_dir / "results.json"
    if not path.is_file():
        return ""
    rows = [row for row in json.loads(path.read_text(encoding="utf-8"))["stages"] if row["split"] == "test"]
    parts = [
        f"<span>{escape(cards.NAMES.get(row['stage'], row['stage']))} Acc@1 <b>{row['acc_at_1']:.0%}</b> "
        f"[{row['acc_at_1_ci95'][0]:.0%}, {row['acc_at_1_ci95'][1]:.0%}] on {row['n']}</span>"
        for row in rows
    ]
    return "".join(parts)


def footer(comparison: Comparison, samples: Sequence[Sample]) -> str:
    """Model, precision, and the licences of the images shown."""
    licences = ", ".join(sorted({f"{sample.source} ({sample.licence})" for sample in samples}))
    shown = f" Images: {escape(licences)}." if licences else ""
    model = escape(comparison.recipe.model.model_name_or_path)
    return (
        f'<div class="lm-legal">Model {model} on {escape(str(comparison.policy))}. Greedy answers, one base in memory, '
        f"adapters switched.{shown} Uploads stay on this machine and are deleted when the demo ends.</div>"
    )
