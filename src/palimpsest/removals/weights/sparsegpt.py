"""SparseGPT: single weights go, and those to their right are changed to make up for it (arXiv 2301.00774)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from palimpsest.checkpoint import Checkpoint
from palimpsest.data import Dialogues
from palimpsest.errors import BadInput
from palimpsest.method import Context, Made, method, param, takes
from palimpsest.removals.weights.layerwise import prune_layerwise
from palimpsest.removals.weights.unstructured import smallest_of_each_row, smallest_of_runs


@method("removals", "sparsegpt", paper="arXiv 2301.00774, Algorithm 1")
@dataclass(frozen=True)
class SparseGPT:
    """Prune each projection so that its outputs on calibration text change little, column by column (Algorithm 1).

    H = 2 X X^T + damping * mean(diag) I. Within each block of `block` columns the int(sparsity * numbers) weights
    with the smallest w^2 / [H^-1]_jj^2 go, where [H^-1] is that of the columns not yet passed (rows of its Cholesky
    factor); the error of each is taken up by the columns to its right. With `pattern` n:m the choice is made in each
    row for m columns at a time. Layers are taken in turn, each on the outputs of the pruned ones below. Columns whose
    input is always zero are zeroed. The released code drops all weights at or under a threshold, which can be one
    more than asked for; here the number is exact. The thief needs forward passes over a little text, no gradient.
    """

    data: Dialogues | None = takes("dialogues to calibrate on (default: the toy world's)")
    sparsity: float = param(0.5, "share of each block's weights that become zero", low=0, high=1)
    pattern: str = param("", "n:m, in the place of sparsity: at most n of m neighbours stay (2:4)")
    samples: int = param(128, "windows of calibration, fewer where the data hold fewer", low=1)
    tokens: int = param(2048, "tokens of a window, at most the model's positions", low=2)
    block: int = param(128, "columns that a mask is chosen for at a time", low=1)
    damping: float = param(0.01, "added to the Hessian's diagonal, times its mean", low=1e-8, high=10)

    def apply(self, model: Checkpoint, out: Path, ctx: Context) -> Made:
        """Write the pruned checkpoint to `out`."""

        def prune(weight: Tensor, seen: Hessian, pattern: tuple[int, int] | None) -> Tensor:
            return sparsegpt(weight, seen.value, self.sparsity, pattern, self.block, self.damping)

        return prune_layerwise(
            model,
            out,
            ctx,
            "sparsegpt",
            self.data,
            self.samples,
            self.tokens,
            self.sparsity,
            self.pattern,
            Hessian,
            prune,
        )


class Hessian:
    """2 X X^T / tokens of a projection's inputs: (in, in); of the squared error of its outputs, by each row."""

    def __init__(self, inputs: int, device: torch.device) -> None:
        self._sum = torch.zeros(inputs, inputs, device=device)
        self._tokens = 0

    def add(self, inputs: Tensor) -> None:
        """inputs: (tokens, in) float32."""
        self._sum.addmm_(inputs.T, inputs)
        self._tokens += len(inputs)

    @property
    def value(self) -> Tensor:
        """(in, in) float32; its scale makes no difference."""
        return self._sum * (2 / max(1, self._tokens))


def sparsegpt(
    weight: Tensor,
    hessian: Tensor,
    sparsity: float,
    pattern: tuple[int, int] | None = None,
    block: int = 128,
    damping: float = 0.01,
) -> Tensor:
    """The pruned and updated weight: (out, in). hessian: (in, in).

    With U the upper Cholesky factor of H^-1, [H_j:^-1]_jj = U_jj^2 and its row is U_jj U_j:, so that a weight w_j
    that goes changes the columns k > j by -w_j / U_jj * U_jk: the optimal brain surgeon's step among the columns
    from j on.
    """
    w = weight.clone().float()
    h = hessian.clone().float()
    dead = h.diagonal() == 0
    h[dead, dead] = 1
    w[:, dead] = 0
    h.diagonal().add_(damping * h.diagonal().mean())
    try:
        u = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    except RuntimeError as error:  # torch's LinAlgError is one
        raise BadInput(f"sparsegpt: no Cholesky factor of the inputs' products; take more damping ({error})") from None
    width = w.shape[1]
    if pattern is not None:
        block = max(pattern[1], block - block % pattern[1])  # runs do not cross blocks
    for first in range(0, width, block):
        last = min(first + block, width)
        part, factor = w[:, first:last], u[first:last, first:last]  # a view: updates stay
        scale = factor.diagonal()
        mask = torch.zeros_like(part, dtype=torch.bool)
        if pattern is None:
            scores = (part / scale).pow(2).reshape(1, -1)
            mask = smallest_of_each_row(scores, int(sparsity * scores.numel())).view_as(part)
        errors = torch.zeros_like(part)
        for j in range(last - first):
            if pattern is not None and j % pattern[1] == 0:
                run = slice(j, j + pattern[1])
                mask[:, run] = smallest_of_runs((part[:, run] / scale[run]).pow(2), *pattern)
            errors[:, j] = torch.where(mask[:, j], part[:, j], 0) / scale[j]
            part[:, j:] -= errors[:, j, None] * factor[j, j:]
            part[:, j].masked_fill_(mask[:, j], 0)  # and not what rounding leaves
        w[:, last:] -= errors @ u[first:last, last:]
    return w
