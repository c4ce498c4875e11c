"""Passes over chunks: their bounds, products of them, and methods that do not depend on them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from merging.tensors import SHAPES, close, models, random_tensors
from palimpsest.errors import BadInput
from palimpsest.merging.geometry import cosines, row_gram
from palimpsest.merging.karcher import Karcher
from palimpsest.merging.linear import Linear
from palimpsest.merging.model_stock import ModelStock
from palimpsest.merging.multislerp import MultiSlerp
from palimpsest.merging.nuslerp import NuSlerp
from palimpsest.merging.passes import (
    Gather,
    MergeMethod,
    Passes,
    Sample,
    Sum,
    TensorFacts,
    at_once,
    chunk_bounds,
    combined,
    gram,
    merge_tensors,
    per_model,
    weighted_sum,
)
from palimpsest.merging.slerp import Slerp
from palimpsest.merging.task_arithmetic import TaskArithmetic

METHODS = (
    Linear(),
    TaskArithmetic(),
    Slerp(),
    NuSlerp(),
    NuSlerp(nuslerp_flatten=False),
    NuSlerp(nuslerp_flatten=False, nuslerp_row_wise=True),
    MultiSlerp(),
    Karcher(),
    ModelStock(),
    ModelStock(filter_wise=True),
)


@given(st.lists(st.integers(0, 9), max_size=3), st.booleans(), st.integers(1, 50))
def test_chunks_follow_one_another_and_hold_whole_rows_where_those_are_wanted_or_fit(
    shape: list[int], by_rows: bool, size: int
) -> None:
    facts = TensorFacts("t", tuple(shape), 2)
    bounds = chunk_bounds(facts, by_rows, size)
    assert [a for a, _ in bounds] == [0, *(b for _, b in bounds[:-1])][: len(bounds)]
    assert (bounds[-1][1] if bounds else 0) == facts.count
    assert all(a < b for a, b in bounds)
    if by_rows or facts.row <= size:
        assert all(a % facts.row == 0 and b % facts.row == 0 for a, b in bounds)
    if not by_rows:
        assert all(b - a <= size for a, b in bounds)


@given(models(1, 4))
def test_products_are_those_of_float64(found: list[Tensor]) -> None:
    flat = torch.stack([f.double().flatten() for f in found])
    norms = flat.norm(dim=1)
    error = (gram([f.flatten() for f in found]) - flat @ flat.T).abs()
    assert (error <= 4e-7 * norms.unsqueeze(0) * norms.unsqueeze(1)).all()


def test_products_of_long_vectors_are_as_exact() -> None:
    first, second = random_tensors(2, (300_001,), 1)
    second += first
    products = gram([first, second])
    assert float(products[0, 1]) == pytest.approx(float(first.double() @ second.double()), rel=1e-7)
    assert torch.equal(products, products.T)
    opposite = gram([first, -first])
    assert opposite[0, 1] == -opposite[0, 0]  # antipodes are known for what they are


def test_products_of_rows_are_theirs() -> None:
    first, second = random_tensors(2, (5, 7), 2)
    by_row = row_gram([first.flatten(), second.flatten()], 7)
    assert by_row.shape == (5, 2, 2)
    for i in range(5):
        assert torch.allclose(by_row[i], gram([first[i], second[i]]), rtol=1e-5, atol=1e-5)


def test_the_cosine_of_a_zero_vector_is_zero() -> None:
    products = torch.tensor([[4.0, 0.0, 4.0], [0.0, 0.0, 0.0], [4.0, 0.0, 4.0]], dtype=torch.float64)
    assert cosines(products).tolist() == [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.0, 1.0]]


@pytest.mark.parametrize("method", METHODS, ids=str)
@given(seed=st.integers(0, 1000), shape=st.sampled_from(SHAPES), size=st.integers(1, 300))
def test_no_method_depends_on_the_size_of_chunks(method: Any, seed: int, shape: tuple[int, ...], size: int) -> None:
    base, *found = random_tensors(3, shape, seed)
    found = [f + 3 for f in found]  # no directions that nearly cancel
    start = None if method.base in ("none", "model") else base
    whole, pieces = (merge_tensors(method, found, start, size=s) for s in (1 << 18, size))
    assert close(pieces, whole, 4)
    if isinstance(method, Linear | TaskArithmetic):
        assert torch.equal(pieces, whole)


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("shape", [(0,), (0, 4), (4, 0), ()])
def test_tensors_of_nothing_and_of_one_number_merge(method: Any, shape: tuple[int, ...]) -> None:
    found = random_tensors(2, shape, 3)
    base = None if method.base in ("none", "model") else torch.zeros(shape)
    assert merge_tensors(method, found, base).shape == torch.Size(shape)


def test_passes_come_back_in_the_order_of_chunks() -> None:
    class Watching(MergeMethod):
        def passes(self, tensor: TensorFacts) -> Passes:
            firsts = yield Gather(lambda chunk: (chunk.number, chunk.first, chunk.count))
            total = yield Sum(lambda chunk: chunk.models[0].double().sum())
            count = yield Sample(lambda chunk: chunk.count)
            assert firsts == [(0, 0, 4), (1, 4, 4), (2, 8, 2)]
            assert count == 10
            return lambda chunk: chunk.models[0] - total.item()

    merged = merge_tensors(Watching(), [torch.arange(10.0)], size=4)
    assert torch.equal(merged, torch.arange(10.0) - 45)


def test_sums_are_added_in_order() -> None:
    parts = [torch.tensor([v]).double() for v in (2.0**60, 1.0, -(2.0**60))]
    assert combined(Sum(lambda chunk: chunk.models[0]), parts).item() == 0.0
    assert combined(Gather(lambda chunk: 0), [3, 1, 2]) == [3, 1, 2]


def test_values_are_one_for_all_or_one_for_each() -> None:
    assert per_model((0.5,), 3, "weight") == [0.5, 0.5, 0.5]
    assert per_model((1, 2), 2, "weight") == [1.0, 2.0]
    with pytest.raises(BadInput, match="weight: 3 values for 2 models"):
        per_model((1, 2, 3), 2, "weight")


def test_a_weighted_sum_leaves_its_vectors() -> None:
    first, second = torch.tensor([1.0, 2.0]), torch.tensor([10.0, 20.0])
    assert weighted_sum([first, second], [2.0, 0.5]).tolist() == [7.0, 14.0]
    assert first.tolist() == [1.0, 2.0]


def test_at_once_asks_for_no_pass() -> None:
    program = at_once(lambda chunk: chunk.models[0])
    with pytest.raises(StopIteration):
        next(program)
