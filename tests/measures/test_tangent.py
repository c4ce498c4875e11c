"""Eq. 1 by hand, and against gradient descent on linear models, where it is exact."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from palimpsest.measures.tangent import Kernel

TWO = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
CROSS = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
RESIDUAL = torch.tensor([3.0, 0.0])


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_two_by_two_without_a_ridge_is_what_a_pencil_gives() -> None:
    found = Kernel(TWO).predict(CROSS, RESIDUAL, 0.0)  # K^-1 = (2, -1; -1, 2) / 3, K^-1 y = (2, -1)
    assert found.change.tolist() == pytest.approx([2.0, 1.0], abs=1e-12)
    assert found.delta == pytest.approx(5.0, abs=1e-12)
    assert (found.condition, found.rank) == (pytest.approx(3.0), 2)  # eigenvalues 1 and 3
    assert found.left == pytest.approx(0.0, abs=1e-12)


def test_two_by_two_with_a_ridge_is_what_a_pencil_gives() -> None:
    found = Kernel(TWO).predict(CROSS, RESIDUAL, 1.0)  # (K + I)^-1 y = (9, -3) / 8
    assert found.change.tolist() == pytest.approx([9 / 8, 6 / 8], abs=1e-12)
    assert found.delta == pytest.approx(117 / 64, abs=1e-12)
    assert found.condition == pytest.approx(2.0)
    assert found.left == pytest.approx(90**0.5 / 8 / 3), "unfitted is lambda times (9, -3) / 8"


@pytest.mark.parametrize("ridge", [0.0, 0.3, 5.0])
def test_on_a_linear_model_it_is_where_gradient_descent_ends(ridge: float) -> None:
    model = torch.nn.Linear(15, 1, bias=False, dtype=torch.float64)  # f(x) = w . x: phi(x) = x
    tuned, source, wanted = drawn(6, 15), drawn(4, 15, seed=1), drawn(6, seed=2)
    start = model.weight.detach().clone()
    with torch.no_grad():
        before, residual = model(source)[:, 0], wanted - model(tuned)[:, 0]
    predicted = Kernel(tuned @ tuned.T).predict(source @ tuned.T, residual, ridge)
    rate = 1 / (float(torch.linalg.eigvalsh(tuned @ tuned.T)[-1]) + ridge)
    optimiser = torch.optim.SGD(model.parameters(), lr=rate)
    for _ in range(1500):
        optimiser.zero_grad()
        loss = (model(tuned)[:, 0] - wanted).square().sum() / 2 + ridge / 2 * (model.weight - start).square().sum()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        after = model(source)[:, 0]
    assert (after - before).tolist() == pytest.approx(predicted.change.tolist(), abs=1e-10)
    assert float((after - before).square().sum()) == pytest.approx(predicted.delta, rel=1e-9)
    if ridge == 0:
        with torch.no_grad():
            assert model(tuned)[:, 0].tolist() == pytest.approx(wanted.tolist(), abs=1e-9), "fitted exactly"


@settings(max_examples=25)
@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 5), st.floats(1e-3, 1e3), st.integers(0, 100))
def test_it_is_ridge_regression_in_the_weights(m: int, width: int, n: int, ridge: float, seed: int) -> None:
    tuned, source, residual = drawn(m, width, seed=seed), drawn(n, width, seed=seed + 1), drawn(m, seed=seed + 2)
    inner = tuned.T @ tuned + ridge * torch.eye(width, dtype=torch.float64)
    weights = torch.linalg.solve(inner, tuned.T @ residual)  # (width,), the primal solution
    found = Kernel(tuned @ tuned.T).predict(source @ tuned.T, residual, ridge)
    assert found.change.tolist() == pytest.approx((source @ weights).tolist(), rel=1e-7, abs=1e-9)


def test_pairs_that_contradict_each_other_are_fitted_to_their_mean() -> None:
    twice = torch.tensor([[1.0, 2.0], [1.0, 2.0], [0.0, 1.0]], dtype=torch.float64)
    found = Kernel(twice @ twice.T).predict(twice @ twice.T, torch.tensor([4.0, 2.0, 0.0]), 0.0)
    assert found.change.tolist() == pytest.approx([3.0, 3.0, 0.0], abs=1e-9)
    assert found.rank == 2 and found.left == pytest.approx(2**0.5 / 20**0.5)


def test_a_large_ridge_leaves_the_first_step_of_gradient_descent() -> None:
    tuned, source, residual = drawn(5, 9), drawn(3, 9, seed=1), drawn(5, seed=2)
    found = Kernel(tuned @ tuned.T).predict(source @ tuned.T, residual, 1e9)
    assert (1e9 * found.change).tolist() == pytest.approx((source @ tuned.T @ residual).tolist(), rel=1e-6)


def test_an_empty_gradient_changes_nothing() -> None:
    found = Kernel(torch.zeros(3, 3)).predict(torch.zeros(2, 3), torch.ones(3), 0.0)
    assert (found.delta, found.rank, found.left) == (0.0, 0, 1.0)


@pytest.mark.parametrize(
    ("matrix", "said"),
    [
        (torch.ones(2, 3), "square"),
        (torch.tensor([[1.0, 0.5], [0.0, 1.0]]), "not symmetric"),
        (torch.tensor([[0.0, 1.0], [1.0, 0.0]]), "eigenvalue -1"),
        (torch.tensor([[float("nan")]]), "not finite"),
    ],
)
def test_what_is_no_kernel_is_refused(matrix: Tensor, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Kernel(matrix)


def test_a_ridge_below_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="below zero"):
        Kernel(TWO).weights(RESIDUAL, -1.0)
