"""A long row cut into blocks: every pair that is seen is computed, few others are, and results stay."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_vlms import FAMILIES, Case, grads, logp, make_case, plain, rotate_in_fp64

from lite_medrl.model import tree_mask
from lite_medrl.model.load import text_model
from lite_medrl.model.packed import base_of, packed_states
from lite_medrl.model.prefix_tree import Chain, Question, Root, depth_first, ends, prefix_trees
from lite_medrl.model.tree_blocks import Block, cut, keys_of, share_of_pairs, worth_cutting


@st.composite
def end_Ts(draw: st.DrawFn) -> tuple[int, ...]:
    """Ends of the subtrees of a random forest, depth first."""
    size = draw(st.integers(1, 40))
    parent = [draw(st.integers(-1 if t == 0 else max(-1, t - 4), t - 1)) for t in range(size)]
    order = depth_first(parent)
    place = {node: t for t, node in enumerate(order)}
    return ends(tuple(place.get(parent[node], -1) for node in order))


@given(end_Ts(), st.integers(1, 8))
def test_blocks_cover_the_row_and_all_that_is_seen(end_T: tuple[int, ...], least: int) -> None:
    blocks = cut(end_T, least=least)
    assert [b.first for b in blocks] == [0, *(b.last for b in blocks[:-1])]
    assert blocks[-1].last == len(end_T)
    for block in blocks:
        keys = keys_of(blocks, block)
        assert len(set(keys)) == len(keys)
        for query in range(block.first, block.last):
            ancestors = {key for key in range(query + 1) if query < end_T[key]}
            assert ancestors <= set(keys)
    assert 0 < share_of_pairs(blocks) <= 1


def test_by_hand() -> None:
    """A stem of three, then a question of two with answers of two and two, then an answer alone."""
    root = Root((1, 2, 3), (
        Question((4, 5), (Chain(0, (6, 7, 0)), Chain(1, (8, 9, 0)))),
        Question((), (Chain(2, (10, 11, 0)),)),
    ))  # fmt: skip
    (tree,) = prefix_trees([root], max_tokens=99)
    assert cut(tree.end_T, least=1) == [
        Block(0, 3, ()),
        Block(3, 5, (0,)),
        Block(5, 7, (0, 1)),
        Block(7, 9, (0, 1)),
        Block(9, 11, (0,)),
    ]
    # With at least 4 tokens a block, small neighbours stay together.
    assert cut(tree.end_T, least=4) == [Block(0, 3, ()), Block(3, 11, (0,))]


def test_a_row_is_cut_where_that_pays() -> None:
    def end_T(prompt: int, answers: int, length: int) -> tuple[int, ...]:
        chains = tuple(Chain(c, (c, *range(length))) for c in range(answers))
        (tree,) = prefix_trees([Root(tuple(range(prompt)), (Question((), chains),))], max_tokens=9999)
        return tree.end_T

    assert worth_cutting(end_T(100, 4, 20)) is None  # short
    assert worth_cutting(end_T(900, 2, 30)) is None  # nearly all of it is the prompt
    blocks = worth_cutting(end_T(500, 8, 100))
    assert blocks is not None
    assert len(blocks) == 9
    assert share_of_pairs(blocks) < 0.45


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_are_the_dense_mask(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Log-probs and LoRA gradients of every family, each row cut as finely as it can be."""
    rotate_in_fp64(monkeypatch)
    case = make_case(family)
    expected = plain(case)
    wanted = grads(case, expected)
    found = run_blocked(case, monkeypatch, expected_rows=2)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    for name, grad in grads(case, found).items():
        torch.testing.assert_close(grad, wanted[name], rtol=0, atol=1e-10, msg=name)
    with torch.no_grad():
        torch.testing.assert_close(plain(case), expected, rtol=0, atol=1e-10)  # other calls stay as they were


def run_blocked(case: Case, monkeypatch: pytest.MonkeyPatch, *, expected_rows: int) -> torch.Tensor:
    """Log-probs with blocks forced on; the layers really ran block by block."""
    seen: list[int] = []
    real = tree_mask.blocked_attention
    with monkeypatch.context() as patch:
        patch.setattr(tree_mask, "ROW", 1)
        patch.setattr(tree_mask, "worth_cutting", lambda end_T: cut(end_T, least=1))
        patch.setattr(
            tree_mask, "blocked_attention",
            lambda module, *args: seen.append(len(args[3].blocks)) or real(module, *args),
        )  # fmt: skip
        states = packed_states(case.model, case.trees(), case.images, tokens_per_pass=10**6)
        found = logp(case, states)
    layers = len(text_model(base_of(case.model)).layers)  # type: ignore[arg-type]
    assert len(seen) == expected_rows * layers
    assert min(seen) > 2
    return found


def test_checkpointed_layers_meet_the_blocks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case("llava")
    expected = plain(case)
    wanted = grads(case, expected)
    case.model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    case.model.enable_input_require_grads()
    case.model.train()
    found = run_blocked(case, monkeypatch, expected_rows=2)
    for name, grad in grads(case, found).items():
        torch.testing.assert_close(grad, wanted[name], rtol=0, atol=1e-10, msg=name)
