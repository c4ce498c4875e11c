"""Wanda: single weights with the smallest |weight| times norm of the input go (arXiv 2306.11695)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from palimpsest.checkpoint import Checkpoint
from palimpsest.data import Dialogues
from palimpsest.method import Context, Made, method, param, takes
from palimpsest.removals.weights.layerwise import prune_layerwise
from palimpsest.removals.weights.unstructured import smallest_of_each_row, smallest_of_runs


@method("removals", "wanda", paper="arXiv 2306.11695, section 3")
@dataclass(frozen=True)
class Wanda:
    """Zero the weights with the smallest |W_ij| * ||X_j||, compared within each output row (section 3, eq. 1).

    ||X_j|| is the L2 norm of the j-th input over all calibration tokens, read layer by layer from the already pruned
    model below. int(sparsity * inputs) weights of every row go, exactly; of equal scores the lower column. With
    `pattern` n:m at most n of m inputs that follow each other stay. All projections of the layers are pruned, not
    embeddings, norms, biases or head. The paper calibrates on 128 windows of C4; here on dialogues. The thief needs
    forward passes over a little text, no gradient.
    """

    data: Dialogues | None = takes("dialogues to calibrate on (default: the toy world's)")
    sparsity: float = param(0.5, "share of each row's weights that become zero", low=0, high=1)
    pattern: str = param("", "n:m, in the place of sparsity: at most n of m neighbours stay (2:4)")
    samples: int = param(128, "windows of calibration, fewer where the data hold fewer", low=1)
    tokens: int = param(2048, "tokens of a window, at most the model's positions", low=2)

    def apply(self, model: Checkpoint, out: Path, ctx: Context) -> Made:
        """Write the pruned checkpoint to `out`."""

        def prune(weight: Tensor, seen: InputNorms, pattern: tuple[int, int] | None) -> Tensor:
            scores = wanda_scores(weight, seen.norms)
            if pattern is not None:
                return weight.masked_fill(smallest_of_runs(scores, *pattern), 0)
            return weight.masked_fill(smallest_of_each_row(scores, int(self.sparsity * weight.shape[1])), 0)

        return prune_layerwise(
            model,
            out,
            ctx,
            "wanda",
            self.data,
            self.samples,
            self.tokens,
            self.sparsity,
            self.pattern,
            InputNorms,
            prune,
        )


class InputNorms:
    """L2 norms over all tokens of each of `inputs` features."""

    def __init__(self, inputs: int, device: torch.device) -> None:
        self._squares = torch.zeros(inputs, device=device, dtype=torch.float64)

    def add(self, inputs: Tensor) -> None:
        """inputs: (tokens, in)."""
        self._squares += inputs.double().pow(2).sum(0)

    @property
    def norms(self) -> Tensor:
        """(in,) float32."""
        return self._squares.sqrt().float()


def wanda_scores(weight: Tensor, norms: Tensor) -> Tensor:
    """|W_ij| * ||X_j||: (out, in). norms: (in,)."""
    return weight.abs() * norms
