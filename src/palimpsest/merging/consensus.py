"""What the sparse methods share: rescaling of sparse task vectors, sign election, and the merged model they make.

With sparse task vectors d_i, factors f_i = weight_i times what rescales d_i, and N = 1:

    linear:   theta_0 + lambda / N * sum of f_i d_i
    elected:  theta_0 + lambda / N * sum over the agreeing i of f_i d_i

A model agrees at a position where its f_i d_i is not 0 and has the elected sign: that of sum f_i d_i, and plus where
the sum is 0 (TIES, arXiv 2306.01708, section 4.2, by mass). With `normalize`, N is the sum of the weights; elected: of
the weights of those that agree, at each position (the disjoint mean). A sum of weights that is 0 counts as 1.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any

import torch
from torch import Tensor

from palimpsest.merging.passes import Chunk, Pass, Passes, Sum, TensorFacts, weighted_sum
from palimpsest.merging.task_arithmetic import scaled

Sparse = Callable[[Chunk], list[Tensor]]  # the task vectors of a chunk with entries dropped, each (n,)
_NO_NORM = 1e-7  # an L1 norm below this is not rescaled to or from, as in mergekit


def linear(sparse: Sparse, weights: Sequence[float], normalize: bool, lambda_: float, rescale: str) -> Passes:
    """The passes that end in the base plus the weighted sparse task vectors."""
    rescaling = (yield from l1_rescaling(sparse, len(weights))) if rescale == "l1" else [1.0] * len(weights)
    factors = [f * r for f, r in zip(scaled(list(weights), normalize, lambda_), rescaling, strict=True)]

    def apply(chunk: Chunk) -> Tensor:
        assert chunk.base is not None
        return chunk.base + weighted_sum(sparse(chunk), factors)

    return apply


def elected(sparse: Sparse, weights: Sequence[float], normalize: bool, lambda_: float, rescale: str) -> Passes:
    """The passes that end in the base plus the sparse task vectors that agree with the elected signs."""
    rescaling = (yield from l1_rescaling(sparse, len(weights))) if rescale == "l1" else [1.0] * len(weights)
    factors = [w * r for w, r in zip(weights, rescaling, strict=True)]

    def apply(chunk: Chunk) -> Tensor:
        assert chunk.base is not None
        deltas = sparse(chunk)
        merged = consensus(deltas, votes=factors, factors=factors, shares=weights if normalize else None)
        return torch.add(chunk.base, merged, alpha=lambda_)

    return apply


def consensus(
    deltas: Sequence[Tensor], *, votes: Sequence[float], factors: Sequence[float], shares: Sequence[float] | None
) -> Tensor:
    """Sum of factor_i d_i over those i whose vote_i d_i has the sign of the sum of all votes: (n,).

    With `shares`, over the sum of share_i of the same ones. votes and factors of a model have the same sign.
    """
    # Boolean masks cost ten times what this arithmetic does: relu(d * sign) is |d| where d agrees, else 0.
    sign = torch.copysign(torch.ones((), device=deltas[0].device), weighted_sum(deltas, votes))
    merged = torch.zeros_like(sign)
    divisor = None if shares is None else torch.zeros_like(sign)
    for i, (delta, vote, factor) in enumerate(zip(deltas, votes, factors, strict=True)):
        if vote == 0:
            continue
        agreeing = delta * sign
        if vote < 0:
            agreeing.neg_()
        agreeing.relu_()
        merged.add_(agreeing, alpha=abs(factor))
        if shares is not None and divisor is not None:
            divisor.add_(agreeing.sign_(), alpha=shares[i])
    merged.mul_(sign)
    if shares is not None and divisor is not None:
        if min(shares) < 0:
            divisor[divisor == 0] = 1.0
        else:  # where nobody agrees the sum is 0, whatever it is divided by
            divisor.clamp_(min=min((s for s in shares if s > 0), default=1.0))
        merged.div_(divisor)
    return merged


def l1_rescaling(sparse: Sparse, models: int) -> Generator[Pass, Any, list[float]]:
    """For each model what gives its sparse task vector the L1 norm of the whole one (mergekit's `rescale: true`)."""

    def norms(chunk: Chunk) -> Tensor:
        pairs = zip(chunk.deltas, sparse(chunk), strict=True)
        return torch.stack([torch.stack([a.abs().sum(), b.abs().sum()]) for a, b in pairs]).double()

    found = yield Sum(norms)  # (models, 2)
    before, after = found.reshape(models, 2).unbind(1)
    usable = (before >= _NO_NORM) & (after >= _NO_NORM)
    return [float(b / a) if u else 1.0 for b, a, u in zip(before, after, usable, strict=True)]


def magnitudes(chunk: Chunk) -> list[Tensor]:
    """Magnitudes of the task vectors, each (n,)."""
    return [d.abs() for d in chunk.deltas]


def positive_share(tensor: TensorFacts, share: float) -> int:
    """How many of a tensor's entries a share of them is, rounded down, but at least one of a positive share."""
    return 0 if share <= 0 else max(1, int(share * tensor.count))
