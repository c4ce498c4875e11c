"""The models that a suspect is merged with: whether they fit it, what they are to it by lineage, how far they lie."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from palimpsest.checkpoint import Checkpoint
from palimpsest.checkpoint.labels import check_same_labels, first_architecture
from palimpsest.errors import BadInput
from palimpsest.merging.adapters import Adapter, Pair, read_whole
from palimpsest.merging.task_vectors import products
from palimpsest.merging.tokens import read_tokens
from palimpsest.removals.by_merging.expert_merge import commitments, named

Kinship = Literal["the same model", "same mark", "descends from it", "an ancestor", "sibling", "unrelated", "unknown"]


def kinship(model: Checkpoint, other: Checkpoint) -> Kinship:
    """What another model is to this one, as far as both public lineages tell.

    A lineage can be left out or be wrong: `unrelated` and `unknown` say nothing about what is in the weights.
    """
    mine, theirs = named(model), named(other)
    own, its = model.digest(), other.digest()
    if own == its:
        return "the same model"
    if commitments(model) & commitments(other):
        return "same mark"
    if own in theirs:
        return "descends from it"
    if its in mine:
        return "an ancestor"
    if not theirs or not mine:
        return "unknown"
    return "sibling" if mine & theirs else "unrelated"


def called(checkpoint: Checkpoint) -> str:
    """The name of a model, with its folder's where that is the `model` of an implant."""
    return f"{checkpoint.path.parent.name}/model" if checkpoint.name == "model" else checkpoint.name


def check_partners(model: Checkpoint, others: Sequence[Checkpoint], what: str) -> None:
    """BadInput where another model is of another kind, head, label map, shape or vocabulary. Reads headers alone."""
    for other in others:
        where = f"{what}: --with {other.name}"
        if other.is_adapter != model.is_adapter:
            kinds = ("an adapter", "a whole model")
            raise BadInput(
                f"{where}: is {kinds[not other.is_adapter]}, {model.name} is {kinds[not model.is_adapter]}; "
                "merge adapters with adapters, or apply them to their base first"
            )
        _check_tokens(model, other, where)
        if model.is_adapter:
            continue
        kinds = (first_architecture(other), first_architecture(model))
        if other.config.get("model_type") != model.config.get("model_type") or kinds[0] != kinds[1]:
            raise BadInput(f"{where}: is a {kinds[0]}, {model.name} a {kinds[1]}; they have no mean")
        check_same_labels(model, other, where)
        _check_shapes(model, other, where)


def _check_tokens(model: Checkpoint, other: Checkpoint, where: str) -> None:
    mine, theirs = read_tokens(model.path), read_tokens(other.path)
    if mine is not None and theirs is not None and mine != theirs:
        raise BadInput(
            f"{where}: has another vocabulary than {model.name} ({len(theirs)} and {len(mine)} tokens, or other "
            "numbers); take models of one tokenizer"
        )


def _check_shapes(model: Checkpoint, other: Checkpoint, where: str) -> None:
    shapes = {t.name: t.shape for t in model.tensors()}
    for tensor in other.tensors():
        wanted = shapes.get(tensor.name, tensor.shape)
        if wanted != tensor.shape:
            raise BadInput(
                f"{where}: {tensor.name} has shape {list(tensor.shape)}, that of {model.name} {list(wanted)}; "
                "only models of one shape have a mean"
            )


# -- how far they lie apart ------------------------------------------------------------------------------


def distances(
    model: Checkpoint, others: Sequence[Checkpoint], merged: Checkpoint, base: Checkpoint | None
) -> dict[str, Any]:
    """What a record says of whole models: L2 norms over all weights, and cosines of task vectors with a base.

    `distance`: merged model to suspect; `weight_change`: that over the norm of the suspect; `partner_distances`: of
    each other model to the suspect. With a base: `task_vectors` (norms, the suspect first) and `cosines`, of each
    partner's task vector with the suspect's.
    """
    every, _ = products([*others, merged], model)
    norms = every.diagonal().clamp(min=0).sqrt().tolist()
    found: dict[str, Any] = {
        "distance": norms[-2],
        "weight_change": norms[-2] / norms[-1] if norms[-1] else 0.0,
        "partner_distances": norms[:-2],
    }
    return found if base is None else found | _cosines(products([model, *others], base)[0][:-1, :-1])


def adapter_distances(model: Checkpoint, others: Sequence[Checkpoint], merged: Checkpoint) -> dict[str, Any]:
    """The same of adapters, over what they add (scale B A): their base is the base. `a_cosines`: of each A with the
    suspect's, which tells shared from independent A (about 0 where both were drawn apart); None where ranks differ.
    """
    adapters = [Adapter(m) for m in (model, *others, merged)]
    size = len(adapters)
    gram, of_a = torch.zeros((size, size), dtype=torch.float64), torch.zeros((size, size), dtype=torch.float64)
    alike = True  # whether all A have one shape, so that they have a cosine
    for module in sorted({m for a in adapters for m in a.pairs}):
        factors = [_factors(a.pairs.get(module), a.model.name) for a in adapters]
        for i, one in enumerate(factors):
            for j, other in enumerate(factors[: i + 1]):
                if one is None or other is None:
                    continue
                gram[i, j] += inner(one, other)
                gram[j, i] = gram[i, j]
                if i < size - 1 and one[0].shape == other[0].shape:
                    of_a[i, j] += (one[0] * other[0]).sum()
                elif i < size - 1:
                    alike = False
    last, apart = size - 1, gram.diagonal()
    moved = math.sqrt(max(0.0, float(apart[0] + apart[last] - 2 * gram[0, last])))
    norm = math.sqrt(max(0.0, float(apart[0])))
    sizes = of_a.diagonal().sqrt()
    return {
        "distance": moved,
        "weight_change": moved / norm if norm else 0.0,
        "partner_distances": [
            math.sqrt(max(0.0, float(apart[0] + apart[i] - 2 * gram[0, i]))) for i in range(1, size - 1)
        ],
        "merged_norm": math.sqrt(max(0.0, float(apart[last]))),
        "a_cosines": [float(of_a[i, 0] / (sizes[0] * sizes[i])) for i in range(1, size - 1)] if alike else None,
        **_cosines(gram[:-1, :-1]),
    }


def inner(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> float:
    """<B A, B' A'> of two products given as (A (rank, in), B (out, rank)), without making either."""
    return float(((one[1].T @ other[1]) * (one[0] @ other[0].T)).sum())


def _factors(pair: Pair | None, name: str) -> tuple[Tensor, Tensor] | None:
    """A and scale B in float64."""
    if pair is None:
        return None
    return read_whole(pair.a, name).double(), read_whole(pair.b, name).double() * pair.scale


def _cosines(gram: Tensor) -> dict[str, Any]:
    """Norms, and the cosines of the others with the first; None beside a vector that is zero."""
    norms = gram.diagonal().clamp(min=0).sqrt().tolist()
    cosines = [float(gram[0, i]) / (norms[0] * n) if norms[0] and n else None for i, n in enumerate(norms) if i]
    return {"task_vectors": norms, "cosines": cosines}
