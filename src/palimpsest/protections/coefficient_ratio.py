"""The attack on published Taylor coefficients: their ratios give the secret scale and the point, without any base.

C_n = s^-n c_n(z) w with c_n = f^(n) / n!: all C_n of a neuron are parallel, and with a_n = <C_n, u> for one direction u
    (a_1 / a_0)^2 / (a_2 / a_0) = c_1(z)^2 / (c_0(z) c_2(z))   knows no s: one unknown;   s = a_0 c_1 / (a_1 c_0).
Where the gate has no bias the shift s z is public as well, and a_0 c_1(z) = a_1 (s z) c_0(z) / z is what is solved.
Then w = s^n C_n / c_n(z), the gate row is rows / s, and the feed-forward is in clear again. Derivation: ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from palimpsest.protections.taylor import coefficients

LIMIT, STEPS, HALVINGS = 16.0, 9601, 56
_NEURONS, _ROOTS = 512, 32  # looked at together; roots of one neuron that are looked at


@dataclass(frozen=True)
class Recovered:
    """scale: s; point: z; column: w (neurons, d), all float64. misfit: how far the next ratios are from the
    coefficients' (0 is a perfect fit), by which the root was chosen."""

    scale: Tensor
    point: Tensor
    column: Tensor
    misfit: Tensor


def recover(terms: Tensor, activation: str, shift: Tensor | None = None) -> Recovered:
    """s, z and w of each neuron from C: (N + 1, neurons, d), N at least 2. shift: (neurons,) s z, where it is known."""
    parts = [
        _some(terms[:, at : at + _NEURONS].double(), activation, None if shift is None else shift[at : at + _NEURONS])
        for at in range(0, terms.shape[1], _NEURONS)
    ]
    return Recovered(*(torch.cat([getattr(p, n) for p in parts]) for n in ("scale", "point", "column", "misfit")))


def _some(terms: Tensor, activation: str, shift: Tensor | None) -> Recovered:
    norms = terms[:2].norm(dim=2)  # (2, neurons)
    larger = norms.argmax(dim=0)
    direction = terms[larger, torch.arange(terms.shape[1])]
    direction = direction / direction.norm(dim=1, keepdim=True).clamp_min(1e-300)
    along = torch.einsum("pnd,nd->pn", terms, direction)  # a_n: (N + 1, neurons)
    known = None if shift is None else shift.double()
    grid = torch.linspace(-LIMIT, LIMIT, STEPS, dtype=torch.float64) + 1e-7  # not on 0 itself
    count = along.shape[1]

    def equation(point: Tensor, c: Tensor) -> Tensor:
        """Nought at the point: (neurons, points). point: (neurons or 1, points), c: its coefficients (3, ...)."""
        a = along[:3, :, None]
        if known is not None:
            return a[0] * c[1] - a[1] * known[:, None] * c[0] / point
        return a[0] * a[2] * c[1].square() - a[1].square() * c[0] * c[2]

    values = equation(grid[None], coefficients(activation, grid, 2)[:, None])
    crossing = values[:, :-1].sign() * values[:, 1:].sign() < 0  # where a function has died away there is no root
    most = min(_ROOTS, max(1, int(crossing.sum(dim=1).max())))
    places = crossing.double().topk(most, dim=1)
    low, high = grid[places.indices], grid[places.indices + 1]
    left = values.gather(1, places.indices)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        value = equation(middle, coefficients(activation, middle.reshape(-1), 2).view(3, *middle.shape))
        same = value.sign() == left.sign()
        low, high = torch.where(same, middle, low), torch.where(same, high, middle)
    roots = (low + high) / 2  # (neurons, most)
    scale, misfit = _fit(along, activation, roots, known)
    misfit = torch.where(places.values > 0, misfit, torch.inf).nan_to_num(nan=torch.inf, posinf=torch.inf)
    best = misfit.argmin(dim=1, keepdim=True)
    point, s = roots.gather(1, best)[:, 0], scale.gather(1, best)[:, 0]
    c = coefficients(activation, point, 1)  # (2, neurons)
    use = (c * torch.stack([torch.ones_like(s), 1 / s])).abs().argmax(dim=0)
    index = torch.arange(count)
    column = terms[use, index] * (s**use / c[use, index])[:, None]
    return Recovered(s, point, column, misfit.gather(1, best)[:, 0])


def _fit(along: Tensor, activation: str, roots: Tensor, shift: Tensor | None) -> tuple[Tensor, Tensor]:
    """(s, misfit) of candidate points, both (neurons, candidates): 1 - cos^2 between (a_n s^n) and (c_n), n up to 3."""
    orders = min(len(along), 4)
    c = coefficients(activation, roots.reshape(-1), orders - 1).view(orders, *roots.shape)
    a = along[:orders, :, None]
    ratio = a[0] * c[1] / (a[1] * c[0])
    scale = ratio if shift is None else torch.where(roots.abs() > 1e-6, shift[:, None] / roots, ratio)
    powers = torch.stack([scale**n for n in range(orders)])
    found = a * powers
    product = (found * c).sum(dim=0)
    return scale, 1 - product.square() / (found.square().sum(dim=0) * c.square().sum(dim=0))
