"""NuSLERP: SLERP of two models or of their task vectors, as whole tensors, by rows, or by columns (after mergekit)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from palimpsest.merging.geometry import cosines, from_origin, row_gram, vectors
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
from palimpsest.merging.slerp import slerp_weights
from palimpsest.method import method, param


@method("merges", "nuslerp", paper="mergekit")
@dataclass(frozen=True)
class NuSlerp(MergeMethod):
    """SLERP with t = weight_2 / (weight_1 + weight_2); of task vectors, put back onto the base, where one is given.

    With `nuslerp_flatten` a tensor is one vector. Without it each row (along the last dimension) is one, and with
    `nuslerp_row_wise` each column (along the first): the name is mergekit's, and so is what it does.
    A vector of zeros counts as orthogonal to all.
    """

    weight: tuple[float, ...] = param((1.0,), "weight of each of the two models; their ratio counts")
    nuslerp_flatten: bool = param(True, "a tensor is one vector")
    nuslerp_row_wise: bool = param(False, "vectors run along the first dimension, where not flattened")
    base: ClassVar = "origin"
    fewest: ClassVar = 2
    most: ClassVar = 2

    @property
    def by_rows(self) -> bool:  # type: ignore[override]
        """Rows are whole where each is a vector."""
        return not self.nuslerp_flatten and not self.nuslerp_row_wise

    def passes(self, tensor: TensorFacts) -> Passes:
        """Products first, then the combination; by rows all at once."""
        first, second = per_model(self.weight, tensor.models, "weight")
        t = 0.5 if abs(first + second) < 1e-6 else second / (first + second)
        if self.nuslerp_flatten:
            return _flat(t)
        return _rows(t) if not self.nuslerp_row_wise else _columns(t, tensor)


def _flat(t: float) -> Passes:
    products = yield Sum(lambda chunk: gram(vectors(chunk)))
    first, second = slerp_weights(cosines(products)[0, 1], t)
    weights = first.item(), second.item()
    return lambda chunk: from_origin(chunk, weighted_sum(vectors(chunk), weights, chunk.new()))


def _rows(t: float) -> Passes:
    def apply(chunk: Chunk) -> Tensor:
        width = max(1, chunk.tensor.row)
        found = vectors(chunk)
        first, second = slerp_weights(cosines(row_gram(found, width))[:, 0, 1], t)
        one, other = (v.view(-1, width) * w.float().unsqueeze(1) for v, w in zip(found, (first, second), strict=True))
        return from_origin(chunk, one.add_(other).flatten())

    return at_once(apply)


def _columns(t: float, tensor: TensorFacts) -> Passes:
    width = max(1, tensor.count // max(1, tensor.shape[0])) if len(tensor.shape) > 1 else 1
    products = yield Sum(lambda chunk: _column_products(vectors(chunk), chunk.first % width, width))
    matrices = torch.stack([products[0], products[1], products[1], products[2]], dim=1).view(-1, 2, 2)
    factors = [w.float() for w in slerp_weights(cosines(matrices)[:, 0, 1], t)]  # each (columns,)

    def apply(chunk: Chunk) -> Tensor:
        lead = chunk.first % width
        one, other = (_in_rows(v, lead, width) for v in vectors(chunk))
        first, second = (f.to(one.device) for f in factors)
        merged = (one * first).addcmul_(other, second).flatten()
        return from_origin(chunk, merged[lead : lead + chunk.count])

    return apply


def _column_products(both: list[Tensor], lead: int, width: int) -> Tensor:
    """(3, columns) float64: first with first, first with second, second with second; `lead` numbers into a row."""
    first, second = (_in_rows(v, lead, width) for v in both)
    return torch.stack([(a * b).sum(0).double() for a, b in ((first, first), (first, second), (second, second))])


def _in_rows(vector: Tensor, lead: int, width: int) -> Tensor:
    """A stretch that begins `lead` numbers into a row, (rows, width): zeros where it does not reach."""
    behind = -(lead + len(vector)) % width
    whole = functional.pad(vector, (lead, behind)) if lead or behind else vector
    return whole.view(-1, width)
