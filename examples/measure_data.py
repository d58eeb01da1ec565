"""Two stored figures: memory while 100,000 questions are read, how far the perceptual hash can be trusted.

    python examples/measure_data.py memory   # docs/results/data_memory.json
    python examples/measure_data.py looks    # docs/results/data_look_hash.json

`memory` makes 100,000 rows whose image files add up to 20 GB when each is counted as often as it is read (200
files, reused). It reads them as a stream, as a lazy view in random order and as a list, every image decoded,
each in a process of its own whose peak is taken. `looks` compares copies of the embedded images (as JPEG at
quality 50, shrunk to three quarters, brighter by a tenth) with their originals, and these with each other.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

RESULTS = Path(__file__).parents[1] / "docs" / "results"
ROWS, FILES, SIDE = 100_000, 200, 256
WAYS = ("stream", "view", "list", "nothing")


def make(folder: Path, rows: int, files: int) -> Path:
    """A JSONL file of that many rows, each about one of that many BMP images of 197 kB."""
    draw = np.random.default_rng(0)
    for i in range(files):
        Image.fromarray(draw.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(folder / f"{i}.bmp")
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as out:
        for i in range(rows):
            row = {
                "id": f"question-{i}", "image": f"{i % files}.bmp", "answer": "B", "split": "train",
                "question": f"Which finding is marked in image number {i}, in the view that is shown ?",
                "options": ["no finding", "an opacity", "an effusion", "a fracture"], "kind": "finding",
            }  # fmt: skip
            out.write(json.dumps(row) + "\n")
    return folder / "rows.jsonl"


def read(way: str, source: str, decoded: int) -> dict[str, Any]:
    """Reads all rows one way, every `decoded`-th image too; peak memory of this process."""
    from lite_medrl.data.images import load_image
    from lite_medrl.data.sources import SampleView, iter_samples, load_samples

    start, questions, pixels, size = time.perf_counter(), 0, 0, 0
    if way == "stream":
        samples: Any = iter_samples(source, "train")
    elif way == "view":
        view = SampleView(source, "train")
        samples = (view[i] for i in random.Random(0).sample(range(len(view)), len(view)))
    else:
        samples = load_samples(source, "train") if way == "list" else []
    for i, sample in enumerate(samples):
        questions += 1
        if i % decoded == 0:
            image = load_image(sample.images[0])
            pixels += image.width * image.height
            size += Path(sample.images[0].path).stat().st_size
    return {
        "way": way,
        "questions": questions,
        "images_decoded": -(-questions // decoded),
        "gb_of_files_read": round(size / 1e9, 2),
        "peak_rss_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3),
        "seconds": round(time.perf_counter() - start, 1),
    }


def memory(rows: int, decoded: int) -> dict[str, Any]:
    """Every way in a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        source = str(make(Path(name), rows, FILES))
        found = []
        for way in WAYS:
            line = [sys.executable, __file__, "read", way, source, str(decoded)]
            done = subprocess.run(line, capture_output=True, text=True, check=True)
            found.append(json.loads(done.stdout))
    return {"command": "python examples/measure_data.py memory", "limit_gib": 2, "rows": rows, "ways": found}


def changed(image: Image.Image) -> list[Image.Image]:
    """The same picture, saved, shrunk and brightened."""
    out = io.BytesIO()
    image.save(out, "JPEG", quality=50)
    small = (max(1, image.width * 3 // 4), max(1, image.height * 3 // 4))
    return [
        Image.open(out).convert("RGB"),
        image.resize(small, Image.Resampling.BILINEAR),
        ImageEnhance.Brightness(image).enhance(1.1),
    ]


def looks() -> dict[str, Any]:
    """Shares of changed copies, and of pairs of other images, within each distance."""
    from lite_medrl.data.audit import MAX_DISTANCE, look_hash
    from lite_medrl.data.images import load_image
    from lite_medrl.data.sources import iter_samples

    first = {ref: s for s in iter_samples("embedded") for ref in s.images}
    refs = random.Random(0).sample(sorted(first, key=str), 600)
    images = [load_image(ref) for ref in refs]
    own = np.array([look_hash(image) for image in images], dtype=np.uint64)
    copies = np.array([[look_hash(copy) for copy in changed(image)] for image in images], dtype=np.uint64)
    to_copies = np.bitwise_count(copies ^ own[:, None])
    between = np.bitwise_count(own[:, None] ^ own[None])[np.triu_indices(len(own), 1)]
    limits = (0, 2, 4, 6, 8, 10, 12)
    return {
        "command": "python examples/measure_data.py looks",
        "images": len(refs),
        "max_distance": MAX_DISTANCE,
        "copies_within": {limit: round(float((to_copies <= limit).mean()), 4) for limit in limits},
        "other_pairs_within": {limit: round(float((between <= limit).mean()), 6) for limit in limits},
        "note": "other pairs hold neighbouring slices of one scan, which look alike in earnest",
    }


def main() -> None:
    """Measures, and stores what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", choices=["memory", "looks", "read"])
    parser.add_argument("rest", nargs="*")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--decoded", type=int, default=1, help="decode every n-th image only")
    parser.add_argument("--print", action="store_true", help="print, and store nothing")
    args = parser.parse_args()
    if args.what == "read":
        way, source, decoded = args.rest
        print(json.dumps(read(way, source, int(decoded))))
        return
    found = memory(args.rows, args.decoded) if args.what == "memory" else looks()
    text = json.dumps(found, indent=2) + "\n"
    print(text, end="")
    if not args.print:
        RESULTS.mkdir(parents=True, exist_ok=True)
        name = "data_memory.json" if args.what == "memory" else "data_look_hash.json"
        (RESULTS / name).write_text(text)


if __name__ == "__main__":
    main()
