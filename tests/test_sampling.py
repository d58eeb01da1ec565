"""The sampled distribution is transformers', for every option; draws follow it; log-probs are those of it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from lite_medrl.model.sampling import Sampling, check, draw, draw_tokens, seen_tokens, truncate, uniforms
from lite_medrl.types import RecipeError

OPTIONS = [
    {"temperature": 1.0},
    {"temperature": 0.6},
    {"temperature": 1.7, "top_k": 3},
    {"temperature": 1.0, "top_p": 0.7},
    {"temperature": 1.3, "min_p": 0.2},
    {"temperature": 1.1, "repetition_penalty": 1.6},
    {"temperature": 0.8, "top_k": 6, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 0.7},
]
SEEN = [1, 2, 6]  # what stands in every row already


def warped(logits_RV: torch.Tensor, options: dict[str, Any], banned: tuple[int, ...] = ()) -> torch.Tensor:
    """Probabilities after transformers' own processors, in its order."""
    ids = torch.tensor([SEEN] * len(logits_RV))
    if "repetition_penalty" in options:
        logits_RV = RepetitionPenaltyLogitsProcessor(options["repetition_penalty"])(ids, logits_RV.clone())
    logits_RV = logits_RV.index_fill(1, torch.tensor(banned, dtype=torch.long), -torch.inf)
    warpers: list[Any] = [TemperatureLogitsWarper(options["temperature"])]
    for name, kind in {
        "top_k": TopKLogitsWarper,
        "top_p": TopPLogitsWarper,
        "min_p": MinPLogitsWarper,
    }.items():
        warpers += [kind(options[name])] if name in options else []
    for warper in warpers:
        logits_RV = warper(ids, logits_RV)
    return logits_RV.softmax(-1)


def seen(rows: int, vocabulary: int, options: dict[str, Any]) -> torch.Tensor | None:
    if "repetition_penalty" not in options:
        return None
    return torch.zeros(rows, vocabulary, dtype=torch.bool).index_fill_(1, torch.tensor(SEEN), True)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("banned", [(), (0, 4, 23)], ids=str)
def test_logps_are_those_of_transformers_distribution(
    options: dict[str, Any], banned: tuple[int, ...]
) -> None:
    logits = 2 * torch.randn(400, 24, generator=torch.Generator().manual_seed(1))
    uniform = torch.rand(400, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    drawn = draw_tokens(
        logits, uniform, Sampling(1, **options), banned=banned, seen_RV=seen(400, 24, options)
    )
    token = drawn.token_R[:, None]
    expected = warped(logits, options, banned).gather(1, token).squeeze(1)
    torch.testing.assert_close(drawn.sampling_logp_R.exp(), expected, rtol=1e-5, atol=1e-7)
    own = (logits / options["temperature"]).log_softmax(-1).gather(1, token).squeeze(1)
    torch.testing.assert_close(drawn.logp_R, own, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_frequencies_follow_the_distribution(options: dict[str, Any]) -> None:
    logits, count, banned = torch.tensor([[0.5, -1.0, 2.0, 1.4, -3.0, 0.0, 1.9, -0.4]]), 40_000, (3,)
    uniform = uniforms(0, 0, range(200), range(20), 10).flatten()
    token, logp, _ = draw_tokens(
        logits.expand(count, -1),
        uniform,
        Sampling(1, **options),
        banned=banned,
        seen_RV=seen(count, 8, options),
    )
    expected = warped(logits, options, banned)[0].double()
    torch.testing.assert_close(logp.exp().double(), expected[token], rtol=1e-5, atol=1e-7)
    found = Counter(token.tolist())
    kept = [i for i in range(8) if expected[i] > 0]
    assert set(found) == set(kept)
    share = np.array([float(expected[i]) for i in kept])
    assert len(kept) > 1
    assert chisquare([found[i] for i in kept], count * share / share.sum()).pvalue > 1e-3


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    temperature=st.floats(0.05, 5),
    top_p=st.floats(0.01, 1),
    top_k=st.integers(0, 30),
    min_p=st.floats(0, 1),
    uniform=st.floats(0, 1, exclude_max=True),
)
def test_whatever_the_options_the_likeliest_token_stays_and_no_banned_one_comes(
    seed: int, temperature: float, top_p: float, top_k: int, min_p: float, uniform: float
) -> None:
    logits = 3 * torch.randn(4, 20, generator=torch.Generator().manual_seed(seed))
    sampling = Sampling(1, temperature, top_p, top_k, min_p)
    check(sampling)
    uniform_R = torch.full((4,), uniform, dtype=torch.float64)
    drawn = draw_tokens(logits, uniform_R, sampling, banned=(0, 19))
    assert not {0, 19} & set(drawn.token_R.tolist())
    assert bool((drawn.sampling_logp_R <= 1e-6).all())
    assert bool(drawn.sampling_logp_R.isfinite().all())
    # Truncation, and bans, only raise what remains.
    assert bool((drawn.sampling_logp_R >= drawn.logp_R - 1e-5).all())
    logp = (logits / temperature).log_softmax(-1)
    kept = truncate(logp, sampling).isfinite()
    assert bool(kept.gather(1, logp.argmax(-1, keepdim=True)).all())
    if top_k:
        assert bool((kept.sum(1) <= top_k).all())


def test_the_ends_of_the_unit_interval_draw_the_outermost_allowed_tokens() -> None:
    logits = torch.full((2, 6), -torch.inf)
    logits[:, 2:4] = 0.0
    uniform = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert draw(logits, uniform, Sampling(1))[0].tolist() == [2, 3]


def test_at_temperature_zero_and_in_greedy_rows_the_likeliest_token_is_taken() -> None:
    logits = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    best, uniform = logits.argmax(-1), torch.full((6,), 0.999, dtype=torch.float64)
    assert torch.equal(draw_tokens(logits, uniform, Sampling(1, 0.0)).token_R, best)
    greedy = torch.tensor([True, False] * 3)
    mixed = draw_tokens(logits, uniform, Sampling(1, 1.0), greedy_R=greedy)
    plain = draw_tokens(logits, uniform, Sampling(1, 1.0))
    assert torch.equal(mixed.token_R, torch.where(greedy, best, plain.token_R))
    cold = draw_tokens(logits, uniform, Sampling(1, 0.0))
    expected = logits.log_softmax(-1).gather(1, best[:, None]).squeeze(1)
    torch.testing.assert_close(cold.logp_R, expected)


def test_seen_tokens_leave_padding_out() -> None:
    ids, mask = torch.tensor([[0, 0, 3, 1], [2, 0, 3, 3]]), torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    assert seen_tokens(ids, mask, 5).nonzero().tolist() == [[0, 1], [0, 3], [1, 0], [1, 2], [1, 3]]


def test_every_stream_is_its_own() -> None:
    grid = uniforms(1, 2, [5, 6], range(3), 4).reshape(2, 3, 4)
    assert torch.equal(uniforms(1, 2, [6], [2], 4)[0], grid[1, 2])
    assert len(set(grid.flatten().tolist())) == 24
    assert not torch.equal(uniforms(1, 3, [5], [0], 4)[0], grid[0, 0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0: must be 1 or more"),
        ({"temperature": -1.0}, "temperature=-1.0: must be 0 or more"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_p": 0.0}, "top_p=0.0: must be above 0, at most 1"),
        ({"top_k": -1}, "top_k=-1: must be 0"),
        ({"min_p": 1.5}, "min_p=1.5: must be between 0 and 1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0: must be above 0"),
    ],
    ids=str,
)
def test_an_option_without_meaning_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message.replace("(", r"\(")):
        check(Sampling(**options))
