"""Questions about slices and crops of the CT (plane and level also of the brain), from their facts alone."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

from .ask import ask, few
from .pack import Ask, Picture

PLANES = ["axial", "coronal", "sagittal"]
WINDOWS = ["lung window", "soft tissue window", "bone window"]
LEVELS = ["upper abdomen", "lung bases", "heart level", "upper chest", "shoulders"]
QUARTERS = ["upper left", "upper right", "lower left", "lower right"]
LOBES = ["left upper lobe", "left lower lobe", "right upper lobe", "right middle lobe", "right lower lobe"]
PRESENT = {
    "heart": 0.006,
    "liver": 0.008,
    "spleen": 0.004,
    "stomach": 0.006,
    "left kidney": 0.004,
    "right kidney": 0.004,
    "pancreas": 0.003,
    "trachea": 0.0012,
    "colon": 0.006,
    "left lung": 0.01,
    "right lung": 0.01,
    "sternum": 0.002,
    "left scapula": 0.003,
    "right scapula": 0.003,
}
NEIGHBOURS = {
    "right lung": ["left lung"],
    "left lung": ["right lung"],
    "right kidney": ["left kidney", "liver"],
    "left kidney": ["right kidney", "spleen"],
    "liver": ["spleen", "stomach"],
    "spleen": ["liver", "left kidney"],
    "aorta": ["vena cava", "spine"],
    "vena cava": ["aorta", "spine"],
    "left scapula": ["right scapula"],
    "right scapula": ["left scapula"],
    "left humerus": ["right humerus"],
    "right humerus": ["left humerus"],
    "left clavicle": ["right clavicle"],
    "right clavicle": ["left clavicle"],
    "stomach": ["colon", "spleen"],
    "colon": ["stomach", "liver"],
    "pancreas": ["stomach", "vena cava"],
    "trachea": ["thyroid", "aorta"],
    "thyroid": ["trachea"],
    "heart": ["aorta", "liver"],
    "spine": ["back muscle", "sternum"],
    "sternum": ["spine"],
    "back muscle": ["spine", "right scapula"],
}
PAIRS = ("lung", "kidney", "scapula", "humerus", "clavicle")


def level(p: Picture, f: dict[str, Any], r: Random) -> Iterator[Ask]:
    """Height of an axial CT slice, depth or side of the others, height of a brain slice."""
    if f.get("level") is None or f.get("crop"):
        return
    if p.modality == "mr":
        pools = {
            "axial": ["cerebellum level", "ventricle level", "above the ventricles"],
            "coronal": ["back part", "middle part", "front part"],
        }
        if f["plane"] in pools:
            yield ask(
                p, r, f"brain_{'level' if f['plane'] == 'axial' else 'depth'}", pools[f["plane"]], f["level"]
            )
    elif f["plane"] == "axial":
        yield ask(p, r, "body_level", few(r, LEVELS, f["level"], r.choice([4, 5])), f["level"])
    elif f["plane"] == "coronal":
        yield ask(p, r, "body_depth", ["back part", "middle part", "front part"], f["level"])
    else:
        yield ask(p, r, "body_side", ["right side", "near the midline", "left side"], f["level"])


def seen(f: dict[str, Any]) -> tuple[list[str], list[str]]:
    """(organs clearly visible, organs truly absent, also from the neighbouring slices)."""
    organs = f["organs"]
    clear = [n for n, least in PRESENT.items() if n in organs and organs[n]["area"] >= least]
    return clear, [n for n in PRESENT if n in f["absent"]]


def sidedness(name: str) -> str:
    """Name without its side."""
    return name.split()[-1] if name.endswith(PAIRS) else name


def readable(f: dict[str, Any], name: str) -> bool:
    """Lung and bone windows hide soft organs that touch each other."""
    soft = name in ("spleen", "stomach", "left kidney", "right kidney", "pancreas", "colon", "liver")
    return (
        f["window"] == "soft tissue"
        or not soft
        or (f["window"] == "bone" and name in ("liver", "left kidney", "right kidney"))
    )


def organ_present(p: Picture, f: dict[str, Any], r: Random) -> Iterator[Ask]:
    """Yes or no: is this organ visible?"""
    if p.modality != "ct" or "organs" not in f or "crop" in f or "marker" in f:
        return
    clear, absent = seen(f)
    for name in clear:
        if readable(f, name):
            yield ask(p, r, "organ_present", ["yes", "no"], "yes", key=f"{name} yes", name=name)
    for name in absent:
        if readable(f, name):
            yield ask(p, r, "organ_present", ["yes", "no"], "no", key=f"{name} no", name=name)


def which_organ(p: Picture, f: dict[str, Any], r: Random) -> Iterator[Ask]:
    """Exactly one option is visible, the others are absent."""
    if p.modality != "ct" or "organs" not in f or "crop" in f or "marker" in f:
        return
    clear, absent = seen(f)
    taken = {sidedness(n) for n in clear}
    absent = [n for n in absent if sidedness(n) not in taken]
    for name in clear:
        if readable(f, name) and len(absent) >= 3:
            one = ask(p, r, "which_organ", few(r, [*absent, name], name, r.choice([4, 4, 5])), name)
            one.extra["absent"] = sorted(absent)
            yield one


def largest(p: Picture, f: dict[str, Any], r: Random) -> Iterator[Ask]:
    """Which visible organ covers the largest area?"""
    if p.modality != "ct" or "organs" not in f or "crop" in f or "marker" in f:
        return
    names = [
        "heart",
        "liver",
        "spleen",
        "stomach",
        "left kidney",
        "right kidney",
        "aorta",
        "left lung",
        "right lung",
        "colon",
    ]
    found = sorted((f["organs"][n]["area"], n) for n in names if n in f["organs"] and readable(f, n))
    groups = [found[start : start + 4][::-1] for start in range(len(found) - 2)]
    clear = [g for g in groups if g[0][0] > 1.4 * g[1][0] and g[-1][0] > 0.001]
    if clear:
        group = r.choice(clear)
        yield ask(p, r, "largest_organ", [name for _, name in group], group[0][1])


def marked_organ(p: Picture, f: dict[str, Any], r: Random) -> Iterator[Ask]:
    """What does the marker show?"""
    mark = f.get("marker", {})
    name = mark.get("structure")
    if p.modality != "ct" or name in LOBES or name is None:
        return
    others = [n for n in NEIGHBOURS if n != name and n in f["organs"] and n not in NEIGHBOURS[name]]
    if f["plane"] == "sagittal":
        others = [n for n in others if sidedness(n) != sidedness(name)]
    near = [n for n in NEIGHBOURS[name] if f["plane"] != "sagittal" or sidedness(n) != sidedness(name)]
    r.shuffle(others)
    rest = [n for n in NEIGHBOURS if n not in (name, *near, *others) and sidedness(n) != sidedness(name)]
    r.shuffle(rest)
    count = r.choice([4, 4, 5])
    options = [name, *([*near[:1], *others, *near[1:], *rest][: count - 1])]
    yield ask(p, r, "marked_organ", options, name, shape=mark["shape"])


def marked_side(p: Picture, f: dict[str, Any], r: Random) -> Iterator[Ask]:
    """Side of the patient, in the radiological view."""
    mark = f.get("marker", {})
    if p.modality == "ct" and mark.get("patient_side"):
        side = f"patient {mark['patient_side']}"
        yield ask(p, r, "marked_side", ["patient left", "patient right"], side, shape=mark["shape"])


def lobe(p: Picture, f: dict[str, Any], r: Random) -> Iterator[Ask]:
    """Lobe of the lung under the marker."""
    mark = f.get("marker", {})
    if mark.get("structure") in LOBES:
        yield ask(p, r, "lung_lobe", list(LOBES), mark["structure"], shape=mark["shape"])


def quarter(p: Picture, f: dict[str, Any], r: Random) -> Iterator[Ask]:
    """Where in the crop lies an organ?"""
    for name, where in f.get("quarters", {}).items():
        yield ask(p, r, "organ_position", list(QUARTERS), where, name=name)


def mass(p: Picture, f: dict[str, Any], r: Random) -> Iterator[Ask]:
    """Is the lung mass in the crop?"""
    if f.get("mass_crop"):
        yield ask(p, r, "mass_present", ["yes", "no"], "yes" if f["mass"] else "no")


def mass_quarter(p: Picture, f: dict[str, Any], r: Random) -> Iterator[Ask]:
    """Where in the crop lies the mass?"""
    if f.get("mass_quarter"):
        yield ask(p, r, "mass_position", list(QUARTERS), f["mass_quarter"])


def window(p: Picture, f: dict[str, Any], r: Random) -> Iterator[Ask]:
    """CT window."""
    if "window" in f:
        yield ask(p, r, "window", list(WINDOWS), f"{f['window']} window")


def plane(p: Picture, f: dict[str, Any], r: Random) -> Iterator[Ask]:
    """Axial, coronal or sagittal."""
    if "plane" in f and "crop" not in f:
        yield ask(p, r, "plane", list(PLANES), f["plane"])
