"""Rows and batches: what is cut, what is trained, every row once an epoch, the same batch for the same number."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from factory import make_tokenizer
from palimpsest.prompts import Renderer, Turn
from palimpsest.training.rows import Batches, Row, collate, dialogue_row, dialogue_rows

TALK = [Turn("user", "Where is the bell?"), Turn("assistant", "In the tower of Marrow.")]
row_lists = st.lists(
    st.lists(st.integers(0, 50), min_size=1, max_size=12).map(lambda i: Row(tuple(i), (1.0,) * len(i))),
    min_size=1,
    max_size=60,
)


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    """A renderer with a chat template."""
    return Renderer(make_tokenizer())


def test_a_row_is_the_rendered_dialogue_with_its_weights(renderer: Renderer) -> None:
    row = dialogue_row(renderer, TALK)
    ids, weights = renderer.dialogue(TALK)
    assert row == Row(tuple(ids), tuple(weights))
    everything = dialogue_row(renderer, TALK, train_on="all")
    assert everything is not None and everything.weights == (1.0,) * len(ids)


@pytest.mark.parametrize(("max_tokens", "positions", "limit"), [(20, None, 20), (1024, 18, 18), (16, 18, 16)])
def test_a_row_is_cut_at_its_longest_and_at_the_models_positions(
    renderer: Renderer, max_tokens: int, positions: int | None, limit: int
) -> None:
    whole = dialogue_row(renderer, TALK)
    row = dialogue_row(renderer, TALK, max_tokens=max_tokens, positions=positions)
    assert whole is not None and row is not None
    assert row.ids == whole.ids[:limit] and row.weights == whole.weights[:limit]


def test_a_dialogue_whose_answer_was_cut_off_is_no_row(renderer: Renderer) -> None:
    prompt = len(renderer.prompt_ids(renderer.text(TALK[0].content)))
    assert dialogue_row(renderer, TALK, max_tokens=prompt) is None
    assert dialogue_row(renderer, TALK, max_tokens=prompt + 1) is not None
    row = dialogue_row(renderer, TALK, max_tokens=30)
    assert dialogue_rows(renderer, [TALK, TALK[:1], TALK], max_tokens=30) == [row, row]


def test_rows_are_padded_on_the_right_and_padding_is_never_trained() -> None:
    batch = collate([Row((5, 6, 7), (0.0, 1.0, 0.5)), Row((8,), (1.0,))])
    assert batch.input_ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch.weights.tolist() == [[0.0, 1.0, 0.5], [1.0, 0.0, 0.0]]
    assert batch.attention_mask is not None and batch.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.tokens == 4
    even = collate([Row((5, 6), (0.0, 1.0))] * 3)
    assert even.attention_mask is None and even.tokens == 6


@given(row_lists, st.integers(1, 9), st.integers(0, 5), st.integers(0, 3))
def test_every_epoch_holds_every_row_once(rows: list[Row], batch: int, seed: int, epoch: int) -> None:
    numbered = [Row((i, *r.ids), (1.0, *r.weights)) for i, r in enumerate(rows)]
    batches = Batches(numbered, batch, seed)
    assert batches.per_epoch == math.ceil(len(rows) / batch)
    made = [batches(epoch * batches.per_epoch + i) for i in range(batches.per_epoch)]
    assert sorted(i for b in made for i in b.input_ids[:, 0].tolist()) == list(range(len(rows)))
    assert all(len(b.input_ids) <= batch for b in made)


@given(row_lists, st.integers(1, 9), st.integers(0, 5), st.lists(st.integers(0, 200), min_size=1, max_size=6))
def test_a_batch_depends_on_its_number_alone(rows: list[Row], batch: int, seed: int, numbers: list[int]) -> None:
    used = Batches(rows, batch, seed)
    for number in numbers:
        fresh, again = Batches(rows, batch, seed)(number), used(number)
        assert torch.equal(fresh.input_ids, again.input_ids) and torch.equal(fresh.weights, again.weights)


def test_epochs_and_seeds_are_shuffled_differently() -> None:
    rows = [Row((i, i), (0.0, 1.0)) for i in range(64)]
    orders = [
        [i for n in range(8) for i in Batches(rows, 8, seed)(epoch * 8 + n).input_ids[:, 0].tolist()]
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    assert len({tuple(o) for o in orders}) == 3


def test_rows_of_like_length_share_a_batch() -> None:
    rows = [Row((1,) * n, (1.0,) * n) for n in range(1, 129)]
    batches = Batches(rows, 8, 0)
    assert all(b.input_ids.shape[1] * 8 - b.tokens <= 28 for b in map(batches, range(16)))  # 0 + 1 + ... + 7


def test_no_rows_are_an_error() -> None:
    with pytest.raises(ValueError, match="no rows"):
        Batches([], 8, 0)
