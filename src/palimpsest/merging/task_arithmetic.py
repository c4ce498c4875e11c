"""Task arithmetic: the base plus weighted task vectors (arXiv 2212.04089)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from palimpsest.merging.passes import Chunk, MergeMethod, Passes, TensorFacts, at_once, per_model, weighted_sum
from palimpsest.method import method, param


@method("merges", "task-arithmetic", paper="arXiv 2212.04089")
@dataclass(frozen=True)
class TaskArithmetic(MergeMethod):
    """Base plus weighted task vectors: theta_0 + lambda * sum of weight_i (theta_i - theta_0)."""

    weight: tuple[float, ...] = param((1.0,), "factor of each model's task vector")
    normalize: bool = param(False, "divide by the sum of the weights")
    lambda_: float = param(1.0, "factor of the merged task vector")
    base: ClassVar = "needs"

    def passes(self, tensor: TensorFacts) -> Passes:
        """One pass."""
        weights = scaled(per_model(self.weight, tensor.models, "weight"), self.normalize, self.lambda_)

        def apply(chunk: Chunk) -> Tensor:
            assert chunk.base is not None
            # Not as (1 - sum of weights) theta_0 + ...: where a model is the base, the base is to come out bit by bit.
            return weighted_sum(chunk.deltas, weights, chunk.deltas[0]).add_(chunk.base)

        return at_once(apply)


def scaled(weights: list[float], normalize: bool, factor: float) -> list[float]:
    """Weights times `factor`, over their sum where `normalize` and the sum is not zero."""
    total = sum(weights) if normalize else 1.0
    return [w * factor / (total if abs(total) > 1e-8 else 1.0) for w in weights]
