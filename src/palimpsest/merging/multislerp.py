"""Multi-SLERP: the weighted mean direction of any number of models, at their weighted mean length (after mergekit)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from palimpsest.errors import BadInput
from palimpsest.merging.geometry import from_origin, vectors
from palimpsest.merging.passes import (
    Chunk,
    MergeMethod,
    Passes,
    Sum,
    TensorFacts,
    at_once,
    gram,
    per_model,
    weighted_sum,
)
from palimpsest.method import method, param

_DOUBTFUL = 1e-4  # of the square of the mean: below, it is taken from the mean itself and not from products


@method("merges", "multislerp", paper="mergekit")
@dataclass(frozen=True)
class MultiSlerp(MergeMethod):
    """Barycentric interpolation on the sphere: m / |m| * sum of weight_i |v_i|, m = sum of weight_i v_i / |v_i|.

    The v_i are models, or task vectors where a base is given. mergekit projects unit vectors onto the tangent space at
    m / |m|, averages them with the same weights and maps the average back; as sum of weight_i (u_i - (u_i . m) m / m^2)
    is zero, that step never moves, and this is its closed form.
    """

    weight: tuple[float, ...] = param((1.0,), "weight of each model")
    normalize_weights: bool = param(True, "divide the weights by their sum")
    eps: float = param(1e-8, "length below which a vector has no direction", low=0)
    base: ClassVar = "origin"

    def passes(self, tensor: TensorFacts) -> Passes:
        """Products first, then the combination."""
        weights = per_model(self.weight, tensor.models, "weight")
        if tensor.models == 1:
            return at_once(lambda chunk: chunk.models[0])
        if self.normalize_weights:
            if sum(weights) == 0:
                raise BadInput(f"multislerp: the weights of {tensor.name} sum to 0; set normalize_weights=false")
            weights = [w / sum(weights) for w in weights]
        return self._together(tensor, weights)

    def _together(self, tensor: TensorFacts, weights: list[float]) -> Passes:
        products = yield Sum(lambda chunk: gram(vectors(chunk)))
        norms = [math.sqrt(max(0.0, n)) for n in products.diagonal().tolist()]
        directions = torch.tensor([w / (n + self.eps) if n else 0.0 for w, n in zip(weights, norms, strict=True)])
        directions = directions.double()
        square = float(directions @ products @ directions)
        if any(norms) and square < _DOUBTFUL * sum(abs(w) for w in weights) ** 2:
            found = yield Sum(lambda chunk: _square(chunk, directions.tolist()))
            square = float(found)
        length = math.sqrt(max(0.0, square))
        if length >= max(self.eps, 1e-30):
            mean = sum(w * n for w, n in zip(weights, norms, strict=True))
            weights = (directions * (mean / length)).tolist()
        elif any(norms) and tensor.models > 2:
            raise BadInput(
                f"multislerp: the directions of the models in {tensor.name} cancel out under their weights; "
                "other weights, or another method, are needed"
            )
        return lambda chunk: from_origin(chunk, weighted_sum(vectors(chunk), weights, chunk.new()))


def _square(chunk: Chunk, factors: list[float]) -> Tensor:
    """Of the length of a weighted sum, () float64."""
    mean = weighted_sum(vectors(chunk), factors, chunk.new()).double()
    return mean @ mean
