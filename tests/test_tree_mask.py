"""Masks of prefix trees: by hand, as dense and as block masks, and through the attention that cards use."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_vlms import F64, IMAGE, logp, make_case, plain
from torch.nn.attention.flex_attention import BlockMask, create_mask, flex_attention
from transformers import Gemma3Config

from lite_medrl.model import tree_mask
from lite_medrl.model.pack_check import can_pack
from lite_medrl.model.packed import packed_states
from lite_medrl.model.prefix_tree import Chain, Question, Root, prefix_trees, to_tensors
from lite_medrl.model.tree_mask import choose_attention, dense_mask, mask_rules


@pytest.mark.parametrize("family", ["gemma3", "qwen3_vl", "llava"])
def test_block_masks_are_dense_masks(family: str) -> None:
    case = make_case(family)
    base = case.model.get_base_model()
    tensors = to_tensors(case.trees(), pad_token=0, multiple=8)
    rows, width = tensors.token_RT.shape
    for rule in mask_rules(base.config, tensors).values():
        dense = dense_mask(rule, rows, width, torch.device("cpu"), F64)
        block = create_mask(rule, rows, None, width, width, device="cpu")
        assert torch.equal(dense == 0, block)
        assert torch.equal(dense == -torch.inf, ~block)


def test_masks_by_hand() -> None:
    """Two branches after a prompt of an image and a word; a window of three; padding sees itself only."""
    roots = [
        Root((IMAGE, IMAGE, 1), (Question((), (Chain(0, (2, 3)), Chain(1, (4, 5)))),)),
        Root((6,), (Question((), (Chain(2, (7,)),)),)),
    ]
    tensors = to_tensors(prefix_trees(roots, max_tokens=9), pad_token=0)
    config = Gemma3Config(image_token_index=IMAGE, text_config={"sliding_window": 3})
    rules = mask_rules(config, tensors)
    seen = {
        kind: (dense_mask(rule, 2, 5, torch.device("cpu"), F64)[:, 0] == 0).int().tolist()
        for kind, rule in rules.items()
    }
    alone = [[int(i == j) for j in range(5)] for i in range(5)]
    full = [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 0, 1]]
    sliding = [*full[:3], [0, 1, 1, 1, 0], [0, 1, 1, 0, 1]]
    assert seen == {"full_attention": [full, alone], "sliding_attention": [sliding, alone]}


def test_the_flex_path_without_its_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Block masks through the attention that a card uses, here by PyTorch's uncompiled FlexAttention."""

    def flex(module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float, **_: Any) -> Any:
        used.append(mask)
        found = flex_attention(query, key, value, block_mask=mask, scale=scaling, enable_gqa=True)
        return found.transpose(1, 2).contiguous(), None

    used: list[BlockMask] = []
    monkeypatch.setattr(tree_mask, "choose_attention", lambda device: "flex")
    monkeypatch.setattr(tree_mask, "flex_attention_forward", flex)
    case = make_case("gemma3")
    with torch.no_grad():
        expected = plain(case)
        found = logp(case, packed_states(case.model, case.trees(), case.images))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
        assert len(used) == 2 * 3
        assert {mask.shape for mask in used} == {(1, 1, 128, 128)}
        assert can_pack(case.model.config) is None
        torch.testing.assert_close(plain(case), expected, rtol=0, atol=1e-10)  # other calls stay SDPA
        assert len(used) == 2 * 3


def test_the_attention_is_chosen_once_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    choose_attention.cache_clear()
    with caplog.at_level("INFO"):
        assert [choose_attention(torch.device("cpu")) for _ in range(3)] == ["dense"] * 3
    assert [r.getMessage() for r in caplog.records] == [
        "prefix trees on cpu: dense attention mask (no CUDA card)"
    ]
