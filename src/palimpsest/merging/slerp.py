"""SLERP: from one model to the other along the great circle, each tensor as one vector."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

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
        cosine = _cosine(products[0, 1].item(), products[0, 0].item(), products[1, 1].item())
        weights = slerp_weights(cosine, self.t, self.dot_threshold)
        return lambda chunk: weighted_sum(chunk.models, weights, chunk.models[0])


def _cosine(dot: float, first: float, second: float) -> float:
    """The cosine of two vectors from their products; 0 where one of them is zero."""
    size = math.sqrt(first * second)
    return max(-1.0, min(1.0, dot / size)) if size else 0.0


def slerp_weights(cosine: float, t: float, dot_threshold: float) -> tuple[float, float]:
    """Factors of the two vectors at share `t` of the second."""
    if abs(cosine) > dot_threshold:
        return 1 - t, t
    angle = math.acos(cosine)
    return math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)
