"""Karcher mean: by hand, that it is the minimum it is named for, and where directions are not determined."""

from __future__ import annotations

import math
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from merging.tensors import close, fine_tunes, models, random_tensors
from palimpsest.merging.karcher import Karcher
from palimpsest.merging.passes import merge_tensors


def direct(found: list[Tensor], steps: int = 200) -> Tensor:
    """By iteration on the vectors themselves, in float64."""
    flat = torch.stack([f.double().flatten() for f in found])
    units = flat / flat.norm(dim=1, keepdim=True)
    mean = units.mean(0) / units.mean(0).norm()
    for _ in range(steps):
        across = units - (units @ mean).unsqueeze(1) * mean
        lengths = across.norm(dim=1, keepdim=True)
        angles = torch.atan2(lengths, (units @ mean).unsqueeze(1))
        tangent = (across * torch.where(lengths > 0, angles / lengths, 1.0)).mean(0)
        length = tangent.norm()
        mean = torch.cos(length) * mean + torch.sinc(length / math.pi) * tangent
        mean = mean / mean.norm()
    return (mean * flat.norm(dim=1).mean()).view(found[0].shape)


@pytest.mark.covers("karcher")
def test_by_hand() -> None:
    """On a circle the mean angle counts, which the mean of the vectors misses: 0, 0 and 90 degrees give 30."""
    east, north = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])
    merged = merge_tensors(Karcher(), [east, east, north])
    assert merged.tolist() == pytest.approx([2 * math.cos(math.pi / 6), 2 * math.sin(math.pi / 6)], abs=1e-4)
    lengths = merge_tensors(Karcher(), [east, 3 * north])
    assert lengths.tolist() == pytest.approx([4 * math.sqrt(0.5)] * 2)  # of the mean length


@given(models(2, 4))
def test_it_is_the_iteration_on_vectors_in_float64(found: list[Tensor]) -> None:
    if found[0].numel() > 30:  # random vectors of few numbers may lie on opposite sides
        assert close(merge_tensors(Karcher(max_iter=100, tol=1e-10), found), direct(found), 32)


@pytest.mark.parametrize("far", [0.3, 1e-1, 1e-2, 1e-4, 1e-6])
def test_fine_tunes_of_one_base_are_no_hard_case(far: float) -> None:
    _, near = fine_tunes(3, (50, 70), 4, far)
    assert close(merge_tensors(Karcher(), near), direct(near))


def test_no_other_direction_has_a_smaller_sum_of_squared_angles() -> None:
    found = [t + torch.ones(40) for t in random_tensors(4, (40,), 2)]
    merged = merge_tensors(Karcher(max_iter=50, tol=1e-9), found).double()

    def cost(direction: Tensor) -> float:
        return sum(
            float(torch.acos(direction @ f.double() / (direction.norm() * f.double().norm()))) ** 2 for f in found
        )

    for change in random_tensors(50, (40,), 3, 1e-2):
        assert cost(merged) < cost(merged + change.double())


@given(models(1, 1), st.integers(1, 4))
def test_a_model_with_itself_is_the_model(found: list[Tensor], count: int) -> None:
    assert close(merge_tensors(Karcher(), found * count), found[0], 4)


@given(models(3, 4), st.randoms())
def test_the_order_of_models_does_not_matter(found: list[Tensor], random: Random) -> None:
    shuffled = list(found)
    random.shuffle(shuffled)
    if found[0].numel() > 30:
        one, other = (merge_tensors(Karcher(max_iter=100, tol=1e-10), f) for f in (found, shuffled))
        assert close(one, other, 32)


def test_zeros_have_no_direction_but_count_for_the_length() -> None:
    vector, nothing = torch.tensor([3.0, 4.0]), torch.zeros(2)
    assert merge_tensors(Karcher(), [vector, nothing]).tolist() == pytest.approx([1.5, 2.0])
    assert merge_tensors(Karcher(), [nothing, nothing]).tolist() == [0.0, 0.0]


def test_the_mean_of_antipodes_is_the_first() -> None:
    vector = torch.randn(3000, generator=torch.Generator().manual_seed(1))
    assert close(merge_tensors(Karcher(), [vector, -vector]), vector, 4)
    assert close(merge_tensors(Karcher(), [vector, -0.3 * vector]), 0.65 * vector, 4)
