"""Scores of heads, channels and columns by magnitude or by Taylor importance; each weight is seen as (out, in)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from palimpsest.removals.weights.coupling import Group, Part

Taylor = Literal["vectorize", "param_first", "param_second", "param_mix"]


def as_out_in(weight: Tensor, transposed: bool) -> Tensor:
    """A view (out, in) of a weight that is stored as (in, out) where `transposed`, as GPT-2's Conv1D has it."""
    return weight.T if transposed else weight


def feature_sums(values: Tensor, part: Part) -> Tensor:
    """Sums of values (out, in) over all that belongs to one feature of a part: (units, features of a unit)."""
    if part.rows is not None:
        values = values[torch.from_numpy(part.rows)]
    sums = values.sum(1) if part.side == "out" else values.sum(0)
    return sums[torch.from_numpy(part.places).to(sums.device)]


def magnitude_scores(group: Group, weight: Callable[[str], Tensor], power: int) -> Tensor:
    """Sum of |w|^power over what a unit has in each part, averaged over the parts: (units,) float32.

    For plain multi-head attention this is LLM-Pruner's: mean over the members of each channel's sum, then the sum of a
    head's channels. weight: a tensor's values (out, in) by name.
    """
    parts = [feature_sums(weight(p.tensor).float().abs().pow(power), p).sum(1) for p in group.parts]
    return torch.stack(parts).mean(0)


def taylor_values(weight: Tensor, grad: Tensor, squared: Tensor, importance: Taylor) -> Tensor:
    """What is summed for a Taylor importance, in the weight's shape. With S = w * grad:

    vectorize, param_first: S. param_second: w^2 * squared. param_mix: S - w^2 * squared / 2.
    grad: of the mean loss of the calibration batch. squared: mean over its examples of their squared gradients.
    """
    if importance in ("vectorize", "param_first"):
        return weight * grad
    second = weight.pow(2) * squared
    return second if importance == "param_second" else weight * grad - second / 2


def taylor_scores(group: Group, values: Callable[[str], Tensor], importance: Taylor) -> Tensor:
    """(units,): of each channel |sum of S| for `vectorize`, else the sum of absolute values; over parts and channels.

    values: what `taylor_values` gives for a tensor's name, seen as (out, in).
    """
    total = torch.zeros(group.units)
    for part in group.parts:
        found = values(part.tensor)
        sums = feature_sums(found, part).abs() if importance == "vectorize" else feature_sums(found.abs(), part)
        total += sums.sum(1).cpu()
    return total


def l2_scores(group: Group, values: Callable[[str], Tensor]) -> Tensor:
    """(units,): the L2 norm of all values that a unit has in any part (MEraser, Appendix H: l2 within groups)."""
    return torch.stack([feature_sums(values(p.tensor).pow(2), p).sum(1).cpu() for p in group.parts]).sum(0).sqrt()


def normalised(scores: Sequence[Tensor]) -> list[Tensor]:
    """Each matrix's scores over their mean, so that columns of different matrices and layers compare."""
    return [s / s.mean().clamp_min(1e-30) for s in scores]
