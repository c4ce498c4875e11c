"""Products and cosines of the vectors a merge is made of, from which the spherical methods take their factors.

What these methods make lies in the span of their inputs, so that (models, models) products say everything: factors
are found in float64 from products, and the tensors are only touched by one weighted sum.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from palimpsest.merging.passes import Chunk

UNDETERMINED = 1e-6  # of |cosine| below 1: more than the error of products, and of no consequence to parallel vectors


def vectors(chunk: Chunk) -> list[Tensor]:
    """The models, or their task vectors where a base is the origin: each (n,)."""
    return chunk.models if chunk.base is None else chunk.deltas


def from_origin(chunk: Chunk, merged: Tensor) -> Tensor:
    """What was merged of `vectors`, put back onto the base where there is one: (n,)."""
    return merged if chunk.base is None else merged.add_(chunk.base)


def row_gram(rows: Sequence[Tensor], width: int) -> Tensor:
    """`gram` of each row by itself: vectors (n,) of whole rows of `width` numbers, (n / width, vectors, vectors)."""
    stacked = torch.stack([r.view(-1, width) for r in rows], dim=1)  # (rows, vectors, width)
    return (stacked @ stacked.mT).double()


def cosines(products: Tensor) -> Tensor:
    """Cosines of all pairs from their products, (..., vectors, vectors) float64; 0 where one of them is zero."""
    norms = products.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
    sizes = norms.unsqueeze(-1) * norms.unsqueeze(-2)
    return torch.where(sizes > 0, products / sizes, 0.0).clamp(-1, 1)
