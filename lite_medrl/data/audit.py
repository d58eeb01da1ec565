"""What a data set gives away without its images, and what its test split shares with its training split.

Pure measurements over samples; `tools/audit.py` adds intervals and words. The perceptual hash is the sign of
the 8 x 8 lowest frequencies of the 32 x 32 grey image against their median, without the constant ("pHash",
Zauner 2010): 63 bits. Two images are called alike at a Hamming distance of at most MAX_DISTANCE.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from lite_medrl.data.images import load_image
from lite_medrl.types import LETTERS, ImageRef, Sample

# docs/results/data_look_hash.json: how many changed copies of an image are found at it, how many others too.
MAX_DISTANCE = 4
SIDE, KEPT = 32, 8
EXAMPLES = 10


@dataclass(frozen=True, slots=True)
class Seen:
    """An image as two hashes: of its pixels (equal only where all are), and of what it looks like."""

    pixels: str
    look: int


def seen(image: Image.Image) -> Seen:
    """Both hashes of an RGB image."""
    digest = hashlib.blake2b(f"{image.size}".encode() + image.tobytes(), digest_size=16)
    return Seen(digest.hexdigest(), look_hash(image))


def look_hash(image: Image.Image) -> int:
    """The perceptual hash in 64 bits, the first of them 0."""
    grey = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS), dtype=np.float64)
    low = (COSINES @ grey @ COSINES.T).ravel()
    bits = low > np.median(low[1:])
    bits[0] = False
    return int(np.packbits(bits).view(">u8")[0])


def cosines() -> np.ndarray:
    """The first rows of the discrete cosine transform, [KEPT, SIDE]."""
    row, column = np.arange(KEPT)[:, None], np.arange(SIDE)[None]
    return np.cos(np.pi * row * (2 * column + 1) / (2 * SIDE))


COSINES = cosines()


def look_at(
    samples: Iterable[Sample], opened: Callable[[ImageRef], Image.Image] = load_image
) -> dict[ImageRef, Seen]:
    """Both hashes of every image, each opened once and none kept."""
    found: dict[ImageRef, Seen] = {}
    for sample in samples:
        for ref in sample.images:
            if ref not in found:
                found[ref] = seen(opened(ref))
    return found


def shared_images(
    train: Sequence[Sample], test: Sequence[Sample], hashes: Mapping[ImageRef, Seen]
) -> dict[str, object]:
    """Images of the test split that the training split shows too: with the same pixels, or only alike.

    Returns:
        Counts over distinct test images, how many test questions show one, and the first pairs as sample ids
        with their distance in bits.
    """
    first = {ref: s.id for s in reversed(train) for ref in s.images}
    by_pixels = {hashes[ref].pixels: name for ref, name in first.items()}
    looks = np.array([hashes[ref].look for ref in first], dtype=np.uint64)
    names = list(first.values())
    same: list[dict[str, object]] = []
    alike: list[dict[str, object]] = []
    touched: set[ImageRef] = set()
    for ref, name in {ref: s.id for s in reversed(test) for ref in s.images}.items():
        if (pixels := hashes[ref].pixels) in by_pixels:
            same.append({"test": name, "train": by_pixels[pixels], "distance": 0})
            touched.add(ref)
        elif len(looks):
            distance = np.bitwise_count(looks ^ np.uint64(hashes[ref].look))
            nearest = int(distance.argmin())
            if distance[nearest] <= MAX_DISTANCE:
                alike.append({"test": name, "train": names[nearest], "distance": int(distance[nearest])})
                touched.add(ref)
    return {
        "train_images": len(first),
        "test_images": len({ref for s in test for ref in s.images}),
        "same_pixels": len(same),
        "alike": len(alike),
        "max_distance": MAX_DISTANCE,
        "test_questions": sum(not touched.isdisjoint(s.images) for s in test),
        "examples": (same + alike)[:EXAMPLES],
    }


def shared_subjects(train: Sequence[Sample], test: Sequence[Sample]) -> dict[str, int]:
    """How many subjects (patients, papers) the rows name, and how many stand in both splits."""
    one, two = ({s.subject for s in samples if s.subject} for samples in (train, test))
    return {"train": len(one), "test": len(two), "both": len(one & two)}


def plain(text: str) -> str:
    """A text as it is compared: case, punctuation at the end and spaces do not count."""
    return " ".join(text.casefold().split()).rstrip(" ?.!:")


def asked_twice(
    train: Sequence[Sample], test: Sequence[Sample], hashes: Mapping[ImageRef, Seen]
) -> dict[str, object]:
    """Questions that come again about the same pixels, and those of them whose gold answers differ.

    Options count only as a set. `extra` is how many questions could go, `across_splits` how many groups stand
    on both sides.
    """
    groups: dict[object, list[tuple[str, Sample]]] = defaultdict(list)
    for side, samples in (("train", train), ("test", test)):
        for s in samples:
            images = tuple(hashes[ref].pixels for ref in s.images)
            groups[plain(s.question), images, frozenset(map(plain, s.options))].append((side, s))
    again = [group for group in groups.values() if len(group) > 1]
    torn = [len({plain(s.answer) for _, s in group}) > 1 for group in again]
    across = [len({side for side, _ in group}) > 1 for group in again]
    first = sorted(range(len(again)), key=lambda place: (not torn[place], not across[place]))
    return {
        "groups": len(again),
        "extra": sum(len(group) - 1 for group in again),
        "across_splits": sum(across),
        "different_answers": sum(torn),
        "examples": [[s.id for _, s in again[place]] for place in first[:EXAMPLES]],
    }


def shared_questions(
    train: Sequence[Sample], test: Sequence[Sample], hashes: Mapping[ImageRef, Seen]
) -> dict[str, object]:
    """Test questions that training asks in the same words about the same pixels, or about images alike.

    Options do not count: two sources may give one question different ones. Of several images each must agree
    with the one in its place.

    Returns:
        Counts of test questions, and the first pairs as sample ids with their largest distance in bits.
    """
    groups: dict[tuple[str, int], list[Sample]] = defaultdict(list)
    for s in train:
        groups[plain(s.question), len(s.images)].append(s)
    same: list[dict[str, object]] = []
    alike: list[dict[str, object]] = []
    known = {key: Asked.of(group, hashes) for key, group in groups.items()}
    for s in test:
        asked = known.get((plain(s.question), len(s.images)))
        if asked is None:
            continue
        if twin := asked.by_pixels.get(tuple(hashes[ref].pixels for ref in s.images)):
            same.append({"test": s.id, "train": twin, "distance": 0})
            continue
        looks_I = np.array([hashes[ref].look for ref in s.images], dtype=np.uint64)
        distance_N = np.bitwise_count(asked.looks_NI ^ looks_I).max(axis=1)
        nearest = int(distance_N.argmin())
        if distance_N[nearest] <= MAX_DISTANCE:
            twin = asked.names[nearest]
            alike.append({"test": s.id, "train": twin, "distance": int(distance_N[nearest])})
    return {"same_pixels": len(same), "alike": len(alike), "examples": (same + alike)[:EXAMPLES]}


@dataclass(frozen=True, slots=True)
class Asked:
    """The N training questions of one wording, each about I images, by what these look like."""

    names: list[str]
    by_pixels: dict[tuple[str, ...], str]
    looks_NI: np.ndarray

    @classmethod
    def of(cls, samples: Sequence[Sample], hashes: Mapping[ImageRef, Seen]) -> Asked:
        """Of equal images the first sample counts."""
        pixels = {tuple(hashes[ref].pixels for ref in s.images): s.id for s in reversed(samples)}
        looks = [[hashes[ref].look for ref in s.images] for s in samples]
        return cls([s.id for s in samples], pixels, np.array(looks, dtype=np.uint64))


def answer_priors(samples: Sequence[Sample], most: int = 10) -> list[dict[str, object]]:
    """The most frequent gold answers with their share."""
    counts = Counter(plain(s.answer) for s in samples)
    return [
        {"answer": answer, "count": count, "share": count / len(samples)}
        for answer, count in counts.most_common(most)
    ]


def letter_balance(samples: Sequence[Sample]) -> dict[str, dict[str, float]]:
    """How often each letter is gold, and how often it would be if positions were drawn evenly."""
    closed = [s for s in samples if s.options]
    counts, even = Counter(s.letter for s in closed), Counter[str]()
    for s in closed:
        for letter in LETTERS[: len(s.options)]:
            even[letter] += 1 / len(s.options)  # type: ignore[assignment]
    return {letter: {"count": counts[letter], "even": round(even[letter], 6)} for letter in sorted(even)}


def guesses(train: Sequence[Sample], test: Sequence[Sample]) -> dict[str, list[float]]:
    """Right (1) or wrong (0) for every closed test question, without a look at its image.

    chance: 1 / number of options. majority: the option that is most often gold in training, the first of
    equals. letter: the letter that is most often gold in training. text_only: the option that is most often
    gold in training for this question's text, else as majority. Without training questions only chance.
    """
    closed = [s for s in test if s.options]
    chance = {"chance": [1 / len(s.options) for s in closed]}
    if not train:
        return chance
    overall = Counter(plain(s.answer) for s in train)
    by_text: dict[str, Counter[str]] = defaultdict(Counter)
    for s in train:
        by_text[plain(s.question)][plain(s.answer)] += 1
    letters = Counter(s.letter for s in train if s.options)

    def commonest(s: Sample, counts: Counter[str]) -> str:
        return max(s.options, key=lambda option: counts[plain(option)])

    def by_its_text(s: Sample) -> str:
        known = by_text.get(plain(s.question), Counter())
        useful = any(known[plain(option)] for option in s.options)
        return commonest(s, known if useful else overall)

    def by_letter(s: Sample) -> str:
        return s.options[LETTERS.index(max(LETTERS[: len(s.options)], key=lambda letter: letters[letter]))]

    return {
        **chance,
        "letter": [float(by_letter(s) == s.answer) for s in closed],
        "majority": [float(commonest(s, overall) == s.answer) for s in closed],
        "text_only": [float(by_its_text(s) == s.answer) for s in closed],
    }
