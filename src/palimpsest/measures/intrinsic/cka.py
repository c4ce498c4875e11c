"""Centred kernel alignment of two representations of the same prompts: Kornblith et al., arXiv 1905.00414.

    CKA(K, L) = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))

HSIC_0 = tr(K H L H) / (n - 1)^2 is biased upwards for few prompts: two unrelated representations of width d >> n have a
CKA near 1. HSIC_1 (Song et al. 2012, as Nguyen et al., arXiv 2010.15327, use it) is unbiased: kernels without their
diagonals, and expectation 0 where nothing is shared. Both need only sum K o L and the kernels' row sums, so kernels
are made a block of rows at a time and never held whole. All sums are float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Kernel = Callable[[Tensor, Tensor], Tensor]  # (rows, features), (n, features) to (rows, n)
BLOCK = 512  # rows of a kernel held together
MEDIAN_ROWS = 2000  # prompts whose distances give the width of a Gaussian kernel


@dataclass(frozen=True)
class Sums:
    """What HSIC needs of kernels K and L: sum K o L, row sums of both, (n,), and how many rows; diagonals in or out."""

    product: float
    first: Tensor
    second: Tensor

    def biased(self) -> float:
        """HSIC_0 times (n - 1)^2: tr(K H L H)."""
        n = len(self.first)
        across = float(self.first @ self.second)
        return self.product - 2 * across / n + float(self.first.sum() * self.second.sum()) / n**2

    def unbiased(self) -> float:
        """HSIC_1, from kernels without their diagonals; needs four prompts."""
        n = len(self.first)
        across = float(self.first @ self.second)
        whole = float(self.first.sum() * self.second.sum()) / ((n - 1) * (n - 2))
        return (self.product + whole - 2 * across / (n - 2)) / (n * (n - 3))


def linear(rows: Tensor, x: Tensor) -> Tensor:
    """The linear kernel: inner products."""
    return rows @ x.T


def gaussian(width: float) -> Kernel:
    """exp(-|a - b|^2 / (2 width^2))."""

    def kernel(rows: Tensor, x: Tensor) -> Tensor:
        return torch.exp(-squared_distances(rows, x) / (2 * width**2))

    return kernel


def squared_distances(rows: Tensor, x: Tensor) -> Tensor:
    """|a - b|^2, (rows, n), never below 0."""
    return (rows.pow(2).sum(1)[:, None] + x.pow(2).sum(1)[None, :] - 2 * rows @ x.T).clamp_min(0)


def median_width(x: Tensor) -> float:
    """Root of the median squared distance between different prompts (the first 2,000): the usual choice of width."""
    x = x[:MEDIAN_ROWS]
    distances = squared_distances(x, x)[~torch.eye(len(x), dtype=torch.bool)]
    apart = distances[distances > 0]
    return float(apart.quantile(0.5)) ** 0.5 if len(apart) else 1.0


def sums(x: Tensor, y: Tensor, first: Kernel, second: Kernel, diagonal: bool) -> Sums:
    """Sums of the kernels of x (n, d) and y (n, e), a block of rows at a time."""
    product = 0.0
    row_sums: tuple[list[Tensor], list[Tensor]] = ([], [])
    for at in range(0, len(x), BLOCK):
        k, kernel_l = first(x[at : at + BLOCK], x), second(y[at : at + BLOCK], y)
        if not diagonal:
            here = torch.arange(len(k))
            k[here, at + here] = 0
            kernel_l[here, at + here] = 0
        product += float((k * kernel_l).sum())
        row_sums[0].append(k.sum(1))
        row_sums[1].append(kernel_l.sum(1))
    return Sums(product, torch.cat(row_sums[0]), torch.cat(row_sums[1]))


def cka(x: Tensor, y: Tensor, kernel: str = "linear", unbiased: bool = False) -> float:
    """CKA of two representations of the same prompts, x (n, d) and y (n, e); kernel `linear` or `rbf`.

    The Gaussian kernel's width is each representation's own median distance. Linear CKA is taken on centred features,
    which changes nothing but rounding. 0 where a representation is constant. Raises ValueError for too few prompts.
    """
    if len(x) != len(y):
        raise ValueError(f"representations of different prompts: {len(x)} and {len(y)}")
    if len(x) < (4 if unbiased else 2):
        raise ValueError(f"{len(x)} prompts are too few")
    x, y = (t.double() - t.double().mean(0) for t in (x, y))
    kernels = [linear if kernel == "linear" else gaussian(median_width(t)) for t in (x, y)]
    pairs = ((0, 1), (0, 0), (1, 1))
    both = (x, y)
    found = [sums(both[i], both[j], kernels[i], kernels[j], diagonal=not unbiased) for i, j in pairs]
    hsic = [s.unbiased() if unbiased else s.biased() for s in found]
    norm = hsic[1] * hsic[2]
    return hsic[0] / norm**0.5 if hsic[1] > 0 and hsic[2] > 0 else 0.0


def chance(x: Tensor, y: Tensor, kernel: str, unbiased: bool, times: int, seed: int) -> float:
    """Mean CKA with the prompts of y in random order: what is there when the two share nothing."""
    generator = torch.Generator().manual_seed(seed)
    found = [cka(x, y[torch.randperm(len(y), generator=generator)], kernel, unbiased) for _ in range(times)]
    return sum(found) / len(found)
