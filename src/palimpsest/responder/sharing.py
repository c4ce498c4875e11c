"""Which rows many inputs are read in, so that what inputs begin with in common is read once.

Sorted from the last to the first, an input comes right after those that begin with it, and shares with the one
before it all that it shares with any before. So a row is a list of inputs in that order, each of which adds only
the tokens behind what it shares with the one before: the depth-first order of the tree of their beginnings. A
token may see its own beginning alone, which `Row.mask` tells; its position is its depth in the tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

Ids = Sequence[int]


@dataclass(frozen=True)
class Sharing:
    """What a model allows: `columns` of one row of several branches (0: no such rows), `cache` of a beginning.

    No mask has more pairs than columns squared. pairs: how many pairs of attention cost as much as all else that one
    token costs in one layer.
    """

    columns: int = 0
    cache: bool = False
    pairs: int = 512


@dataclass
class Row:
    """Tokens of one row, their depths, and where the inputs lie in it.

    ids, depths: (columns,). branches: (first column, end column, columns of the beginning before them), one of each
    input that added tokens. places: (input, columns of its tokens). root: tokens in the cache before the row, which
    all of it sees; depths count them, columns do not.
    """

    root: int = 0
    ids: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    branches: list[tuple[int, int, list[int]]] = field(default_factory=list)
    places: list[tuple[int, list[int]]] = field(default_factory=list)

    @property
    def branched(self) -> bool:
        """Whether a causal mask is not enough."""
        return len(self.branches) > 1

    def add(self, number: int, tokens: Ids, shared: int) -> None:
        """Add an input (what the cache has of it left out) that shares its first `shared` tokens with the last one."""
        before = self.places[-1][1][:shared] if shared else []
        start, end = len(self.ids), len(self.ids) + len(tokens) - shared
        if end > start:
            self.ids += tokens[shared:]
            self.depths += range(self.root + shared, self.root + len(tokens))
            self.branches.append((start, end, before))
        self.places.append((number, [*before, *range(start, end)]))

    def mask(self, width: int) -> Any:
        """(width, width) bool: which columns (second axis) each token (first axis) may see; padding sees itself."""
        seen = np.zeros((width, width), dtype=bool)
        for start, end, before in self.branches:
            seen[start:end, before] = True
            seen[start:end, start:end] = np.tri(end - start, dtype=bool)
        padding = range(len(self.ids), width)
        seen[padding, padding] = True
        return seen


@dataclass(frozen=True)
class Block:
    """Rows behind one beginning that is read once into a cache; rows without one stand behind an empty one."""

    root: tuple[int, ...]
    rows: list[Row]


LEAST_ROOT = 64  # tokens; a shorter beginning is not worth a cache
ROW_BEHIND_ROOT = 512  # columns


def plan(inputs: Sequence[tuple[int, ...]], firsts: Sequence[int], sharing: Sharing) -> list[Block]:
    """Rows in which all inputs can be read.

    inputs: different token sequences, none empty. firsts: of each input the depth of the first token whose successor
    is asked for, so that a cached beginning ends before it.
    """
    order = sorted(range(len(inputs)), key=lambda i: inputs[i], reverse=True)
    shared = [0] + [common(inputs[a], inputs[b]) for a, b in pairwise(order)]
    blocks: list[Block] = []
    loose: list[Row] = []
    left: list[tuple[int, int]] = []  # (input, tokens shared with the one before) of those that no cache is for
    start = 0
    for end in range(1, len(order) + 1):
        if end < len(order) and shared[end] >= LEAST_ROOT:
            continue
        chosen, same = order[start:end], shared[start:end]
        root = _root(inputs, firsts, chosen, same, sharing) if sharing.cache else 0
        if root:
            width = min(ROW_BEHIND_ROOT, sharing.columns**2 // (root + ROW_BEHIND_ROOT))
            blocks.append(Block(inputs[chosen[0]][:root], _behind(inputs, chosen, same, root, width)))
            loose += _rows(inputs, left, sharing)
            left = []
        else:
            left += zip(chosen, same, strict=True)
        start = end
    loose += _rows(inputs, left, sharing)
    return [*blocks, Block((), loose)] if loose else blocks


def common(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    """How many tokens two inputs begin with in common."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _root(
    inputs: Sequence[tuple[int, ...]], firsts: Sequence[int], chosen: list[int], shared: list[int], sharing: Sharing
) -> int:
    """Tokens of the beginning to cache: none where one row holds all, or where it is too small a part of them."""
    if len(chosen) < 2:
        return 0
    added = len(inputs[chosen[0]]) + sum(len(inputs[i]) - s for i, s in zip(chosen[1:], shared[1:], strict=True))
    if added <= sharing.columns:
        return 0
    root = min(min(shared[1:]), min(firsts[i] for i in chosen))
    longest = max(len(inputs[i]) for i in chosen)
    if (longest - root) * longest > sharing.columns**2:
        return 0
    return root if root >= max(LEAST_ROOT, (added - root) // (4 * len(chosen))) else 0


def _behind(
    inputs: Sequence[tuple[int, ...]], chosen: list[int], shared: list[int], root: int, width: int
) -> list[Row]:
    """Rows behind a cached beginning, filled up to `width` columns: they are read one at a time."""
    rows: list[Row] = []
    for number, same in zip(chosen, shared, strict=True):
        tail = inputs[number][root:]
        same = max(0, same - root)
        if not rows or len(rows[-1].ids) + len(tail) - same > width:
            rows.append(Row(root))
            same = 0
        rows[-1].add(number, tail, same)
    return rows


def _rows(inputs: Sequence[tuple[int, ...]], chosen: list[tuple[int, int]], sharing: Sharing) -> list[Row]:
    """Rows without a cache: an input joins the row before it where that costs less than reading it alone.

    Joined, its new tokens and all columns of the row pay for each other's places in the attention; alone, what it
    shares is read again.
    """
    rows: list[Row] = []
    for number, shared in chosen:
        same = shared if rows else 0
        tokens = inputs[number]
        new = len(tokens) - same
        columns = len(rows[-1].ids) if rows else 0
        pays = columns + new <= sharing.columns and same * sharing.pairs > 2 * new * (columns - same)
        if not rows or (new and not pays):
            rows.append(Row())
            same = 0
        rows[-1].add(number, tokens, same)
    return rows
