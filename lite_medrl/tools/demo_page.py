"""The demo's page: one image and question, the answers of every stage of a run side by side.

What a visitor sends is treated as hostile: files pass data.images, addresses are not fetched, texts have
limits, and all that a model writes is escaped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from lite_medrl.data.images import load_image
from lite_medrl.measure.statistics import too_few
from lite_medrl.tools import cards
from lite_medrl.tools.compare import TRAINED, Comparison, Reply
from lite_medrl.tools.report.markup import Html, join, tag
from lite_medrl.tools.report.words import label, percent
from lite_medrl.tools.run_folder import MARKER
from lite_medrl.types import LETTERS, DataError, ImageRef, Sample

EXAMPLES, MAX_QUESTION, MAX_OPTION = 12, 600, 120
HINT = "Pick an image of the test split, or drop in your own."
ASKED = "asked"  # id of a visitor's own question
PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}


class Desk:
    """What the page's events call: fills in an example, and asks; texts in, HTML out."""

    def __init__(self, comparison: Comparison, samples: Sequence[Sample]) -> None:
        self.comparison, self.samples = comparison, samples
        self.idle = cards.idle(comparison.stages)

    def pick(self, event: gr.SelectData) -> tuple[Any, str, str, int, str]:
        """Image, question, options and number of an example, and empty cards."""
        sample = self.samples[event.index]
        return picture(sample), sample.question, "\n".join(sample.options), event.index, self.idle

    def ask(self, path: str | None, question: str, options: str, place: int | None) -> Iterator[str]:
        """The cards, again after each token and answer; a notice where the question cannot be put."""
        stages, replies = self.comparison.stages, list[Reply]()
        try:
            sample = self.sample(path, question, options, place)
            yield cards.answered(stages, replies, sample)
            for stage, written in self.comparison.watch(sample):
                replies += [written] if isinstance(written, Reply) else []
                writing = {} if isinstance(written, Reply) else {stage: written}
                yield cards.answered(stages, replies, sample, writing)
        except DataError as error:
            text = str(error).removeprefix(f"sample {ASKED}: ")
            text = text.replace(str(path), Path(path).name if path else "")
            yield join([tag("div", text, class_="lm-note", role="alert"), self.idle])

    def sample(self, path: str | None, question: str, options: str, place: int | None) -> Sample:
        """The example if nothing was changed, else a sample without a gold answer; DataError says why not."""
        question = (question or "").strip()
        lines = tuple(line.strip() for line in (options or "").splitlines() if line.strip())
        if not path:
            raise DataError("Pick an example or upload an image first.")
        refuse(question, lines)
        known = None if place is None else self.samples[place]
        if known and (known.question, known.options) == (question, lines):
            return known
        return Sample(
            id=ASKED, images=(ImageRef(path),), question=question, options=lines, answer="", kind="asked",
            modality="unknown", source="upload", licence="unknown", split="test",
        )  # fmt: skip


def refuse(question: str, options: Sequence[str]) -> None:
    """DataError, in words for the page, for a question that cannot be put."""
    if not question:
        raise DataError("Type a question first.")
    if len(options) == 1 or len(options) > len(LETTERS):
        raise DataError(f"Give 2 to {len(LETTERS)} options, one a line, or none; there are {len(options)}.")
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
        gr.HTML(tag("div", trouble or HINT, class_="lm-hint"), padding=False)
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
        button.click(desk.ask, [image, question, options, chosen], replies, scroll_to_output=True, **PRIVATE)
    return page


def gallery(samples: Sequence[Sample]) -> gr.Gallery:
    """The strip of examples; a click fills one in."""
    return gr.Gallery(
        value=[picture(sample) for sample in samples], visible=bool(samples), show_label=False,
        container=False, allow_preview=False, columns=EXAMPLES, object_fit="cover", format="png", buttons=[],
        interactive=False, elem_id="examples",
    )  # fmt: skip


def image_box() -> gr.Image:
    """Where the image goes; no camera."""
    with gr.Column(scale=4, min_width=280):
        box = gr.Image(
            label="Image", sources=["upload", "clipboard"], height=330, buttons=["fullscreen"], format="png",
            placeholder="Drop an image here, or pick one above", elem_id="image",
        )  # fmt: skip
    return files_only(box)


def files_only(box: gr.Image) -> gr.Image:
    """The box, handing on the path of an upload unopened and refusing to fetch an address.

    Set on the one object: beside a subclass gradio would write a stub file into this folder.
    """
    keep = box.async_move_resource_to_block_cache

    async def keep_file(url_or_file_path: str | Path | None) -> str | None:
        if "://" in str(url_or_file_path):
            raise gr.Error("Addresses are not fetched; upload the file.", print_exception=False)
        return await keep(url_or_file_path)

    box.async_move_resource_to_block_cache = keep_file
    box.preprocess = lambda payload: payload and payload.path
    return box


def text_boxes() -> tuple[gr.Textbox, gr.Textbox]:
    """Question and options."""
    question = gr.Textbox(
        label="Question", lines=2, max_length=MAX_QUESTION, placeholder="what does the image show ?",
        elem_id="question",
    )  # fmt: skip
    options = gr.Textbox(
        label="Options, one a line (none: free answer)", lines=5, max_lines=10, elem_id="options",
        placeholder="lung\nliver\nspleen", max_length=len(LETTERS) * (MAX_OPTION + 1),
    )  # fmt: skip
    return question, options


def style() -> str:
    """The style sheet of the page and its cards."""
    return cards.style() + Path(__file__).with_name("demo_page.css").read_text(encoding="utf-8")


def theme() -> gr.themes.Base:
    """Plain, with the system's own fonts, so that no font is fetched."""
    plain = gr.themes.Base(
        primary_hue="teal", neutral_hue="slate", radius_size="lg",
        font=["ui-sans-serif", "system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"],
    )  # fmt: skip
    return plain.set(
        button_primary_background_fill="*primary_700", button_primary_background_fill_hover="*primary_800"
    )


def examples(comparison: Comparison) -> tuple[list[Sample], str]:
    """Samples to pick from, or none and why."""
    try:
        return comparison.examples(EXAMPLES), ""
    except DataError as error:
        return [], f"No examples: {error}"


def picture(sample: Sample) -> Any:
    """The first image of a sample, decoded."""
    return load_image(sample.images[0])


def header(comparison: Comparison) -> Html:
    """Title, the run's own scores on the test split, what is missing of it, and the notice."""
    missing = [label(stage) for stage in TRAINED if stage not in comparison.stages]
    has = "has" if not comparison.notice else "so far has"
    absent = f" This run {has} no {' and no '.join(missing)} stage." if missing else ""
    unfinished = tag("div", comparison.notice, class_="lm-banner", role="note") if comparison.notice else None
    name = tag("b", comparison.run_dir.resolve().name)
    title = tag("span", "run ", name, ": one question, the answer of every stage.", absent)
    return join(
        [
            tag("div", tag("h1", "lite-medrl"), title, class_="lm-title"),
            scores(comparison.run_dir),
            unfinished,
            tag("div", cards.NOTICE, class_="lm-banner", role="note"),
        ]
    )


def scores(run_dir: Path) -> Html | None:
    """Acc@1 of each measured stage on the test split with its interval; None if nothing was measured."""
    rows = [row for row in measured(run_dir) if row["split"] == "test"]
    if not rows:
        return None
    told = f"Acc@1 on {rows[0]['n']} test questions (95 % interval):"
    return tag("div", told, *map(score, rows), too_few(rows[0]["n"]) or None, class_="lm-scores")


def measured(run_dir: Path) -> list[dict[str, Any]]:
    """The stages in results.json, or in progress.json while the run is not finished."""
    for name in ("results.json", MARKER):
        if (run_dir / name).is_file():
            return json.loads((run_dir / name).read_text(encoding="utf-8")).get("stages", [])
    return []


def score(row: dict[str, Any]) -> Html:
    """One stage's Acc@1."""
    low, high = map(percent, row["acc_at_1_ci95"])
    return tag("span", label(row["name"]), " ", tag("b", percent(row["acc_at_1"])), f" ({low} to {high})")


def footer(comparison: Comparison, samples: Sequence[Sample]) -> Html:
    """Model, precision, and the licences of the images shown."""
    licences = ", ".join(sorted({f"{sample.source} ({sample.licence})" for sample in samples}))
    return tag(
        "div", f"Model {comparison.recipe.model.model_name_or_path} on {comparison.policy}. Greedy answers; "
        "one base in memory, adapters switched. ", f"Images: {licences}. " if licences else None,
        "Uploads stay on this machine and are deleted when the demo ends.", class_="lm-legal",
    )  # fmt: skip
