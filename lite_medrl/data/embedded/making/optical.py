"""Pictures from light: a fundus photograph, two stained tissues, fluorescent nuclei with an instance mask.

Every source is one photograph, so tiles are cut from separate strips: train, guard, test (and validation).
"""

# The carriers and their readers are installed only where the pack is made.
# pyright: reportMissingImports=false
from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import tifffile
from PIL import Image
from scipy import ndimage as scipy_ndimage

from . import carriers, pack
from .pack import Picture
from .splits import TEST, TRAIN, VALIDATION

ndimage: Any = scipy_ndimage  # its annotations are unions that fit no array type
DISC_XY, DISC_RADIUS = (218, 655), 110  # optic disc in the fundus photograph, pixels
FUNDUS_ROWS = {TRAIN: (-60, 640), TEST: (684, 1470)}


def fundus() -> list[Picture]:
    """Crops above (train) and below (test) a line through the optic disc, which both strips show in part."""
    photo = np.asarray(Image.open(carriers.carrier("fundus")).convert("RGB"))
    pad = 300
    wide = np.pad(photo, ((pad, pad), (pad, pad), (0, 0)))
    out: list[Picture] = []
    random = Random("fundus")
    for split, count in ((TRAIN, 36), (TEST, 18)):
        low, high = FUNDUS_ROWS[split]
        for number in range(count):
            wanted = ("left", "right", "not visible")[number % 3]
            crop, facts = fundus_crop(wide, random, wanted, low, high, pad)
            seen = f"part of the optic disc is visible on the image {wanted}"
            tail = "the optic disc is not visible" if wanted == "not visible" else seen
            caption = f"a fundus photograph of the eye . {tail} ."
            out.append(
                Picture(
                    f"fu-{split[:2]}{number:02d}", split, crop, "fundus", "fundus", "fundus-1", facts, caption
                )
            )
    return out


def fundus_crop(
    wide: np.ndarray, random: Random, wanted: str, low: int, high: int, pad: int
) -> tuple[np.ndarray, dict[str, Any]]:
    """A square crop in rows [low, high) with the disc on the wanted side."""
    while True:
        side = random.randrange(330, 520)
        if wanted == "not visible":
            x0, y0 = random.randrange(380, 1411 - side + 40), random.randrange(low, high - side)
        else:
            x0 = random.randrange(DISC_XY[0] - side + 60, DISC_XY[0] - 60)
            y0 = high - side if low < 0 else low
            y0 += random.randrange(-40, 1) if low < 0 else random.randrange(0, 40)
        at = ((DISC_XY[0] - x0) / side, (DISC_XY[1] - y0) / side)
        crop = wide[y0 + pad : y0 + pad + side, x0 + pad : x0 + pad + side]
        ok = wanted == "not visible" or (at[0] < 0.4 if wanted == "left" else at[0] > 0.6)
        if ok and (crop.max(axis=2) > 40).mean() > 0.55:
            break
    facts: dict[str, Any] = {"body_part": "eye", "disc": wanted != "not visible", "disc_side": wanted}
    if facts["disc"]:
        facts["disc_at"] = [round(at[0], 2), round(at[1], 2)]
    return pack.shrink_colour(crop), facts


def brown_share(tile: np.ndarray) -> float:
    """Share of the pixels that are brown (diaminobenzidine): clearly more red than blue, and not pale."""
    red, blue = tile[..., 0].astype(int), tile[..., 2].astype(int)
    return float(((red - blue > 25) & (tile.mean(axis=2) < 190)).mean())


def strip_tiles(
    width: int, height: int, strips: dict[str, tuple[int, int]], sides: tuple[int, ...], step: float
) -> list[tuple[str, int, int, int]]:
    """(split, x, y, side) of overlapping tiles inside column strips."""
    out: list[tuple[str, int, int, int]] = []
    for split, (low, high) in strips.items():
        for side in sides:
            for y in range(0, height - side + 1, max(1, round(side * step))):
                for x in range(low, min(high, width) - side + 1, max(1, round(side * step))):
                    out.append((split, x, y, side))
    return out


def tissue() -> list[Picture]:
    """Tiles of the H&E photograph and of the immunostained one."""
    out: list[Picture] = []
    he = np.asarray(Image.open(carriers.carrier("h&e")).convert("RGB"))
    for split, x, y, side in strip_tiles(
        500, 300, {TRAIN: (0, 250), VALIDATION: (264, 350), TEST: (364, 500)}, (84, 112), 0.55
    ):
        facts: dict[str, Any] = {"stain": "h&e", "colours": ["purple", "pink"]}
        caption = "a histology tile with h&e stain . nuclei are purple and the rest is pink ."
        tile = pack.shrink_colour(he[y : y + side, x : x + side])
        out.append(Picture(f"he-{x}-{y}-{side}", split, tile, "histology", "h&e", "h&e-1", facts, caption))
    ihc = np.asarray(Image.open(carriers.carrier("ihc")).convert("RGB"))
    for split, x, y, side in strip_tiles(
        512, 512, {TRAIN: (0, 256), VALIDATION: (270, 356), TEST: (370, 512)}, (84, 112), 0.6
    ):
        tile = ihc[y : y + side, x : x + side]
        share = brown_share(tile)
        amount = (
            "little" if share < 0.2 else "some" if 0.28 < share < 0.48 else "much" if share > 0.6 else None
        )
        facts = {"stain": "brown immunostain", "brown_share": round(share, 3), "brown": amount}
        tail = "" if amount is None else f" {amount} of the tile is brown ."
        caption = f"a histology tile with brown immunostain and blue nuclei .{tail}"
        out.append(
            Picture(
                f"ih-{x}-{y}-{side}",
                split,
                pack.shrink_colour(tile),
                "histology",
                "ihc",
                "ihc-1",
                facts,
                caption,
            )
        )
    return out


BINS = [(1, 3, "one to three"), (4, 6, "four to six"), (7, 10, "seven to ten"), (11, 99, "more than ten")]


def bin_of(count: int) -> str | None:
    """The answer that holds a count."""
    return next((name for low, high, name in BINS if low <= count <= high), None)


def counts(mask: np.ndarray, tile: np.ndarray) -> tuple[int, int]:
    """Nuclei of which at least 60 % and at least 25 % of the area lies in the tile."""
    labels, inside = np.unique(tile, return_counts=True)
    whole = np.bincount(mask.ravel())
    shares = [n / whole[label] for label, n in zip(labels, inside, strict=True) if label]
    return int(sum(s >= 0.6 for s in shares)), int(sum(s >= 0.25 for s in shares))


def nuclei() -> list[Picture]:
    """Fluorescence tiles whose count is the same whichever way nuclei at the edge are counted."""
    image = tifffile.imread(carriers.carrier("nuclei")).astype(np.float32)
    mask = tifffile.imread(carriers.carrier("nuclei mask"))
    image = pack.to_bytes(np.clip(ndimage.gaussian_filter(image, 0.8) - 8, 0, None) ** 0.7, 0.8, 24)
    per: dict[tuple[str, str], int] = {}
    most = {TRAIN: 16, VALIDATION: 4, TEST: 8}
    out: list[Picture] = []
    tiles = strip_tiles(
        512,
        512,
        {TRAIN: (0, 240), VALIDATION: (254, 350), TEST: (364, 512)},
        (56, 70, 84, 96, 116, 132, 146),
        0.3,
    )
    Random("nuclei").shuffle(tiles)
    for split, x, y, side in tiles:
        strict, loose = counts(mask, mask[y : y + side, x : x + side])
        name = bin_of(strict)
        if name is None or name != bin_of(loose) or per.get((split, name), 0) >= most[split]:
            continue
        per[split, name] = per.get((split, name), 0) + 1
        facts: dict[str, Any] = {"stain": "fluorescence", "count": int(strict), "count_bin": name}
        caption = f"a fluorescence image of nuclei . there are {name} nuclei ."
        tile = pack.shrink_colour(image[y : y + side, x : x + side])
        out.append(
            Picture(f"nu-{x}-{y}-{side}", split, tile, "fluorescence", "dsb2018", "dsb2018-1", facts, caption)
        )
    return out


def pictures() -> list[Picture]:
    """All optical pictures."""
    return [*fundus(), *tissue(), *nuclei()]
