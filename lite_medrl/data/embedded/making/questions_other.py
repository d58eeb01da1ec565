"""Questions about modality, body part, radiographs, brain, fundus and microscopy, from the facts alone."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

from .ask import ask, few
from .pack import Ask, Picture

MODALITIES = [
    "ct",
    "mr",
    "radiograph",
    "ultrasound",
    "fundus photograph",
    "histology",
    "fluorescence",
    "bone scan",
]
SHOWN = {"fundus": "fundus photograph"}
ZONES = ["right upper zone", "right lower zone", "left upper zone", "left lower zone"]
REGIONS = ["frontal lobe", "occipital lobe", "cerebellum", "temporal lobe", "parietal lobe"]
COUNTS = ["one to three", "four to six", "seven to ten", "more than ten"]
PARTS = ["head", "chest", "abdomen", "leg", "shoulder", "spine", "eye", "heart", "pelvis"]


def modality(p: Picture, f: dict[str, Any], r: Random) -> Iterator[Ask]:
    """How the picture was made."""
    name = SHOWN.get(p.modality, p.modality)
    yield ask(p, r, "modality", few(r, MODALITIES, name, 5), name)


def body_part(p: Picture, f: dict[str, Any], r: Random) -> Iterator[Ask]:
    """Part of the body."""
    part = f.get("body_part") or ("chest" if "angle_deg" in f else "head" if p.modality == "mr" else None)
    if (
        part is None
        and p.modality == "ct"
        and f.get("plane") == "axial"
        and "crop" not in f
        and "marker" not in f
    ):
        part = {"upper abdomen": "abdomen", "heart level": "chest", "upper chest": "chest"}.get(
            f.get("level") or ""
        )
    if part in PARTS:
        pool = [
            n
            for n in PARTS
            if not (
                {n, part} <= {"heart", "chest"}
                or {n, part} <= {"spine", "chest"}
                or {n, part} <= {"spine", "abdomen"}
                or {n, part} <= {"abdomen", "pelvis"}
            )
        ]
        yield ask(p, r, "body_part", few(r, pool, part, 4), part)


def view(p: Picture, f: dict[str, Any], r: Random) -> Iterator[Ask]:
    """View of a chest radiograph."""
    if "angle_deg" in f:
        yield ask(p, r, "view", ["frontal", "oblique", "lateral"], f["view"])


def opacity(p: Picture, f: dict[str, Any], r: Random) -> Iterator[Ask]:
    """Is there an opacity, and on which side?"""
    if "opacity" in f:
        yield ask(p, r, "opacity_present", ["yes", "no"], "yes" if f["opacity"] else "no")
    if "opacity_side" in f:
        yield ask(p, r, "opacity_side", ["patient left", "patient right"], f"patient {f['opacity_side']}")


def opacity_zone(p: Picture, f: dict[str, Any], r: Random) -> Iterator[Ask]:
    """Zone of the opacity, or none."""
    if f.get("view") == "frontal" and "opacity" in f:
        yield ask(p, r, "opacity_zone", [*ZONES, "no opacity"], f.get("opacity_zone", "no opacity"))


def opacity_height(p: Picture, f: dict[str, Any], r: Random) -> Iterator[Ask]:
    """Upper or lower lungs, or none."""
    if "opacity" in f:
        height = f.get("opacity_height")
        yield ask(
            p,
            r,
            "opacity_height",
            ["upper lungs", "lower lungs", "no opacity"],
            f"{height} lungs" if height else "no opacity",
        )


def tissue(p: Picture, f: dict[str, Any], r: Random) -> Iterator[Ask]:
    """Tissue under the marker."""
    mark = f.get("marker", {})
    if mark.get("kind") == "tissue":
        yield ask(
            p, r, "tissue", ["grey matter", "white matter", "fluid"], mark["structure"], shape=mark["shape"]
        )


def region(p: Picture, f: dict[str, Any], r: Random) -> Iterator[Ask]:
    """Part of the brain under the marker."""
    mark = f.get("marker", {})
    if mark.get("kind") == "region":
        yield ask(
            p,
            r,
            "brain_region",
            few(r, REGIONS, mark["structure"], r.choice([4, 5])),
            mark["structure"],
            shape=mark["shape"],
        )


def ventricles(p: Picture, f: dict[str, Any], r: Random) -> Iterator[Ask]:
    """Are the ventricles, or is the cerebellum, in the slice?"""
    if p.modality == "mr" and f.get("ventricles") is not None:
        yield ask(p, r, "ventricles", ["yes", "no"], "yes" if f["ventricles"] else "no")


def stain(p: Picture, f: dict[str, Any], r: Random) -> Iterator[Ask]:
    """Stain of a tile."""
    if "stain" in f:
        yield ask(p, r, "stain", ["h&e", "brown immunostain", "fluorescence"], f["stain"])


def brown(p: Picture, f: dict[str, Any], r: Random) -> Iterator[Ask]:
    """How much of the tile is brown?"""
    if f.get("brown"):
        yield ask(p, r, "brown_area", ["little", "some", "much"], f["brown"])


def nuclei(p: Picture, f: dict[str, Any], r: Random) -> Iterator[Ask]:
    """How many nuclei?"""
    if "count_bin" in f:
        yield ask(p, r, "nuclei_count", list(COUNTS), f["count_bin"])


def disc(p: Picture, f: dict[str, Any], r: Random) -> Iterator[Ask]:
    """Is the optic disc in the crop?"""
    if "disc" in f:
        yield ask(p, r, "optic_disc", ["yes", "no"], "yes" if f["disc"] else "no")


def disc_side(p: Picture, f: dict[str, Any], r: Random) -> Iterator[Ask]:
    """On which side of the crop is the optic disc?"""
    if "disc" in f:
        names = {"left": "image left", "right": "image right", "not visible": "not visible"}
        yield ask(p, r, "disc_position", list(names.values()), names[f["disc_side"]])
