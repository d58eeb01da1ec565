"""Crops of axial CT slices: where an organ lies in the crop, and whether and where the lung mass does."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np

from . import ct, pack
from .pack import Picture
from .splits import VALIDATION

QUARTERS = ("upper left", "upper right", "lower left", "lower right")


def quarter(cx: float, cy: float, *, margin: float = 0.08) -> str | None:
    """Quarter of the picture that holds a centre; None near the middle lines."""
    if min(abs(cx - 0.5), abs(cy - 0.5)) < margin:
        return None
    return f"{'upper' if cy < 0.5 else 'lower'} {'left' if cx < 0.5 else 'right'}"


def cut(
    volume: ct.Volume, index: int, x0: int, y0: int, side: int, window: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(pixels, labels, mass) of a square crop of the axial view, 112 x 112."""
    rows, cols = slice(y0, y0 + side), slice(x0, x0 + side)
    hu = pack.shrink(ct.plane_of(volume.hu, "axial", index)[rows, cols])
    labels = pack.shrink_labels(ct.plane_of(volume.labels, "axial", index)[rows, cols])
    mass = pack.shrink_labels(ct.plane_of(volume.mass, "axial", index)[rows, cols].astype(np.uint8))
    return pack.to_bytes(hu, *ct.WINDOWS[window]), labels, mass


def facts_of(index: int, window: str, labels: np.ndarray, mass: np.ndarray) -> dict[str, Any]:
    """What is known about a crop."""
    facts: dict[str, Any] = {
        "plane": "axial",
        "window": window,
        "level": ct.level_of(index),
        "slice": index,
        "crop": True,
    }
    facts["organs"] = ct.regions(labels, ct.ORGANS)
    facts["mass"] = bool(mass.sum() > 40)
    if facts["mass"]:
        facts["mass_at"] = centre(mass)
    return facts


def centre(mask: np.ndarray) -> list[float]:
    """Centre of a mask as fractions."""
    rows, cols = np.nonzero(mask)
    return [round(float(cols.mean() / mask.shape[1]), 2), round(float(rows.mean() / mask.shape[0]), 2)]


ASKED = (
    "heart",
    "liver",
    "spleen",
    "aorta",
    "spine",
    "left kidney",
    "right kidney",
    "stomach",
    "trachea",
    "sternum",
)


OTHER_WINDOWS = {
    "heart": ("lung", "bone"),
    "spine": ("lung", "bone"),
    "aorta": ("lung", "bone"),
    "trachea": ("lung",),
    "sternum": ("bone",),
    "liver": ("bone",),
}


def organ_crops(volume: ct.Volume) -> list[Picture]:
    """Random crops in which one organ lies clearly in one quarter."""
    out: list[Picture] = []
    random = Random("organ crops")
    for index, split in ct.steps("axial"):
        for number in range(3):
            picture = one_organ_crop(volume, index, split, random, number)
            if picture is not None:
                out.append(picture)
    return out


def one_organ_crop(volume: ct.Volume, index: int, split: str, random: Random, number: int) -> Picture | None:
    """Tries some crops until an organ lies wholly inside and clearly in the wanted quarter."""
    wanted = QUARTERS[(index * 2 + number * 3 + index // 4) % 4]
    for _ in range(60):
        side = random.randrange(250, 340)
        x0, y0 = random.randrange(0, 480 - side), random.randrange(40, 460 - side)
        window = random.choice(["soft tissue", "soft tissue", "lung", "bone"])
        pixels, labels, mass = cut(volume, index, x0, y0, side, window)
        facts = facts_of(index, window, labels, mass)
        facts["quarters"] = quarters_of(facts["organs"], window)
        if wanted in facts["quarters"].values():
            parts = [f"the {name} is in the {where}" for name, where in facts["quarters"].items()]
            caption = f"a crop of an axial ct in the {window} window . {pack.join_words(parts)} ."
            identity = f"ct-ax{index:03d}-c{number}"
            return Picture(identity, split, pixels, "ct", ct.SOURCE, ct.SUBJECT, facts, caption)
    return None


def quarters_of(organs: dict[str, dict[str, Any]], window: str) -> dict[str, str]:
    """Quarter of every organ that is wholly inside, shown well, and away from the middle lines."""
    out: dict[str, str] = {}
    for name in ASKED:
        shown = window in ("soft tissue", *OTHER_WINDOWS.get(name, ()))
        where = quarter(*organs[name]["at"]) if name in organs and shown and inside(organs[name]) else None
        if where is not None:
            out[name] = where
    return out


def inside(region: dict[str, Any]) -> bool:
    """Wholly inside the crop and large enough to be seen."""
    x0, y0, x1, y1 = region["box"]
    return x0 > 0.01 and y0 > 0.01 and x1 < 0.99 and y1 < 0.99 and region["area"] > 0.004


def mass_crops(volume: ct.Volume) -> list[Picture]:
    """Lung crops with and without the mass, from the slices that show it and their neighbours."""
    out: list[Picture] = []
    random = Random("mass crops")
    for index, split in [(i, s) for i, s in ct.steps("axial") if s != VALIDATION and 83 <= i <= 104]:
        plan: list[str | None] = [None, None]
        if volume.mass[:, :, index].sum() > 120:
            plan += QUARTERS * 2
        for turn, wanted in enumerate(plan):
            picture = one_mass_crop(volume, index, split, random, turn, wanted=wanted)
            if picture is not None:
                out.append(picture)
    return out


def one_mass_crop(
    volume: ct.Volume, index: int, split: str, random: Random, turn: int, *, wanted: str | None
) -> Picture | None:
    """A crop with the mass in the wanted quarter, or without a mass."""
    for _ in range(400):
        side = random.randrange(130, 200)
        x0, y0 = random.randrange(20, 470 - side), random.randrange(80, 480 - side)
        pixels, labels, mass = cut(volume, index, x0, y0, side, "lung")
        lung = np.isin(labels, ct.LEFT_LUNG + ct.RIGHT_LUNG).mean()
        facts = facts_of(index, "lung", labels, mass)
        if lung < 0.33 or (mass.any() and not facts["mass"]) or facts["mass"] != (wanted is not None):
            continue
        if wanted is not None and quarter(*facts["mass_at"]) != wanted:
            continue
        facts["mass_crop"] = True
        if wanted is not None:
            facts["mass_quarter"] = wanted
        tail = f"a lung mass is in the {wanted} ." if wanted else "there is no lung mass ."
        caption = f"a crop of an axial ct in the lung window . {tail}"
        return Picture(
            f"ct-ax{index:03d}-n{turn}", split, pixels, "ct", ct.SOURCE, ct.SUBJECT, facts, caption
        )
    return None
