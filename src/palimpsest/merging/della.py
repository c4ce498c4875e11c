"""DELLA: drop entries of a task vector at random, the small ones of each row more often (arXiv 2406.11617)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from palimpsest.errors import BadInput
from palimpsest.merging.consensus import Sparse, elected, linear
from palimpsest.merging.passes import Chunk, MergeMethod, Passes, TensorFacts, per_model
from palimpsest.merging.randomness import FULL, Mask, Masks, draws
from palimpsest.method import method, param

_AT_ONCE = 1 << 15  # numbers that are ranked at a time: what it takes stays in the caches of a core
Level = np.ndarray[Any, np.dtype[np.uint32]]


@method("merges", "della", paper="arXiv 2406.11617")
@dataclass(frozen=True)
class Della(MergeMethod):
    """MagPrune, then the sign election of TIES: those that agree are averaged.

    Section 3.1: in a row of n entries the one of rank r in magnitude (0 the smallest) is kept with probability
    density - epsilon + 2 epsilon r / (n - 1), so that a row keeps `density` in the mean. The rescaling is the
    paper's by default: each kept entry by 1/its probability. mergekit's (`l1`) makes the L1 norm of what is kept
    that of the whole task vector. Of equal magnitudes the lower position has the lower rank. Tensors of one
    dimension are one row. Where density is 0 or 1 nothing is random.
    """

    density: tuple[float, ...] = param((1.0,), "share of each task vector that is kept, in the mean", low=0, high=1)
    epsilon: tuple[float, ...] = param(
        (0.15,), "probabilities run from density - epsilon to density + epsilon", low=0, high=0.5
    )
    weight: tuple[float, ...] = param((1.0,), "factor of each model's task vector")
    rescale: Literal["paper", "l1", "none"] = param(
        "paper",
        "paper: each entry by 1/its probability; l1: to the L1 norm of the whole task vector (mergekit's); none",
    )
    normalize: bool = param(True, "divide by the sum of the weights that agree")
    lambda_: float = param(1.0, "factor of the merged task vector")
    base: ClassVar = "needs"
    by_rows: ClassVar = True

    def passes(self, tensor: TensorFacts) -> Passes:
        """One pass, or one for the norms before it."""
        weights = per_model(self.weight, tensor.models, "weight")
        sparse = _dropped(tensor, self.density, self.epsilon, self.rescale)
        return (yield from elected(sparse, weights, self.normalize, self.lambda_, self.rescale))


@method("merges", "della-linear", paper="arXiv 2406.11617")
@dataclass(frozen=True)
class DellaLinear(MergeMethod):
    """MagPrune as in DELLA, without the election: the sparse task vectors are added up."""

    density: tuple[float, ...] = param((1.0,), "share of each task vector that is kept, in the mean", low=0, high=1)
    epsilon: tuple[float, ...] = param(
        (0.15,), "probabilities run from density - epsilon to density + epsilon", low=0, high=0.5
    )
    weight: tuple[float, ...] = param((1.0,), "factor of each model's task vector")
    rescale: Literal["paper", "l1", "none"] = param(
        "paper",
        "paper: each entry by 1/its probability; l1: to the L1 norm of the whole task vector (mergekit's); none",
    )
    normalize: bool = param(False, "divide by the sum of the weights")
    lambda_: float = param(1.0, "factor of the merged task vector")
    base: ClassVar = "needs"
    by_rows: ClassVar = True

    def passes(self, tensor: TensorFacts) -> Passes:
        """One pass, or one for the norms before it."""
        weights = per_model(self.weight, tensor.models, "weight")
        sparse = _dropped(tensor, self.density, self.epsilon, self.rescale)
        return (yield from linear(sparse, weights, self.normalize, self.lambda_, self.rescale))


def _dropped(tensor: TensorFacts, densities: tuple[float, ...], epsilons: tuple[float, ...], rescale: str) -> Sparse:
    """The task vectors with entries dropped at random, each by draws of its own."""
    pairs = zip(
        per_model(densities, tensor.models, "density"), per_model(epsilons, tensor.models, "epsilon"), strict=True
    )
    levels = [keep_levels(tensor.row, density, epsilon) for density, epsilon in pairs]
    masks = Masks(twice=rescale == "l1")

    def sparse(chunk: Chunk) -> list[Tensor]:
        for model, (delta, level) in enumerate(zip(chunk.deltas, levels, strict=True)):
            if level is None:
                continue
            if not level.any():
                delta.zero_()
            elif rescale == "paper":
                delta.mul_(torch.from_numpy(_factors(delta, level, model, chunk)).to(delta.device))
            else:
                drawn = masks.mask(model, chunk.number, chunk.count, partial(_kept, delta, level, model, chunk))
                delta.mul_(chunk.new().copy_(torch.from_numpy(drawn.view("u1"))))
        return chunk.deltas

    return sparse


def _kept(delta: Tensor, level: Level, model: int, chunk: Chunk) -> Mask:
    """Which entries are kept: (n,) bool."""
    found = np.empty(chunk.count, np.bool_)
    for some, drawn, limits in _rows_at_once(delta, level, model, chunk):
        np.less(drawn, limits, out=found[some])
    return found


def _factors(delta: Tensor, level: Level, model: int, chunk: Chunk) -> np.ndarray[Any, np.dtype[np.float32]]:
    """1/its probability where an entry is kept, else 0: (n,) float32."""
    found = np.empty(chunk.count, np.float32)
    for some, drawn, limits in _rows_at_once(delta, level, model, chunk):
        np.less(drawn, limits, out=found[some])
        probability = limits.astype(np.float32)
        probability *= np.float32(1 / FULL)
        found[some] /= probability
    return found


def _rows_at_once(delta: Tensor, level: Level, model: int, chunk: Chunk) -> Iterator[tuple[slice, Level, Level]]:
    """Of some rows at a time where they stand, their draws, and below what a draw keeps the entry; both (n,)."""
    row = chunk.tensor.row
    drawn = draws(chunk.tensor.seed, chunk.tensor.name, model, chunk.first, chunk.count)
    magnitudes = torch.abs(delta, out=chunk.new()).cpu().numpy()
    step = max(1, _AT_ONCE // row) * row
    for first in range(0, chunk.count, step):
        some = slice(first, first + step)
        yield some, drawn[some], by_rank(magnitudes[some].reshape(-1, row), level).reshape(-1)


def keep_levels(row: int, density: float, epsilon: float) -> Level | None:
    """Probability to keep for each rank in a row, the smallest first, in units of 2**-32: (row,); None keeps all.

    A row of one entry has the probability `density`. Raises BadInput where a probability would not lie in (0, 1).
    """
    if density >= 1:
        return None
    if density <= 0:
        return np.zeros(row, np.uint32)
    if density + epsilon >= 1 or density - epsilon <= 0:
        raise BadInput(
            f"della: density {density} and epsilon {epsilon}: density - epsilon and density + epsilon have to lie "
            "between 0 and 1"
        )
    ranks = np.arange(row) / (row - 1) if row > 1 else np.array([0.5])
    return np.rint((density - epsilon + 2 * epsilon * ranks) * FULL).astype(np.uint32)


def by_rank(magnitudes: np.ndarray[Any, Any], level: Level) -> Level:
    """For each entry the level of its rank in its row: (rows, row) float32, not negative, and (row,) to (rows, row)."""
    # Numbers that are not negative are ordered as their bits are; with the position below the bits no two keys are
    # equal, so that a fast sort that is not stable ranks them stably (in less time than a radix argsort).
    keys = np.ascontiguousarray(magnitudes, dtype=np.float32).view(np.uint32).astype(np.uint64)
    keys <<= np.uint64(32)
    keys |= np.arange(keys.shape[1], dtype=np.uint64)
    keys.sort(axis=1)
    keys &= np.uint64(0xFFFFFFFF)
    order = torch.from_numpy(keys.view(np.int64))  # (rows, row): position of each rank
    ranked = torch.from_numpy(level.view(np.int32)).expand_as(order)
    found = torch.empty(order.shape, dtype=torch.int32).scatter_(1, order, ranked)
    return found.numpy().view(np.uint32)
