"""SLERP: from one model to the other along the great circle, each tensor as one vector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from palimpsest.merging.geometry import UNDETERMINED, cosines
from palimpsest.merging.passes import MergeMethod, Passes, Sum, TensorFacts, gram, weighted_sum
from palimpsest.method import method, param


@method("merges", "slerp", paper="Shoemake, SIGGRAPH 1985")
@dataclass(frozen=True)
class Slerp(MergeMethod):
    """Spherical interpolation of two models: sin((1-t) w)/sin w * first + sin(t w)/sin w * second, w their angle.

    The first is the base where one is given, else the first model; t is the share of the other. Tensors with an
    absolute cosine above `dot_threshold` are interpolated linearly, as mergekit does.
    """

    t: float = param(0.5, "share of the second model", low=0, high=1)
    dot_threshold: float = param(0.9995, "cosine above which interpolation is linear", low=0, high=1)
    base: ClassVar = "model"
    fewest: ClassVar = 2
    most: ClassVar = 2

    def passes(self, tensor: TensorFacts) -> Passes:
        """Products first, then the combination."""
        products = yield Sum(lambda chunk: gram(chunk.models))
        first, second = slerp_weights(cosines(products)[0, 1], self.t, self.dot_threshold)
        weights = first.item(), second.item()
        return lambda chunk: weighted_sum(chunk.models, weights, chunk.models[0])


def slerp_weights(cosine: Tensor, t: float, dot_threshold: float = 1.0) -> tuple[Tensor, Tensor]:
    """Factors of the two vectors at share `t` of the second, in the shape of the float64 `cosine`.

    1 - t and t above `dot_threshold`, and wherever the vectors are parallel or antipodal as far as one can tell.
    """
    linear = (cosine.abs() > dot_threshold) | (cosine.abs() >= 1 - UNDETERMINED)
    angle = torch.acos(torch.where(linear, 0.0, cosine))
    first, second = torch.sin((1 - t) * angle) / torch.sin(angle), torch.sin(t * angle) / torch.sin(angle)
    return torch.where(linear, 1 - t, first), torch.where(linear, t, second)
