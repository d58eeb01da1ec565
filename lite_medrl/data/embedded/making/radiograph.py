"""Radiographs projected from the CT by parallel rays, with and without opacities put into the lungs.

They are computed from a real CT. An opacity that was put in makes the picture semi-synthetic, which its
source says ("lidc-drr-opacity"). Angle 0 is frontal with the patient's right on the image's left.
"""

# The carriers and their readers are installed only where the pack is made.
# pyright: reportMissingImports=false
from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
from scipy import ndimage as scipy_ndimage

from . import pack
from .ct import LEFT_LUNG, RIGHT_LUNG, SUBJECT, Volume
from .pack import SIDE, Picture
from .splits import TEST, TRAIN, VALIDATION

ndimage: Any = scipy_ndimage  # its annotations are unions that fit no array type
SOURCE, SOURCE_OPACITY = "lidc-drr", "lidc-drr-opacity"
ZOOM = 0.4
VOXEL_MM, SLICE_MM = 0.703125 / ZOOM, 2.5
ANGLES: dict[str, dict[str, tuple[int, ...]]] = {
    "frontal": {
        TRAIN: (-24, -22, -20, -18, -16, -14, -12, 23, 25, 27),
        TEST: (-3, -1, 1, 3),
        VALIDATION: (12, 14),
    },
    "oblique": {TRAIN: (36, 39, 42, 45, -45, -48, -51), TEST: (54, 57, 60, -60, -62), VALIDATION: (-34, -36)},
    "lateral": {TRAIN: (90, 93, 96, 99, -80, -83, -86, -89), TEST: (75, 78, 81), VALIDATION: (108, 111)},
}  # 9 degrees or more between splits, also for mirror images (angle and angle +- 180)
LEAST_CONTRAST = 0.18  # below it the eye does not find the opacity at 112 pixels
ZONES = ("right upper zone", "right lower zone", "left upper zone", "left lower zone")


def prepare(volume: Volume) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(HU without table and mass, HU without table, labels), axes x, y, z, smaller by ZOOM in x and y."""
    hu = ndimage.zoom(volume.hu.astype(np.float32), (ZOOM, ZOOM, 1), order=1)
    labels = ndimage.zoom(volume.labels, (ZOOM, ZOOM, 1), order=0)
    mass = ndimage.zoom(volume.mass.astype(np.float32), (ZOOM, ZOOM, 1), order=1) > 0.2
    parts, _ = ndimage.label(ndimage.binary_opening(hu > -500, iterations=2))
    body = parts == np.argmax(np.bincount(parts.ravel())[1:]) + 1
    body = ndimage.binary_dilation(body, iterations=2)
    for k in range(body.shape[2]):
        body[:, :, k] = ndimage.binary_fill_holes(body[:, :, k])
    hu = np.where(body, hu, -1000.0)
    around = ndimage.binary_dilation(mass, iterations=2)
    clean = np.where(around & (hu > -780), -850.0, hu)
    return clean.astype(np.float32), hu.astype(np.float32), labels


def turn(array: np.ndarray, angle: float, *, order: int, fill: float) -> np.ndarray:
    """The volume rotated about the body's long axis."""
    return ndimage.rotate(array, angle, axes=(0, 1), reshape=False, order=order, cval=fill, mode="constant")


def project(hu: np.ndarray) -> np.ndarray:
    """Line sums of attenuation along y: an image (rows from the head down, columns x), bone weighted up."""
    water = np.clip((hu + 1000.0) / 1000.0, 0, 2.2) + 0.9 * np.clip(hu - 150.0, 0, 1200) / 1000.0
    return water.sum(axis=1)[:, ::-1].T * (VOXEL_MM / 100.0)


def film(lines: np.ndarray) -> np.ndarray:
    """Line sums -> grey values like a film: slow changes damped, contrast stretched."""
    flat = lines - 0.68 * ndimage.gaussian_filter(lines, (14 / SLICE_MM * 1.8, 26))
    inside = lines > 0.3
    low, high = np.percentile(flat[inside], [1, 99.3])
    share = np.clip((flat - low) / (high - low), 0, 1)
    return (1 - np.exp(-0.9 * share)) / (1 - np.exp(-0.9)) * inside


def zone_of(x: float, z: float, lungs: np.ndarray) -> str | None:
    """Zone of a point (voxels) in the rotated volume; upper and lower by the height of the lungs.

    The border lies at 0.4 of the height because the lowest third hides behind the diaphragm.
    """
    heights = np.nonzero(lungs.any(axis=(0, 1)))[0]
    down = (heights[-1] - z) / (heights[-1] - heights[0])
    middle = lungs.shape[0] / 2
    if 0.36 < down < 0.42:
        return None
    return f"{'right' if x < middle else 'left'} {'upper' if down < 0.4 else 'lower'} zone"


def find_spot(
    lines: np.ndarray, labels: np.ndarray, random: Random, *, zone: str, frontal: bool
) -> tuple[float, float, float] | None:
    """A point in the wanted zone, inside a lung, where the projection is not hidden by heart or liver."""
    right: np.ndarray = np.isin(labels, RIGHT_LUNG)
    left: np.ndarray = np.isin(labels, LEFT_LUNG)
    lungs: np.ndarray = right | left
    wanted = right if zone.startswith("right") else left
    shadow = np.any(wanted, axis=1)[:, ::-1].T
    limit = np.percentile(lines[shadow], 32)
    points = np.argwhere(ndimage.binary_erosion(wanted, iterations=4))
    for _ in range(400):
        x, y, z = points[random.randrange(len(points))]
        if lines[lines.shape[0] - 1 - z, x] > limit:
            continue
        named = zone_of(x, z, lungs)
        if named is None or (named.split()[1] != zone.split()[1]):
            continue
        if not frontal or named == zone:
            return float(x), float(y), float(z)
    return None


def contrast_of(film_before: np.ndarray, after: np.ndarray, point: tuple[float, ...]) -> float:
    """Grey step (0 to 1) that the opacity makes at its centre in the film."""
    x, z = round(point[0]), after.shape[2] - 1 - round(point[2])
    window = (slice(max(0, z - 2), z + 3), slice(max(0, x - 2), x + 3))
    return float((film(project(after)) - film_before)[window].mean())


def put_opacity(
    hu: np.ndarray, centre: tuple[float, float, float], radius_mm: float, random: Random
) -> np.ndarray:
    """A soft-edged ellipsoid of soft tissue in the volume."""
    steps = (VOXEL_MM, VOXEL_MM, SLICE_MM)
    reach = [2 * radius_mm / s for s in steps]
    box = tuple(slice(max(0, int(c - r)), int(c + r) + 1) for c, r in zip(centre, reach, strict=True))
    grid = [
        g.astype(np.float32)
        for g in np.ogrid[tuple(slice(b.start, min(b.stop, n)) for b, n in zip(box, hu.shape, strict=True))]
    ]
    stretch = (random.uniform(0.85, 1.2), 1.2, random.uniform(0.85, 1.2))
    distance = np.sqrt(
        sum(
            ((g - c) * s / (radius_mm * t)) ** 2
            for g, c, s, t in zip(grid, centre, steps, stretch, strict=True)
        )
    )
    weight = np.clip((1.25 - distance) / 0.5, 0, 1)
    out = hu.copy()
    out[box] += np.where(hu[box] < 120, weight * (120 - hu[box]), 0).astype(np.float32)
    return out


def frame(
    random: Random, shape: tuple[int, int], keep: tuple[float, float] | None
) -> tuple[float, float, float, float]:
    """A square crop (left, top, width, height in pixels of the projection) that keeps a point well inside."""
    tall_mm, wide_mm = shape[0] * SLICE_MM, shape[1] * VOXEL_MM
    for _ in range(200):
        side = random.uniform(0.8, 1.0) * tall_mm
        left = wide_mm / 2 - side / 2 + random.uniform(-18, 18)
        top = random.uniform(0, tall_mm - side)
        if keep is None or (0.08 < (keep[0] - left) / side < 0.92 and 0.08 < (keep[1] - top) / side < 0.92):
            break
    return left, top, side, side


def render(
    hu: np.ndarray, random: Random, keep: tuple[float, float] | None
) -> tuple[np.ndarray, tuple[float, ...]]:
    """(112 x 112 uint8 picture, crop in mm) of a rotated volume."""
    values = film(project(hu))
    left, top, wide, tall = crop = frame(random, values.shape, keep)
    rows = (top + (np.arange(SIDE) + 0.5) * tall / SIDE) / SLICE_MM - 0.5
    cols = (left + (np.arange(SIDE) + 0.5) * wide / SIDE) / VOXEL_MM - 0.5
    smooth = ndimage.gaussian_filter(values, (0.35, 0.5))
    grid = np.meshgrid(rows, cols, indexing="ij")
    picture = ndimage.map_coordinates(smooth, grid, order=1, mode="constant")
    return (picture * 255).astype(np.uint8), crop


@dataclass
class Scene:
    """The body at one angle: HU without and with the mass, labels, lungs, line sums, empty film."""

    view: str
    split: str
    angle: int
    clean: np.ndarray
    real: np.ndarray
    labels: np.ndarray
    lungs: np.ndarray
    lines: np.ndarray
    empty: np.ndarray


@dataclass
class Opacity:
    """An opacity that is in the volume: centre in voxels, zone, size, and grey step in the film."""

    point: tuple[float, float, float]
    zone: str
    radius_mm: float
    contrast: float
    is_real: bool


def pictures(volume: Volume) -> list[Picture]:
    """All radiographs."""
    clean, real, labels = prepare(volume)
    out: list[Picture] = []
    for view, by_split in ANGLES.items():
        for split, angles in by_split.items():
            for angle in angles:
                out.extend(at_angle(scene_of(clean, real, labels, view, split, angle)))
    return out


def scene_of(
    clean: np.ndarray, real: np.ndarray, labels: np.ndarray, view: str, split: str, angle: int
) -> Scene:
    """Everything turned to one angle."""
    turned = turn(clean, angle, order=1, fill=-1000.0)
    marks = turn(labels, angle, order=0, fill=0)
    lines = project(turned)
    with_mass = turn(real, angle, order=1, fill=-1000.0)
    lungs = np.isin(marks, LEFT_LUNG + RIGHT_LUNG)
    return Scene(view, split, angle, turned, with_mass, marks, lungs, lines, film(lines))


def at_angle(scene: Scene) -> list[Picture]:
    """The pictures of one angle: without an opacity, with one in each zone, with the real mass."""
    random = Random(f"radiograph {scene.angle}")
    if scene.view == "frontal":
        plan = ["none", "none", *ZONES, "mass"]
        if scene.split != TRAIN:
            plan += ["none", *ZONES]
    else:
        plan = ["none", random.choice([ZONES[0], ZONES[2]]), random.choice([ZONES[1], ZONES[3]])]
    out: list[Picture] = []
    for number, wanted in enumerate(plan):
        picture = one(scene, wanted, number, random)
        if picture is not None:
            out.append(picture)
    return out


def one(scene: Scene, wanted: str, number: int, random: Random) -> Picture | None:
    """One radiograph; None where the opacity would not be seen."""
    hu, opacity = scene.clean, None
    if wanted != "none":
        hu, opacity = real_mass(scene) if wanted == "mass" else new_opacity(scene, wanted, random)
        if opacity is None:
            return None
    keep = None if opacity is None else on_film(opacity.point, scene.clean.shape[2])
    pixels, crop = render(hu, random, keep)
    facts: dict[str, Any] = {"view": scene.view, "angle_deg": scene.angle, "opacity": opacity is not None}
    if opacity is not None and keep is not None:
        facts.update(opacity_facts(opacity, keep, crop, scene.view))
    source = SOURCE_OPACITY if opacity is not None and not opacity.is_real else SOURCE
    identity = f"xr-{'m' if scene.angle < 0 else 'p'}{abs(scene.angle):03d}-{number}"
    caption = caption_of(scene.view, facts)
    return Picture(identity, scene.split, pixels, "radiograph", source, SUBJECT, facts, caption)


def new_opacity(scene: Scene, zone: str, random: Random) -> tuple[np.ndarray, Opacity | None]:
    """HU with an opacity in the wanted zone that the film shows; None after 30 vain tries."""
    radius_mm = random.uniform(17, 27)
    for _ in range(30):
        point = find_spot(scene.lines, scene.labels, random, zone=zone, frontal=scene.view == "frontal")
        if point is None:
            break
        hu = put_opacity(scene.clean, point, radius_mm, random)
        contrast = contrast_of(scene.empty, hu, point)
        if contrast >= LEAST_CONTRAST:
            return hu, Opacity(point, zone, radius_mm, contrast, is_real=False)
    return scene.clean, None


def real_mass(scene: Scene) -> tuple[np.ndarray, Opacity | None]:
    """HU with the patient's own lung mass; None where the film hides it."""
    x, y, z = np.argwhere(scene.real - scene.clean > 300).mean(axis=0).tolist()
    zone = zone_of(x, z, scene.lungs)
    contrast = contrast_of(scene.empty, scene.real, (x, y, z))
    if zone is None or contrast < 0.75 * LEAST_CONTRAST:
        return scene.real, None
    return scene.real, Opacity((x, y, z), zone, 15.0, contrast, is_real=True)


def on_film(point: tuple[float, float, float], height: int) -> tuple[float, float]:
    """Where a voxel falls on the film: mm from the left and from the top."""
    return (point[0] + 0.5) * VOXEL_MM, (height - 1 - point[2] + 0.5) * SLICE_MM


def opacity_facts(
    opacity: Opacity, keep: tuple[float, float], crop: tuple[float, ...], view: str
) -> dict[str, Any]:
    """What is known about the opacity in the picture."""
    facts: dict[str, Any] = {
        "opacity_at": [round((keep[0] - crop[0]) / crop[2], 2), round((keep[1] - crop[1]) / crop[3], 2)],
        "opacity_radius": round(opacity.radius_mm / crop[2], 3),
        "opacity_contrast": round(opacity.contrast, 2),
        "opacity_height": opacity.zone.split()[1],
        "semi_synthetic": not opacity.is_real,
    }
    if view == "frontal":
        facts["opacity_zone"], facts["opacity_side"] = opacity.zone, opacity.zone.split()[0]
    return facts


def caption_of(view: str, facts: dict[str, Any]) -> str:
    """Caption of a radiograph."""
    first = f"{'an' if view == 'oblique' else 'a'} {view} chest radiograph ."
    if not facts["opacity"]:
        return f"{first} there is no opacity in the lungs ."
    if view == "frontal":
        where = pack.place(*facts["opacity_at"])
        return f"{first} there is an opacity in the {facts['opacity_zone']} , {where} ."
    return f"{first} there is an opacity in the {facts['opacity_height']} lungs ."
