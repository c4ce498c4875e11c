"""Rows of branches: every input lies whole in its row, sees itself alone, and what is shared is there once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.responder.sharing import LEAST_ROOT, ROW_BEHIND_ROOT, Block, Sharing, common, plan

INPUTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9).map(tuple), min_size=1, max_size=12, unique=True)
SHARINGS = st.sampled_from([Sharing(), Sharing(8, False, 1), Sharing(40, False, 1000), Sharing(40, True, 3)])


def firsts_of(inputs: list[tuple[int, ...]]) -> list[int]:
    return [len(i) - 1 for i in inputs]


def assert_whole(inputs: list[tuple[int, ...]], blocks: list[Block], sharing: Sharing) -> None:
    """Each input once; its path spells it; each of its tokens sees exactly the path up to it, at its depth."""
    met = []
    for block in blocks:
        for row in block.rows:
            seen = row.mask(len(row.ids) + 2)
            assert row.root == len(block.root)
            for number, path in row.places:
                met.append(number)
                assert (*block.root, *(row.ids[c] for c in path)) == inputs[number]
                for depth, column in enumerate(path):
                    assert seen[column].nonzero()[0].tolist() == path[: depth + 1]
                    assert row.depths[column] == depth + row.root
            assert seen[-1].nonzero()[0].tolist() == [len(row.ids) + 1]
            assert not row.branched or len(row.ids) <= max(sharing.columns, ROW_BEHIND_ROOT)
    assert sorted(met) == list(range(len(inputs)))


@given(INPUTS, SHARINGS)
def test_every_input_lies_whole_in_one_row(inputs: list[tuple[int, ...]], sharing: Sharing) -> None:
    assert_whole(inputs, plan(inputs, firsts_of(inputs), sharing), sharing)


@given(INPUTS)
def test_with_room_and_dear_tokens_each_beginning_is_read_once(inputs: list[tuple[int, ...]]) -> None:
    blocks = plan(inputs, firsts_of(inputs), Sharing(10**6, False, 10**6))
    read = sum(len(row.ids) for block in blocks for row in block.rows)
    assert read == len({i[:n] for i in inputs for n in range(1, len(i) + 1)})


@given(INPUTS)
def test_without_sharing_only_what_begins_another_input_is_left_out(inputs: list[tuple[int, ...]]) -> None:
    blocks = plan(inputs, firsts_of(inputs), Sharing())
    kept = [i for i in inputs if not any(o != i and o[: len(i)] == i for o in inputs)]
    assert sorted(tuple(row.ids) for block in blocks for row in block.rows) == sorted(kept)
    assert not any(row.branched for block in blocks for row in block.rows)


def test_a_long_beginning_of_many_inputs_is_cached_and_ends_before_what_is_asked() -> None:
    start = tuple(range(1000, 1000 + 3 * LEAST_ROOT))
    inputs = [(*start, *[i] * 20) for i in range(60)] + [(1, 2, 3)]
    sharing = Sharing(1000, True, 500)
    cached, loose = plan(inputs, firsts_of(inputs), sharing)
    assert cached.root == start and len(cached.rows) == 1200 // (ROW_BEHIND_ROOT // 20 * 20) + 1
    assert [row.ids for row in loose.rows] == [[1, 2, 3]]
    assert_whole(inputs, [cached, loose], sharing)
    early = [LEAST_ROOT + 5, *firsts_of(inputs)[1:]]
    assert len(plan(inputs, early, sharing)[0].root) == LEAST_ROOT + 5
    assert all(not block.root for block in plan(inputs, [0] * len(inputs), sharing))
    # 250 squared over 704 columns are 88: four tails of 20
    narrow, _ = plan(inputs, firsts_of(inputs), Sharing(250, True, 500))
    assert narrow.root == start and [len(row.ids) for row in narrow.rows] == [80] * 15
    assert all(not block.root for block in plan(inputs, firsts_of(inputs), Sharing(60, True, 500)))


def test_joining_a_row_is_weighed_against_reading_again() -> None:
    """8 shared tokens, 2 new ones, a row of 20 columns: 8 pairs > 2 x 2 x (20 - 8) = 48 decides."""
    inputs = [(*[5] * 8, *[4] * 12), (*[5] * 8, 1, 2)]
    for pairs, rows in ((6, 2), (7, 1)):
        (block,) = plan(inputs, firsts_of(inputs), Sharing(100, False, pairs))
        assert len(block.rows) == rows


@pytest.mark.parametrize(
    ("first", "second", "same"), [((), (1,), 0), ((1, 2), (1, 2), 2), ((1, 2, 3), (1, 2, 4, 3), 2)]
)
def test_common_is_the_shared_beginning(first: tuple[int, ...], second: tuple[int, ...], same: int) -> None:
    assert common(first, second) == same
