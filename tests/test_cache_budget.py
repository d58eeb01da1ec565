"""Waves hold every prompt once, in order, and never more than the budget."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lite_medrl.model import cache_budget
from lite_medrl.model.cache_budget import bytes_per_token, fits, free_bytes, waves
from lite_medrl.types import ModelError


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=12),
    answers=st.integers(1, 9),
    longest=st.integers(1, 30),
    token_bytes=st.integers(1, 7),
    spare=st.integers(0, 3000),
)
def test_waves(lengths: list[int], answers: int, longest: int, token_bytes: int, spare: int) -> None:
    budget = token_bytes * (max(lengths) + longest) + spare
    made = waves(lengths, answers, longest, token_bytes=token_bytes, budget_bytes=budget)
    assert [p for wave in made for p in wave.prompts] == list(range(len(lengths)))
    room = budget // token_bytes
    for wave, following in zip(made, [*made[1:], None], strict=True):
        held = [lengths[p] for p in wave.prompts]
        assert 1 <= wave.answers <= answers
        assert len(held) * (max(held) + wave.answers * longest) <= room  # prompts are padded to the longest
        if len(held) == 1:  # as many answers at a time as fit
            assert wave.answers == answers or not fits(held, wave.answers + 1, longest, room)
        else:
            assert wave.answers == answers
        if following and wave.answers == answers:  # the next prompt would not have fitted
            assert not fits([*held, lengths[following.prompts[0]]], answers, longest, room)


def test_one_token_too_little_is_refused() -> None:
    assert waves([10, 20], 4, 5, token_bytes=8, budget_bytes=200)[1].answers == 1
    with pytest.raises(ModelError, match=r"prompt 1 \(20 tokens\) with one answer of 5"):
        waves([10, 20], 4, 5, token_bytes=8, budget_bytes=199)


def test_bytes_of_a_token_are_those_of_the_config() -> None:
    text = SimpleNamespace(num_hidden_layers=36, num_key_value_heads=8, num_attention_heads=32, head_dim=128)
    config = SimpleNamespace(get_text_config=lambda: text)
    assert bytes_per_token(config, torch.bfloat16) == 147_456  # Qwen3-VL-4B
    del text.num_key_value_heads, text.head_dim
    text.hidden_size = 2560
    assert bytes_per_token(config, torch.float32) == 2 * 36 * 32 * 80 * 4


def test_layers_without_keys_and_values_are_not_counted() -> None:
    text = SimpleNamespace(num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=1, head_dim=8)
    config = SimpleNamespace(get_text_config=lambda: text)
    assert bytes_per_token(config, torch.float32) == 4 * 2 * 8 * 4
    text.layer_types = ["linear_attention", "full_attention", "conv", "sliding_attention"]
    assert bytes_per_token(config, torch.float32) == 2 * 2 * 8 * 4


def test_most_of_the_free_memory_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_budget, "available_memory", lambda: 1000)
    assert free_bytes(torch.device("cpu")) == 800
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (600, 9000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 500)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 100)
    assert free_bytes(torch.device("cuda")) == 800  # 600 free, 400 held without use


def test_this_machine_has_memory() -> None:
    assert 2**20 < cache_budget.available_memory() < 2**60
