"""Cosine of two models' weights, tensor by tensor: the baseline that any gauge change defeats."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from palimpsest.checkpoint import Checkpoint
from palimpsest.errors import BadInput
from palimpsest.measures.intrinsic.invariants import opened
from palimpsest.measures.intrinsic.stored import StoredModel
from palimpsest.measures.intrinsic.terms import cosine
from palimpsest.measures.intrinsic.tokens import shared_rows
from palimpsest.measures.subject import Subject
from palimpsest.merging.reading import STORED, Buffers, Files, RowNumbers, Rows, Source
from palimpsest.merging.vocabulary import has_rows
from palimpsest.method import Context, method, takes
from palimpsest.records import Record

PIECE = 1 << 20  # numbers of each model held together


@dataclass
class Products:
    """Inner products of flattened tensors: <a, b>, <a, a>, <b, b>, in float64."""

    dot: float = 0.0
    first: float = 0.0
    second: float = 0.0

    def add(self, a: Tensor, b: Tensor) -> None:
        """Count in two stretches of as many numbers."""
        a, b = a.double(), b.double()
        self.dot += float(a @ b)
        self.first += float(a @ a)
        self.second += float(b @ b)

    def count_in(self, other: Products) -> None:
        """Count in what another one has."""
        self.dot, self.first, self.second = (self.dot + other.dot, self.first + other.first, self.second + other.second)

    @property
    def cosine(self) -> float:
        """<a, b> / (|a| |b|); 0 where one is zero."""
        return cosine(self.dot, self.first, self.second)


@dataclass
class Compared:
    """Per tensor and over all; left_out: tensors that cannot be compared, with the reason."""

    tensors: dict[str, Products] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def whole(self) -> Products:
        """Over all tensors."""
        found = Products()
        for products in self.tensors.values():
            found.count_in(products)
        return found


def compare(models: Sequence[StoredModel]) -> Compared:
    """Weights of two models, or with a third, the base, their differences to it. Pieces are all that is held.

    Tensors that have a row for each token are compared on the tokens that all have. Others must agree in shape.
    """
    found = Compared()
    rows = shared_rows([m.model for m in models], [m.rows for m in models], None)
    files, buffers = Files(), Buffers()
    try:
        for name in models[0].weights.stored:
            reason = _why_not(name, models)
            if reason is None:
                found.tensors[name] = _products(name, models, rows, files, buffers)
            elif reason:
                found.left_out[name] = reason
    finally:
        files.close()
    for name in models[1].weights.stored.keys() - models[0].weights.stored.keys():
        if not models[1].weights.is_computed(name):
            found.left_out[name] = f"{models[0].model.name} has none"
    return found


def _why_not(name: str, models: Sequence[StoredModel]) -> str | None:
    """Why a tensor cannot be compared: None where it can, empty where nobody asks for it."""
    first = models[0].weights
    if first.is_computed(name) or first.stored[name].dtype not in STORED:
        return ""
    for model in models[1:]:
        if name not in model.weights.stored:
            return f"{model.model.name} has none"
        mine, theirs = first.stored[name].shape, model.weights.stored[name].shape
        if (mine[1:], len(mine)) != (theirs[1:], len(theirs)) or (mine != theirs and not has_rows(name)):
            return f"{list(mine)} against {list(theirs)} in {model.model.name}"
    return None


def _products(
    name: str, models: Sequence[StoredModel], rows: Sequence[RowNumbers], files: Files, buffers: Buffers
) -> Products:
    sources: list[Source] = [m.weights.source(name) for m in models]
    if has_rows(name):
        sources = [Rows(source, own) for source, own in zip(sources, rows, strict=True)]
    total = Products()
    for pieces in _pieces(sources, files, buffers):
        a, b = (pieces[0] - pieces[2], pieces[1] - pieces[2]) if len(pieces) > 2 else (pieces[0], pieces[1])
        total.add(a, b)
    return total


def _pieces(sources: Sequence[Source], files: Files, buffers: Buffers) -> Iterator[list[Tensor]]:
    count = torch.Size(sources[0].shape).numel()
    for first in range(0, count, PIECE):
        end = min(count, first + PIECE)
        yield [s.read(first, end, files, buffers, place).double() for place, s in enumerate(sources)]


@method("measures", "weight-cosine", paper="PCS, the baseline of HuRef, arXiv 2312.04828, section 3")
@dataclass(frozen=True)
class WeightCosine:
    """Cosine of all weights of suspect and original, whole and per tensor; with a base, of their differences to it.

    HuRef's PCS. Fine-tuning leaves it near 1, and independent training near 0; a thief who permutes, rotates or
    rescales the weights without changing what the model does makes it fall at no cost, which is why `huref`, `reef`
    and `lineage` exist. Tensors are matched by name and shape, rows of embeddings by token (the released code pairs
    tensors by order and drops those that do not fit). Pieces of a megabyte are read; nothing is loaded.
    """

    original: Checkpoint | None = takes("the model that the suspect may come from")
    base: Checkpoint | None = takes("their common base: then the differences to it are compared too")

    def take(self, subject: Subject, ctx: Context) -> list[Record]:
        """`similarity` of task weight-cosine, and weight-cosine-difference with a base. BadInput without original."""
        if self.original is None:
            raise BadInput("weight-cosine: needs the original to compare with: --original")
        began = time.monotonic()
        records = []
        compared_with = [self.original, *([self.base] if self.base else [])]
        with opened([subject.checkpoint, *compared_with], ctx.threads) as models:
            asked = {"weight-cosine": models[:2]} | ({"weight-cosine-difference": models} if self.base else {})
            for task, compared in asked.items():
                found = compare(compared)
                if not found.tensors:
                    raise BadInput(
                        f"weight-cosine: {subject.checkpoint.name} and {self.original.name} have no tensor in common"
                    )
                whole = found.whole
                detail = {
                    "original": self.original.name,
                    "norms": [whole.first**0.5, whole.second**0.5],
                    "tensors": {name: round(p.cosine, 6) for name, p in found.tensors.items()},
                    "left_out": found.left_out,
                }
                records.append(
                    subject.record(
                        "similarity", value=whole.cosine, task=task, seconds=time.monotonic() - began, detail=detail
                    )
                )
        return records
