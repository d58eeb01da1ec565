"""Pictures of the DICOM files of pydicom and pydicom-data: single images of several modalities.

All crops of one file are in one split. Crops leave out burnt-in text.
"""

# The carriers and their readers are installed only where the pack is made.
# pyright: reportMissingImports=false
from __future__ import annotations

from typing import Any

import numpy as np
import pydicom

from . import carriers, pack
from .pack import Picture
from .splits import TEST, TRAIN, VALIDATION

SOURCE = "pydicom"
WHOLE = (0.0, 0.0, 1.0, 1.0)
INNER = (0.1, 0.1, 0.9, 0.9)
# fmt: off
# file, split, modality, body part, what it is, crops (x0, y0, x1, y1 as fractions of width and height)
FILES: list[tuple[str, str, str, str, str, list[tuple[float, float, float, float]]]] = [
    ("693_UNCI", TRAIN, "ct", "head", "an axial ct of the head", [WHOLE, INNER]),
    ("skull base", TEST, "ct", "head", "an axial ct of the head", [WHOLE, INNER]),
    ("explicit_VR-UN", VALIDATION, "ct", "abdomen", "an axial ct of the abdomen", [(0.05, 0.05, 0.95, 0.95)]),
    ("bad_sequence", TEST, "ct", "spine", "an axial ct of the spine", [WHOLE, (0.2, 0.2, 0.8, 0.8)]),
    ("ct small", TRAIN, "ct", "spine", "an axial ct of the spine", [WHOLE]),
    ("MR-SIEMENS-DICOM-WithOverlays", TRAIN, "mr", "abdomen", "an axial mr of the abdomen",
     [WHOLE, (0.1, 0.15, 0.75, 0.8)]),
    ("MR2_UNCI", TEST, "mr", "shoulder", "a coronal mr of the shoulder", [WHOLE, INNER]),
    ("RG1_UNCI", TRAIN, "radiograph", "chest", "a frontal chest radiograph",
     [WHOLE, (0.05, 0.08, 0.95, 0.93)]),
    ("RG3_UNCI", TEST, "radiograph", "leg", "a frontal radiograph of the leg",
     [(0.2, 0.0, 0.75, 0.55), (0.2, 0.4, 0.8, 1.0)]),
    ("JPEG2000_UNC", TRAIN, "bone scan", "whole body", "a whole body bone scan", [WHOLE]),
    ("JPGLosslessP14SV1_1s_1f_8b", TRAIN, "ultrasound", "heart", "an ultrasound of the heart",
     [(0.28, 0.17, 0.72, 0.72)]),
    ("color3d_jpeg_baseline", TEST, "ultrasound", "heart", "an ultrasound of the heart",
     [(0.2, 0.08, 0.8, 0.86)]),
    ("color-px", VALIDATION, "ultrasound", "heart", "a colour ultrasound of the heart",
     [(0.1, 0.02, 0.6, 0.98)]),
    ("US1_UNCI", TRAIN, "ultrasound", "neck", "a colour ultrasound of a lymph node",
     [(0.14, 0.22, 0.86, 0.66)]),
    ("gdcm-US-ALOKA-16", TEST, "ultrasound", "pelvis", "an ultrasound of the pelvis",
     [(0.07, 0.16, 0.48, 0.8), (0.52, 0.16, 0.95, 0.8)]),
]
# fmt: on


def frame_of(name: str) -> np.ndarray:
    """The picture of a file: grey (H, W) or colour (H, W, 3) uint8."""
    dataset = pydicom.dcmread(carriers.carrier(name))
    pixels = dataset.pixel_array
    photometric = str(dataset.PhotometricInterpretation)
    if photometric == "PALETTE COLOR":
        from pydicom.pixels import apply_color_lut

        pixels = (apply_color_lut(pixels, dataset) >> 8).astype(np.uint8)
    if pixels.ndim == 4:
        pixels = pixels[len(pixels) // 2]
    if pixels.ndim == 3:
        return pixels.astype(np.uint8)
    values = pixels.astype(np.float32)
    low, high = np.percentile(values, [2, 99.5])
    gray = pack.to_bytes(values, low, high)
    return 255 - gray if photometric == "MONOCHROME1" else gray


def pictures() -> list[Picture]:
    """Every file with its crops."""
    out: list[Picture] = []
    for number, (name, split, modality, part, words, boxes) in enumerate(FILES):
        whole = frame_of(name)
        height, width = whole.shape[:2]
        for turn, (x0, y0, x1, y1) in enumerate(boxes):
            crop = pack.square(whole[int(y0 * height) : int(y1 * height), int(x0 * width) : int(x1 * width)])
            facts: dict[str, Any] = {"body_part": part, "what": words}
            if modality == "radiograph":
                facts["view"] = "frontal"
            pixels = pack.shrink_colour(crop)
            out.append(
                Picture(
                    f"dc-{number:02d}-{turn}",
                    split,
                    pixels,
                    modality,
                    SOURCE,
                    f"dicom-{number:02d}",
                    facts,
                    f"{words} .",
                )
            )
    return out
