"""Breadcrumbs: the band of magnitudes that is kept."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.merging.breadcrumbs import Breadcrumbs, BreadcrumbsTies, band
from palimpsest.merging.passes import merge_tensors


@pytest.mark.covers("breadcrumbs")
def test_the_largest_and_the_smallest_are_dropped_and_the_rest_added_up() -> None:
    base = torch.ones(10)
    first = torch.tensor([10.0, -9.0, 8.0, -7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0])
    method = Breadcrumbs(density=(0.3,), gamma=(0.2,), weight=(1.0, 0.5))
    merged = merge_tensors(method, [base + first, base + first.flip(0)], base)
    kept = torch.tensor([0.0, 0.0, 8.0, -7.0, 6.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    assert torch.equal(merged, base + kept + 0.5 * kept.flip(0))


@pytest.mark.covers("breadcrumbs-ties")
def test_the_election_is_among_what_is_left() -> None:
    base = torch.zeros(4)
    models = [torch.tensor([9.0, 3.0, 2.0, 1.0]), torch.tensor([3.0, -9.0, -4.0, 1.0])]
    method = BreadcrumbsTies(density=(0.5,), gamma=(0.25,))
    # kept: 0 3 2 0 and 3 0 -4 0
    assert merge_tensors(method, models, base).tolist() == [3.0, 3.0, -4.0, 0.0]


@pytest.mark.parametrize(
    ("count", "density", "gamma", "expected"),
    [
        (100, 0.3, 0.1, (10, 40)),
        (100, 0.95, 0.1, (5, 100)),  # density goes before gamma
        (10, 0.5, 0.01, (0, 5)),  # too small a tensor for its share of outliers
        (10, 0.01, 0.0, (0, 0)),
        (10, 1.0, 0.5, (0, 10)),
    ],
)
def test_counts_of_dropped_and_kept(count: int, density: float, gamma: float, expected: tuple[int, int]) -> None:
    assert band(count, density, gamma) == expected


@given(st.lists(st.sampled_from([0.0, 1.0, -1.0, 2.0]), min_size=1, max_size=40), st.floats(0, 0.99), st.floats(0, 1))
def test_the_band_is_that_of_a_stable_sort(values: list[float], density: float, gamma: float) -> None:
    delta = torch.tensor(values)
    dropped, upto = band(len(values), density, gamma)
    kept = torch.argsort(delta.abs(), descending=True, stable=True)[dropped:upto]
    expected = torch.zeros_like(delta)
    expected[kept] = delta[kept]
    method = Breadcrumbs(density=(density,), gamma=(gamma,))
    assert torch.equal(merge_tensors(method, [delta], torch.zeros_like(delta), size=7), expected)
