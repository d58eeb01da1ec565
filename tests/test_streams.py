"""Random streams belong to prompts: the layout of a batch does not change what is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_grpo import G, rows, trainer_of

from lite_medrl.train.streams import images_of_prompts, prompt_keys


def test_a_key_is_made_of_tokens_and_images() -> None:
    one, two = {"pixel_values": torch.ones(1, 3)}, {"pixel_values": torch.ones(1, 3) * 2}
    keys = prompt_keys([[1, 2], [1, 2], [1, 2], [1, 3]], [one, two, dict(one), one])
    assert keys[0] == keys[2]
    assert len({keys[0], keys[1], keys[3]}) == 3
    assert all(0 <= key < 2**32 for key in keys)
    assert prompt_keys([[1, 2]], [{}]) != prompt_keys([[1, 2]], [one])


def test_images_that_nobody_can_tell_apart_leave_the_tokens() -> None:
    tiles = {"pixel_values": torch.zeros(5, 3, 2, 2), "input_ids": torch.zeros(2, 1)}
    assert images_of_prompts(tiles, [["a"], ["b"]], 2) == [{}, {}]
    found = images_of_prompts({"pixel_values": torch.zeros(2, 3, 2, 2)}, [["a"], ["b"]], 2)
    assert [tuple(one["pixel_values"].shape) for one in found] == [(1, 3, 2, 2)] * 2


def completions(batch: dict[str, Any], row: int) -> list[int]:
    return batch["completion_ids"][row][batch["completion_mask"][row].bool()].tolist()


def test_another_order_of_the_batch_draws_the_same_answers(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path)
    trainer.model.train()
    asked = rows(trainer, 3)
    straight = trainer._scored(asked, G)
    turned = trainer._scored(asked[2 * G :] + asked[: 2 * G], G)
    alone = trainer._scored(asked[G : 2 * G], G)
    for row in range(3 * G):
        assert completions(straight, row) == completions(turned, (row + G) % (3 * G))
    assert [completions(straight, G + g) for g in range(G)] == [completions(alone, g) for g in range(G)]
    assert len({tuple(completions(straight, g)) for g in range(G)}) > 1


def test_another_step_draws_other_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(tmp_path)
    trainer.model.train()
    first = trainer._scored(rows(trainer, 2), G)
    trainer._step = 1
    second = trainer._scored(rows(trainer, 2), G)
    assert [completions(first, r) for r in range(2 * G)] != [completions(second, r) for r in range(2 * G)]
