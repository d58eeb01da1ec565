"""Which image is shown with a question? Its own, a grey one, or that of another question.

The other image comes from another subject where subjects are known, and each image is handed on once, so that
as many questions see an image as before. Questions are ordered so that the two that see one image, one as its
own and one as another's, stand next to each other: it passes through the model once for both.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from lite_medrl.types import ImageRef, Sample

Shown = Literal["real", "blank", "shuffled"]
SHOWN: tuple[Shown, ...] = ("real", "blank", "shuffled")
Images = tuple[ImageRef, ...]


@dataclass(frozen=True, slots=True)
class Exchange:
    """What every set of images is exchanged for (itself, where there is no other), and all sets in order."""

    other: Mapping[Images, Images]
    order: Mapping[Images, int]

    def arranged(self, samples: Sequence[Sample]) -> list[Sample]:
        """The samples with those that see the same image near each other."""
        return sorted(samples, key=lambda sample: self.order[sample.images])

    def possible(self, sample: Sample) -> bool:
        """Whether there is another image to show."""
        return self.other[sample.images] != sample.images


def exchange(samples: Sequence[Sample], seed: int = 0) -> Exchange:
    """Another set of as many images for each set: a shift along a random order, beyond the own subject.

    Where one subject has more than half of the images, some of its questions get another image of that
    subject.
    """
    subjects: dict[Images, str] = {}
    for sample in samples:
        subjects.setdefault(sample.images, sample.subject or str(sample.images))
    sizes: defaultdict[int, list[Images]] = defaultdict(list)
    for images in subjects:
        sizes[len(images)].append(images)
    other: dict[Images, Images] = {}
    order: dict[Images, int] = {}
    for size in sorted(sizes):
        for cycle in cycles(in_random_order(sizes[size], subjects, seed), subjects):
            other |= dict(zip(cycle, [*cycle[1:], cycle[0]], strict=True))
            order |= {images: len(order) + i for i, images in enumerate(cycle)}
    return Exchange(other, order)


def in_random_order(sets: Sequence[Images], subjects: Mapping[Images, str], seed: int) -> list[Images]:
    """The sets in random order, those of one subject together."""
    draw = random.Random(seed)
    shuffled = draw.sample(list(sets), len(sets))
    place = {name: i for i, name in enumerate(dict.fromkeys(subjects[images] for images in shuffled))}
    return sorted(shuffled, key=lambda images: place[subjects[images]])


def cycles(sets: Sequence[Images], subjects: Mapping[Images, str]) -> list[list[Images]]:
    """The cycles of a shift by the size of the largest subject; each set is exchanged for its next."""
    step = max(Counter(subjects[images] for images in sets).values()) % len(sets) or 1
    found, seen = [], set[int]()
    for start in range(len(sets)):
        cycle, at = [], start
        while at not in seen:
            seen.add(at)
            cycle.append(sets[at])
            at = (at + step) % len(sets)
        if cycle:
            found.append(cycle)
    return found
