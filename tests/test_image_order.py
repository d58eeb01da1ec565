"""Rows of one image follow each other, shuffled anew each epoch; every row is drawn once."""

from __future__ import annotations

import io
import random
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, Features, Image, IterableDataset, List, Value
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PILImage

from lite_medrl.train.image_order import ImageOrder, by_image, images_of_rows


@given(st.lists(st.integers(0, 5), max_size=30), st.integers(0, 9))
def test_every_row_once_and_images_in_one_piece(image_I: list[int], seed: int) -> None:
    order = by_image(image_I, random.Random(seed))
    assert sorted(order) == list(range(len(image_I)))
    runs = [image for image, _ in groupby(image_I[i] for i in order)]
    assert len(runs) == len(set(image_I))


def test_an_epoch_is_shuffled_anew_and_a_seed_repeats_it() -> None:
    images = [i // 3 for i in range(30)]
    places = [p for p in range(30) for _ in range(2)]  # as TRL repeats a prompt
    sampler = ImageOrder(places, images, seed=1)
    first, second = list(sampler), list(sampler)
    assert len(sampler) == 60
    assert first != second
    assert first[::2] == first[1::2]
    assert sorted(first[::2]) == list(range(30))
    again = ImageOrder(places, images, seed=1)
    assert [list(again), list(again)] == [first, second]
    assert list(ImageOrder(places, images, seed=2)) != first


def encoded(colour: str) -> bytes:
    buffer = io.BytesIO()
    PILImage.new("RGB", (4, 4), colour).save(buffer, "PNG")
    return buffer.getvalue()


def test_images_are_told_apart_by_path_or_bytes_and_never_decoded(tmp_path: Path) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(b"not an image")
    red, blue = ({"bytes": encoded(c), "path": None} for c in ("red", "blue"))
    file = {"bytes": None, "path": str(path)}
    rows = [[red], [blue], [red], [file], [file, red], []]
    many = Dataset.from_list([{"images": r} for r in rows], features=Features({"images": List(Image())}))
    keys = images_of_rows(many)
    assert [keys.index(k) for k in keys] == [0, 1, 0, 3, 4, 5]
    one = Dataset.from_list([{"image": red}, {"image": red}], features=Features({"image": Image()}))
    assert len(set(images_of_rows(one))) == 1


def test_a_dataset_that_cannot_be_ordered_is_refused() -> None:
    text: Any = Dataset.from_list([{"prompt": "a"}])
    with pytest.raises(ValueError, match=r"column `images` or `image`; came Dataset with \['prompt'\]"):
        images_of_rows(text)
    with pytest.raises(ValueError, match="came IterableDataset"):
        images_of_rows(IterableDataset.from_generator(lambda: iter([{"images": 1}])))
    paths = Dataset.from_list([{"image": "a.png"}], features=Features({"image": Value("string")}))
    with pytest.raises(ValueError, match=r"images of type datasets.Image, came Value"):
        images_of_rows(paths)


def test_the_order_of_an_epoch_does_not_depend_on_those_before() -> None:
    """What a resumed run needs: the Trainer names the epoch and draws it anew."""
    images = [i // 3 for i in range(30)]
    straight = ImageOrder(range(30), images, seed=3)
    epochs = [list(straight) for _ in range(3)]
    resumed = ImageOrder(range(30), images, seed=3)
    resumed.set_epoch(2)
    assert list(resumed) == epochs[2]
    assert len({tuple(epoch) for epoch in epochs}) == 3
