"""TIES: trim, elect sign, merge (arXiv 2306.01708)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from palimpsest.merging.consensus import elected, magnitudes, positive_share
from palimpsest.merging.passes import Chunk, MergeMethod, Passes, TensorFacts, per_model
from palimpsest.merging.selection import largest
from palimpsest.method import method, param


@method("merges", "ties", paper="arXiv 2306.01708")
@dataclass(frozen=True)
class Ties(MergeMethod):
    """Keep the `density` largest entries of each task vector, elect a sign a position, average those that agree.

    Section 4.2, algorithm 1. k is int(density * numbers in the tensor), at least 1 where density is positive; of equal
    magnitudes at the cut those at lower positions are kept (mergekit: whichever its unstable sort puts first).
    """

    density: tuple[float, ...] = param((1.0,), "share of each task vector that is kept", low=0, high=1)
    weight: tuple[float, ...] = param((1.0,), "factor of each model's task vector")
    normalize: bool = param(True, "divide by the sum of the weights that agree")
    lambda_: float = param(1.0, "factor of the merged task vector")
    rescale: Literal["none", "l1"] = param("none", "scale what is kept to the L1 norm of the whole task vector, or not")
    base: ClassVar = "needs"

    def passes(self, tensor: TensorFacts) -> Passes:
        """Thresholds first, then the merge."""
        weights = per_model(self.weight, tensor.models, "weight")
        keep = [positive_share(tensor, d) for d in per_model(self.density, tensor.models, "density")]
        cuts = yield from largest(magnitudes, keep, tensor)

        def sparse(chunk: Chunk) -> list[Tensor]:
            return [cut.trim(d, chunk) for cut, d in zip(cuts, chunk.deltas, strict=True)]

        return (yield from elected(sparse, weights, self.normalize, self.lambda_, self.rescale))
