"""Passthrough: one model's tensors as they are, or scaled; what layer stacking is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from palimpsest.merging.passes import MergeMethod, Passes, TensorFacts, at_once
from palimpsest.method import method, param


@method("merges", "passthrough", paper="mergekit")
@dataclass(frozen=True)
class Passthrough(MergeMethod):
    """scale * theta of one model. With slices, which layers of which model follow one another (a "frankenmerge").

    `scale` may differ from tensor to tensor: 0 for the output projections of a repeated layer makes it an identity.
    """

    scale: tuple[float, ...] = param((1.0,), "factor of the tensor")
    most: ClassVar = 1

    def passes(self, tensor: TensorFacts) -> Passes:
        """One pass."""
        (scale,) = self.scale
        return at_once(lambda chunk: chunk.models[0] if scale == 1 else chunk.models[0].mul_(scale))
