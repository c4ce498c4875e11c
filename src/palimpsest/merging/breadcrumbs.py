"""Model Breadcrumbs: drop the largest entries of a task vector as well as the smallest (arXiv 2312.06795)."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from palimpsest.merging.consensus import Sparse, elected, linear, magnitudes
from palimpsest.merging.passes import Chunk, MergeMethod, Pass, Passes, TensorFacts, per_model
from palimpsest.merging.selection import largest
from palimpsest.method import method, param


@method("merges", "breadcrumbs", paper="arXiv 2312.06795")
@dataclass(frozen=True)
class Breadcrumbs(MergeMethod):
    """Drop the `gamma` largest entries of each task vector, keep the `density` largest of the rest, add them up.

    Section 3, by tensor. Both are shares of the whole tensor (the paper's beta is 1 - gamma - density); counts are
    rounded down. Where density + gamma is above 1, fewer of the largest are dropped, and density is kept, as in
    mergekit. Of equal magnitudes the lower positions count as the larger.
    """

    density: tuple[float, ...] = param((1.0,), "share of each task vector that is kept", low=0, high=1)
    gamma: tuple[float, ...] = param((0.01,), "share of each task vector dropped as its largest", low=0, high=1)
    weight: tuple[float, ...] = param((1.0,), "factor of each model's task vector")
    normalize: bool = param(False, "divide by the sum of the weights")
    lambda_: float = param(1.0, "factor of the merged task vector")
    rescale: Literal["none", "l1"] = param("none", "scale what is kept to the L1 norm of the whole task vector, or not")
    base: ClassVar = "needs"

    def passes(self, tensor: TensorFacts) -> Passes:
        """Thresholds first, then the merge."""
        weights = per_model(self.weight, tensor.models, "weight")
        sparse = yield from _between(tensor, self.density, self.gamma)
        return (yield from linear(sparse, weights, self.normalize, self.lambda_, self.rescale))


@method("merges", "breadcrumbs-ties", paper="arXiv 2312.06795")
@dataclass(frozen=True)
class BreadcrumbsTies(MergeMethod):
    """Breadcrumbs, then the sign election of TIES (arXiv 2306.01708, section 4.2): those that agree are added up."""

    density: tuple[float, ...] = param((1.0,), "share of each task vector that is kept", low=0, high=1)
    gamma: tuple[float, ...] = param((0.01,), "share of each task vector dropped as its largest", low=0, high=1)
    weight: tuple[float, ...] = param((1.0,), "factor of each model's task vector")
    normalize: bool = param(False, "divide by the sum of the weights that agree")
    lambda_: float = param(1.0, "factor of the merged task vector")
    rescale: Literal["none", "l1"] = param("none", "scale what is kept to the L1 norm of the whole task vector, or not")
    base: ClassVar = "needs"

    def passes(self, tensor: TensorFacts) -> Passes:
        """Thresholds first, then the merge."""
        weights = per_model(self.weight, tensor.models, "weight")
        sparse = yield from _between(tensor, self.density, self.gamma)
        return (yield from elected(sparse, weights, self.normalize, self.lambda_, self.rescale))


def _between(
    tensor: TensorFacts, densities: tuple[float, ...], gammas: tuple[float, ...]
) -> Generator[Pass, Any, Sparse]:
    """The task vectors without their largest and smallest entries."""
    pairs = zip(per_model(densities, tensor.models, "density"), per_model(gammas, tensor.models, "gamma"), strict=True)
    counts = [band(tensor.count, density, gamma) for density, gamma in pairs]
    cuts = yield from largest(
        lambda chunk: [m for m in magnitudes(chunk) for _ in range(2)], [k for pair in counts for k in pair], tensor
    )

    def sparse(chunk: Chunk) -> list[Tensor]:
        # What the outer cut keeps, less what the inner one does: the same numbers or zeros, so the difference is exact.
        for delta, inner, outer in zip(chunk.deltas, cuts[::2], cuts[1::2], strict=True):
            dropped = None if inner.keeps == "none" else inner.trim(chunk.new().copy_(delta), chunk)
            outer.trim(delta, chunk)
            if dropped is not None:
                delta.sub_(dropped)
        return chunk.deltas

    return sparse


def band(count: int, density: float, gamma: float) -> tuple[int, int]:
    """(how many of the largest are dropped, how many are left with what is kept) of `count` entries."""
    if density >= 1:
        return 0, count
    kept = int(density * count)
    dropped = min(int(gamma * count), count - kept)
    return dropped, dropped + kept
