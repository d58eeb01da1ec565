"""Axial, coronal and sagittal CT slices with a yellow marker inside one organ or one lobe of a lung.

The marker lies at the structure's deepest point: where the structure is thick, it holds nothing else.
"""

# The carriers and their readers are installed only where the pack is made.
# pyright: reportMissingImports=false
from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
from scipy import ndimage as scipy_ndimage

from . import ct, pack
from .pack import SIDE, Picture
from .splits import TEST, TRAIN, VALIDATION

ndimage: Any = scipy_ndimage  # its annotations are unions that fit no array type


def spot(labels: np.ndarray, ids: tuple[int, ...]) -> tuple[float, float, float]:
    """Deepest point of a structure: x, y and its distance to the border, in pixels."""
    depth = ndimage.distance_transform_edt(np.pad(np.isin(labels, ids), 1))[1:-1, 1:-1]
    row, col = np.unravel_index(int(np.argmax(depth)), depth.shape)
    return float(col), float(row), float(depth[row, col])


def some_spot(labels: np.ndarray, ids: tuple[int, ...], random: Random) -> tuple[float, float, float]:
    """A random point of a structure, at half of its greatest depth or deeper: x, y, depth in pixels."""
    depth = ndimage.distance_transform_edt(np.pad(np.isin(labels, ids), 1))[1:-1, 1:-1]
    points = np.argwhere(depth >= max(3.0, 0.5 * depth.max()))
    row, col = points[random.randrange(len(points))].tolist()
    return float(col), float(row), float(depth[row, col])


MARKED = [
    "heart",
    "aorta",
    "liver",
    "spleen",
    "stomach",
    "pancreas",
    "right kidney",
    "left kidney",
    "left lung",
    "right lung",
    "trachea",
    "thyroid",
    "colon",
    "spine",
    "sternum",
    "left scapula",
    "right scapula",
    "left humerus",
    "right humerus",
    "left clavicle",
    "right clavicle",
    "back muscle",
    "vena cava",
]


MARK_WINDOWS = {
    "lung": ["lung", "soft tissue"],
    "scapula": ["soft tissue", "bone"],
    "humerus": ["soft tissue", "bone"],
    "clavicle": ["soft tissue", "bone"],
    "sternum": ["soft tissue", "bone"],
    "spine": ["soft tissue", "bone"],
    "heart": ["soft tissue", "soft tissue", "lung", "bone"],
    "aorta": ["soft tissue", "soft tissue", "bone"],
    "trachea": ["soft tissue", "lung"],
}


def choose_marked(labels: np.ndarray, used: dict[str, int], count: int) -> list[str]:
    """The structures of a slice that were marked least often so far and are large enough."""
    fit = [n for n in MARKED if spot(labels, ct.ORGANS[n])[2] >= 2.0]
    fit.sort(key=lambda name: (used.get(name, 0), MARKED.index(name)))
    for name in fit[:count]:
        used[name] = used.get(name, 0) + 1
    return fit[:count]


def side_of(name: str, x: float) -> str | None:
    """Side of the patient, known from the name or from the image (radiological view)."""
    if name.startswith(("left ", "right ")):
        return name.split()[0]
    return "right" if x < 0.5 * SIDE - 8 else "left" if x > 0.5 * SIDE + 8 else None


def marked(volume: ct.Volume) -> list[Picture]:
    """Slices with a yellow marker inside one structure; every marker is an image of its own."""
    out: list[Picture] = []
    random = Random("ct markers")
    per_plane = {
        "axial": {TRAIN: 4, TEST: 3, VALIDATION: 4},
        "coronal": dict.fromkeys((TRAIN, TEST, VALIDATION), 2),
    }
    per_plane["sagittal"] = dict.fromkeys((TRAIN, TEST, VALIDATION), 1)
    used: dict[str, dict[str, int]] = {TRAIN: {}, TEST: {}, VALIDATION: {}}
    for plane in ("axial", "coronal", "sagittal"):
        for index, split in ct.steps(plane):
            hu = ct.resample(ct.plane_of(volume.hu, plane, index), plane, labels=False)
            labels = ct.resample(ct.plane_of(volume.labels, plane, index), plane, labels=True)
            for name in choose_marked(labels, used[split], per_plane[plane][split]):
                out.append(mark(volume, plane, index, split, hu, labels, name, random))
    return out


def mark(
    volume: ct.Volume,
    plane: str,
    index: int,
    split: str,
    hu: np.ndarray,
    labels: np.ndarray,
    name: str,
    random: Random,
) -> Picture:
    """One marked slice."""
    x, y, depth = spot(labels, ct.ORGANS[name])
    shape = random.choice(["circle", "box"])
    radius = float(np.clip(depth, 4, 9))
    window = random.choice(MARK_WINDOWS.get(name.split()[-1], ["soft tissue"]))
    pixels = pack.draw_marker(pack.to_bytes(hu, *ct.WINDOWS[window]), x=x, y=y, radius=radius, shape=shape)
    facts = ct.facts_of(volume, plane, index, window, labels)
    facts["marker"] = {
        "shape": shape,
        "structure": name,
        "at": [round(x / SIDE, 2), round(y / SIDE, 2)],
        "radius": round(radius / SIDE, 3),
        "place": pack.place(x / SIDE, y / SIDE),
        "patient_side": None if plane == "sagittal" else side_of(name, x),
    }
    lobe = next((n for n, i in ct.LOBES.items() if labels[int(y), int(x)] == i), None)
    if lobe and name.endswith("lung"):
        facts["marker"]["lobe"] = lobe
    caption = (
        f"{ct.article(plane)} {plane} ct in the {window} window . the yellow {shape} marks the {name} "
        f"{facts['marker']['place']} ."
    )
    identity = f"ct-{plane[:2]}{index:03d}-m-{name.replace(' ', '')}"
    return Picture(identity, split, pixels, "ct", ct.SOURCE, ct.SUBJECT, facts, caption)


def lobe_marks(volume: ct.Volume) -> list[Picture]:
    """Axial lung-window slices with a marker in one lobe."""
    out: list[Picture] = []
    random = Random("lobes")
    used: dict[str, int] = {}
    for index, split in ct.steps("axial"):
        if not 28 <= index <= 124:
            continue
        labels = ct.resample(ct.plane_of(volume.labels, "axial", index), "axial", labels=True)
        fit = [n for n, i in ct.LOBES.items() if spot(labels, (i,))[2] >= 4]
        if not fit:
            continue
        name = min(fit, key=lambda n: (used.get(split + n, 0), n))
        used[split + name] = used.get(split + name, 0) + 1
        hu = ct.resample(ct.plane_of(volume.hu, "axial", index), "axial", labels=False)
        out.append(lobe_mark(volume, index, split, hu, labels, name, random))
    return out


def lobe_mark(
    volume: ct.Volume, index: int, split: str, hu: np.ndarray, labels: np.ndarray, name: str, random: Random
) -> Picture:
    """One slice with a marker in the named lobe."""
    x, y, depth = some_spot(labels, (ct.LOBES[name],), random)
    shape = random.choice(["circle", "box"])
    radius = float(np.clip(depth, 4, 8))
    pixels = pack.draw_marker(pack.to_bytes(hu, *ct.WINDOWS["lung"]), x=x, y=y, radius=radius, shape=shape)
    facts = ct.facts_of(volume, "axial", index, "lung", labels)
    facts["marker"] = {
        "shape": shape,
        "structure": name,
        "lobe": name,
        "at": [round(x / SIDE, 2), round(y / SIDE, 2)],
        "radius": round(radius / SIDE, 3),
        "place": pack.place(x / SIDE, y / SIDE),
        "patient_side": name.split()[0],
    }
    where = facts["marker"]["place"]
    caption = f"an axial ct in the lung window . the yellow {shape} marks the {name} of the lung {where} ."
    return Picture(f"ct-ax{index:03d}-o", split, pixels, "ct", ct.SOURCE, ct.SUBJECT, facts, caption)
