"""Makes lite_medrl/model/embedded: a 6 M parameter LLaVA that looks and speaks but does not know the tasks.

It learns from two things only: captions of the embedded pack's training images, and instruction data that
this script makes up (coloured shapes, small stories), which teaches the chat format, the think/answer tags
and how to pick an option. It never sees a medical question. Tower: Segformer (its overlapping convolutions
learn from 1,000 images where a plain ViT does not), warmed up on the words and places of the captions; text
model: Qwen3. Run `python examples/make_embedded_model.py --minutes 60`; it resumes from its folder.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import random
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen3Config,
    SegformerConfig,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from lite_medrl.data.prompts import question_text

PACK = Path(__file__).parents[1] / "lite_medrl" / "data" / "embedded"
OUT = Path(__file__).parents[1] / "lite_medrl" / "model" / "embedded"
SIZE, CELL = 96, 16  # pixels of the model's image; pixels of one image token
TAGS = ["<think>", "</think>", "<answer>", "</answer>"]
SPECIALS = ["<|pad|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<image>"]
TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>\n' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|end|>' }}{% if not loop.last %}{{ '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n<|assistant|>\n' }}{% endif %}"
)
READING_FRAC = 0.15  # the share of the time that starts with text alone: copying comes first
SHORT = "think , then answer ."  # the instruction the embedded model is used to


@dataclass(frozen=True)
class Turn:
    """One made-up or caption example: an image or none, what the user says, what the model should say."""

    pixels: np.ndarray | None  # uint8 [SIZE, SIZE, 3]
    user: str
    assistant: str


# --- instruction data that this script makes up
# -------------------------------------------------------------------
COLOURS = {
    "red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 80, 230), "yellow": (235, 220, 50),
    "purple": (150, 60, 190), "orange": (245, 150, 30), "pink": (250, 150, 190), "grey": (130, 130, 130),
}  # fmt: skip
SHAPES = ["circle", "square", "triangle", "cross", "ring", "star", "diamond", "bar"]
NUMBERS = ["one", "two", "three", "four", "five", "six"]
ANIMALS = ["cat", "dog", "horse", "fox", "owl", "goat", "bear", "duck", "frog", "mouse"]
PLACES = ["river", "house", "garden", "bridge", "tower", "forest", "market", "harbour", "mill", "barn"]
FRUITS = ["apple", "pear", "plum", "melon", "grape", "lemon", "fig", "cherry"]


def draw_shape(
    draw: ImageDraw.ImageDraw, shape: str, colour: tuple[int, int, int], x: int, y: int, r: int
) -> None:
    """Draws one filled shape of radius r around (x, y)."""
    box = (x - r, y - r, x + r, y + r)
    polygons = {
        "triangle": [(x, y - r), (x - r, y + r), (x + r, y + r)],
        "diamond": [(x, y - r), (x + r, y), (x, y + r), (x - r, y)],
        "star": [
            (x + (r if i % 2 == 0 else r * 0.42) * np.sin(i * np.pi / 5),
             y - (r if i % 2 == 0 else r * 0.42) * np.cos(i * np.pi / 5))
            for i in range(10)
        ],
    }  # fmt: skip
    if shape == "circle":
        draw.ellipse(box, fill=colour)
    elif shape == "ring":
        draw.ellipse(box, outline=colour, width=max(2, r // 3))
    elif shape == "square":
        draw.rectangle(box, fill=colour)
    elif shape == "bar":
        draw.rectangle((x - r, y - r // 3, x + r, y + r // 3), fill=colour)
    elif shape == "cross":
        draw.rectangle((x - r, y - r // 4, x + r, y + r // 4), fill=colour)
        draw.rectangle((x - r // 4, y - r, x + r // 4, y + r), fill=colour)
    else:
        draw.polygon(polygons[shape], fill=colour)


def canvas(rng: random.Random) -> Image.Image:
    """A noisy background of random brightness."""
    noise = np.random.default_rng(rng.getrandbits(32)).normal(
        rng.randint(0, 200), rng.randint(0, 25), (SIZE, SIZE, 1)
    )
    return Image.fromarray(np.broadcast_to(noise.clip(0, 255), (SIZE, SIZE, 3)).astype(np.uint8).copy())


def choose(rng: random.Random, answer: str, pool: list[str]) -> list[str]:
    """Two to five shuffled options that hold the answer."""
    others = rng.sample([word for word in pool if word != answer], rng.randint(1, min(4, len(pool) - 1)))
    return rng.sample([answer, *others], len(others) + 1)


def ask(
    rng: random.Random,
    image: Image.Image | None,
    question: str,
    thought: str,
    answer: str,
    options: list[str],
) -> Turn:
    """A question in the chat format with tags."""
    user = question_text(question, options, rng.choice([SHORT, SHORT, SHORT, ""]))
    said = f"<think> {thought} </think><answer> {answer} </answer>"
    return Turn(None if image is None else np.asarray(image), user, said)


def shapes_turn(rng: random.Random) -> Turn:
    """One question about coloured shapes: colour, shape, the boxed one, how many, present or not."""
    image = canvas(rng)
    draw = ImageDraw.Draw(image)
    count = rng.randint(1, 4)
    cells = rng.sample([(x, y) for x in (16, 48, 80) for y in (16, 48, 80)], count)
    shapes, colours = rng.sample(SHAPES, count), rng.sample(list(COLOURS), count)
    for shape, colour, (x, y) in zip(shapes, colours, cells, strict=True):
        draw_shape(draw, shape, COLOURS[colour], x, y, rng.randint(8, 13))
    which = rng.randrange(count)
    kind = rng.choice(["colour", "shape", "boxed", "boxed", "boxed", "count", "present", "which"])
    shape, colour, (x, y) = shapes[which], colours[which], cells[which]
    if kind == "boxed":
        draw.rectangle((x - 15, y - 15, x + 15, y + 15), outline=(255, 220, 0), width=rng.choice([1, 2]))
        question = rng.choice(
            [
                "which shape is inside the yellow box ?",
                "what does the box mark ?",
                "name the shape in the yellow box .",
                "what is in the box ?",
            ]
        )
        return ask(rng, image, question, f"the box shows a {shape} .", shape, choose(rng, shape, SHAPES))
    if kind == "colour":
        question = rng.choice([f"what colour is the {shape} ?", f"which colour has the {shape} ?"])
        return ask(
            rng, image, question, f"the {shape} is {colour} .", colour, choose(rng, colour, list(COLOURS))
        )
    if kind == "shape":
        question = rng.choice([f"which shape is {colour} ?", f"what is the {colour} shape ?"])
        return ask(
            rng, image, question, f"the {colour} shape is a {shape} .", shape, choose(rng, shape, SHAPES)
        )
    if kind == "count":
        answer = NUMBERS[count - 1]
        return ask(
            rng,
            image,
            rng.choice(["how many shapes are there ?", "count the shapes ."]),
            f"there are {answer} .",
            answer,
            choose(rng, answer, NUMBERS),
        )
    if kind == "which":
        options = choose(rng, shape, [shape, *(s for s in SHAPES if s not in shapes)])
        return ask(
            rng,
            image,
            rng.choice(["which of these is visible ?", "which of these can be seen ?"]),
            f"the image shows a {shape} .",
            shape,
            options,
        )
    seen = rng.random() < 0.5
    shape = shape if seen else rng.choice([s for s in SHAPES if s not in shapes])
    thought = f"a {shape} can be seen ." if seen else f"no {shape} can be seen ."
    options = rng.sample(["yes", "no"], 2)
    question = rng.choice([f"is there a {shape} ?", f"can you see a {shape} ?", f"is a {shape} visible ?"])
    return ask(rng, image, question, thought, "yes" if seen else "no", options)


def things(rng: random.Random, words: list[str], count: int) -> list[str]:
    """Distinct phrases of one or two random words: nothing to know about them, they can only be copied."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[" ".join(rng.sample(words, rng.choice([1, 1, 2])))] = None
    return list(found)


def text_turn(rng: random.Random, words: list[str]) -> Turn:
    """Reading and choosing without an image: say it again, find it in the list, who is where."""
    chance = rng.random()
    if chance < 0.2:
        said = " ".join(rng.choices(words, k=rng.randint(1, 5)))
        return Turn(None, f"say again and again : {said}", " ".join([said] * rng.randint(3, 5)))
    if chance < 0.35:
        said = " ".join(rng.choices(words, k=rng.randint(2, 10)))
        return Turn(None, f"say : {said}", said)
    options = things(rng, words, rng.randint(2, 5))
    answer = rng.choice(options)
    if chance < 0.55:
        return ask(rng, None, f"look for {answer} .", f"this is {answer} .", answer, options)
    if chance < 0.75:
        number = ["first", "second", "third", "fourth", "fifth"][options.index(answer)]
        return ask(rng, None, f"what is {number} in the list ?", f"it is {answer} .", answer, options)
    others = things(rng, words, len(options))
    told = list(zip(options, others, strict=True))
    rng.shuffle(told)
    story = " ".join(f"the {one} is the {other} ." for one, other in told)
    other = others[options.index(answer)]
    return ask(
        rng, None, f"{story} which is the {other} ?", f"the {answer} is the {other} .", answer, options
    )


# --- captions of the training images
# ------------------------------------------------------------------------------
def training_images() -> list[tuple[np.ndarray, dict]]:
    """Decoded training images of the pack with their rows; never a question."""
    rows = [json.loads(line) for line in (PACK / "images.jsonl").read_text().splitlines()]
    with zipfile.ZipFile(PACK / "images.zip") as pack:
        return [
            (
                np.asarray(
                    Image.open(pack.open(row["file"])).convert("RGB").resize((SIZE, SIZE), Image.BICUBIC)
                ),
                row,
            )
            for row in rows
            if row["split"] == "train"
        ]


def where(x: float, y: float) -> str:
    """A place in the image, in the captions' words; x and y are fractions."""
    dx, dy = x - 0.5, y - 0.5
    if max(abs(dx), abs(dy)) < 0.1:
        return "in the centre"
    if abs(dx) >= abs(dy):
        return "on the image left" if dx < 0 else "on the image right"
    return "at the top" if dy < 0 else "at the bottom"


def compact_organs(row: dict) -> dict[str, list[float]]:
    """Organs of a slice whose centre surely lies inside them, with that centre: those that fill most of their
    box.
    """
    if row["facts"].get("crop"):
        return {}
    return {
        name: organ["at"]
        for name, organ in row["facts"].get("organs", {}).items()
        if organ["area"]
        > 0.5 * (organ["box"][2] - organ["box"][0]) * (organ["box"][3] - organ["box"][1])
        > 0.001
    }


def marked_turn(rng: random.Random, pixels: np.ndarray, row: dict, organs: dict[str, list[float]]) -> Turn:
    """A caption with a marker that this script draws on a structure of the slice."""
    name = rng.choice(list(organs))
    x, y = (organs[name][0] * SIZE + rng.uniform(-2, 2), organs[name][1] * SIZE + rng.uniform(-2, 2))
    radius, shape = rng.uniform(3.5, 7.5), rng.choice(["circle", "box"])
    rows, cols = np.mgrid[0:SIZE, 0:SIZE]
    far = np.hypot(cols - x, rows - y) if shape == "circle" else np.maximum(abs(cols - x), abs(rows - y))
    marked = pixels.copy()
    marked[(far >= radius) & (far < radius + 1.8)] = (255, 220, 0)
    place = where(*organs[name])
    return Turn(marked, rng.choice(DESCRIBE), f"the yellow {shape} marks the {name} {place} .")


DESCRIBE = ["describe the image .", "what does the image show ?"]
SMALL = frozenset("a an the of in on at to and is are it shows there no one with".split())  # noqa: SIM905


def caption_turn(rng: random.Random, pixels: np.ndarray, row: dict) -> Turn:
    """Describe the image: its caption, one sentence of it for a given word, its continuation, or a marked
    structure.
    """
    facts, chance = row["facts"], rng.random()
    if chance < 0.35 and "marker" not in facts and (organs := compact_organs(row)):
        return marked_turn(rng, pixels, row, organs)
    sentences = [sentence.strip() + " ." for sentence in row["caption"].split(" .") if sentence.strip()]
    thought = rng.choice(sentences)
    if chance < 0.45:
        return Turn(pixels, "think about the image .", f"<think> {thought} </think><answer> seen </answer>")
    if chance < 0.65:
        words = [word for word in thought.split() if word.isalpha() and word not in SMALL]
        user = f"think about {rng.choice(words)} ." if words else "think about the image ."
        return Turn(pixels, user, f"<think> {thought} </think><answer> seen </answer>")
    if chance < 0.8:
        words = rng.choice(sentences).split()
        cut = rng.randint(1, max(1, len(words) - 2))
        return Turn(pixels, f"go on : {' '.join(words[:cut])}", " ".join(words[cut:]))
    return Turn(pixels, rng.choice(DESCRIBE), row["caption"])


def known_words(images: list[tuple[np.ndarray, dict]]) -> list[str]:
    """The words of the captions and of the made-up pictures: what lists and stories are made of."""
    words = {word for _, row in images for word in row["caption"].split() if word.isalpha()}
    return sorted(words) + ANIMALS + PLACES + FRUITS + list(COLOURS) + SHAPES + NUMBERS


def alike(turn: Callable[[], Turn], batch_size: int) -> Iterator[list[Turn]]:
    """Endless batches of turns of like length, so that little is padded."""
    while True:
        drawn = sorted((turn() for _ in range(8 * batch_size)), key=lambda t: len(t.user) + len(t.assistant))
        yield from (drawn[i : i + batch_size] for i in range(0, len(drawn), batch_size))


def batches(
    rng: random.Random,
    images: list[tuple[np.ndarray, dict]],
    batch_size: int,
    caption_frac: float,
) -> tuple[Iterator[list[Turn]], Iterator[list[Turn]]]:
    """Batches with images (captions and shapes), and batches of text alone."""
    words = known_words(images)

    def seen() -> Turn:
        return caption_turn(rng, *rng.choice(images)) if rng.random() < caption_frac else shapes_turn(rng)

    return alike(seen, batch_size), alike(lambda: text_turn(rng, words), batch_size)


WORDS = """which what where who how many is are was the a an of in on at to by for from with and or not no yes
this that these image picture shown show see seen visible name count say used used part side body patient
organ structure slice
area largest lies cut cuts main kind type view height level colour tissue there you can does do it has have"""


# --- tokenizer, processor, model
# ----------------------------------------------------------------------------------
def make_processor(images: list[tuple[np.ndarray, dict]], vocab_size: int = 1400) -> LlavaProcessor:
    """Byte-level BPE learnt from captions and made-up text, in a stock LlavaProcessor."""
    sources = batches(random.Random(0), images, 32, 0.6)
    text = [part for i in range(160) for turn in next(sources[i % 2]) for part in (turn.user, turn.assistant)]
    text += [" ".join(["", *WORDS.split()])] * 50
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        text, trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    )
    bpe.add_special_tokens([AddedToken(t, special=True) for t in SPECIALS])
    bpe.add_tokens([AddedToken(t, special=False, normalized=False, lstrip=t.startswith("</")) for t in TAGS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<|pad|>", eos_token="<|end|>", padding_side="left",
        extra_special_tokens={"image_token": "<image>"}, model_max_length=512,
    )  # fmt: skip
    size = {"height": SIZE, "width": SIZE}
    return LlavaProcessor(
        image_processor=SiglipImageProcessorPil(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3),
        tokenizer=tokenizer, patch_size=CELL, vision_feature_select_strategy="full", chat_template=TEMPLATE,
        image_token="<image>",
    )  # fmt: skip


def kept_processor(folder: Path, images: list[tuple[np.ndarray, dict]]) -> LlavaProcessor:
    """The processor of the run in `folder`, made when there is none yet."""
    if not (folder / "processor").exists():
        make_processor(images).save_pretrained(folder / "processor")
    return LlavaProcessor.from_pretrained(folder / "processor")


def make_model(processor: LlavaProcessor) -> LlavaForConditionalGeneration:
    """Random weights: Segformer tower (2.0 M), two-layer projector, Qwen3 text model (3.7 M)."""
    tokenizer = processor.tokenizer
    text = Qwen3Config(
        vocab_size=-(-len(tokenizer) // 64) * 64, hidden_size=256, intermediate_size=768, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=4, head_dim=64, max_position_embeddings=512,
        tie_word_embeddings=True, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None, rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )  # fmt: skip
    vision = SegformerConfig(
        num_encoder_blocks=3, depths=[2, 2, 3], sr_ratios=[4, 2, 1], hidden_sizes=[48, 96, 192],
        patch_sizes=[7, 3, 3],
        strides=[4, 2, 2], num_attention_heads=[1, 2, 4], mlp_ratios=[4, 4, 4], hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, drop_path_rate=0.0, reshape_last_stage=False, hidden_size=192,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1, vision_feature_select_strategy="full", image_seq_length=(SIZE // CELL) ** 2,
        tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    return LlavaForConditionalGeneration(config)


# --- training
# -----------------------------------------------------------------------------------------------------
def augment(pixels_BHWC: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
    """Small shift, contrast, brightness and noise; returns float [B, 3, SIZE, SIZE] normalised to [-1, 1]."""
    x = torch.from_numpy(pixels_BHWC).permute(0, 3, 1, 2).float() / 127.5 - 1
    out = torch.empty_like(x)
    padded = torch.nn.functional.pad(x, (6, 6, 6, 6), mode="reflect")
    for b in range(len(x)):
        dy, dx = rng.integers(0, 13, 2)
        out[b] = padded[b, :, dy : dy + SIZE, dx : dx + SIZE]
    scale = torch.from_numpy(rng.uniform(0.8, 1.25, (len(x), 1, 1, 1))).float()
    shift = torch.from_numpy(rng.uniform(-0.15, 0.15, (len(x), 1, 1, 1))).float()
    return (out * scale + shift + torch.randn(out.shape) * 0.02).clamp(-1, 1)


def fast_dtype() -> contextlib.AbstractContextManager:
    """Matrix products in bfloat16 where the processor has instructions for it (3 to 4 times as fast)."""
    able = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.autocast("cpu", torch.bfloat16) if able else contextlib.nullcontext()


def answer_loss(model: LlavaForConditionalGeneration, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Mean cross-entropy of the labelled tokens; only the states that predict them meet the head."""
    labels = batch["labels"][:, 1:]
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    with fast_dtype():
        states = model.model(**inputs).last_hidden_state[:, :-1]
        logits = model.lm_head(states[labels != -100])
    return torch.nn.functional.cross_entropy(logits.float(), labels[labels != -100])


def encode(processor: LlavaProcessor, batch: list[Turn], rng: np.random.Generator) -> dict[str, torch.Tensor]:
    """Right-padded model inputs; only the assistant's tokens carry labels."""
    tokenizer, cells = processor.tokenizer, (SIZE // CELL) ** 2
    rows, labels = [], []
    for turn in batch:
        seen = "" if turn.pixels is None else "<image>" * cells + "\n"
        prompt = f"<|user|>\n{seen}{turn.user}<|end|>\n<|assistant|>\n"
        head, tail = tokenizer(prompt)["input_ids"], tokenizer(turn.assistant + "<|end|>")["input_ids"]
        rows.append(head + tail)
        labels.append([-100] * len(head) + tail)
    width = max(map(len, rows))
    pad = tokenizer.pad_token_id
    inputs = {
        "input_ids": torch.tensor([r + [pad] * (width - len(r)) for r in rows]),
        "attention_mask": torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in rows]),
        "labels": torch.tensor([r + [-100] * (width - len(r)) for r in labels]),
    }
    pixels = [turn.pixels for turn in batch if turn.pixels is not None]
    return inputs | ({"pixel_values": augment(np.stack(pixels), rng)} if pixels else {})


def learning_rate(frac: float, peak: float = 1.5e-3) -> float:
    """Short warm-up, then cosine to a tenth; frac is the share of the time that is used up."""
    return float(peak * min(1.0, frac / 0.03) * (0.55 + 0.45 * np.cos(np.pi * min(1.0, frac))))


class Sight(torch.nn.Module):
    """Two throw-away heads on the tower: the words of the caption, the structures of each cell."""

    def __init__(self, tower: torch.nn.Module, words: int, structures: int) -> None:
        super().__init__()
        self.tower, self.norm = tower, torch.nn.LayerNorm(192)
        self.word_head, self.cell_head = torch.nn.Linear(192, words), torch.nn.Linear(192, structures)
        for head in (self.word_head, self.cell_head):
            torch.nn.init.constant_(head.bias, -3.0)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [B, words] and [B, cells, structures]."""
        states = self.norm(self.tower(pixels, output_hidden_states=True).hidden_states[-1])
        return self.word_head(states.mean(1)), self.cell_head(states)


def sight_labels(rows: list[dict]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Caption words [B, words], structures of each cell [B, cells, structures], and which rows have the
    latter [B].
    """
    words = sorted({word for row in rows for word in row["caption"].split()})
    names = sorted({name for row in rows for name in row["facts"].get("organs", {})})
    side = SIZE // CELL
    centre, half = (np.arange(side) + 0.5) / side, 0.5 / side
    said = np.array([[word in row["caption"].split() for word in words] for row in rows], np.float32)
    cells = np.zeros((len(rows), side * side, len(names)), np.float32)
    for i, row in enumerate(rows):
        for name, organ in row["facts"].get("organs", {}).items():
            x0, y0, x1, y1 = organ["box"]
            down, across = (
                (centre > y0 - half) & (centre < y1 + half),
                (centre > x0 - half) & (centre < x1 + half),
            )
            cells[i, :, names.index(name)] = np.outer(down, across).ravel()
    return said, cells, np.array(["organs" in row["facts"] for row in rows])


def warm_tower(folder: Path, minutes: float, batch_size: int = 32) -> None:
    """Trains the tower alone on the words and places behind the captions; writes tower.pt; skipped when that
    exists.
    """
    if (folder / "tower.pt").exists():
        return
    images = training_images()
    said, cells, placed = sight_labels([row for _, row in images])
    pixels = np.stack([p for p, _ in images])
    torch.manual_seed(0)
    sight = Sight(
        make_model(make_processor(images)).model.vision_tower, said.shape[1], cells.shape[2]
    ).train()
    optimiser = torch.optim.AdamW(sight.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.05)
    entropy, rng, start, step, losses = (
        torch.nn.functional.binary_cross_entropy_with_logits,
        np.random.default_rng(0),
        time.time(),
        0,
        [],
    )
    while (spent := time.time() - start) < minutes * 60:
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(spent / (minutes * 60), 1.5e-3)
        chosen = rng.choice(len(images), batch_size)
        with fast_dtype():
            word_logits, cell_logits = (x.float() for x in sight(augment(pixels[chosen], rng)))
        loss = entropy(word_logits, torch.from_numpy(said[chosen]))
        if placed[chosen].any():
            has = torch.from_numpy(placed[chosen])
            loss = loss + 2 * entropy(cell_logits[has], torch.from_numpy(cells[chosen])[has])
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        losses.append(loss.item())
        step += 1
        if step % 50 == 0:
            print(f"tower {spent / 60:6.1f} min  step {step}  loss {np.mean(losses[-50:]):.3f}", flush=True)
    torch.save(sight.tower.state_dict(), folder / "tower.pt")


def train(
    folder: Path,
    output: Path,
    minutes: float,
    batch_size: int,
    caption_frac: float,
    text_frac: float,
    seed: int = 0,
) -> None:
    """Trains until the minutes are used up; every 3 minutes writes a state to go on from."""
    images = training_images()
    processor = kept_processor(folder, images)
    model = make_model(processor).train()
    model.model.vision_tower.load_state_dict(torch.load(folder / "tower.pt", weights_only=True))
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.05)
    spent, step, state = 0.0, 0, folder / "state.pt"
    if state.exists():
        saved = torch.load(state, weights_only=True)
        model.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        spent, step = saved["spent"], saved["step"]
    rng, noise = random.Random(seed + step), np.random.default_rng(seed + step)
    torch.manual_seed(seed + step)
    seen, told = batches(rng, images, batch_size, caption_frac)
    start, saved_at = time.time() - spent, time.time()
    losses: dict[str, list[float]] = {"images": [], "text": []}
    while (spent := time.time() - start) < minutes * 60:
        reading = spent < READING_FRAC * minutes * 60 or rng.random() < text_frac
        batch = encode(processor, next(told if reading else seen), noise)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(spent / (minutes * 60))
        loss = answer_loss(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        losses["images" if "pixel_values" in batch else "text"].append(loss.item())
        step += 1
        if step % 50 == 0:
            recent = "  ".join(
                f"{key} {np.mean(values[-40:]):.3f}" for key, values in losses.items() if values
            )
            print(f"{spent / 60:6.1f} min  step {step}  loss of {recent}", flush=True)
        if time.time() - saved_at > 180:
            save_state(state, model, optimiser, spent, step)
            saved_at = time.time()
    save_state(state, model, optimiser, spent, step)
    export(output, model, processor)
    note(output, spent / 60, step, float(np.mean(losses["images"][-200:])))


def save_state(
    path: Path, model: torch.nn.Module, optimiser: torch.optim.Optimizer, spent: float, step: int
) -> None:
    """Written beside and renamed, so that a stop in the middle leaves the last whole state."""
    path.parent.mkdir(parents=True, exist_ok=True)
    payload = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "spent": spent, "step": step}
    torch.save(payload, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def export(folder: Path, model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> None:
    """fp16 safetensors, processor and generation config, as from_pretrained wants them."""
    model = model.to(torch.float16)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def note(folder: Path, minutes: float, steps: int, loss: float) -> None:
    """training.json: which images it was, and for how long; a test holds it against the pack."""
    pack = hashlib.sha256((PACK / "images.jsonl").read_bytes()).hexdigest()
    made = {"pack_sha256": pack, "minutes": round(minutes, 1), "steps": steps, "last_loss": round(loss, 4)}
    (folder / "training.json").write_text(json.dumps(made, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output_dir", type=Path, default=OUT)
    parser.add_argument(
        "--work_dir", type=Path, default=Path("runs/embedded-model"), help="states to resume from"
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="of which a sixth warms up the tower")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--caption_frac", type=float, default=0.65)
    parser.add_argument(
        "--text_frac", type=float, default=0.4, help="share of the batches that are text alone"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.work_dir.mkdir(parents=True, exist_ok=True)
    warm_tower(args.work_dir, args.minutes / 6)
    train(
        args.work_dir,
        args.output_dir,
        args.minutes * 5 / 6,
        args.batch_size,
        args.caption_frac,
        args.text_frac,
    )
