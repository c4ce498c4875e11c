"""Predicted forgetting by the neural tangent kernel: MEraser (arXiv 2506.12551), Appendix A, eq. 1; the mathematics.

    Delta(X) = || phi(X) phi(X_F)^T [ phi(X_F) phi(X_F)^T + lambda I ]^(-1) y~_F ||^2,   y~_F = y_F - f(X_F)

phi(x) is the gradient of the model's scalar output f(x), X the inputs of the source task, X_F those of the
fine-tuning set. The form goes back to Doan et al. (arXiv 2010.04003). It is the squared change of f over X when

    f(x) + phi(x) . w   is fitted to y_F on X_F by least squares with the penalty lambda |w|^2, from w = 0:

w = phi(X_F)^T [K + lambda I]^(-1) y~_F is that ridge solution, and for lambda -> 0 the solution of least norm, which
is where gradient descent from w = 0 ends. So it is exact for models that are linear in their weights and trained
by squared loss. What it is for a language model: `docs/removals/forgetting.md`.

Everything here is float64 on the CPU; kernels come from `pair_gradients`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NOISE = 1e-7  # of the largest eigenvalue: kernels of float32 gradients are no better than that


@dataclass(frozen=True)
class Change:
    """What fine-tuning is predicted to do.

    change: (source,) of f, signed; below 0 is forgetting where f is a log-probability. delta: its squared norm,
    the Delta(X) of eq. 1. left: share of the residual's norm that the penalty leaves unfitted on X_F. ridge: the
    lambda that was added. condition: largest over smallest eigenvalue of what was inverted. rank: eigenvalues of
    the kernel that were not taken for zero.
    """

    change: Tensor
    delta: float
    left: float
    ridge: float
    condition: float
    rank: int


class Kernel:
    """phi(X_F) phi(X_F)^T, (tuned, tuned), decomposed once for any residual and any ridge.

    noise: eigenvalues up to this share of the largest are rounding; without a penalty they are taken for zero.
    Raises ValueError where the matrix is no kernel: not square, not symmetric, or with eigenvalues below -noise.
    """

    def __init__(self, kernel: Tensor, noise: float = NOISE) -> None:
        matrix = kernel.detach().to("cpu", torch.float64)
        if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1] or not len(matrix):
            raise ValueError(f"a kernel is a square matrix, not {tuple(matrix.shape)}")
        if not bool(torch.isfinite(matrix).all()):
            raise ValueError("the kernel holds numbers that are not finite")
        scale = float(matrix.abs().max())
        if float((matrix - matrix.T).abs().max()) > 1e-6 * scale:
            raise ValueError("the kernel is not symmetric")
        self.mean_diagonal = float(matrix.diagonal().mean())
        values, self.vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
        self.floor = noise * float(values[-1])
        if float(values[0]) < -max(self.floor, 1e-12 * scale):
            raise ValueError(f"the kernel has the eigenvalue {float(values[0]):.3g}: it is none")
        self.values = values.clamp_min(0.0)  # (tuned,), rising

    def weights(self, residual: Tensor, ridge: float) -> Tensor:
        """[K + ridge I]^(-1) residual, (tuned,); for ridge 0 by the pseudo-inverse. residual: (tuned,)."""
        if ridge < 0:
            raise ValueError(f"a ridge of {ridge} is below zero")
        along = self.vectors.T @ residual.detach().to("cpu", torch.float64)
        inverse = 1.0 / (self.values + ridge) if ridge > 0 else self._inverse()
        found: Tensor = self.vectors @ (inverse * along)
        return found

    def _inverse(self) -> Tensor:
        kept = self.values > self.floor
        return torch.where(kept, 1.0 / torch.where(kept, self.values, torch.ones_like(self.values)), 0.0)

    def predict(self, cross: Tensor, residual: Tensor, ridge: float) -> Change:
        """Change of f over X. cross: phi(X) phi(X_F)^T, (source, tuned); residual: y_F - f(X_F), (tuned,)."""
        weights = self.weights(residual, ridge)
        change = cross.detach().to("cpu", torch.float64) @ weights
        residual = residual.detach().to("cpu", torch.float64)
        fitted = self.vectors @ (self.values * (self.vectors.T @ weights))
        norm = float(residual.norm())
        kept = self.values > self.floor
        smallest = float(self.values[0]) if ridge > 0 else float(self.values[kept][0]) if bool(kept.any()) else 0.0
        condition = (float(self.values[-1]) + ridge) / (smallest + ridge) if smallest + ridge > 0 else float("inf")
        return Change(
            change,
            float(change.square().sum()),
            float((residual - fitted).norm()) / norm if norm > 0 else 0.0,
            ridge,
            condition,
            int(kept.sum()),
        )
