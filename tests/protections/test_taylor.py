"""Taylor coefficients of activations: against autograd's repeated derivatives, and as sums against the function."""

from __future__ import annotations

import math

import pytest
import torch
from transformers.activations import ACT2FN

from palimpsest.errors import BadInput
from palimpsest.protections.taylor import ACTIVATIONS, coefficients

POINTS = torch.tensor([-4.0, -1.3, -0.2, 0.0, 0.45, 1.7, 3.9], dtype=torch.float64)


@pytest.mark.parametrize("name", [n for n in ACTIVATIONS if n != "relu"])
def test_coefficients_are_derivatives_over_factorials(name: str) -> None:
    found = coefficients(name, POINTS, 6)
    at = POINTS.clone().requires_grad_()
    value = ACT2FN[name](at)
    for n in range(7):
        assert torch.allclose(found[n], value.detach() / math.factorial(n), rtol=1e-7, atol=1e-9), n
        (value,) = torch.autograd.grad(value.sum(), at, create_graph=True)


def test_silu_at_nought_by_hand() -> None:
    # z sigma(z) = z (1/2 + z/4 - z^3/48 + ...)
    found = coefficients("silu", torch.zeros(1), 4)[:, 0]
    assert found.tolist() == pytest.approx([0, 1 / 2, 1 / 4, 0, -1 / 48])


@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_the_sum_is_the_function_near_the_point(name: str) -> None:
    at, step = torch.tensor([-2.0, 0.5, 2.5]), torch.tensor([0.3, -0.4, 0.45], dtype=torch.float64)
    terms = coefficients(name, at, 16)
    total = sum(terms[n] * step**n for n in range(17))
    assert torch.allclose(total, ACT2FN[name](at.double() + step), atol=1e-6), "gelu_fast rounds its constant"


def test_relu_is_the_line_that_the_point_lies_on() -> None:
    assert coefficients("relu", torch.tensor([-1.0, 2.0]), 3).tolist() == [[0, 2], [0, 1], [0, 0], [0, 0]]


def test_an_activation_without_a_series_is_refused() -> None:
    with pytest.raises(BadInput, match="'mish' has no series here"):
        coefficients("mish", POINTS, 2)
