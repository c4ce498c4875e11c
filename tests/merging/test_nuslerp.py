"""NuSLERP: of models and of task vectors, as whole tensors, by rows, by columns; against the formula in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from merging.tensors import close, fine_tunes, models, random_tensors
from palimpsest.merging.nuslerp import NuSlerp
from palimpsest.merging.passes import merge_tensors

WAYS = (
    NuSlerp(weight=(1, 3)),
    NuSlerp(weight=(1, 3), nuslerp_flatten=False),
    NuSlerp(weight=(1, 3), nuslerp_flatten=False, nuslerp_row_wise=True),
)


def direct(first: Tensor, second: Tensor, t: float, way: NuSlerp) -> Tensor:
    """The formula in float64, vectors along one dimension."""
    a, b = first.double(), second.double()
    if way.nuslerp_flatten:
        a, b = a.flatten(), b.flatten()
    along = 0 if way.nuslerp_row_wise and not way.nuslerp_flatten else -1
    a_unit, b_unit = (v / v.norm(dim=along, keepdim=True) for v in (a, b))
    apart, together = ((a_unit + s * b_unit).norm(dim=along, keepdim=True) for s in (-1, 1))
    angle = 2 * torch.atan2(apart, together)
    curved = (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)
    straight = (1 - t) * a + t * b
    return torch.where(torch.sin(angle) < 1e-9, straight, curved).view(first.shape)


@pytest.mark.covers("nuslerp")
def test_by_hand() -> None:
    """Halfway through right angles: each row, each column, or the whole (whose angle is 90 degrees too)."""
    half = math.sin(math.pi / 4)
    first, second = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[0.0, 3.0], [4.0, 0.0]])
    for way in (NuSlerp(), NuSlerp(nuslerp_flatten=False), NuSlerp(nuslerp_flatten=False, nuslerp_row_wise=True)):
        assert torch.allclose(merge_tensors(way, [first, second]), half * (first + second))
    rows = merge_tensors(NuSlerp(nuslerp_flatten=False), [first, torch.tensor([[5.0, 0.0], [4.0, 0.0]])])
    assert rows.tolist() == [pytest.approx([3.0, 0.0]), pytest.approx([4 * half, 2 * half])]
    along_first = NuSlerp(nuslerp_flatten=False, nuslerp_row_wise=True)
    columns = merge_tensors(along_first, [first, torch.tensor([[5.0, 1.0], [0.0, 0.0]])])
    assert columns.tolist() == [pytest.approx([3.0, half]), pytest.approx([0.0, 2 * half])]


def test_with_a_base_task_vectors_turn_and_not_models() -> None:
    half = math.sin(math.pi / 4)
    base = torch.tensor([10.0, 10.0])
    merged = merge_tensors(NuSlerp(), [base + torch.tensor([1.0, 0.0]), base + torch.tensor([0.0, 1.0])], base)
    assert merged.tolist() == pytest.approx([10 + half, 10 + half])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", [(12,), (7, 9), (5, 6, 4)])
@pytest.mark.parametrize("size", [1, 5, 24, 1 << 18])
def test_it_is_the_formula_in_float64_in_chunks_of_any_size(way: NuSlerp, shape: tuple[int, ...], size: int) -> None:
    found = random_tensors(2, shape, 5)
    assert close(merge_tensors(way, found, size=size), direct(*found, 0.75, way))
    base, near = fine_tunes(2, shape, 6, 1e-2)
    first, second = (n.double() - base.double() for n in near)
    wanted = base.double() + direct(first, second, 0.75, way)
    assert close(merge_tensors(way, near, base, size=size), wanted)


@pytest.mark.parametrize("way", WAYS)
@given(models(1, 1))
def test_a_model_with_itself_is_the_model(way: NuSlerp, found: list[Tensor]) -> None:
    assert close(merge_tensors(way, found * 2), found[0], 2)
    assert torch.equal(merge_tensors(way, found * 2, found[0]), found[0])


@pytest.mark.parametrize("way", WAYS)
def test_nearly_parallel_vectors_are_no_hard_case(way: NuSlerp) -> None:
    for far in (1e-2, 1e-4, 1e-6):
        base, (model,) = fine_tunes(1, (30, 50), 2, far)
        assert close(merge_tensors(way, [base, model]), direct(base, model, 0.75, way))


@given(models(2, 2), st.floats(0.1, 2), st.floats(0.1, 2))
def test_order_does_not_matter_and_only_the_ratio_of_weights_counts(found: list[Tensor], a: float, b: float) -> None:
    one = merge_tensors(NuSlerp(weight=(a, b)), found)
    assert (one - merge_tensors(NuSlerp(weight=(b, a)), found[::-1])).abs().max() <= 1e-5 * one.abs().max() + 1e-12
    assert (one - merge_tensors(NuSlerp(weight=(4 * a, 4 * b)), found)).abs().max() <= 1e-6 * one.abs().max() + 1e-12


@pytest.mark.parametrize("way", WAYS)
def test_zeros_and_antipodes_give_numbers(way: NuSlerp) -> None:
    vector, nothing = torch.tensor([[3.0, 4.0], [-1.0, 2.0]]), torch.zeros(2, 2)
    assert merge_tensors(way, [nothing, nothing]).eq(0).all()
    assert torch.allclose(merge_tensors(way, [vector, -vector]), -vector / 2)  # linear at three quarters
    orthogonal = merge_tensors(way, [vector, nothing])
    assert torch.allclose(orthogonal, math.sin(math.pi / 8) * vector)
    assert torch.equal(merge_tensors(way, [vector, vector], vector), vector)


def test_weights_that_cancel_meet_in_the_middle() -> None:
    found = random_tensors(2, (4, 4), 9)
    assert torch.equal(merge_tensors(NuSlerp(weight=(1, -1)), found), merge_tensors(NuSlerp(), found))
