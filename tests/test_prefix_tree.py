"""Rows of prefix trees against a plain statement of who is whose ancestor: the written-out path of every
completion.
"""

from __future__ import annotations

from itertools import count

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lite_medrl.model.prefix_tree import (
    Chain,
    PrefixTree,
    Question,
    Root,
    common_start,
    prefix_trees,
    saving,
    share,
    to_tensors,
)

TOKENS = st.integers(0, 2)  # few values, so that starts are often equal


@st.composite
def made_roots(draw: st.DrawFn, *, masked: bool = True) -> list[Root]:
    """One to three roots of one to three questions of none to five completions, numbered in any order."""
    shapes = draw(
        st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=3), min_size=1, max_size=3).filter(
            lambda shapes: sum(map(sum, shapes))
        )
    )
    numbers = iter(draw(st.permutations(range(sum(map(sum, shapes))))))
    roots = []
    for shape in shapes:
        start = tuple(draw(st.lists(TOKENS, max_size=6)))
        rests = [tuple(draw(st.lists(TOKENS, min_size=not start, max_size=3))) for _ in shape]
        questions = [
            Question(rest, draw(chains(numbers, n, masked))) for rest, n in zip(rests, shape, strict=True)
        ]
        roots.append(Root(start, tuple(questions)))
    return roots


@st.composite
def chains(draw: st.DrawFn, numbers: object, amount: int, masked: bool) -> tuple[Chain, ...]:
    """Completions of one to six tokens; some of them trained in part, or not at all."""
    found = []
    for _ in range(amount):
        tokens = tuple(draw(st.lists(TOKENS, min_size=1, max_size=6)))
        mask = st.lists(st.booleans(), min_size=len(tokens), max_size=len(tokens)).map(tuple)
        trained = draw(st.none() | mask) if masked else None
        found.append(Chain(next(numbers), tokens, trained))  # type: ignore[call-overload]
    return tuple(found)


def paths(roots: list[Root]) -> dict[int, tuple[int, tuple[int, ...], Chain]]:
    """Root, whole prompt and chain of every completion, by its number."""
    return {
        chain.completion: (r, root.tokens + question.tokens, chain)
        for r, root in enumerate(roots)
        for question in root.questions
        for chain in question.chains
    }


def ancestors(tree: PrefixTree, node: int) -> list[int]:
    """The path down to a token and the token itself, by walking up."""
    path = [node]
    while tree.parent_T[path[0]] >= 0:
        path.insert(0, tree.parent_T[path[0]])
    return path


def longest(roots: list[Root]) -> int:
    """The least budget that every completion fits."""
    return max(
        (len(prompt) + len(c.fed) for _, prompt, c in paths(roots).values() if c.trained_at), default=0
    )


BUDGETS = st.integers(0, 12) | st.just(10**6)


@given(made_roots(), BUDGETS, st.booleans())
def test_a_token_sees_its_ancestors_and_nothing_else(roots: list[Root], room: int, merge: bool) -> None:
    for tree in prefix_trees(roots, max_tokens=longest(roots) + room, merge=merge):
        for i in range(len(tree.token_T)):
            seen = [j for j in range(len(tree.token_T)) if j <= i < tree.end_T[j]]
            assert seen == ancestors(tree, i)
            assert tree.depth_T[i] == len(seen) - 1


@given(made_roots(), BUDGETS, st.booleans())
def test_each_trained_token_is_predicted_once_and_from_its_own_path(
    roots: list[Root], room: int, merge: bool
) -> None:
    expected, found = paths(roots), {}
    for tree in prefix_trees(roots, max_tokens=longest(roots) + room, merge=merge):
        for source, target, number, k in zip(
            tree.source_N, tree.target_N, tree.completion_N, tree.index_N, strict=True
        ):
            root, prompt, chain = expected[number]
            assert tree.root == root
            assert tree.root_tokens == len(roots[root].tokens)
            path = tuple(tree.token_T[j] for j in ancestors(tree, source))
            assert path == prompt + chain.tokens[:k]  # what the state that predicts it has read
            assert target == chain.tokens[k]
            assert (number, k) not in found
            found[number, k] = target
    assert found == {(n, k): c.tokens[k] for n, (_, _, c) in expected.items() for k in c.trained_at}


@given(made_roots(), BUDGETS, st.booleans())
def test_rows_keep_the_budget_and_hold_no_token_that_predicts_nothing(
    roots: list[Root], room: int, merge: bool
) -> None:
    budget = longest(roots) + room
    for tree in prefix_trees(roots, max_tokens=budget, merge=merge):
        assert 0 < len(tree.token_T) <= budget
        needed = {j for source in tree.source_N for j in ancestors(tree, source)}
        assert needed == set(range(len(tree.token_T)))


@given(made_roots())
def test_a_root_that_fits_is_one_row_with_as_few_tokens_as_there_are_distinct_prefixes(
    roots: list[Root],
) -> None:
    trees = prefix_trees(roots, max_tokens=10**6, merge=True)
    expected = {}
    for r, root in enumerate(roots):
        live = [q for q in root.questions if any(c.trained_at for c in q.chains)]
        if not live:
            continue
        # Questions are apart even where they are equal, unless they add nothing to the root.
        prefixes = {
            (i if q.tokens else -1, c.fed[: k + 1])
            for i, q in enumerate(live)
            for c in q.chains
            if c.trained_at
            for k in range(len(c.fed))
        }
        expected[r] = len(root.tokens) + sum(len(q.tokens) for q in live) + len(prefixes)
    assert {tree.root: len(tree.token_T) for tree in trees} == expected
    assert len(trees) == len(expected)


@given(made_roots(), BUDGETS)
def test_merging_changes_the_tokens_fed_and_not_what_is_trained(roots: list[Root], room: int) -> None:
    budget = longest(roots) + room
    apart, merged = (prefix_trees(roots, max_tokens=budget, merge=merge) for merge in (False, True))
    read = [
        [
            (number, k, target, tuple(tree.token_T[j] for j in ancestors(tree, source)))
            for tree in trees
            for source, target, number, k in zip(
                tree.source_N, tree.target_N, tree.completion_N, tree.index_N, strict=True
            )
        ]
        for trees in (apart, merged)
    ]
    assert read[0] == read[1]  # order too
    assert saving(roots, merged).tokens <= saving(roots, apart).tokens
    assert saving(roots, merged).states <= saving(roots, apart).states
    assert saving(roots, merged).trained == saving(roots, apart).trained


@given(made_roots(masked=False), BUDGETS, st.booleans())
def test_completions_keep_their_order(roots: list[Root], room: int, merge: bool) -> None:
    trees = prefix_trees(roots, max_tokens=longest(roots) + room, merge=merge)
    found = [(n, k) for tree in trees for n, k in zip(tree.completion_N, tree.index_N, strict=True)]
    assert found == [(n, k) for n, (_, _, c) in paths(roots).items() for k in range(len(c.tokens))]


def test_a_tree_by_hand() -> None:
    first = Question((3,), (Chain(0, (4, 5, 6)), Chain(1, (4, 7))))
    second = Question((8, 9), (Chain(2, (5,)),))
    roots = [Root((1, 2), (first, second))]
    (apart,) = prefix_trees(roots, max_tokens=100)
    assert apart.token_T == (1, 2, 3, 4, 5, 4, 8, 9)
    assert apart.end_T == (8, 8, 6, 5, 5, 6, 8, 8)
    assert apart.depth_T == (0, 1, 2, 3, 4, 3, 2, 3)
    assert apart.parent_T == (-1, 0, 1, 2, 3, 2, 1, 6)
    assert apart.source_N == (2, 3, 4, 2, 5, 7)
    assert apart.target_N == (4, 5, 6, 4, 7, 5)
    assert apart.completion_N == (0, 0, 0, 1, 1, 2)
    assert apart.index_N == (0, 1, 2, 0, 1, 0)
    (merged,) = prefix_trees(roots, max_tokens=100, merge=True)
    assert merged.token_T == (1, 2, 3, 4, 5, 8, 9)
    assert merged.source_N == (2, 3, 4, 2, 3, 6)
    found = saving(roots, [merged])
    assert (found.tokens, found.separate_tokens, found.states, found.trained) == (7, 6 + 5 + 5, 4, 6)
    assert found.times == 16 / 7


def test_merged_chains_are_put_in_depth_first_order() -> None:
    made = [Chain(0, (1, 2, 0)), Chain(1, (3, 0)), Chain(2, (1, 4, 0))]
    (tree,) = prefix_trees([Root((9,), (Question((), tuple(made)),))], max_tokens=9, merge=True)
    assert tree.token_T == (9, 1, 2, 4, 3)
    assert tree.end_T == (5, 4, 3, 4, 5)
    assert tree.completion_N == (0, 0, 0, 1, 1, 2, 2, 2)


def test_the_figures_of_the_design() -> None:
    def group(prompt: int, completion: int) -> Root:
        rows = [Chain(g, (g, *range(1, completion))) for g in range(8)]
        return Root(tuple(range(prompt)), (Question((), tuple(rows)),))

    for completion, times in ((200, 3.7), (64, 5.7)):
        roots = [group(1000, completion)]
        trees = prefix_trees(roots, max_tokens=4096)
        assert saving(roots, trees).times == pytest.approx(times, abs=0.05)
        assert saving(roots, trees).separate_tokens == 8 * (1000 + completion)
        assert saving(roots, trees).tokens == 1000 + 8 * (completion - 1)


def test_division_by_question_then_by_completions() -> None:
    number = count()

    def question(start: int, amount: int) -> Question:
        return Question((start,), tuple(Chain(next(number), (start, 0, 0)) for _ in range(amount)))

    root = Root((1, 1), (question(5, 1), question(6, 4), question(7, 1)))
    rows = prefix_trees([root], max_tokens=9)  # room for 2 of the root, 1 of a question, 2 for a completion
    assert [tree.token_T for tree in rows] == [
        (1, 1, 5, 5, 0),
        (1, 1, 6, 6, 0, 6, 0, 6, 0),  # the second question fits no row, so its completions are divided
        (1, 1, 6, 6, 0, 7, 7, 0),
    ]
    assert [tree.completion_N[::3] for tree in rows] == [(0,), (1, 2, 3), (4, 5)]


def test_a_question_that_fits_a_row_is_not_divided() -> None:
    number = count()
    two = [Question((q,), tuple(Chain(next(number), (1, 2)) for _ in range(3))) for q in range(2)]
    rows = prefix_trees([Root((9,), tuple(two))], max_tokens=7)
    assert [tree.token_T for tree in rows] == [(9, 0, 1, 1, 1), (9, 1, 1, 1, 1)]


def test_merged_tokens_count_once_against_the_budget() -> None:
    made = tuple(Chain(n, (1, 2, 3, n)) for n in range(5))
    root = Root((9,), (Question((8,), made),))
    assert [len(tree.token_T) for tree in prefix_trees([root], max_tokens=5, merge=True)] == [5]
    assert [len(tree.token_T) for tree in prefix_trees([root], max_tokens=5)] == [5] * 5


def test_supervised_answers_under_one_image() -> None:
    chains = [Chain(0, (10, 11, 12, 13), (True, True, False, False)), Chain(1, (20, 21), (False, True))]
    root = Root((1, 1), tuple(Question((q,), (c,)) for q, c in zip((5, 6), chains, strict=True)))
    (tree,) = prefix_trees([root], max_tokens=50)
    assert tree.token_T == (1, 1, 5, 10, 6, 20)  # nothing is read after the last trained token
    assert (tree.source_N, tree.target_N) == ((2, 3, 5), (10, 11, 21))
    assert (tree.completion_N, tree.index_N) == ((0, 0, 1), (0, 1, 1))


def test_a_single_token_is_predicted_by_the_prompt_alone() -> None:
    (tree,) = prefix_trees([Root((1, 2), (Question((), (Chain(0, (7,)), Chain(1, (8,)))),))], max_tokens=2)
    assert (tree.token_T, tree.source_N, tree.target_N) == ((1, 2), (1, 1), (7, 8))


def test_bad_input_names_the_completion() -> None:
    def build(start: tuple[int, ...], *found: Chain, max_tokens: int = 100) -> None:
        prefix_trees([Root(start, (Question((), found),))], max_tokens=max_tokens)

    with pytest.raises(ValueError, match=r"completion 1: 5 tokens after a prompt of 3 need a row of 7, but"):
        build((1, 2, 3), Chain(0, (1,)), Chain(1, (1, 2, 3, 4, 5)), max_tokens=6)
    with pytest.raises(ValueError, match="completion 4 is empty"):
        build((1,), Chain(4, ()))
    with pytest.raises(ValueError, match="completion 2 has an empty prompt"):
        build((), Chain(2, (1,)))
    with pytest.raises(ValueError, match="completion 3: 2 tokens, but `trained` has 1 values"):
        build((1,), Chain(3, (1, 2), (True,)))


def test_prompts_share_up_to_their_first_difference_behind_the_image() -> None:
    prompts = [[1, 9, 9, 2, 5, 6], [1, 9, 9, 2, 7]]
    chains = [[Chain(0, (3,))], [Chain(1, (4,)), Chain(2, (4,))]]
    (root,) = share(prompts, chains, images_end=[3, 3])
    assert root.tokens == (1, 9, 9, 2)
    assert [q.tokens for q in root.questions] == [(5, 6), (7,)]
    assert [q.chains for q in root.questions] == [tuple(c) for c in chains]
    late = share([[5, 1, 9, 9], [6, 1, 9, 9]], chains, images_end=[4, 4])
    assert [root.tokens for root in late] == [(5, 1, 9, 9), (6, 1, 9, 9)]
    assert [q.tokens for root in late for q in root.questions] == [(), ()]
    assert common_start([[1, 2], [1, 2, 3], [1, 2, 4]]) == 2


def test_tensors() -> None:
    roots = [
        Root((1, 2), (Question((3,), (Chain(7, (4, 5)), Chain(5, (6, 6)))),)),
        Root((8,), (Question((), (Chain(6, (9,)),)),)),
    ]
    made = to_tensors(prefix_trees(roots, max_tokens=9), pad_token=77, multiple=4)
    assert made.token_RT.tolist() == [[1, 2, 3, 4, 6, 77, 77, 77], [8, *[77] * 7]]
    assert made.end_RT.tolist() == [[5, 5, 5, 4, 5, 6, 7, 8], [1, 2, 3, 4, 5, 6, 7, 8]]
    assert made.depth_RT.tolist() == [[0, 1, 2, 3, 3, 0, 0, 0], [0] * 8]
    assert made.state_S.tolist() == [2, 3, 4, 8]
    assert made.source_N.tolist() == [0, 1, 0, 2, 3]
    assert made.target_N.tolist() == [4, 5, 6, 6, 9]
    assert made.completion_N.tolist() == [7, 7, 5, 5, 6]
    assert {t.dtype for t in (made.token_RT, made.end_RT, made.source_N)} == {torch.int64}
