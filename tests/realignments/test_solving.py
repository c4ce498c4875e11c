"""Solvers of single gauges: cases by hand, the minimum checked by its gradient or by brute force, exact recovery."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from palimpsest.realignments.solving import (
    invertible,
    nearest_rotation,
    reciprocal_cost,
    reciprocal_factors,
    worthwhile,
)

SEEDS = st.integers(0, 10**6)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_factor_by_hand() -> None:
    # |w 2 - 1|^2 + |6 / w - 12|^2 is 0 at w = 1/2
    w = reciprocal_factors(torch.tensor([[2.0]]), torch.tensor([[1.0]]), torch.tensor([[6.0]]), torch.tensor([[12.0]]))
    assert float(w) == pytest.approx(0.5, abs=1e-7)
    # signs: both rows negated
    w = reciprocal_factors(
        torch.tensor([[2.0]]), torch.tensor([[-1.0]]), torch.tensor([[6.0]]), -torch.tensor([[12.0]])
    )
    assert float(w) == pytest.approx(-0.5, abs=1e-7)


def test_a_row_of_nothing_is_left_alone() -> None:
    zero, one = torch.zeros(1, 2), torch.ones(1, 2)
    assert float(reciprocal_factors(zero, one, one, one)) == 1.0


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, noise=st.floats(0, 1.5))
def test_real_factors_are_the_best_of_a_fine_grid(seed: int, noise: float) -> None:
    x, y = normal(seed, 3, 5), normal(seed + 1, 3, 4)
    factor = torch.tensor([[0.6], [-1.7], [2.0]], dtype=torch.float64)
    first, second = factor * (x + noise * normal(seed + 2, 3, 5)), (y + noise * normal(seed + 3, 3, 4)) / factor
    w = reciprocal_factors(first, x, second, y)
    grid = torch.cat([torch.linspace(0.02, 8, 4000), -torch.linspace(0.02, 8, 4000)]).double()

    def cost(at: Tensor) -> Tensor:
        return ((at[:, None] * first[:, None] - x[:, None]) ** 2).sum(-1) + (
            (second[:, None] / at[:, None] - y[:, None]) ** 2
        ).sum(-1)

    each = cost(grid[:, None].expand(-1, 1).reshape(1, -1).expand(3, -1).reshape(3, -1)[0])
    found = torch.stack([cost(w[n : n + 1])[n, 0] for n in range(3)])
    assert bool((found <= each.min(dim=1).values + 1e-9).all())


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS)
def test_complex_factors_of_pairs_are_found_exactly_without_noise(seed: int) -> None:
    q, k = (
        torch.complex(normal(seed, 4, 6), normal(seed + 1, 4, 6)),
        torch.complex(normal(seed + 2, 4, 6), normal(seed + 3, 4, 6)),
    )
    z = torch.polar((0.7 * normal(seed + 4, 4)).exp().clamp(0.4, 2.5), 3 * normal(seed + 5, 4))[:, None]
    w = reciprocal_factors(z * q, q, k / z.conj(), k, "complex")
    assert float((w * z[:, 0] - 1).abs().max()) < 1e-6


def test_positive_factors_stay_positive() -> None:
    one = torch.ones(1, 3, dtype=torch.float64)
    assert float(reciprocal_factors(one, -one, one, -one, "positive")) > 0


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, size=st.integers(1, 6), noise=st.floats(0, 0.3))
def test_an_invertible_matrix_is_at_a_minimum_and_no_further_than_the_truth(seed: int, size: int, noise: float) -> None:
    left, right = normal(seed, size, 12), normal(seed + 1, 15, size)
    u, _, v = torch.linalg.svd(normal(seed + 2, size, size))
    m = u @ torch.diag((0.6 * normal(seed + 3, size)).exp().clamp(0.5, 2)) @ v
    mine_left = m @ (left + noise * normal(seed + 4, size, 12))
    mine_right = torch.linalg.solve(m.T, (right + noise * normal(seed + 5, 15, size)).T).T
    n = invertible(mine_left, left, mine_right, right)
    cost = reciprocal_cost(n @ mine_left, left, torch.linalg.solve(n.T, mine_right.T).T, right)
    truth = torch.linalg.inv(m)
    at_truth = reciprocal_cost(truth @ mine_left, left, torch.linalg.solve(truth.T, mine_right.T).T, right)
    assert cost <= at_truth + 1e-9
    if noise == 0:
        assert float((n @ m - torch.eye(size)).abs().max()) < 1e-6
    free = n.clone().requires_grad_()
    away = (free @ mine_left - left).square().sum() + (mine_right @ torch.linalg.inv(free) - right).square().sum()
    away.backward()  # type: ignore[no-untyped-call]
    assert free.grad is not None
    assert float(free.grad.abs().max()) < 1e-2 * max(1.0, float(away.detach()))


def test_where_values_tell_nothing_outputs_do() -> None:
    m = torch.tensor([[0.0, 2.0], [1.0, 0.0]], dtype=torch.float64)
    right = normal(3, 9, 2)
    left = torch.zeros(2, 5, dtype=torch.float64)
    n = invertible(left, left, right @ torch.linalg.inv(m), right)
    assert float((n @ m - torch.eye(2)).abs().max()) < 1e-8


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, size=st.integers(2, 8))
def test_a_rotation_is_found_from_as_many_rows_as_there_are_dimensions(seed: int, size: int) -> None:
    q = torch.linalg.qr(normal(seed, size, size))[0]
    x = normal(seed + 1, size + 2, size)
    found, rank = nearest_rotation((x @ q.T).T @ x)
    assert rank == size and float((found - q).abs().max()) < 1e-6


def test_with_too_few_rows_a_rotation_still_maps_those_and_is_orthogonal() -> None:
    q, x = torch.linalg.qr(normal(0, 6, 6))[0], normal(1, 3, 6)
    found, rank = nearest_rotation((x @ q.T).T @ x)
    assert rank == 3
    assert float((x @ q.T @ found - x).abs().max()) < 1e-8
    assert float((found @ found.T - torch.eye(6)).abs().max()) < 1e-10


def test_what_no_row_tells_is_left_as_it_is() -> None:
    x = torch.zeros(2, 4, dtype=torch.float64)
    x[0, 0], x[1, 1] = 1.0, 2.0
    turned = x.clone()
    turned[:, :2] = x[:, :2] @ torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    found, rank = nearest_rotation(x.T @ turned)
    assert rank == 2 and torch.allclose(found[2:, 2:], torch.eye(2, dtype=torch.float64))
    assert math.isclose(float((x @ found - turned).abs().max()), 0, abs_tol=1e-12)


def test_a_fit_counts_only_beyond_what_chance_explains() -> None:
    assert worthwhile(100.0, 60.0, parameters=10, numbers=100)  # chance 10 %, three times that and 2 % is 32 %
    assert not worthwhile(100.0, 70.0, parameters=10, numbers=100)
    assert not worthwhile(0.0, 0.0, parameters=0, numbers=1)
