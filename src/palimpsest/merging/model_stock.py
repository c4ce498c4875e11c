"""Model Stock: the average of fine-tunes drawn towards their base by the angle between them (arXiv 2403.19522)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from palimpsest.merging.geometry import cosines, row_gram
from palimpsest.merging.passes import Chunk, MergeMethod, Passes, Sum, TensorFacts, at_once, gram, weighted_sum
from palimpsest.method import method, param


@method("merges", "model-stock", paper="arXiv 2403.19522")
@dataclass(frozen=True)
class ModelStock(MergeMethod):
    """t * mean of models + (1 - t) * base, t = k cos / (1 + (k - 1) cos) for k models.

    cos is the mean cosine of all pairs of task vectors, of a tensor, or of each row with `filter_wise`. Where the
    denominator is zero (fine-tunes that balance out), the base stays. Models that disagree (cos < 0) have t < 0.
    """

    filter_wise: bool = param(False, "a t for each row in place of one for each tensor")
    base: ClassVar = "needs"
    fewest: ClassVar = 2

    @property
    def by_rows(self) -> bool:  # type: ignore[override]
        """Rows are whole where each has its own t."""
        return self.filter_wise

    def passes(self, tensor: TensorFacts) -> Passes:
        """Products first, then the combination; by rows all at once."""
        return at_once(_apply_rows) if self.filter_wise else _flat(tensor.models)


def _flat(models: int) -> Passes:
    products = yield Sum(lambda chunk: gram(chunk.deltas))
    share = shares(products).item() / models

    def apply(chunk: Chunk) -> Tensor:
        assert chunk.base is not None
        return weighted_sum(chunk.deltas, [share] * models, chunk.deltas[0]).add_(chunk.base)

    return apply


def _apply_rows(chunk: Chunk) -> Tensor:
    assert chunk.base is not None
    width = max(1, chunk.tensor.row)
    share = shares(row_gram(chunk.deltas, width)).float().unsqueeze(1)  # (rows, 1)
    mean = weighted_sum(chunk.deltas, [1 / len(chunk.deltas)] * len(chunk.deltas), chunk.deltas[0])
    return mean.view(-1, width).mul_(share).flatten().add_(chunk.base)


def shares(products: Tensor) -> Tensor:
    """t from the products of task vectors: (..., models, models) to (...)."""
    count = products.shape[-1]
    first, second = torch.triu_indices(count, count, 1)
    cosine = cosines(products)[..., first, second].mean(-1)
    below = 1 + (count - 1) * cosine
    return torch.where(below.abs() < 1e-6, 0.0, count * cosine / below)
