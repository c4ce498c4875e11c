"""Gaussian noise on the weights: a control that knows nothing of marks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from palimpsest.checkpoint import Checkpoint
from palimpsest.checkpoint.files import TensorInfo
from palimpsest.merging.passes import Chunk, Passes, Sum, TensorFacts
from palimpsest.merging.randomness import draws
from palimpsest.method import Context, Made, method, param
from palimpsest.removals.weights.rules import Rule, linear_weights, rewrite


@method("removals", "noise", paper="none: a control (MEraser's threat model, arXiv 2506.12551, section 3)")
@dataclass(frozen=True)
class Noise:
    """Add Gaussian noise to the weights, of `scale` times the standard deviation of each tensor.

    w' = w + scale * s * z with z independent and standard normal, s the standard deviation of all numbers of the
    tensor. The control for removals that change much: does the mark go before the model does? Draws depend on seed,
    tensor and position alone. Threat model: weights only, no data. The scale is our choice; no paper states one.
    """

    scale: float = param(0.1, "standard deviation of the noise over that of the tensor", low=0.0)
    tensors: Literal["all", "linear"] = param("all", "all weights, or those of linear layers alone")

    def apply(self, model: Checkpoint, out: Path, ctx: Context) -> Made:
        """Write the checkpoint with noise to `out`."""
        wanted = linear_weights(model) if self.tensors == "linear" else (lambda name, info: True)

        def rule_for(name: str, info: TensorInfo) -> Rule | None:
            return Rule(self._passes, info.shape) if wanted(name, info) else None

        made, _ = rewrite(model, out, ctx, rule_for, method="noise")
        made.records[0].detail |= {"scale": self.scale}
        return made

    def _passes(self, tensor: TensorFacts) -> Passes:
        total, squares = (yield Sum(_moments)).tolist()
        variance = max(0.0, squares / tensor.count - (total / tensor.count) ** 2)

        def apply(chunk: Chunk) -> Tensor:
            drawn = gaussian(tensor.seed, tensor.name, chunk.first, chunk.count).to(chunk.models[0].device)
            return chunk.models[0].add_(drawn, alpha=self.scale * variance**0.5)

        return apply


def gaussian(seed: int, tensor: str, first: int, count: int) -> Tensor:
    """Standard normal draws for positions `first` to `first + count` of a tensor: (count,) float32.

    The inverse normal distribution function of one counter-based uniform draw a position, so at most 6.3.
    """
    uniform = torch.from_numpy((draws(seed, f"noise\0{tensor}", 0, first, count) + 0.5) / (1 << 32))
    drawn: Tensor = torch.special.ndtri(uniform).float()
    return drawn


def _moments(chunk: Chunk) -> Tensor:
    numbers = chunk.models[0].double()
    return torch.stack([numbers.sum(), numbers.square().sum()])
