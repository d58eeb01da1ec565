"""Pictures of the CT (one patient): axial, coronal and sagittal slices, plain and with one structure marked.

Axes of the volume: x to the patient's left, y to the front, z to the head; 0.703 x 0.703 x 2.5 mm.
Radiological view: the patient's right is on the image's left.
"""

# The carriers and their readers are installed only where the pack is made.
# pyright: reportMissingImports=false
from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Any

import nibabel
import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage as scipy_ndimage

from . import carriers, pack
from .pack import SIDE, Picture
from .splits import GUARD, TEST, TRAIN, VALIDATION, blocks

ndimage: Any = scipy_ndimage  # its annotations are unions that fit no array type
SOURCE = "lidc-ct"
SUBJECT = "lidc-idri-0001"
PIXEL_MM, SLICE_MM = 0.703125, 2.5
CROP_X, CROP_Y = slice(20, 500), slice(8, 488)  # 480 voxels = 337 mm around the body
WINDOWS = {"lung": (-1300, 200), "soft tissue": (-140, 240), "bone": (-250, 1000)}
LEFT_LUNG, RIGHT_LUNG = (10, 11), (12, 13, 14)
# fmt: off
ORGANS: dict[str, tuple[int, ...]] = {
    "heart": (51, 61), "aorta": (52,), "liver": (5,), "spleen": (1,), "stomach": (6,), "pancreas": (7,),
    "right kidney": (2,), "left kidney": (3, 23), "left lung": LEFT_LUNG, "right lung": RIGHT_LUNG,
    "trachea": (16,), "oesophagus": (15,), "thyroid": (17,), "colon": (20,), "small bowel": (18,),
    "duodenum": (19,), "spine": tuple(range(29, 47)), "sternum": (116,), "left scapula": (71,),
    "right scapula": (72,), "left humerus": (69,), "right humerus": (70,), "left clavicle": (73,),
    "right clavicle": (74,), "back muscle": (86, 87), "vena cava": (62, 63),
}
LOBES: dict[str, int] = {
    "left upper lobe": 10, "left lower lobe": 11, "right upper lobe": 12, "right middle lobe": 13,
    "right lower lobe": 14,
}
AXIAL_BLOCKS: list[tuple[str | None, int]] = [
    (TRAIN, 10), (GUARD, 3), (TEST, 6), (GUARD, 3), (VALIDATION, 4), (GUARD, 3),  # upper abdomen, 0-28
    (TRAIN, 10), (GUARD, 3), (TEST, 6), (GUARD, 3), (TRAIN, 12), (GUARD, 3),  # lung bases, 29-65
    (TEST, 7), (GUARD, 3), (VALIDATION, 4), (GUARD, 3), (TRAIN, 6), (GUARD, 3),  # heart, mass, 66-91
    (TEST, 6), (GUARD, 3), (TRAIN, 8), (GUARD, 3), (VALIDATION, 3), (GUARD, 3),  # mass, upper chest, 92-117
    (TRAIN, 6), (GUARD, 3), (TEST, 6),  # shoulders, 118-132
]
LONG_BLOCKS: list[tuple[str | None, int]] = [
    (TRAIN, 9), (GUARD, 2), (TEST, 4), (GUARD, 2), (VALIDATION, 2), (GUARD, 2),
]
# fmt: on
LEVELS = [
    (0, 26, "upper abdomen"),
    (30, 52, "lung bases"),
    (55, 87, "heart level"),
    (92, 112, "upper chest"),
    (114, 132, "shoulders"),
]


@dataclass
class Volume:
    """CT in HU, labels, and the lung mass drawn by the radiologists (bool), all (512, 512, 133)."""

    hu: np.ndarray
    labels: np.ndarray
    mass: np.ndarray


def load() -> Volume:
    """The CT with its masks."""
    hu = np.asarray(nibabel.load(carriers.carrier("ct")).dataobj).astype(np.int16)
    labels = np.asarray(nibabel.load(carriers.carrier("ct labels")).dataobj).astype(np.uint8)
    return Volume(hu, labels, mass_mask(hu.shape))


def mass_mask(shape: tuple[int, ...]) -> np.ndarray:
    """Voxels inside the contours of at least two of the four readers."""
    votes = np.zeros(shape, dtype=np.uint8)
    connection = sqlite3.connect(f"file:{carriers.carrier('lung mass')}?mode=ro", uri=True)
    rows = connection.execute(
        "select c.image_z_position, c.coords from contours c join annotations a on a.id = c.annotation_id "
        "where a.scan_id = 12 and c.inclusion = 1 order by c.id"
    ).fetchall()
    connection.close()
    for z_mm, coords in rows:
        canvas = Image.new("L", (512, 512))
        points = [tuple(int(v) for v in line.split(",")) for line in coords.strip().split("\n")]
        if len(points) > 2:
            ImageDraw.Draw(canvas).polygon(points, fill=1, outline=1)
        votes[:, :, round((z_mm + 340) / SLICE_MM)] += np.asarray(canvas).T[:, ::-1]
    return votes >= 2


def plane_of(volume: np.ndarray, plane: str, index: int) -> np.ndarray:
    """One slice as an image (rows, columns), radiological view, not yet isotropic."""
    if plane == "axial":
        return volume[CROP_X, CROP_Y, index][:, ::-1].T
    if plane == "coronal":
        return volume[CROP_X, index, ::-1].T
    return volume[index, CROP_Y, ::-1][::-1].T


def resample(slice_: np.ndarray, plane: str, *, labels: bool) -> np.ndarray:
    """Slice -> 112 x 112 with square pixels of 3.01 mm."""
    tall = SIDE if plane == "axial" else round(slice_.shape[0] * SLICE_MM / (480 * PIXEL_MM / SIDE))
    small = (pack.shrink_labels if labels else pack.shrink)(slice_, size=(SIDE, tall))
    if plane == "axial":
        return small
    out = np.full((SIDE, SIDE), 0 if labels else -1000, dtype=small.dtype)
    top = max(0, (SIDE - tall) // 2)
    out[top : top + min(tall, SIDE)] = small[:SIDE]
    return out


def regions(labels: np.ndarray, names: dict[str, tuple[int, ...]]) -> dict[str, dict[str, Any]]:
    """Per structure seen: box (fractions x0, y0, x1, y1), centre and area fraction."""
    found: dict[str, dict[str, Any]] = {}
    height, width = labels.shape
    for name, ids in names.items():
        rows, cols = np.nonzero(np.isin(labels, ids))
        if len(rows) < 10:
            continue
        box = [cols.min() / width, rows.min() / height, (cols.max() + 1) / width, (rows.max() + 1) / height]
        found[name] = {
            "box": [round(float(v), 2) for v in box],
            "at": [round(float(cols.mean() / width), 2), round(float(rows.mean() / height), 2)],
            "area": round(len(rows) / labels.size, 3),
        }
    return found


def level_of(index: int) -> str | None:
    """Body level of an axial slice; None between two levels."""
    return next((name for low, high, name in LEVELS if low <= index <= high), None)


def third_of(index: int, low: int, high: int, names: tuple[str, str, str]) -> str | None:
    """Name of the third of [low, high] that holds the index; None near a border."""
    where = (index - low) / (high - low)
    for start, stop, name in ((0.0, 0.28, names[0]), (0.38, 0.62, names[1]), (0.72, 1.0, names[2])):
        if start <= where <= stop:
            return name
    return None


def position_of(plane: str, index: int) -> str | None:
    """Body level (axial), depth (coronal) or side (sagittal) in words."""
    if plane == "axial":
        return level_of(index)
    if plane == "coronal":
        return third_of(index, 110, 420, ("back part", "middle part", "front part"))
    return third_of(index, 90, 430, ("right side", "near the midline", "left side"))


def steps(plane: str) -> list[tuple[int, str]]:
    """(index, split) of every usable slice."""
    if plane == "axial":
        indices, pattern = list(range(133)), AXIAL_BLOCKS
    elif plane == "coronal":
        indices, pattern = list(range(112, 420, 4)), LONG_BLOCKS
    else:
        indices, pattern = list(range(84, 444, 5)), LONG_BLOCKS
    cut = blocks(pattern, len(indices))
    return [(i, s) for i, s in zip(indices, cut, strict=True) if s is not None]


def describe(plane: str, window: str, level: str | None, organs: dict[str, dict[str, Any]]) -> str:
    """Caption of a plain slice."""
    where = "" if level is None else f" at the {level}" if plane == "axial" else f" , {level} of the body"
    if plane == "sagittal" and level == "near the midline":
        where = " near the midline"
    largest = sorted(organs, key=lambda name: -organs[name]["area"])[:5]
    seen = pack.join_words([f"the {name} {pack.place(*organs[name]['at'])}" for name in largest])
    return f"{article(plane)} {plane} ct in the {window} window{where} . it shows {seen} ."


def article(word: str) -> str:
    """a or an."""
    return "an" if word[0] in "aeiou" else "a"


def facts_of(volume: Volume, plane: str, index: int, window: str, labels: np.ndarray) -> dict[str, Any]:
    """What is known about a whole slice."""
    organs = regions(labels, ORGANS)
    facts: dict[str, Any] = {
        "plane": plane,
        "window": window,
        "level": position_of(plane, index),
        "slice": index,
    }
    facts["organs"] = organs
    facts["mass"] = bool(plane_of(volume.mass, plane, index).any())
    return facts


def absent(volume: Volume, plane: str, index: int) -> list[str]:
    """Structures of which not one voxel lies in the slice or in the two slices on each side of it."""
    axis = {"sagittal": 0, "coronal": 1, "axial": 2}[plane]
    step = {"sagittal": 5, "coronal": 4, "axial": 1}[plane]
    slab = [slice(None)] * 3
    slab[axis] = slice(max(0, index - 2 * step), index + 2 * step + 1)
    found = set(np.nonzero(np.bincount(volume.labels[tuple(slab)].ravel(), minlength=256))[0].tolist())
    return [name for name, ids in ORGANS.items() if not found & set(ids)]


def plain(volume: Volume) -> list[Picture]:
    """Every usable slice in one or two windows."""
    out: list[Picture] = []
    for plane in ("axial", "coronal", "sagittal"):
        for number, (index, split) in enumerate(steps(plane)):
            hu = resample(plane_of(volume.hu, plane, index), plane, labels=False)
            labels = resample(plane_of(volume.labels, plane, index), plane, labels=True)
            names = list(WINDOWS)
            chosen = [names[number % 3], names[(number + 1) % 3]] if plane == "axial" else [names[number % 3]]
            for window in chosen:
                facts = facts_of(volume, plane, index, window, labels)
                facts["absent"] = absent(volume, plane, index)
                if not facts["organs"]:
                    continue
                out.append(
                    Picture(
                        f"ct-{plane[:2]}{index:03d}-{window[0]}",
                        split,
                        pack.to_bytes(hu, *WINDOWS[window]),
                        "ct",
                        SOURCE,
                        SUBJECT,
                        facts,
                        describe(plane, window, facts["level"], facts["organs"]),
                    )
                )
    return out
