"""Puts all answers about one image into one row of tokens, so that what they share is computed once.

The tree has three levels: a root (the image and the text before the question), its questions, and under each
question its chains, the completions of GRPO or the one gold answer of SFT. A row holds the tree depth first;
then "is an ancestor of" is an interval test: token i sees token j iff j <= i < end_T[j], with end_T[j] the
place after the last token of j's subtree. Nothing is predicted from a chain's last trained token, so that
token is a target only and no part of the row.

Pure Python; only `to_tensors` knows torch. Letters: R rows, T tokens of a row, N trained tokens (one entry
for each completion that trains it), S distinct tokens whose states predict them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, takewhile

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Chain:
    """One completion, under the caller's number for it; `trained` says where loss applies (None: on all)."""

    completion: int
    tokens: tuple[int, ...]
    trained: tuple[bool, ...] | None = None

    @property
    def trained_at(self) -> list[int]:
        """Which of its tokens are trained."""
        if self.trained is None:
            return list(range(len(self.tokens)))
        return [k for k, on in enumerate(self.trained) if on]

    @property
    def fed(self) -> tuple[int, ...]:
        """Its tokens before the last trained one: those that something is predicted from."""
        return self.tokens[: self.trained_at[-1]]


@dataclass(frozen=True, slots=True)
class Question:
    """The rest of a prompt after the root, and the chains that follow it."""

    tokens: tuple[int, ...]
    chains: tuple[Chain, ...]


@dataclass(frozen=True, slots=True)
class Root:
    """The start that all questions share. A prompt that shares nothing is a root with one empty question."""

    tokens: tuple[int, ...]
    questions: tuple[Question, ...]


@dataclass(frozen=True, slots=True)
class PrefixTree:
    """One row: a root, or a part of it that fits the budget.

    Attributes:
        root: which of the given roots.
        root_tokens: how many tokens of the row, from its start, are the root's.
        token_T: token ids, depth first.
        parent_T: place of the token before it on its path, -1 for a first token.
        end_T: place after the last token of its subtree.
        depth_T: how many tokens stand before it on its path.
        source_N: place of the token whose state predicts the trained token.
        target_N: id of the trained token.
        completion_N: number of the completion that trains it; completions follow each other as given.
        index_N: which token of that completion it is.
    """

    root: int
    root_tokens: int
    token_T: tuple[int, ...]
    parent_T: tuple[int, ...]
    end_T: tuple[int, ...]
    depth_T: tuple[int, ...]
    source_N: tuple[int, ...]
    target_N: tuple[int, ...]
    completion_N: tuple[int, ...]
    index_N: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Saving:
    """Tokens that pass through the network: as trees, and as one row per completion without padding."""

    tokens: int
    separate_tokens: int
    states: int
    trained: int

    @property
    def times(self) -> float:
        """How many times fewer tokens the trees have."""
        return self.separate_tokens / max(1, self.tokens)


def prefix_trees(roots: Sequence[Root], *, max_tokens: int, merge: bool = False) -> list[PrefixTree]:
    """Rows of at most `max_tokens` tokens that hold every chain once, in the order given.

    A root that does not fit is divided by question, a question that does not fit by completions; each part
    repeats the tokens above it. Chains without a trained token are left out.

    Args:
        merge: equal first tokens of the completions of one question become one token.

    Raises:
        ValueError: an empty prompt or completion, `trained` of another length, or one completion that does
            not fit with its prompt; it names the completion.
    """
    for root in roots:
        check(root)
    parts = ((r, part) for r, root in enumerate(roots) for part in divide(root, max_tokens, merge))
    return [lay_out(r, roots[r].tokens, part, merge) for r, part in parts]


def share(
    prompts: Sequence[Sequence[int]], chains: Sequence[Sequence[Chain]], images_end: Sequence[int]
) -> list[Root]:
    """Roots for prompts that show the same images: one for all if they are equal up to the end of the images.

    Prompts that differ before that (a template that puts the question first) become a root each.

    Args:
        chains: those of each prompt.
        images_end: place after the last image token of each prompt.
    """
    shared = common_start(prompts)
    if shared < max(images_end):
        return [Root(tuple(p), (Question((), tuple(c)),)) for p, c in zip(prompts, chains, strict=True)]
    questions = (Question(tuple(p[shared:]), tuple(c)) for p, c in zip(prompts, chains, strict=True))
    return [Root(tuple(prompts[0][:shared]), tuple(questions))]


def check(root: Root) -> None:
    """ValueError for what cannot be a tree."""
    for question in root.questions:
        for chain in question.chains:
            if not root.tokens and not question.tokens:
                raise ValueError(f"completion {chain.completion} has an empty prompt")
            if not chain.tokens:
                raise ValueError(f"completion {chain.completion} is empty")
            if chain.trained is not None and len(chain.trained) != len(chain.tokens):
                raise ValueError(
                    f"completion {chain.completion}: {len(chain.tokens)} tokens, but `trained` has "
                    f"{len(chain.trained)} values"
                )


def divide(root: Root, max_tokens: int, merge: bool) -> list[list[Question]]:
    """The questions (or parts of them) that each row holds, in order."""
    rows: list[list[Question]] = []
    used = max_tokens
    for question in root.questions:
        for piece in pieces(question, len(root.tokens), max_tokens, merge):
            if not rows or used + size(piece, merge) > max_tokens:
                rows.append([])
                used = len(root.tokens)
            rows[-1].append(piece)
            used += size(piece, merge)
    return rows


def pieces(question: Question, above: int, max_tokens: int, merge: bool) -> Iterator[Question]:
    """The question whole if it fits a row under `above` tokens, else with as many chains at a time as fit."""
    piece = replace(question, chains=())
    for chain in question.chains:
        if not chain.trained_at:
            continue
        joined = replace(piece, chains=(*piece.chains, chain))
        if piece.chains and above + size(joined, merge) > max_tokens:
            yield piece
            joined = replace(question, chains=(chain,))
        if (needed := above + size(joined, merge)) > max_tokens:
            raise ValueError(
                f"completion {chain.completion}: {len(chain.tokens)} tokens after a prompt of "
                f"{above + len(question.tokens)} need a row of {needed}, but max_tree_tokens is "
                f"{max_tokens}; raise it, or shorten prompts or max_completion_length"
            )
        piece = joined
    if piece.chains:
        yield piece


def size(question: Question, merge: bool) -> int:
    """Tokens of a row that the question takes."""
    fed = [chain.fed for chain in question.chains]
    total = len(question.tokens) + sum(map(len, fed))
    # Sorted, each chain repeats exactly the start it has in common with the one before it.
    return total - sum(common_start(pair) for pair in pairwise(sorted(fed))) if merge else total


def common_start(rows: Sequence[Sequence[int]]) -> int:
    """How many first tokens are equal in all rows."""
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False)))


def lay_out(root: int, tokens: Sequence[int], questions: Sequence[Question], merge: bool) -> PrefixTree:
    """The row of one part of a root."""
    token: list[int] = []
    parent: list[int] = []
    known: dict[tuple[int, int], int] = {}  # (parent, token) -> node, of chains that may merge

    def grow(node: int, tokens: Sequence[int], merge: bool = False) -> list[int]:
        """The nodes of a path of these tokens below `node`, new ones where there are none."""
        path = []
        for value in tokens:
            above, node = node, known.get((node, value), len(token)) if merge else len(token)
            if node == len(token):
                token.append(value)
                parent.append(above)
                if merge:
                    known[above, value] = node
            path.append(node)
        return path

    trained: list[tuple[int, int, int, int]] = []
    stem = grow(-1, tokens)
    for question in questions:
        prompt = stem + grow(stem[-1] if stem else -1, question.tokens)
        for chain in question.chains:
            path = [prompt[-1], *grow(prompt[-1], chain.fed, merge)]
            trained += [(path[k], chain.tokens[k], chain.completion, k) for k in chain.trained_at]

    order = depth_first(parent)
    place = {node: t for t, node in enumerate(order)}
    parent_T = tuple(place.get(parent[node], -1) for node in order)
    source, target_N, completion_N, index_N = zip(*trained, strict=True)
    return PrefixTree(
        root=root,
        root_tokens=len(tokens),
        token_T=tuple(token[node] for node in order),
        parent_T=parent_T,
        end_T=ends(parent_T),
        depth_T=depths(parent_T),
        source_N=tuple(place[node] for node in source),
        target_N=target_N,
        completion_N=completion_N,
        index_N=index_N,
    )


def depth_first(parent: Sequence[int]) -> list[int]:
    """All nodes, each directly after its parent or after the subtree of an earlier sibling."""
    children: list[list[int]] = [[] for _ in range(len(parent) + 1)]  # the last list: children of -1
    for node, above in enumerate(parent):
        children[above].append(node)
    order: list[int] = []
    waiting = children[-1][::-1]
    while waiting:
        order.append(waiting.pop())
        waiting += children[order[-1]][::-1]
    return order


def ends(parent_T: Sequence[int]) -> tuple[int, ...]:
    """End of every subtree, from the leaves up."""
    end = [t + 1 for t in range(len(parent_T))]
    for t in range(len(parent_T) - 1, 0, -1):
        if (above := parent_T[t]) >= 0:
            end[above] = max(end[above], end[t])
    return tuple(end)


def depths(parent_T: Sequence[int]) -> tuple[int, ...]:
    """Number of ancestors of every token."""
    depth: list[int] = []
    for above in parent_T:
        depth.append(depth[above] + 1 if above >= 0 else 0)
    return tuple(depth)


def saving(roots: Sequence[Root], trees: Sequence[PrefixTree]) -> Saving:
    """What these rows save against one row per completion."""
    return Saving(
        tokens=sum(len(tree.token_T) for tree in trees),
        separate_tokens=sum(
            len(root.tokens) + len(question.tokens) + len(chain.tokens)
            for root in roots
            for question in root.questions
            for chain in question.chains
        ),
        states=sum(len(set(tree.source_N)) for tree in trees),
        trained=sum(len(tree.target_N) for tree in trees),
    )


@dataclass(frozen=True, slots=True)
class TreeTensors:
    """Rows side by side, int64: padded on the right with tokens that see themselves only.

    `state_S` are the distinct source tokens as places in the flattened [R * T]; `source_N` are places in
    `state_S`. Trained tokens follow each other row by row.
    """

    token_RT: Tensor
    end_RT: Tensor
    depth_RT: Tensor
    state_S: Tensor
    source_N: Tensor
    target_N: Tensor
    completion_N: Tensor


def to_tensors(
    trees: Sequence[PrefixTree], *, pad_token: int, multiple: int = 1, device: torch.device | str = "cpu"
) -> TreeTensors:
    """Tensors of these rows; their width is a multiple of `multiple`."""
    width = -(-max(len(tree.token_T) for tree in trees) // multiple) * multiple
    pad = [width - len(tree.token_T) for tree in trees]
    token = [[*tree.token_T, *[pad_token] * n] for tree, n in zip(trees, pad, strict=True)]
    end = [[*tree.end_T, *range(width - n + 1, width + 1)] for tree, n in zip(trees, pad, strict=True)]
    depth = [[*tree.depth_T, *[0] * n] for tree, n in zip(trees, pad, strict=True)]
    source = torch.tensor([r * width + s for r, tree in enumerate(trees) for s in tree.source_N])
    state_S, source_N = source.unique(return_inverse=True)
    target_N = torch.tensor([t for tree in trees for t in tree.target_N])
    completion_N = torch.tensor([c for tree in trees for c in tree.completion_N])
    grids = (torch.tensor(grid) for grid in (token, end, depth))
    return TreeTensors(*(t.to(device) for t in (*grids, state_S, source_N, target_N, completion_N)))
