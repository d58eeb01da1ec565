"""Pictures of the brain MR (MNI152, a group average of 152 people): three planes, marked tissues and regions.

Axes (x: right, y: front, z: head), 1 mm; world = index + (-98, -134, -72) mm. The template is symmetric:
no question asks for left or right, and sagittal slices come from one half only (the other is its mirror).
"""

# The carriers and their readers are installed only where the pack is made.
# pyright: reportMissingImports=false
from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

import nibabel
import numpy as np
from scipy import ndimage as scipy_ndimage

from . import carriers, pack
from .pack import SIDE, Picture
from .splits import GUARD, TEST, TRAIN, VALIDATION, blocks

ndimage: Any = scipy_ndimage  # its annotations are unions that fit no array type
SOURCE, SUBJECT = "mni152", "mni152-average"
SPAN_MM = 188
# fmt: off
PATTERNS: dict[str, list[tuple[str | None, int]]] = {
    "axial": [
        (TRAIN, 4), (GUARD, 2), (TEST, 3), (GUARD, 2), (VALIDATION, 2), (GUARD, 2), (TRAIN, 13), (GUARD, 2),
        (TEST, 4), (GUARD, 2), (VALIDATION, 2), (GUARD, 2), (TRAIN, 8), (GUARD, 2), (TEST, 5), (GUARD, 2),
        (VALIDATION, 2),
    ],
    "coronal": [
        (TRAIN, 5), (GUARD, 2), (TEST, 3), (GUARD, 2), (VALIDATION, 2), (GUARD, 2), (TRAIN, 7), (GUARD, 2),
        (TEST, 4), (GUARD, 2), (VALIDATION, 2), (GUARD, 2), (TRAIN, 8), (GUARD, 2), (TEST, 4), (GUARD, 2),
        (VALIDATION, 1),
    ],
    "sagittal": [
        (TRAIN, 9), (GUARD, 2), (TEST, 4), (GUARD, 2), (VALIDATION, 2), (GUARD, 2), (TRAIN, 5), (GUARD, 2),
        (TEST, 4),
    ],
}
# fmt: on
RANGES = {"axial": (26, 144, 2), "coronal": (42, 198, 3), "sagittal": (36, 100, 2)}
TISSUES = {1: "grey matter", 2: "white matter", 3: "fluid"}


@dataclass
class Brain:
    """T1 (0-255), tissue labels (0 none, 1 grey, 2 white, 3 fluid), ventricles and regions (bool / uint8)."""

    t1: np.ndarray
    tissue: np.ndarray
    ventricles: np.ndarray
    region: np.ndarray


REGIONS = {1: "frontal lobe", 2: "occipital lobe", 3: "cerebellum", 4: "temporal lobe", 5: "parietal lobe"}


def load() -> Brain:
    """The template and what is derived from its tissue maps."""
    t1, grey, white = (
        np.asarray(nibabel.load(carriers.carrier(n)).dataobj).astype(np.float32)
        for n in ("brain t1", "brain grey", "brain white")
    )
    brain = ndimage.binary_closing((grey + white) > 100, iterations=4)
    brain = ndimage.binary_fill_holes(brain)
    fluid = brain & (grey < 60) & (white < 60) & (t1 < 110)
    tissue = np.zeros(t1.shape, dtype=np.uint8)
    tissue[grey > 190], tissue[white > 200], tissue[fluid] = 1, 2, 3
    x, y, z = np.meshgrid(
        *(np.arange(n) + o for n, o in zip(t1.shape, (-98, -134, -72), strict=True)), indexing="ij"
    )
    tissue[(tissue < 3) & (y < -36) & (z < -14)] = 0  # the cerebellum's fine folds are no fair question
    box = (abs(x) < 40) & (y > -50) & (y < 38) & (z > -4) & (z < 32)
    ventricles = ndimage.binary_opening(fluid & box)
    region = np.zeros(t1.shape, dtype=np.uint8)
    matter = (grey + white) > 150
    region[matter & (y > 22) & (z > 0)] = 1
    region[matter & (y < -84) & (z > -12) & (z < 25)] = 2
    region[matter & (y < -42) & (y > -85) & (z < -30)] = 3
    region[matter & (abs(x) > 42) & (y > -35) & (y < 8) & (z < -10)] = 4
    region[matter & (y > -66) & (y < -42) & (z > 46)] = 5
    return Brain(t1, tissue, ventricles, region)


def plane_of(volume: np.ndarray, plane: str, index: int) -> np.ndarray:
    """One slice (rows, columns): front or head on top; sagittal looks to the image's left."""
    if plane == "axial":
        return volume[:, ::-1, index].T
    if plane == "coronal":
        return volume[:, index, ::-1].T
    return volume[index, ::-1, ::-1].T


def framed(slice_: np.ndarray) -> np.ndarray:
    """Slice in the middle of a square of SPAN_MM."""
    out = pack.square(slice_)
    cut = (out.shape[0] - SPAN_MM) // 2
    if cut >= 0:
        return out[cut : cut + SPAN_MM, cut : cut + SPAN_MM]
    return np.pad(out, (-cut, SPAN_MM - out.shape[0] + cut))


def steps(plane: str) -> list[tuple[int, str]]:
    """(index, split) of every usable slice."""
    indices = list(range(*RANGES[plane]))
    return [
        (i, s) for i, s in zip(indices, blocks(PATTERNS[plane], len(indices)), strict=True) if s is not None
    ]


def facts_of(brain: Brain, plane: str, index: int) -> dict[str, Any]:
    """What is known about a slice."""
    ventricles = plane_of(brain.ventricles, plane, index)
    regions = plane_of(brain.region, plane, index)
    tissue = plane_of(brain.tissue, plane, index)
    area = {
        name: round(float((tissue == label).sum() / max(1, (tissue > 0).sum())), 3)
        for label, name in TISSUES.items()
    }
    seen = [name for label, name in REGIONS.items() if (regions == label).sum() > 150]
    facts: dict[str, Any] = {
        "plane": plane,
        "weighting": "t1",
        "slice": index,
        "tissue_area": area,
        "regions": seen,
    }
    facts["ventricle_px"] = int(ventricles.sum())
    facts["ventricles"] = True if ventricles.sum() > 250 else False if ventricles.sum() == 0 else None
    facts["level"] = level_of(plane, index)
    return facts


def level_of(plane: str, index: int) -> str | None:
    """Height of an axial slice, depth of a coronal one."""
    table = {
        "axial": [
            (26, 50, "cerebellum level"),
            (72, 100, "ventricle level"),
            (112, 150, "above the ventricles"),
        ],
        "coronal": [(42, 78, "back part"), (98, 140, "middle part"), (156, 204, "front part")],
        "sagittal": [(36, 56, "outer part"), (88, 100, "near the midline")],
    }[plane]
    return next((name for low, high, name in table if low <= index <= high), None)


def gray(brain: Brain, plane: str, index: int) -> np.ndarray:
    """112 x 112 picture of a slice."""
    return pack.to_bytes(pack.shrink(framed(plane_of(brain.t1, plane, index))), 0, 245)


def pictures(brain: Brain) -> list[Picture]:
    """Plain and marked slices."""
    out: list[Picture] = []
    random = Random("brain")
    used: dict[str, int] = {}
    for plane in RANGES:
        for index, split in steps(plane):
            facts = facts_of(brain, plane, index)
            pixels = gray(brain, plane, index)
            identity = f"mr-{plane[:2]}{index:03d}"
            out.append(Picture(identity, split, pixels, "mr", SOURCE, SUBJECT, facts, caption_of(facts)))
            out.extend(marks(brain, plane, index, split, random, used))
    return out


def caption_of(facts: dict[str, Any]) -> str:
    """Caption of a plain slice."""
    level = facts["level"]
    where = "" if level is None else f" {level}" if level.startswith(("above", "near")) else f" , {level}"
    seen = [
        *(["the ventricles"] if facts["ventricles"] else []),
        *(f"the {name}" for name in facts["regions"]),
    ]
    tail = f" it shows {pack.join_words(seen)} ." if seen else ""
    article = "an" if facts["plane"] == "axial" else "a"
    return f"{article} {facts['plane']} mr of the brain{where} .{tail}"


def marks(
    brain: Brain, plane: str, index: int, split: str, random: Random, used: dict[str, int]
) -> list[Picture]:
    """One slice with a marked tissue and one with a marked region, rarest first."""
    out: list[Picture] = []
    for kind, table, volume, least in (
        ("tissue", TISSUES, brain.tissue, 3.0),
        ("region", REGIONS, brain.region, 7.0),
    ):
        plane_mm = framed(plane_of(volume, plane, index))
        fit = [label for label in table if deepest(plane_mm == label, random, least=least) is not None]
        if not fit:
            continue
        label = min(fit, key=lambda n: (used.get(f"{split}{kind}{n}", 0), n))
        used[f"{split}{kind}{label}"] = used.get(f"{split}{kind}{label}", 0) + 1
        out.append(mark(brain, plane, index, split, kind, table[label], plane_mm == label, least, random))
    return out


def deepest(mask: np.ndarray, random: Random, *, least: float) -> tuple[float, float, float] | None:
    """A random point of the mask that is at least `least` mm from its border: x, y, depth."""
    depth = ndimage.distance_transform_edt(mask)
    top = float(depth.max())
    if top < least:
        return None
    points = np.argwhere(depth >= max(least, 0.85 * top))
    row, col = points[random.randrange(len(points))]
    return float(col), float(row), float(depth[row, col])


def mark(
    brain: Brain,
    plane: str,
    index: int,
    split: str,
    kind: str,
    name: str,
    mask: np.ndarray,
    least: float,
    random: Random,
) -> Picture:
    """One marked slice."""
    point = deepest(mask, random, least=least)
    assert point is not None
    scale = SIDE / SPAN_MM
    x, y, shape = point[0] * scale, point[1] * scale, random.choice(["circle", "box"])
    pixels = pack.draw_marker(
        gray(brain, plane, index), x=x, y=y, radius=4.0 if kind == "tissue" else 6.0, shape=shape
    )
    facts = facts_of(brain, plane, index)
    facts["marker"] = {
        "shape": shape,
        "structure": name,
        "kind": kind,
        "at": [round(x / SIDE, 2), round(y / SIDE, 2)],
        "radius": round((4.0 if kind == "tissue" else 6.0) / SIDE, 3),
        "place": pack.place(x / SIDE, y / SIDE),
    }
    article = "an" if plane == "axial" else "a"
    where = facts["marker"]["place"]
    caption = f"{article} {plane} mr of the brain . the yellow {shape} marks the {name} {where} ."
    return Picture(
        f"mr-{plane[:2]}{index:03d}-{kind[0]}", split, pixels, "mr", SOURCE, SUBJECT, facts, caption
    )
