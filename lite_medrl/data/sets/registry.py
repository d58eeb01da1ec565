"""The sets that have a name: where they are published, under which terms, and how their files are read.

`find` turns NAME or NAME:PATH into parts to read. Nothing is fetched here; `lite_medrl.data.fetch` does that.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from lite_medrl.data.cache import cache_folder
from lite_medrl.data.rows import Fault
from lite_medrl.data.sets import conversations, exams, medmnist, omni, pmc, short
from lite_medrl.data.sets.fields import FieldMap, Pictures, Place
from lite_medrl.data.sets.medmnist_facts import SUBSETS
from lite_medrl.data.sets.tables import Row, Table, open_table
from lite_medrl.types import DataError

PARQUET = "data/{split}-*.parquet"


@dataclass(frozen=True, slots=True)
class Part:
    """A table of one split, how its rows are read, where its images are, which rows belong (None: all)."""

    table: Table
    split: str
    fields: FieldMap
    images: Pictures | None = None
    first: int = 0
    only: frozenset[int] | None = None


@dataclass(frozen=True, slots=True)
class NamedSet:
    """A published set.

    `splits` are our names to patterns of the publishers' files; images are in the folder `images`, or else in
    one of the `archives`; `patterns` say what is fetched, `unpack` which archives are unpacked then.
    """

    name: str
    title: str
    fields: FieldMap
    licence: str
    access: str
    splits: dict[str, tuple[str, ...]]
    note: str = ""
    hub: str = ""
    revision: str | None = None
    patterns: tuple[str, ...] = ()
    images: str = ""
    archives: tuple[str, ...] = ()
    unpack: tuple[str, ...] = ()
    modality: str = "unknown"
    folder: str = ""
    choose: Callable[[list[Part], Path, str], list[Part]] | None = field(default=None, repr=False)

    @property
    def home(self) -> str:
        """The name of its folder in the cache: sets out of the same files share it."""
        return self.folder or self.name


def in_split(*names: str) -> dict[str, tuple[str, ...]]:
    """Parquet files as the hub writes them."""
    return {name: (PARQUET.format(split=name),) for name in names}


MEDICAL = (
    "Basic_Medical_Science", "Clinical_Medicine", "Diagnostics_and_Laboratory_Medicine", "Pharmacy",
    "Public_Health",
)  # fmt: skip


def mmmu_split(name: str) -> tuple[str, ...]:
    """The files of the five medical subjects."""
    return tuple(f"{subject}/{name}-*.parquet" for subject in MEDICAL)


def balanced_8k(parts: list[Part], folder: Path, split: str) -> list[Part]:
    """PMC-VQA's training rows, balanced over gold letters, without the images of test_clean.csv.

    The validation rows come from the same file, and show no image of the training rows either.
    """
    if split == "test":
        return parts
    (whole,) = parts
    clean = open_table(folder / "test_clean.csv")
    taken = {row.values["Figure_path"].strip() for row in clean.rows() if isinstance(row, Row)}
    good = list(good_pmc_rows(whole.table))
    chosen = frozenset(pmc.balanced(good, frozenset(taken)))
    if split == "validation":
        taken |= {image for number, _, image in good if number in chosen}
        size = pmc.VALIDATION_PER_LETTER
        chosen = frozenset(pmc.balanced(good, frozenset(taken), per_letter=size, seed=pmc.SEED + 1))
    return [replace(whole, only=chosen)]


def good_pmc_rows(table: Table) -> Iterator[tuple[int, str, str]]:
    """Number, gold letter and image of every row without a fault."""
    place = Place("pmc-vqa-8k", "train", 0)
    for row in table.rows():
        if isinstance(row, Fault):
            continue
        try:
            (found,) = pmc.pmc_csv(row.values, place)
        except DataError:
            continue
        if len(set(found["options"])) == len(found["options"]):
            letter = pmc.LETTERS[found["options"].index(found["answer"])]
            yield row.number, letter, row.values["Figure_path"].strip()


PMC = {
    "fields": pmc.CSV,
    "licence": "CC-BY-SA (figures: CC0 or CC-BY, by article)",
    "hub": "RadGenome/PMC-VQA",
    "revision": "b56ae594f794867893143b337b4118a835794647",
}
SETS: dict[str, NamedSet] = {
    one.name: one
    for one in (
        NamedSet(
            "vqa-rad", "VQA-RAD", short.RAD, "CC0-1.0", "open", in_split("train", "test"),
            note="closed questions are those answered by yes or no (251 in test; others count 272); images "
            "recur across the splits",
            hub="flaviagiammarino/vqa-rad", patterns=("data/*.parquet",), modality="radiology",
        ),
        NamedSet(
            "slake", "SLAKE, English", short.SLAKE, "CC-BY-4.0", "open",
            {"train": ("train.json",), "validation": ("valid*.json",), "test": ("test.json",)},
            note="355 of the 416 closed English test questions are yes/no; the others name no options: open",
            hub="BoKelvin/SLAKE", patterns=("*.json", "imgs.zip"), images="imgs", archives=("imgs.zip",),
        ),
        NamedSet(
            "pathvqa", "PathVQA", short.RAD, "MIT (images: their publishers' copyright)", "open",
            in_split("train", "validation", "test"),
            note="closed questions are those answered by yes or no (3,362 in test)",
            hub="flaviagiammarino/path-vqa", patterns=("data/*.parquet",), modality="pathology",
        ),
        NamedSet(
            "pmc-vqa", "PMC-VQA, version 1", access="open; 19 GB of images",
            splits={"train": ("train.csv",), "test": ("test.csv",), "test_clean": ("test_clean.csv",)},
            note="test_clean holds the 2,000 questions that most papers report",
            patterns=("train.csv", "test.csv", "test_clean.csv", "images.zip"),
            images="images", archives=("images.zip",), **PMC,
        ),
        NamedSet(
            "pmc-vqa-2", "PMC-VQA, version 2, single figures", access="open; 2 GB of images",
            splits={"train": ("train_2.csv",), "test": ("test_2.csv",)},
            patterns=("train_2.csv", "test_2.csv", "images_2.zip"),
            images="images_2", archives=("images_2.zip",), folder="pmc-vqa", **PMC,
        ),
        NamedSet(
            "pmc-vqa-8k", "PMC-VQA, 8,000 balanced over the gold letters", access="open; 19 GB of images",
            splits={"train": ("train.csv",), "validation": ("train.csv",), "test": ("test_clean.csv",)},
            note="2,000 training questions of each gold letter, seed 42, no image of test_clean; 125 "
            "for validation, of other images; ours: the published file of that size says not how it draws",
            patterns=("train.csv", "test_clean.csv", "images.zip"),
            images="images", archives=("images.zip",), folder="pmc-vqa", choose=balanced_8k, **PMC,
        ),
        NamedSet(
            "pmc-vqa-small", "PMC-VQA, version 2, a mirror in Parquet", pmc.MIRROR, PMC["licence"],
            "open; 14 GB with images", in_split("train", "test"),
            hub="mdwiratathya/PMC-VQA_small", revision="e41ce0b311397b8c1bfe85c80048d9e0c0adcdfe",
            patterns=("data/*.parquet",),
        ),
        NamedSet(
            "medxpertqa-mm", "MedXpertQA MM", exams.MEDXPERT, "MIT", "open; for evaluation only",
            {"dev": ("MM/dev.jsonl",), "test": ("MM/test.jsonl",)},
            note="five options, often several images; the choices repeated in the question are cut off",
            hub="TsinghuaC3I/MedXpertQA", revision="f4e6fe7e5a9e13d6c97d7aa2b91cdd8b80c9cc61",
            patterns=("MM/*.jsonl", "images.zip"), images="images", archives=("images.zip",),
        ),
        NamedSet(
            "mmmu-medical", "MMMU, five medical subjects", exams.MMMU, "Apache-2.0",
            "open; for evaluation only", {"dev": mmmu_split("dev"), "validation": mmmu_split("validation")},
            note="the answers of its test split are not published; questions without options are open",
            hub="MMMU/MMMU", patterns=(*mmmu_split("dev"), *mmmu_split("validation")),
        ),
        NamedSet(
            "medvlthinker-eval", "MedVLThinker's six benchmarks", exams.MEDVLTHINKER, "mixed, by row", "open",
            {"test": ("data/*.parquet", "*.parquet")},
            note="the options of SLAKE and VQA-RAD were written by a language model",
            hub="UCSC-VLAA/MedVLThinker-Eval", patterns=("*.parquet",),
        ),
        NamedSet(
            "medvlthinker-pmc", "MedVLThinker's PMC-VQA for training", exams.MEDVLTHINKER, PMC["licence"],
            "open", {"train": ("data/*.parquet", "*.parquet")}, hub="UCSC-VLAA/MedVLThinker-pmc_vqa",
            patterns=("*.parquet",),
        ),
        NamedSet(
            "omnimedvqa", "OmniMedVQA, open-access part", omni.OMNI, "by source; see its README",
            "open part only; the rest is not given out", {"test": ("QA_information/Open-access/*.json",)},
            note="88,996 questions about 82,059 images; published without splits, here all in test",
            hub="foreverbeliever/OmniMedVQA", revision="1ba51c28fc0773bdf7efb8396e5bcfd4227e22da",
            patterns=("OmniMedVQA.zip",), images="Images", unpack=("OmniMedVQA.zip",),
        ),
        NamedSet(
            "llava", "conversations as LLaVA or sharegpt have them (give a path: llava:FILE.json)",
            conversations.CONVERSATION, "unknown", "your own file", {},
            note="every pair of turns is an open question, or a closed one where the answer is yes or no",
        ),
    )
}  # fmt: skip


# Of the sets that one repository holds, its id means the first.
HUB_IDS = {one.hub: one.name for one in reversed(SETS.values()) if one.hub}


def licence_of(name: str) -> tuple[str, str]:
    """Licence and access terms of a named set."""
    if found := medmnist.subset_of(name):
        return found[0].licence, "open"
    one = SETS[name]
    return one.licence, one.access


def name_and_path(source: str) -> tuple[str, str]:
    """The name that a source begins with, and the path behind it; a set's id on the hub is a name too."""
    name, _, path = source.partition(":")
    return HUB_IDS.get(name, name), path


def is_named(source: str) -> bool:
    """Whether a source begins with the name of a set. (A folder of that name is ./NAME.)"""
    name = name_and_path(source)[0]
    return name in SETS or name.partition("@")[0] in SUBSETS


def names() -> list[str]:
    """All names; MedMNIST's without their sizes."""
    return [*SETS, *SUBSETS]


def nearest(source: str) -> str:
    """A hint at the name that was meant, or an empty text."""
    close = difflib.get_close_matches(source, names(), 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def place_of(source: str) -> Path:
    """The folder (or the file, of MedMNIST and of conversations) that a named source is read from."""
    name, path = name_and_path(source)
    if found := medmnist.subset_of(name):
        file = Path(path or cache_folder() / "medmnist")
        return file if file.suffix == ".npz" else file / found[0].file(found[1])
    if not path and not SETS[name].hub:
        raise DataError(f"{name}: give a path: {name}:FILE.json")
    return Path(path) if path else cache_folder() / SETS[name].home


def splits_of(name: str) -> tuple[str, ...]:
    """The splits that a named set has."""
    if medmnist.subset_of(name):
        return tuple(medmnist.SPLITS)
    return tuple(SETS[name].splits) or ("train",)


def parts_of(source: str, split: str | None) -> list[Part]:
    """What has to be read for one split of a named set (None: for all).

    Raises:
        DataError: files that are not there, with the command that fetches them.
    """
    name, place = name_and_path(source)[0], place_of(source)
    wanted = [one for one in splits_of(name) if split in (None, one)]
    if found := medmnist.subset_of(name):
        subset, size = found
        fields = medmnist.field_map(subset)
        checked = medmnist.checked_file(place, subset, size)
        return [Part(medmnist.Arrays(checked, one), one, fields) for one in wanted]
    one = SETS[name]
    if not one.hub:
        images = Pictures(place.parent)
        return [Part(open_table(place), "train", one.fields, images)] if wanted else []
    if not place.is_dir():
        raise DataError(
            f"{place}: no such folder; fetch the set: lite-medrl data fetch {name} "
            f"(or name its folder: {name}:FOLDER)"
        )
    archives = tuple(place / archive for archive in one.archives)
    images = Pictures(place / one.images, archives) if one.images else None
    return [part for split in wanted for part in split_parts(one, place, split, images)]


def split_parts(one: NamedSet, place: Path, split: str, images: Pictures | None) -> list[Part]:
    """The tables of one split."""
    files = [file for pattern in one.splits[split] for file in sorted(place.glob(pattern))]
    if not files:
        raise DataError(
            f"{place}: no file {' or '.join(one.splits[split])} for split {split!r}; fetch the set again: "
            f"lite-medrl data fetch {one.name}"
        )
    parts, first = [], 0
    for file in dict.fromkeys(files):
        parts.append(Part(open_table(file), split, one.fields, images, first))
        first += rows_in(file)
    return one.choose(parts, place, split) if one.choose else parts


def rows_in(file: Path) -> int:
    """How many rows a Parquet file has; 0 for others, whose numbers need no offset between files."""
    if file.suffix != ".parquet":
        return 0
    from lite_medrl.data.sets.tables import parquet_file

    return parquet_file(str(file)).metadata.num_rows
