"""`data inspect --row`: a row as the model will see it, in pieces: text, image tokens, what is trained.

The tokens and their labels come from the collator that SFT uses, not from a second idea of it. A recipe
brings its words, its answer style and its model.
"""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

from lite_medrl.data.sources import iter_samples
from lite_medrl.recipe import load_recipe
from lite_medrl.sections import Model, Prompt
from lite_medrl.types import DataError, ModelError, Sample

THUMBNAIL = 256
GREEN, DIM, PLAIN = "\033[32m", "\033[2m", "\033[0m"
IGNORED = -100


def look(
    source: str | None = None,
    *,
    row: str | None = None,
    recipe: str | None = None,
    model: str | None = None,
    thumbnail: Path | None = None,
) -> dict[str, Any]:
    """One row (the first where none is named): its segments, each trained or not, and counts of tokens.

    Args:
        source: None is the recipe's.
        recipe: a file; None is a recipe of defaults.
        model: a processor's id or folder, instead of the recipe's model.

    Raises:
        DataError: no row of that id, or its image cannot be used. ModelError: no such processor, or one that
            cannot shrink images as the recipe says. RecipeError: a recipe that cannot be used.
    """
    from lite_medrl.tools.samples import shown

    wanted = load_recipe(recipe).recipe
    source = source or wanted.data.source
    sample = found(source, row)
    processor = processor_of(wanted.model, model)
    ids, labels = tokens_of(processor, sample, wanted.prompt)
    image_id = getattr(processor, "image_token_id", None)
    segments = segments_of(processor.tokenizer, ids, labels, image_id)
    return {
        "source": source,
        "id": sample.id,
        "model": model or wanted.model.model_name_or_path,
        "recipe": recipe,
        "tokens": len(ids),
        "image_tokens": sum(token == image_id for token in ids),
        "trained_tokens": sum(label != IGNORED for label in labels),
        "image_sizes": image_sizes(sample),
        "segments": segments,
        "sample": shown(sample),
        "thumbnail": str(write_thumbnail(sample, thumbnail)) if thumbnail else None,
    }


def found(source: str, row: str | None) -> Sample:
    """The sample of that id in any split; faulty rows are passed over."""
    for sample in iter_samples(source, questions="all", on_error="skip"):
        if row in (None, sample.id):
            return sample
    raise DataError(
        f"{source}: no row that can be used has the id {row!r}; data inspect lists the faulty ones"
    )


def processor_of(section: Model, other: str | None = None) -> Any:
    """The processor of a recipe's model, or of another one, alone: no weights are loaded."""
    from transformers import AutoProcessor

    from lite_medrl.model.load import EMBEDDED, limit_image_tokens, with_advice

    key, name = ("--model", other) if other else ("model.model_name_or_path", section.model_name_or_path)
    path, revision = str(EMBEDDED) if name == "embedded" else name, None if other else section.revision
    try:
        processor = AutoProcessor.from_pretrained(
            path, revision=revision, trust_remote_code=False, padding_side="left"
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(f"{key}: no processor for {name!r}: {with_advice(error, path)}") from error
    if section.max_image_tokens is not None:
        limit_image_tokens(processor, section.max_image_tokens)
    return processor


def tokens_of(processor: Any, sample: Sample, prompt: Prompt) -> tuple[list[int], list[int]]:
    """Token ids and labels of the row, as SFT gets them; an open question (left out there) has no letter."""
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

    from lite_medrl.model.encode import images_of, wording
    from lite_medrl.train.columns import to_dataset

    images_of(sample)  # names the sample where an image cannot be used
    collate = DataCollatorForVisionLanguageModeling(
        processor=processor, max_length=None, completion_only_loss=True
    )
    letter = prompt.answer_style == "letter" and bool(sample.options)
    rows = to_dataset([sample], **wording(prompt), letter=letter, with_completion=True)
    batch = collate([rows[0]])
    mask = batch["attention_mask"][0].bool()
    return batch["input_ids"][0][mask].tolist(), batch["labels"][0][mask].tolist()


def segments_of(
    tokenizer: Any, ids: list[int], labels: list[int], image_id: int | None
) -> list[dict[str, Any]]:
    """Runs of tokens that are alike: image, not trained, trained; with their decoded text."""

    def kind(place: int) -> tuple[bool, bool]:
        return ids[place] == image_id, labels[place] != IGNORED

    segments = []
    for (is_image, trained), places in groupby(range(len(ids)), kind):
        run = [ids[place] for place in places]
        text = (
            f"[{len(run)} image tokens]"
            if is_image
            else tokenizer.decode(run, clean_up_tokenization_spaces=False)
        )
        segments.append({"text": text, "tokens": len(run), "image": is_image, "trained": trained})
    return segments


def image_sizes(sample: Sample) -> list[list[int]]:
    """Width and height of each image, before the processor resizes it."""
    from lite_medrl.data.images import load_image

    return [list(load_image(ref).size) for ref in sample.images]


def write_thumbnail(sample: Sample, path: Path) -> Path:
    """The images side by side, shrunk, as a PNG file."""
    from PIL import Image

    from lite_medrl.data.images import load_image

    images = [load_image(ref) for ref in sample.images]
    for image in images:
        image.thumbnail((THUMBNAIL, THUMBNAIL))
    strip = Image.new("RGB", (sum(i.width for i in images), max(i.height for i in images)), "white")
    left = 0
    for image in images:
        strip.paste(image, (left, 0))
        left += image.width
    path.parent.mkdir(parents=True, exist_ok=True)
    strip.save(path, "PNG")
    return path


def describe(report: dict[str, Any], *, colour: bool = False) -> str:
    """The row for a person: trained text is green, or marked by a bar where there are no colours."""
    sizes = ", ".join(f"{width} x {height}" for width, height in report["image_sizes"])
    under = f" under {report['recipe']}" if report["recipe"] else ""
    lines = [
        f"{report['source']}, row {report['id']}, as {report['model']} sees it{under}: "
        f"{report['tokens']} tokens, {report['image_tokens']} of the image ({sizes}), "
        f"{report['trained_tokens']} trained by SFT"
    ]
    if colour:
        lines.append(f"{GREEN}green{PLAIN} is trained, {DIM}dim{PLAIN} is image, the rest is read only")
        lines.append("".join(painted(segment) for segment in report["segments"]))
    else:
        for segment in report["segments"]:
            mark = "image" if segment["image"] else "train" if segment["trained"] else "read"
            lines += [f"{mark:>6} | {line}" for line in segment["text"].strip("\n").split("\n")]
    return "\n".join([*lines, f"thumbnail: {report['thumbnail']}"] if report["thumbnail"] else lines)


def painted(segment: dict[str, Any]) -> str:
    """A segment in its colour; what the row says cannot bring colours of its own."""
    text = segment["text"].replace("\033", "")
    return (
        f"{GREEN if segment['trained'] else DIM}{text}{PLAIN}"
        if segment["trained"] or segment["image"]
        else text
    )
