"""Model Stock: by hand, its geometry (section 3 of the paper), whole tensors and rows."""

from __future__ import annotations

import math
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from merging.tensors import close, fine_tunes, models, random_tensors
from palimpsest.merging.model_stock import ModelStock
from palimpsest.merging.passes import merge_tensors


def direct(found: list[Tensor], base: Tensor, by_row: bool) -> Tensor:
    """The formula in float64."""
    rows = base.shape[-1] if by_row else base.numel()
    start = base.double().reshape(-1, rows)
    deltas = [f.double().reshape(-1, rows) - start for f in found]
    pairs = [(a, b) for i, a in enumerate(deltas) for b in deltas[i + 1 :]]
    cosine = torch.stack([torch.cosine_similarity(a, b, dim=1, eps=1e-300) for a, b in pairs]).mean(0).unsqueeze(1)
    t = len(found) * cosine / (1 + (len(found) - 1) * cosine)
    return (start + t * torch.stack(deltas).mean(0)).view(base.shape)


@pytest.mark.covers("model-stock")
def test_by_hand() -> None:
    """Task vectors at 60 degrees: t = 2 * 0.5 / 1.5 = 2/3 of the way from the base to their mean."""
    base = torch.tensor([1.0, 1.0])
    first, second = torch.tensor([2.0, 0.0]), torch.tensor([1.0, math.sqrt(3)])
    merged = merge_tensors(ModelStock(), [base + first, base + second], base)
    assert merged.tolist() == pytest.approx([2.0, 1 + math.sqrt(3) / 3])


def test_by_rows_each_has_its_own_t() -> None:
    base = torch.zeros(3, 2)
    first = torch.tensor([[2.0, 0.0], [4.0, 0.0], [1.0, 1.0]])
    second = torch.tensor([[1.0, math.sqrt(3)], [0.0, 4.0], [1.0, 1.0]])
    merged = merge_tensors(ModelStock(filter_wise=True), [first, second], base)
    wanted = torch.tensor([[1.0, math.sqrt(3) / 3], [0.0, 0.0], [1.0, 1.0]])  # 60 degrees, 90 and 0
    assert torch.allclose(merged, wanted, atol=1e-6)


def test_the_merge_is_where_the_altitudes_meet() -> None:
    """Fine-tunes of equal angles and lengths: from each to the merge is at right angles to all others' task vectors."""
    base = torch.zeros(4)
    found = [torch.ones(4) + 2 * torch.eye(4)[i] for i in range(3)]
    merged = merge_tensors(ModelStock(), found, base)
    for i, j in ((0, 1), (1, 2), (2, 0)):
        assert float((found[i] - merged) @ (found[j] - base)) == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize("size", [1, 17, 1 << 18])
@pytest.mark.parametrize("shape", [(12,), (7, 9), (5, 6, 4)])
def test_it_is_the_formula_in_float64_in_chunks_of_any_size(by_row: bool, size: int, shape: tuple[int, ...]) -> None:
    shared, *own = random_tensors(4, shape, 7)
    base = 10 * random_tensors(1, shape, 8)[0]
    found = [base + 2 * shared + o for o in own]
    assert close(merge_tensors(ModelStock(filter_wise=by_row), found, base, size=size), direct(found, base, by_row))


@pytest.mark.parametrize("by_row", [False, True])
def test_small_changes_have_the_cosine_that_they_have(by_row: bool) -> None:
    """mergekit counts products of lengths below 1e-6 as 1e-6, and so keeps the base where changes are small."""
    base, (first, second) = fine_tunes(2, (4, 6), 1, 2.0**-14)
    found = [(first - base) * 2**-4 * s + 1.5 * (second - base) * 2**-4 for s in (1, 2)]
    merged = merge_tensors(ModelStock(filter_wise=by_row), found, torch.zeros(4, 6))
    assert close(merged, direct(found, torch.zeros(4, 6), by_row))


@given(models(1, 1), st.integers(2, 4), st.booleans())
def test_models_that_are_the_base_leave_it(found: list[Tensor], count: int, by_row: bool) -> None:
    assert torch.equal(merge_tensors(ModelStock(filter_wise=by_row), found * count, found[0]), found[0])


@given(models(2, 2), st.integers(2, 4), st.booleans())
def test_models_that_agree_are_kept(found: list[Tensor], count: int, by_row: bool) -> None:
    base, model = found
    merged = merge_tensors(ModelStock(filter_wise=by_row), [model] * count, base)
    assert (merged - model).abs().max() <= 8 * 2**-23 * torch.stack(found).abs().max()


@given(models(3, 4), st.randoms())
def test_the_order_of_models_does_not_matter(found: list[Tensor], random: Random) -> None:
    base, *others = found
    shuffled = list(others)
    random.shuffle(shuffled)
    if base.numel() > 30:  # a few numbers may point opposite ways, where t has no bound
        one, other = (merge_tensors(ModelStock(), f, base) for f in (others, shuffled))
        assert (one - other).abs().max() <= 32 * 2**-23 * torch.stack(found).abs().max()


def test_models_that_balance_out_leave_the_base() -> None:
    base, change = random_tensors(2, (3, 4), 0)
    for by_row in (False, True):
        merged = merge_tensors(ModelStock(filter_wise=by_row), [change, -change], torch.zeros(3, 4))
        assert merged.eq(0).all()
    assert torch.equal(merge_tensors(ModelStock(), [base, base], base), base)
