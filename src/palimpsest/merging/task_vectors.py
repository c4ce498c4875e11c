"""Products of task vectors over all weights of whole models, read a chunk at a time; no model is ever held."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from palimpsest.checkpoint import Checkpoint
from palimpsest.merging.passes import CHUNK, gram
from palimpsest.merging.reading import STORED, Buffers, Files
from palimpsest.merging.weights import Weights


@dataclass(frozen=True)
class TaskVectors:
    """L2 norms over all weights, and what they say of each other.

    base: norm of the base's weights. norms: of each model's task vector (model minus base). cosine: of the first two
    task vectors, None where one of them is zero or there is only one. apart: of each task vector over the base's
    weights, in matrices alone: norms and biases begin alike in all models, so they tell nothing of their origin.
    """

    base: float
    norms: tuple[float, ...]
    cosine: float | None
    apart: tuple[float, ...]


def products(models: Sequence[Checkpoint], base: Checkpoint) -> tuple[Tensor, Tensor]:
    """Dot products of [model_i - base ..., base], each (models + 1, models + 1) float64: of all weights, of matrices.

    The models have the base's architecture and shapes (`plan.make_plan` refuses others). A tensor that ties head and
    embedding counts once, unless one of the models has two. Whole numbers do not count. Raises BadInput for NaN.
    """
    weights = [Weights(m) for m in (*models, base)]
    names = dict.fromkeys(n for w in weights for n in w.stored)
    size = len(weights)
    every, matrices = (torch.zeros((size, size), dtype=torch.float64) for _ in range(2))
    files, buffers = Files(), Buffers()
    try:
        for name in names:
            if not all(name in w.stored or (w.tied and name == w.head) for w in weights):
                continue  # a buffer that only some files hold
            info = weights[-1].get(name)
            if info.dtype not in STORED:
                continue
            sources, count = [w.source(name) for w in weights], info.count
            for first in range(0, count, CHUNK):
                end = min(count, first + CHUNK)
                read = [s.read(first, end, files, buffers, place) for place, s in enumerate(sources)]
                part = gram([*(r.sub_(read[-1]) for r in read[:-1]), read[-1]])
                every += part
                if len(info.shape) > 1:
                    matrices += part
    finally:
        files.close()
    return every, matrices


def task_vectors(models: Sequence[Checkpoint], base: Checkpoint) -> TaskVectors:
    """Norms and cosine of the models' task vectors; see `products`."""
    every, matrices = products(models, base)
    norms = every.diagonal().clamp(min=0).sqrt().tolist()
    sizes = matrices.diagonal().clamp(min=0).sqrt()
    apart = (sizes[:-1] / sizes[-1].clamp(min=1e-30)).tolist()
    first, second = norms[0], norms[1]
    cosine = float(every[0, 1]) / (first * second) if len(models) > 1 and first and second else None
    return TaskVectors(norms[-1], tuple(norms[:-1]), cosine, tuple(apart))
