"""What a picture and a question are while the pack is made, and how they are written to disk.

A picture is 112 x 112 pixels, uint8, grey (H, W) or colour (H, W, 3). The same input gives the same bytes.
"""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIDE = 112
JPEG_QUALITY = 62
YELLOW = (255, 230, 0)


@dataclass
class Picture:
    """One image of the pack with everything that is known about it."""

    id: str
    split: str
    pixels: np.ndarray
    modality: str
    source: str
    subject: str
    facts: dict[str, Any]
    caption: str


@dataclass
class Ask:
    """One candidate question; `key` is the answer that is balanced within its kind."""

    image: str
    split: str
    kind: str
    question: str
    options: list[str]
    answer: str
    reasoning: str
    key: str = ""
    extra: dict[str, Any] = field(default_factory=dict)


def shrink(plane: np.ndarray, *, size: tuple[int, int] = (SIDE, SIDE)) -> np.ndarray:
    """Float plane (H, W) averaged down to `size` (width, height)."""
    image = Image.fromarray(np.ascontiguousarray(plane, dtype=np.float32))
    return np.asarray(
        image.resize(size, Image.Resampling.BOX if size[0] <= plane.shape[1] else Image.Resampling.BICUBIC)
    )


def shrink_labels(plane: np.ndarray, *, size: tuple[int, int] = (SIDE, SIDE)) -> np.ndarray:
    """Label plane (H, W) uint8 sampled at the nearest pixel."""
    image = Image.fromarray(np.ascontiguousarray(plane, dtype=np.uint8))
    return np.asarray(image.resize(size, Image.Resampling.NEAREST))


def shrink_colour(pixels: np.ndarray) -> np.ndarray:
    """Colour or grey uint8 picture brought to 112 x 112."""
    return np.asarray(
        Image.fromarray(np.ascontiguousarray(pixels)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    )


def to_bytes(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Linear window: low -> 0, high -> 255."""
    return np.clip((values - low) / (high - low) * 255.0, 0, 255).astype(np.uint8)


def square(pixels: np.ndarray, *, fill: int = 0) -> np.ndarray:
    """Pad to a square, picture in the middle; the aspect is kept."""
    height, width = pixels.shape[:2]
    side = max(height, width)
    out = np.full((side, side, *pixels.shape[2:]), fill, dtype=pixels.dtype)
    top, left = (side - height) // 2, (side - width) // 2
    out[top : top + height, left : left + width] = pixels
    return out


def draw_marker(pixels: np.ndarray, *, x: float, y: float, radius: float, shape: str) -> np.ndarray:
    """Grey picture with a yellow circle or box (2 pixels wide) around (x, y); returns colour."""
    out = np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels.copy()
    rows, cols = np.mgrid[0 : out.shape[0], 0 : out.shape[1]]
    measure = np.hypot if shape == "circle" else np.maximum
    distance = measure(abs(cols - x), abs(rows - y))
    out[(distance >= radius) & (distance < radius + 2)] = YELLOW
    return out


def place(cx: float, cy: float) -> str:
    """Where a centre (fractions of width and height) lies, in words of the image."""
    dx, dy = cx - 0.5, cy - 0.5
    if max(abs(dx), abs(dy)) < 0.1:
        return "in the centre"
    if abs(dx) >= abs(dy):
        return "on the image left" if dx < 0 else "on the image right"
    return "at the top" if dy < 0 else "at the bottom"


def join_words(parts: list[str]) -> str:
    """'a , b and c'."""
    return parts[0] if len(parts) == 1 else " , ".join(parts[:-1]) + " and " + parts[-1]


def jpeg(pixels: np.ndarray) -> bytes:
    """JPEG bytes; colour keeps its full resolution so that markers stay sharp."""
    buffer = io.BytesIO()
    options: dict[str, Any] = {"subsampling": 0} if pixels.ndim == 3 else {}
    Image.fromarray(pixels).save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True, **options)
    return buffer.getvalue()


def write_images(pictures: list[Picture], folder: Path) -> None:
    """images.zip, stored, fixed dates."""
    with zipfile.ZipFile(folder / "images.zip", "w", zipfile.ZIP_STORED) as archive:
        for picture in pictures:
            info = zipfile.ZipInfo(f"{picture.id}.jpg", date_time=(2026, 1, 1, 0, 0, 0))
            archive.writestr(info, jpeg(picture.pixels))


def write_rows(rows: list[dict[str, Any]], path: Path) -> None:
    """One compact JSON object a line."""
    lines = [json.dumps(row, separators=(",", ":"), ensure_ascii=True) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def image_row(picture: Picture, licence: str) -> dict[str, Any]:
    """The row of images.jsonl."""
    height, width = picture.pixels.shape[:2]
    return {
        "id": picture.id,
        "file": f"{picture.id}.jpg",
        "split": picture.split,
        "modality": picture.modality,
        "source": picture.source,
        "subject": picture.subject,
        "licence": licence,
        "width": width,
        "height": height,
        "facts": picture.facts,
        "caption": picture.caption,
    }
