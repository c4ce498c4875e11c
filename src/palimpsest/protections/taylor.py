"""Taylor coefficients of activations at any point, to any order, by the recurrences of power series.

Each activation f is made of functions with a first-order differential equation, so its coefficients c_n = f^(n)(z) / n!
follow from one another without differences and without symbols; float64 throughout.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from palimpsest.errors import BadInput, nearest

Series = Callable[[Tensor, int], Tensor]


def coefficients(activation: str, at: Tensor, order: int) -> Tensor:
    """c_n = f^(n)(z) / n! for n = 0..order: (order + 1, points) float64. at: (points,).

    Raises BadInput for an activation that is not known here (by its name in transformers).
    """
    if activation not in ACTIVATIONS:
        raise BadInput(f"activation {activation!r} has no series here{nearest(activation, ACTIVATIONS, 'activation')}")
    return ACTIVATIONS[activation](at.double(), order)


def _times_point(inner: Tensor, at: Tensor) -> Tensor:
    """Coefficients of z * g(z) from those of g at z: c_n = z g_n + g_{n-1}."""
    found = at * inner
    found[1:] += inner[:-1]
    return found


def _sigmoid(at: Tensor, order: int, slope: float = 1.0) -> Tensor:
    """Of sigma(slope z): g' = slope g (1 - g), so (n + 1) g_{n+1} = slope (g_n - sum_k g_k g_{n-k})."""
    rows = [torch.sigmoid(slope * at)]
    for n in range(order):
        square = sum((rows[k] * rows[n - k] for k in range(n + 1)), torch.zeros_like(at))
        rows.append(slope * (rows[n] - square) / (n + 1))
    return torch.stack(rows)


def _silu(at: Tensor, order: int) -> Tensor:
    return _times_point(_sigmoid(at, order), at)


def _quick_gelu(at: Tensor, order: int) -> Tensor:
    return _times_point(_sigmoid(at, order, 1.702), at)


def _gelu(at: Tensor, order: int) -> Tensor:
    """z Phi(z): Phi' = phi, phi' = -z phi, so (n + 1) p_{n+1} = -(z p_n + p_{n-1}) and (n + 1) Phi_{n+1} = p_n."""
    density = [torch.exp(-at.square() / 2) / math.sqrt(2 * math.pi)]
    for n in range(order):
        before = density[n - 1] if n else torch.zeros_like(at)
        density.append(-(at * density[n] + before) / (n + 1))
    rows = [torch.special.ndtr(at), *(density[n] / (n + 1) for n in range(order))]
    return _times_point(torch.stack(rows), at)


def _tanh_gelu(at: Tensor, order: int) -> Tensor:
    """z (1 + tanh(p)) / 2 with p = sqrt(2 / pi) (z + 0.044715 z^3), a polynomial; t = tanh(p) has t' = (1 - t^2) p', so
    (n + 1) t_{n+1} = sum_k (1 - t^2)_k (n - k + 1) p_{n-k+1}."""
    factor, cubic = math.sqrt(2 / math.pi), 0.044715
    zero = torch.zeros_like(at)
    inner = [
        factor * (at + cubic * at**3),
        factor * (1 + 3 * cubic * at.square()),
        factor * 3 * cubic * at,
        zero + factor * cubic,
    ]
    rows = [torch.tanh(inner[0])]
    for n in range(order):
        total = torch.zeros_like(at)
        for k in range(max(0, n - 2), n + 1):  # p has no coefficient beyond the third
            square = sum((rows[i] * rows[k - i] for i in range(k + 1)), torch.zeros_like(at))
            total += ((1.0 if k == 0 else 0.0) - square) * (n - k + 1) * inner[n - k + 1]
        rows.append(total / (n + 1))
    half = torch.stack(rows) / 2
    half[0] += 0.5
    return _times_point(half, at)


def _relu(at: Tensor, order: int) -> Tensor:
    """The line that z lies on: there is no more than two coefficients, and no other side."""
    found = torch.zeros(order + 1, len(at), dtype=torch.float64)
    found[0] = at.clamp_min(0)
    found[1:2] = (at > 0).double()
    return found


ACTIVATIONS: dict[str, Series] = {
    "silu": _silu,
    "swish": _silu,
    "gelu": _gelu,
    "gelu_new": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "gelu_fast": _tanh_gelu,
    "quick_gelu": _quick_gelu,
    "relu": _relu,
}
