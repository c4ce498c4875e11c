"""SCE: select, calculate, erase (FuseChat, arXiv 2408.07990)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from palimpsest.merging.consensus import consensus
from palimpsest.merging.passes import Chunk, MergeMethod, Passes, Sum, TensorFacts, gram
from palimpsest.merging.selection import Cut, largest
from palimpsest.method import method, param


@method("merges", "sce", paper="arXiv 2408.07990")
@dataclass(frozen=True)
class Sce(MergeMethod):
    """Keep the positions where the models vary most, weigh each model by its task vector's size, average who agrees.

    Section 3.2. Select: the `select_topk` share of the positions whose variance over the models is not 0 (rounded
    down). Calculate: each model's weight in a tensor is the mean square of what is selected of its task vector, over
    the sum of all. Erase: at each position those whose sign is not that of the sum of the task vectors. `floor` is
    mergekit's rule, with 1e-6: where the mean squares of a tensor sum to less, its models weigh the same. That is so in
    most fine-tuned models, whence the default, which is the paper.
    """

    select_topk: float = param(1.0, "share of the positions with variance that is kept", low=0, high=1)
    floor: float = param(0.0, "sum of mean squares below which all models of a tensor weigh the same", low=0)
    base: ClassVar = "needs"

    def passes(self, tensor: TensorFacts) -> Passes:
        """Threshold, then weights, then the merge."""
        cut = Cut(keeps="all")
        if self.select_topk < 1:
            varying = yield Sum(lambda chunk: torch.count_nonzero(variance(chunk)).double())
            keep = int(int(varying) * self.select_topk)
            (cut,) = yield from largest(lambda chunk: [variance(chunk)], [keep], tensor)

        def selected(chunk: Chunk) -> list[Tensor]:
            if cut.keeps == "all":
                return chunk.deltas
            mask = cut.mask(variance(chunk), chunk)
            return [d.mul_(mask) for d in chunk.deltas]

        squares = yield Sum(lambda chunk: torch.stack([gram([d])[0, 0] for d in selected(chunk)]))
        weights = model_weights((squares / max(1, tensor.count)).reshape(-1).tolist(), self.floor)

        def apply(chunk: Chunk) -> Tensor:
            assert chunk.base is not None
            return chunk.base.add_(consensus(selected(chunk), chunk, factors=weights, shares=weights))

        return apply


def model_weights(squares: list[float], floor: float) -> list[float]:
    """Shares of the models in proportion to their mean squares; all the same where those sum to 0, or below `floor`."""
    total = sum(squares)
    if total <= 0 or total < floor:
        return [1 / len(squares)] * len(squares)
    return [s / total for s in squares]


def variance(chunk: Chunk) -> Tensor:
    """Population variance over the models at each position: (n,).

    By differences from the first model: exactly 0 where all agree, and with nothing lost to the size of the weights.
    """
    first, others = chunk.deltas[0], chunk.deltas[1:]
    total, squares, difference = chunk.new().zero_(), chunk.new().zero_(), chunk.new()
    for other in others:
        torch.sub(other, first, out=difference)
        total.add_(difference)
        squares.add_(difference.square_())
    total.square_().div_(len(chunk.deltas))
    return squares.sub_(total).div_(len(chunk.deltas)).relu_()
