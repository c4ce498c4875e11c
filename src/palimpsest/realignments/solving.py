"""Gauge parameters from two sets of weights: scales, turns, invertible matrices, rotations.

Every solver minimises the squared distance to the anchor over one group of exact symmetries. Since it is applied on
both sides at once (rows by a matrix, columns by its inverse), the function stays whatever it finds.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

SEARCH = 60  # steps of the golden section: 2 * 0.618^60 is below rounding
COARSE = 257  # points of the grid before that, over a factor of e^4 to either side
GOLDEN = (5**0.5 - 1) / 2
SINGULAR = 1e-7  # singular values below this share of the largest count as none
Factors = Literal["complex", "real", "positive"]


def inner(anchor: Tensor, mine: Tensor) -> Tensor:
    """sum conj(anchor) mine over the last dimension."""
    return (anchor.conj() * mine).sum(-1)


def power(x: Tensor) -> Tensor:
    """sum |x|^2 over the last dimension."""
    return (x.real.square() + x.imag.square()).sum(-1) if x.is_complex() else x.square().sum(-1)


def reciprocal_factors(
    first: Tensor, first_anchor: Tensor, second: Tensor, second_anchor: Tensor, factors: Factors = "real"
) -> Tensor:
    """w (n,) that minimise |w first - first_anchor|^2 + |second / conj(w) - second_anchor|^2, row by row.

    first, second: (n, a) and (n, b), complex where `factors` is. With w = r e^{it}, A and B the inner products of
    anchor and mine, t = -arg(r A + B / r) whatever r is, and r minimises r^2 P + S / r^2 - 2 |r A + B / r|. That may
    have two valleys (where A and B disagree in sign), so it is looked at on a grid around the projections' own
    estimates |A| / P and S / |B| first, then by golden section beside the best point. 1 where a row is zero on either
    side.
    """
    p, s = power(first).double(), power(second).double()
    a, b = inner(first_anchor, first), inner(second_anchor, second)
    a, b = (a.to(torch.complex128), b.to(torch.complex128)) if factors == "complex" else (a.double(), b.double())
    tiny = torch.finfo(torch.float64).tiny
    known = (p > 0) & (s > 0) & ((a.abs() > 0) | (b.abs() > 0))
    p, s = torch.where(known, p, 1.0), torch.where(known, s, 1.0)
    a, b = torch.where(known, a, 1.0), torch.where(known, b, 1.0)

    def cost(u: Tensor) -> Tensor:
        r = u.exp()
        turned = r * a + b / r
        return r.square() * p + s / r.square() - 2 * (turned if factors == "positive" else turned.abs())

    guess = 0.5 * ((a.abs() + tiny).log() - p.log() + s.log() - (b.abs() + tiny).log())
    middle = 0.25 * (s / p).log()  # where B or A is next to nothing the other guess is anywhere
    guess = torch.where((a.abs() > 1e-12 * p) & (b.abs() > 1e-12 * s), guess, middle)
    offsets = torch.linspace(-4.0, 4.0, COARSE, dtype=torch.float64)
    tried = torch.cat([guess + offsets[:, None], middle + offsets[:, None]])  # (2 COARSE, n)
    best = torch.stack([cost(u) for u in tried]).argmin(dim=0)
    guess = tried.gather(0, best[None])[0]
    width = 8.0 / (COARSE - 1)
    low, high = guess - width, guess + width
    for _ in range(SEARCH):
        step = GOLDEN * (high - low)
        left, right = high - step, low + step
        smaller = cost(left) < cost(right)
        low, high = torch.where(smaller, low, left), torch.where(smaller, right, high)
    r = ((low + high) / 2).exp()
    turned = r * a + b / r
    if factors == "complex":
        found = r * torch.polar(torch.ones_like(r), -turned.angle())
    else:
        found = r * torch.where(turned < 0, -1.0, 1.0) if factors == "real" else r
    return torch.where(known, found, torch.ones_like(found))


def reciprocal_cost(first: Tensor, first_anchor: Tensor, second: Tensor, second_anchor: Tensor) -> float:
    """|first - first_anchor|^2 + |second - second_anchor|^2."""
    return float(power((first - first_anchor).flatten()) + power((second - second_anchor).flatten()))


def invertible(left: Tensor, left_anchor: Tensor, right: Tensor, right_anchor: Tensor) -> Tensor:
    """N (k, k), invertible, that minimises |N left - left_anchor|^2 + |right N^-1 - right_anchor|^2.

    left: (k, n); right: (m, k). Begins with N^-1 = left pinv(left_anchor), or pinv(right) right_anchor where that is
    nearer (or the other singular), then takes Gauss-Newton steps N <- (I + X) N, each the Sylvester equation
    X (L L^T) + (R^T R) X = (L_a - L) L^T + R^T (R - R_a) for the L, R so far, halved until the distance falls.
    """
    left, left_anchor, right, right_anchor = (t.double() for t in (left, left_anchor, right, right_anchor))
    starts = [torch.eye(len(left), dtype=torch.float64)]
    for back in (left @ torch.linalg.pinv(left_anchor, rtol=SINGULAR),
                 torch.linalg.pinv(right, rtol=SINGULAR) @ right_anchor):  # fmt: skip
        spread = torch.linalg.svdvals(back)
        if float(spread[-1]) > SINGULAR * float(spread[0]):
            starts.append(torch.linalg.inv(back))

    def at(n: Tensor) -> tuple[Tensor, Tensor, float]:
        moved = n @ left, torch.linalg.solve(n.T, right.T).T
        return *moved, reciprocal_cost(moved[0], left_anchor, moved[1], right_anchor)

    n = min(starts, key=lambda start: at(start)[2])
    here_left, here_right, cost = at(n)
    for _ in range(50):
        x = _sylvester(
            here_right.T @ here_right,
            here_left @ here_left.T,
            (left_anchor - here_left) @ here_left.T + here_right.T @ (here_right - right_anchor),
        )
        step = 1.0
        while step > 1e-3:
            trial = n + step * (x @ n)
            if float(torch.linalg.svdvals(trial)[-1]) > 0:
                new_left, new_right, new = at(trial)
                if new < cost:
                    break
            step /= 2
        else:
            break
        small = cost - new <= 1e-12 * cost
        n, here_left, here_right, cost = trial, new_left, new_right, new
        if small:
            break
    return n


def _sylvester(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """X with A X + X B = C for symmetric positive semi-definite A (k, k) and B (k, k)."""
    values_a, vectors_a = torch.linalg.eigh(a)
    values_b, vectors_b = torch.linalg.eigh(b)
    sums = values_a[:, None] + values_b[None, :]
    floor = SINGULAR * float(sums.max())
    inside = torch.where(sums > floor, vectors_a.T @ c @ vectors_b / sums.clamp_min(max(floor, 1e-300)), 0.0)
    solved: Tensor = vectors_a @ inside @ vectors_b.T
    return solved


def nearest_rotation(cross: Tensor) -> tuple[Tensor, int]:
    """Orthogonal Q that minimises |X Q - Y|, given cross = X^T Y (d, d), and the rank of cross.

    Below full rank Q is one of many; it is chosen nearest to the identity on what cross does not see.
    """
    u, s, vh = torch.linalg.svd(cross.double())
    rank = int((s > SINGULAR * float(s[0])).sum()) if float(s[0]) > 0 else 0
    if rank < len(s):  # Procrustes again between the two null spaces, towards the identity
        left, right = u[:, rank:], vh[rank:].T
        inner_u, _, inner_vh = torch.linalg.svd(left.T @ right)
        return u[:, :rank] @ vh[:rank] + left @ inner_u @ inner_vh @ right.T, rank
    return u @ vh, rank


def worthwhile(before: float, after: float, parameters: int, numbers: int, least: float = 0.02) -> bool:
    """Whether a fit shows that something was changed: it explains more than three times what chance lets it.

    Of a random difference of `numbers` entries, `parameters` free ones explain the share parameters / numbers; `least`
    is a share that must be explained besides.
    """
    if before <= 0:
        return False
    return after < before * (1 - min(0.9, 3 * parameters / max(1, numbers) + least))
