"""The embedded pack as it lies here: sizes, orientation, splits, balance, wording and licences."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

PACK = Path(__file__).parents[1] / "lite_medrl" / "data" / "embedded"
SPLITS = ("train", "validation", "test")
# Measured on the pack (README.md, "Splits"): copies made smaller and compressed again differ by up to 20 of
# the 256 bits in 99 of 100 cases, images on the two sides of a guard by 28 or more.
NEAR_256 = 20
NEAR_64 = 2
WORDS = """
, . ? a abdomen above an and any aorta are area at axial back bases be blue body bone bottom bowel box brain
brown by can cava centre cerebellum chest circle clavicle colon colour coronal count covers crop ct cut cuts
deep disc does duodenum eye fluid fluorescence four from front frontal fundus grey h&e has head heart high
histology how humerus if image immunostain in inside is it kidney kind large largest lateral left leg level
lie little liver lobe looks lower lung lungs lymph made many mark marked marks mass matter middle midline
modality more mr much muscle name near no node not nuclei oblique occipital oesophagus of on one opacity
optic or organ outer pancreas parietal part patient pelvis photograph pink plane purple quarter radiograph
region rest right sagittal scan scapula see seen seven shoulder shoulders show shown shows side six slice
small soft some spine spleen stain stained sternum stomach structure taken temporal ten than the there these
this three thyroid tile tissue to top trachea ultrasound upper used vena ventricle ventricles view visible
was what where which white whole window with yellow yes you zone
"""


def rows(name: str) -> list[dict[str, Any]]:
    """The rows of a jsonl file of the pack."""
    return [json.loads(line) for line in (PACK / name).read_text(encoding="utf-8").splitlines()]


IMAGES = rows("images.jsonl")
QUESTIONS = rows("questions.jsonl")
BY_ID = {row["id"]: row for row in IMAGES}
SOURCES = json.loads((PACK / "SOURCES.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def pictures() -> dict[str, Image.Image]:
    """Every image, decoded."""
    with zipfile.ZipFile(PACK / "images.zip") as archive:
        found = {row["id"]: Image.open(io.BytesIO(archive.read(row["file"]))) for row in IMAGES}
    for picture in found.values():
        picture.load()
    return found


def gray(picture: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """Grey values (rows, columns) at another size."""
    return np.asarray(picture.convert("L").resize(size, Image.Resampling.LANCZOS), dtype=np.float64)


def difference_hash(picture: Image.Image) -> np.ndarray:
    """64 bits: is a pixel brighter than its left neighbour?"""
    small = gray(picture, (9, 8))
    return (small[:, 1:] > small[:, :-1]).ravel()


def cosine_hash(picture: Image.Image, side: int) -> np.ndarray:
    """side * side bits: are the low cosine coefficients above their median?"""
    k = np.arange(32)
    basis = np.cos(np.pi * (2 * k[None] + 1) * k[:, None] / 64)
    low = (basis @ gray(picture, (32, 32)) @ basis.T)[:side, :side].ravel()
    return low > np.median(low[1:])


def distances(bits: np.ndarray) -> np.ndarray:
    """Pairwise Hamming distances of (n, bits)."""
    signs = bits.astype(np.float32) * 2 - 1
    return (signs.shape[1] - signs @ signs.T) / 2


def near_pairs(found: dict[str, Image.Image], split_of: dict[str, str]) -> list[tuple[str, str]]:
    """Pairs of images in different splits that are equal or near-equal."""
    names = list(found)
    cross = np.triu([[split_of[a] != split_of[b] for b in names] for a in names], 1)
    fine = distances(np.array([cosine_hash(found[n], 16) for n in names]))
    coarse = distances(np.array([difference_hash(found[n]) for n in names]))
    coarse += distances(np.array([cosine_hash(found[n], 8) for n in names]))
    near = cross & ((fine <= NEAR_256) | (coarse <= NEAR_64))
    return [(names[a], names[b]) for a, b in np.argwhere(near)]


def test_sizes() -> None:
    assert 1200 <= len(IMAGES) <= 1500
    assert 4000 <= len(QUESTIONS) <= 6000
    assert (PACK / "images.zip").stat().st_size <= 3.8e6
    assert sum(path.stat().st_size for path in PACK.rglob("*") if "__pycache__" not in path.parts) <= 6e6
    asked = Counter(q["split"] for q in QUESTIONS)
    assert asked["test"] >= 700
    assert asked["validation"] >= 250
    assert 0.55 <= asked["train"] / len(QUESTIONS) <= 0.72


def test_rows_fit_together(pictures: dict[str, Image.Image]) -> None:
    assert len(BY_ID) == len(IMAGES)
    assert len({q["id"] for q in QUESTIONS}) == len(QUESTIONS)
    assert {q["image"] for q in QUESTIONS} == set(BY_ID)
    assert all(q["split"] == BY_ID[q["image"]]["split"] for q in QUESTIONS)
    assert len({(q["image"], q["question"], q["answer"]) for q in QUESTIONS}) == len(QUESTIONS)
    for row in IMAGES:
        assert row["split"] in SPLITS
        assert pictures[row["id"]].size == (row["width"], row["height"]) == (112, 112)
        assert pictures[row["id"]].format == "JPEG"
        assert row["caption"]
        assert row["facts"]


def test_options_hold_the_answer_once() -> None:
    for q in QUESTIONS:
        assert 2 <= len(q["options"]) <= 5
        assert len(set(q["options"])) == len(q["options"])
        assert q["answer"] in q["options"]
        assert all(len(option.split()) <= 3 for option in q["options"])
        assert len(q["question"].split()) <= 14
        assert len(q["reasoning"].split()) <= 12


def test_gold_letters_are_even() -> None:
    places: dict[tuple[str, int], Counter[int]] = defaultdict(Counter)
    for q in QUESTIONS:
        places[q["split"], len(q["options"])][q["options"].index(q["answer"])] += 1
    for (_, options), counts in places.items():
        assert len(counts) == options
        assert max(counts.values()) - min(counts.values()) <= 1


def test_gold_letters_are_even_within_kinds() -> None:
    for kind in {q["kind"] for q in QUESTIONS}:
        mine = [q for q in QUESTIONS if q["kind"] == kind and q["split"] == "train"]
        for options in {len(q["options"]) for q in mine}:
            counts = Counter(q["options"].index(q["answer"]) for q in mine if len(q["options"]) == options)
            assert max(counts.values()) - min(counts[n] for n in range(options)) <= 1


def test_answers_are_balanced() -> None:
    for split in ("train", "test"):
        for kind in sorted({q["kind"] for q in QUESTIONS}):
            mine = [q for q in QUESTIONS if q["kind"] == kind and q["split"] == split]
            share = max(Counter(q["answer"] for q in mine).values()) / len(mine)
            assert share <= (0.6 if len(mine[0]["options"]) == 2 else 0.45), (split, kind, share)


def test_yes_and_no_are_even_for_each_organ() -> None:
    for split in ("train", "test"):
        asked: dict[str, Counter[str]] = defaultdict(Counter)
        for q in QUESTIONS:
            if q["kind"] == "organ_present" and q["split"] == split:
                asked[re.sub(r"the | is (not )?visible \.", "", q["reasoning"])][q["answer"]] += 1
        assert all(abs(count["yes"] - count["no"]) <= 1 for count in asked.values()), asked


def test_most_questions_are_of_middling_difficulty() -> None:
    middling = {
        "marked_organ",
        "which_organ",
        "body_level",
        "body_depth",
        "body_side",
        "organ_position",
        "largest_organ",
        "lung_lobe",
        "mass_position",
        "opacity_zone",
        "opacity_height",
        "tissue",
        "brain_region",
        "brain_level",
        "brain_depth",
        "brown_area",
        "nuclei_count",
        "disc_position",
    }
    count = sum(q["kind"] in middling and len(q["options"]) >= 3 for q in QUESTIONS)
    assert count / len(QUESTIONS) >= 0.5


def test_reasoning_names_the_answer() -> None:
    negative = re.compile(r"\b(no|not)\b")
    for q in QUESTIONS:
        if set(q["options"]) == {"yes", "no"}:
            assert bool(negative.search(q["reasoning"])) == (q["answer"] == "no"), q
        elif q["answer"] == "no opacity":
            assert q["reasoning"] == "there is no opacity ."
        else:
            assert f" {q['answer']} " in f" {q['reasoning']} ", q


def words() -> Iterator[str]:
    """Every word of the pack's texts."""
    for q in QUESTIONS:
        for text in (q["question"], q["reasoning"], *q["options"]):
            yield from text.split()
    for row in IMAGES:
        yield from row["caption"].split()


def test_small_vocabulary() -> None:
    allowed = set(WORDS.split())
    assert len(allowed) <= 700
    assert set(words()) - allowed == set()


def test_sources_and_licences() -> None:
    assert {row["source"] for row in IMAGES} == set(SOURCES)
    for name, source in SOURCES.items():
        assert {row["licence"] for row in IMAGES if row["source"] == name} == {source["licence"]}
        assert source["attribution"]
        assert source["notice"]
        assert source["subjects"] >= 1
    card = (PACK / "README.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in card and source["licence"] in card for name, source in SOURCES.items())
    assert "10.7937/K9/TCIA.2015.LO9QL9SX" in SOURCES["lidc-ct"]["attribution"]
    assert "McConnell Brain Imaging Centre" in SOURCES["mni152"]["notice"]
    assert "Permission is hereby granted" in SOURCES["pydicom"]["notice"]


def test_card_states_the_counts() -> None:
    card = " ".join((PACK / "README.md").read_text(encoding="utf-8").split())
    asked, shown = Counter(q["split"] for q in QUESTIONS), Counter(r["split"] for r in IMAGES)
    assert f"{len(IMAGES):,} real medical images" in card
    assert f"{len(QUESTIONS):,} multiple-choice questions" in card
    assert f"{len({q['kind'] for q in QUESTIONS})} kinds" in card
    assert f"{len(set(words()))} different words" in card
    questions = (
        f"{asked['train']:,} training, {asked['validation']} validation and {asked['test']:,} test questions"
    )
    assert f"{questions}, on {shown['train']}, {shown['validation']} and {shown['test']} images." in card
    for name, count in Counter(r["source"] for r in IMAGES).items():
        assert f"| `{name}` | {count} |" in card


def test_semi_synthetic_images_say_so() -> None:
    for row in IMAGES:
        put_in = row["facts"].get("semi_synthetic", False)
        assert put_in == (row["source"] == "lidc-drr-opacity")
    assert "semi-synthetic" in SOURCES["lidc-drr-opacity"]["name"].lower()


def whole_axial(**wanted: Any) -> list[dict[str, Any]]:
    """Whole axial CT slices without a marker whose facts hold these values."""
    fixed = {"plane": "axial", **wanted}
    found = [r for r in IMAGES if r["source"] == "lidc-ct" and not {"marker", "crop"} & set(r["facts"])]
    return [r for r in found if all(r["facts"].get(key) == value for key, value in fixed.items())]


def test_liver_is_on_the_images_left() -> None:
    found = [
        r["facts"]["organs"]["liver"]
        for r in IMAGES
        if r["facts"].get("plane") in ("axial", "coronal")
        and "crop" not in r["facts"]
        and "liver" in r["facts"].get("organs", {})
    ]
    assert len(found) > 100
    assert all((region["box"][0] + region["box"][2]) / 2 < 0.55 for region in found)
    assert all(region["at"][0] <= 0.5 for region in found)
    axial = [r["facts"]["organs"]["liver"] for r in whole_axial() if "liver" in r["facts"]["organs"]]
    assert all((region["box"][0] + region["box"][2]) / 2 < 0.5 for region in axial)


def right_minus_left(picture: Image.Image) -> float:
    """Mean grey of the image's right half less that of its left half."""
    values = np.asarray(picture.convert("L"), dtype=np.float64)
    return float(values[:, 56:].mean() - values[:, :56].mean())


def test_pixels_agree_with_the_side(pictures: dict[str, Image.Image]) -> None:
    bases = whole_axial(window="soft tissue", level="lung bases")  # the liver fills the patient's right
    assert len(bases) >= 6
    assert all(right_minus_left(pictures[r["id"]]) < 0 for r in bases)
    heart = [
        r for r in whole_axial(window="soft tissue") if 58 <= r["facts"]["slice"] <= 70
    ]  # apex to the left
    assert len(heart) >= 5
    assert all(right_minus_left(pictures[r["id"]]) > 0 for r in heart)


def test_marker_lies_where_the_facts_say(pictures: dict[str, Image.Image]) -> None:
    marked = [r for r in IMAGES if "marker" in r["facts"]]
    assert len(marked) > 400
    for row in marked:
        values = np.asarray(pictures[row["id"]].convert("RGB"), dtype=int)
        yellow = (values[..., 0] > 170) & (values[..., 1] > 140) & (values[..., 2] < 110)
        rows_, cols = np.nonzero(yellow)
        at = row["facts"]["marker"]["at"]
        if min(at) > 0.12 and max(at) < 0.88:
            assert abs(cols.mean() / 112 - at[0]) < 0.03, row["id"]
            assert abs(rows_.mean() / 112 - at[1]) < 0.03, row["id"]


def test_wrong_organs_are_absent() -> None:
    for q in QUESTIONS:
        facts = BY_ID[q["image"]]["facts"]
        if q["kind"] == "which_organ":
            assert q["answer"] in facts["organs"]
            assert all(o in facts["absent"] for o in q["options"] if o != q["answer"])


def test_slices_of_two_splits_stay_apart() -> None:
    least = {("lidc-ct", "axial"): 4, ("lidc-ct", "coronal"): 12, ("lidc-ct", "sagittal"): 15}
    least |= {("mni152", "axial"): 6, ("mni152", "coronal"): 9, ("mni152", "sagittal"): 6}
    at: dict[tuple[str, str], dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    for row in IMAGES:
        if "slice" in row["facts"]:
            at[row["source"], row["facts"]["plane"]][row["split"]].add(row["facts"]["slice"])
    assert set(at) == set(least)
    for key, by_split in at.items():
        pairs = [
            (a, b) for s in by_split for t in by_split if s < t for a in by_split[s] for b in by_split[t]
        ]
        assert min(abs(a - b) for a, b in pairs) >= least[key]


def test_no_near_equal_images_across_splits(pictures: dict[str, Image.Image]) -> None:
    split_of = {row["id"]: row["split"] for row in IMAGES}
    owner: dict[str, str] = {}
    for name, picture in pictures.items():
        key = sha256(picture.convert("RGB").tobytes()).hexdigest()
        assert owner.setdefault(key, name) == name, f"{name} equals {owner[key]}"
    assert near_pairs(pictures, split_of) == []


def copy_of(picture: Image.Image, *, side: int, quality: int) -> Image.Image:
    """The picture made smaller and compressed again."""
    buffer = io.BytesIO()
    picture.convert("RGB").resize((side, side)).save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


def test_a_planted_copy_is_found(pictures: dict[str, Image.Image]) -> None:
    train = [row["id"] for row in IMAGES if row["split"] == "train"][::40]
    for side, quality in ((112, 30), (80, 40)):
        caught = 0
        for name in train:
            found = {name: pictures[name], "planted": copy_of(pictures[name], side=side, quality=quality)}
            caught += near_pairs(found, {name: "train", "planted": "test"}) == [(name, "planted")]
        assert caught / len(train) >= 0.95


def test_texts_hold_no_machine_path() -> None:
    for path in PACK.rglob("*"):
        if path.suffix in (".py", ".md", ".json", ".jsonl"):
            assert not re.search(r"/(home|root|tmp|work)/", path.read_text(encoding="utf-8")), path
