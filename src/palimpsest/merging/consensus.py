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

Sparse = Callable[[Chunk], list[Tensor]]  # the task vectors of a chunk with entries dropped, each (n,), in their place
_NO_NORM = 1e-7  # an L1 norm below this is not rescaled to or from, as in mergekit


def linear(sparse: Sparse, weights: Sequence[float], normalize: bool, lambda_: float, rescale: str) -> Passes:
    """The passes that end in the base plus the weighted sparse task vectors."""
    rescaling = (yield from l1_rescaling(sparse, len(weights))) if rescale == "l1" else [1.0] * len(weights)
    factors = [f * r for f, r in zip(scaled(list(weights), normalize, lambda_), rescaling, strict=True)]

    def apply(chunk: Chunk) -> Tensor:
        assert chunk.base is not None
        deltas = sparse(chunk)
        return chunk.base.add_(weighted_sum(deltas, factors, deltas[0]))

    return apply


def elected(sparse: Sparse, weights: Sequence[float], normalize: bool, lambda_: float, rescale: str) -> Passes:
    """The passes that end in the base plus the sparse task vectors that agree with the elected signs."""
    rescaling = (yield from l1_rescaling(sparse, len(weights))) if rescale == "l1" else [1.0] * len(weights)
    factors = [w * r for w, r in zip(weights, rescaling, strict=True)]

    def apply(chunk: Chunk) -> Tensor:
        assert chunk.base is not None
        # Multiplied before they are added up: a fused multiply-add would not make 0 of two that cancel exactly.
        weighted = [d.mul_(f) for d, f in zip(sparse(chunk), factors, strict=True)]
        return chunk.base.add_(consensus(weighted, chunk, shares=weights if normalize else None), alpha=lambda_)

    return apply


def consensus(
    vectors: Sequence[Tensor],
    chunk: Chunk,
    *,
    factors: Sequence[float] | None = None,
    shares: Sequence[float] | None = None,
) -> Tensor:
    """Sum of those vectors that have the sign of the sum of all, times their factors where given: (n,).

    With `shares`, at each position over the sum of the shares of the vectors in the sum. The vectors are overwritten.
    """
    # Boolean masks cost ten times what this arithmetic does: relu(v * sign) is |v| where v agrees, else 0.
    sign = weighted_sum(vectors, [1.0] * len(vectors), chunk.new())
    torch.copysign(torch.ones((), device=sign.device), sign, out=sign)
    merged = chunk.new().zero_()
    divisor = merged if shares is None else chunk.new().zero_()
    for i, vector in enumerate(vectors):
        agreeing = vector.mul_(sign).relu_()
        merged.add_(agreeing, alpha=1.0 if factors is None else factors[i])
        if shares is not None:
            divisor.add_(agreeing.sign_(), alpha=shares[i])
    merged.mul_(sign)
    if shares is None:
        return merged
    if min(shares) < 0:
        divisor[divisor == 0] = 1.0
    else:  # where nobody agrees the sum is 0, whatever it is divided by
        divisor.clamp_(min=min((s for s in shares if s > 0), default=1.0))
    return merged.div_(divisor)


def l1_rescaling(sparse: Sparse, models: int) -> Generator[Pass, Any, list[float]]:
    """For each model what gives its sparse task vector the L1 norm of the whole one (mergekit's `rescale: true`)."""

    def norms(chunk: Chunk) -> Tensor:
        size = chunk.new()  # not linalg.vector_norm, which takes six times as long

        def norm(delta: Tensor) -> Tensor:
            return torch.abs(delta, out=size).sum().double()

        before = [norm(d) for d in chunk.deltas]  # these are overwritten next
        return torch.stack([*before, *(norm(d) for d in sparse(chunk))])

    found = yield Sum(norms)  # (2 * models,)
    before, after = found.reshape(2, models)
    usable = (before >= _NO_NORM) & (after >= _NO_NORM)
    return [float(b / a) if u else 1.0 for b, a, u in zip(before, after, usable, strict=True)]


def magnitudes(chunk: Chunk) -> list[Tensor]:
    """Magnitudes of the task vectors, each (n,)."""
    return [torch.abs(d, out=chunk.new()) for d in chunk.deltas]


def positive_share(tensor: TensorFacts, share: float) -> int:
    """How many of a tensor's entries a share of them is, rounded down, but at least one of a positive share."""
    return 0 if share <= 0 else max(1, int(share * tensor.count))
