"""Which other image is shown: never the own one, each once, of another subject; neighbours share an image."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from lite_medrl.measure.shown import exchange
from lite_medrl.types import ImageRef, Sample


def sample(number: int, image: str, subject: str | None = None, more: int = 0) -> Sample:
    images = tuple(ImageRef(f"{image}{i or ''}.png") for i in range(more + 1))
    return Sample(f"q{number}", images, "?", ("a", "b"), "a", "k", "ct", "own", "CC0", subject=subject)


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 1)), min_size=1, max_size=40), st.integers(0, 5))
def test_each_image_is_handed_on_once(asked: list[tuple[int, int]], seed: int) -> None:
    samples = [sample(i, f"i{image}", more=more) for i, (image, more) in enumerate(asked)]
    found = exchange(samples, seed)
    sets = {s.images for s in samples}
    assert set(found.other) == set(found.other.values()) == sets
    sizes = Counter(map(len, sets))
    for s in samples:
        assert len(found.other[s.images]) == len(s.images)
        assert found.possible(s) == (sizes[len(s.images)] > 1)
        assert found.possible(s) == (found.other[s.images] != s.images)


@given(st.lists(st.integers(1, 4), min_size=2, max_size=8), st.integers(0, 5))
def test_the_other_image_is_of_another_subject(images_of: list[int], seed: int) -> None:
    samples = [
        sample(10 * s + i, f"s{s}i{i}", subject=f"s{s}")
        for s, count in enumerate(images_of)
        for i in range(count)
    ]
    found = exchange(samples, seed)
    subject = {s.images: s.subject for s in samples}
    if 2 * max(images_of) <= sum(images_of):
        assert all(subject[found.other[s.images]] != s.subject for s in samples)
    assert all(found.possible(s) for s in samples)


def test_one_subject_alone_gets_its_other_images() -> None:
    samples = [sample(i, f"i{i}", subject="s") for i in range(3)]
    assert all(exchange(samples).possible(s) for s in samples)


def test_neighbours_see_the_same_image() -> None:
    samples = [sample(i, f"i{i % 7}") for i in range(21)]
    found = exchange(samples, seed=3)
    arranged = found.arranged(samples)
    assert sorted(s.id for s in arranged) == sorted(s.id for s in samples)
    order = list(dict.fromkeys(s.images for s in arranged))
    assert [found.other[images] for images in order[:-1]] == order[1:]  # one cycle: 7 sets, a shift by one
    assert [s.images for s in arranged] == sorted((s.images for s in samples), key=found.order.__getitem__)


def test_the_seed_decides() -> None:
    samples = [sample(i, f"i{i}") for i in range(12)]
    assert exchange(samples, 1) == exchange(samples, 1)
    assert exchange(samples, 1) != exchange(samples, 2)
