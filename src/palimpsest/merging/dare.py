"""DARE: drop entries of a task vector at random and rescale the rest (arXiv 2311.03099)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from palimpsest.merging.consensus import Sparse, elected, linear
from palimpsest.merging.passes import Chunk, MergeMethod, Passes, TensorFacts, per_model
from palimpsest.merging.randomness import Masks, kept
from palimpsest.method import method, param


@method("merges", "dare", paper="arXiv 2311.03099")
@dataclass(frozen=True)
class Dare(MergeMethod):
    """Drop each entry of a task vector with probability 1 - `density`, rescale the rest, add the task vectors up.

    Section 3.2; mergekit's dare_linear. The rescaling is the paper's by default: 1/density, which keeps the expectation
    of every entry. mergekit's (`l1`) makes the L1 norm of what is kept that of the whole task vector.
    """

    density: tuple[float, ...] = param((1.0,), "probability that an entry of a task vector is kept", low=0, high=1)
    weight: tuple[float, ...] = param((1.0,), "factor of each model's task vector")
    rescale: Literal["paper", "l1", "none"] = param(
        "paper", "paper: by 1/density; l1: to the L1 norm of the whole task vector (mergekit's); none"
    )
    normalize: bool = param(False, "divide by the sum of the weights")
    lambda_: float = param(1.0, "factor of the merged task vector")
    base: ClassVar = "needs"

    def passes(self, tensor: TensorFacts) -> Passes:
        """One pass, or one for the norms before it."""
        weights = per_model(self.weight, tensor.models, "weight")
        sparse = _dropped(tensor, self.density, self.rescale)
        return (yield from linear(sparse, weights, self.normalize, self.lambda_, self.rescale))


@method("merges", "dare-ties", paper="arXiv 2311.03099")
@dataclass(frozen=True)
class DareTies(MergeMethod):
    """DARE, then the sign election of TIES (arXiv 2306.01708, section 4.2): those that agree are added up."""

    density: tuple[float, ...] = param((1.0,), "probability that an entry of a task vector is kept", low=0, high=1)
    weight: tuple[float, ...] = param((1.0,), "factor of each model's task vector")
    rescale: Literal["paper", "l1", "none"] = param(
        "paper", "paper: by 1/density; l1: to the L1 norm of the whole task vector (mergekit's); none"
    )
    normalize: bool = param(False, "divide by the sum of the weights that agree")
    lambda_: float = param(1.0, "factor of the merged task vector")
    base: ClassVar = "needs"

    def passes(self, tensor: TensorFacts) -> Passes:
        """One pass, or one for the norms before it."""
        weights = per_model(self.weight, tensor.models, "weight")
        sparse = _dropped(tensor, self.density, self.rescale)
        return (yield from elected(sparse, weights, self.normalize, self.lambda_, self.rescale))


def _dropped(tensor: TensorFacts, densities: tuple[float, ...], rescale: str) -> Sparse:
    """The task vectors with entries dropped at random, each by draws of its own."""
    shares = per_model(densities, tensor.models, "density")
    masks = Masks(twice=rescale == "l1")

    def sparse(chunk: Chunk) -> list[Tensor]:
        for model, (delta, share) in enumerate(zip(chunk.deltas, shares, strict=True)):
            if share < 1:
                place = tensor.seed, tensor.name, model, chunk.first, chunk.count
                drawn = masks.mask(model, chunk.number, chunk.count, partial(kept, *place, share))
                factor = chunk.new().copy_(torch.from_numpy(drawn.view("u1")))
                delta.mul_(factor.div_(share) if rescale == "paper" and share > 0 else factor)
        return chunk.deltas

    return sparse
