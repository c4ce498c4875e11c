"""Karcher mean: the point of the sphere with the least sum of squared angles to all models (arXiv 2603.04972)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from palimpsest.merging.passes import MergeMethod, Passes, Sum, TensorFacts, at_once, gram, weighted_sum
from palimpsest.method import method, param

_OPPOSITE = 1e-6  # of 1 + cosine: the great circle to a point this near the antipode is not determined


@method("merges", "karcher", paper="arXiv 2603.04972")
@dataclass(frozen=True)
class Karcher(MergeMethod):
    """Karcher (Riemannian) mean of each tensor's directions, times the mean of their lengths.

    From the normalised mean m, step along T = mean of the logarithms theta_i / sin theta_i (u_i - (u_i . m) m) by the
    exponential map cos|T| m + sin|T| T / |T|. All of it happens to factors of the inputs, in float64. A base, where
    one is given, is one of the models, as in mergekit. The mean of two antipodal vectors is the first's direction.
    """

    max_iter: int = param(10, "most steps", low=0)
    tol: float = param(1e-5, "length of a step to stop at; vectors no longer than it have no direction", low=0)
    base: ClassVar = "model"

    def passes(self, tensor: TensorFacts) -> Passes:
        """Products first, then the combination."""
        return self._mean() if tensor.models > 1 else at_once(lambda chunk: chunk.models[0])

    def _mean(self) -> Passes:
        products = yield Sum(lambda chunk: gram(chunk.models))
        factors = karcher_factors(products.numpy(), self.max_iter, self.tol)
        return lambda chunk: weighted_sum(chunk.models, factors, chunk.models[0])


def karcher_factors(products: NDArray[np.float64], max_iter: int, tol: float) -> list[float]:
    """Factors of the vectors in their Karcher mean, from their products (vectors, vectors)."""
    norms = np.sqrt(np.clip(np.diagonal(products), 0, None))
    valid = np.flatnonzero(norms > tol)
    factors = np.zeros(len(norms))
    if len(valid):
        cosines = np.clip(products[np.ix_(valid, valid)] / np.outer(norms[valid], norms[valid]), -1, 1)
        factors[valid] = norms.mean() * _direction(cosines, max_iter, tol) / norms[valid]
    return [float(f) for f in factors]


def _direction(cosines: NDArray[np.float64], max_iter: int, tol: float) -> NDArray[np.float64]:
    """The mean of unit vectors, as factors of them, (vectors,).

    Lengths of differences of nearly parallel vectors drown in the error of their products, so that a step's length is
    bounded by the sum of its factors, which do not.
    """
    count = len(cosines)
    mean = np.full(count, 1 / count)
    length = math.sqrt(max(0.0, mean @ cosines @ mean))
    mean = mean / length if length > max(tol, 1e-3) else np.eye(count)[0]
    for _ in range(max_iter):
        dots = np.clip(cosines @ mean, -1, 1)
        angles = np.arccos(dots)
        stretch = np.where(dots > _OPPOSITE - 1, 1 / np.sinc(angles / np.pi), 0.0) / count
        step = stretch - (stretch @ dots) * mean
        if np.abs(step).sum() < tol:
            break
        far = math.sqrt(max(0.0, step @ cosines @ step))
        mean = math.cos(far) * mean + np.sinc(far / np.pi) * step
        mean = mean / math.sqrt(mean @ cosines @ mean)
    return mean
