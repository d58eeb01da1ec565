"""One name for one picture: images that are equal pixel by pixel, wherever they lie, get the same ImageRef.

Published Parquet files hold an image once for every question about it. What is shared, exchanged or kept
together by image has to know them as one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lite_medrl.data.images import load_image
from lite_medrl.data.sources import OnError, Tally, image_fault
from lite_medrl.types import DataError, ImageRef, Sample


@dataclass(frozen=True, slots=True)
class Checked:
    """Samples whose images can all be used, each image under one name, with the digest of its pixels."""

    samples: list[Sample]
    digests: Mapping[ImageRef, str]


def checked_images(samples: Sequence[Sample], *, on_error: OnError, tally: Tally) -> Checked:
    """Opens every image once.

    Raises DataError at the first that cannot be used, or where none is left; with on_error = "skip" the
    samples that show one are left out and tallied.
    """
    digest_of: dict[ImageRef, str] = {}
    broken: dict[ImageRef, str] = {}
    kept: list[Sample] = []
    first: dict[str, ImageRef] = {}
    for sample in samples:
        for ref in sample.images:
            if ref not in digest_of and ref not in broken:
                try:
                    digest_of[ref] = pixels_of(ref)
                except DataError as error:
                    broken[ref] = str(error)
        if told := [broken[ref] for ref in sample.images if ref in broken]:
            fault = image_fault(sample, told[0])
            if on_error == "stop":
                raise DataError(str(fault))
            tally.faults.append(fault)
            continue
        names = tuple(first.setdefault(digest_of[ref], ref) for ref in sample.images)
        kept.append(replace(sample, images=names))
    if not kept:
        raise DataError(f"no sample is left: none of {len(samples)} has images that can all be used")
    return Checked(kept, {ref: digest for digest, ref in first.items()})


def pixels_of(ref: ImageRef) -> str:
    """16 hex digits of an image's size and RGB values."""
    image = load_image(ref)
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()[:16]
