"""Structured pruning by magnitude, tensor by tensor: what `prune-l1` and `prune-l2` share but for the power."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from torch import Tensor

from palimpsest.checkpoint import Checkpoint
from palimpsest.errors import BadInput
from palimpsest.families import family_of
from palimpsest.method import Context, Made
from palimpsest.removals.weights.choosing import Scope, check_local, choose
from palimpsest.removals.weights.coupling import Group, columns, layers_between
from palimpsest.removals.weights.rewriting import named_tensors, read_tensor, use_threads
from palimpsest.removals.weights.scoring import as_out_in, magnitude_scores, normalised
from palimpsest.removals.weights.structured import coupled_groups, write_pruned
from palimpsest.training.finetune import Stopwatch

Units = Literal["coupled", "columns"]


def prune_by_magnitude(
    model: Checkpoint,
    out: Path,
    ctx: Context,
    method: str,
    power: int,
    *,
    ratio: float,
    units: Units,
    scope: Scope,
    start: float,
    end: float,
    compact: bool,
) -> Made:
    """Prune the units with the smallest sums of |w|^power. Raises BadInput before a weight is read where it can."""
    if compact and units == "columns":
        raise BadInput(f"{method}: compact goes with units=coupled: columns of single matrices leave no smaller model")
    watch = Stopwatch()
    use_threads(ctx)
    if units == "coupled":
        groups = coupled_groups(model, start, end, method)
    else:
        groups = [g for layer in layers_between(model.config, start, end, method) for g in columns(model.config, layer)]
    if scope == "local":
        check_local(groups, ratio, method)
    tensors, transposed = named_tensors(model), family_of(model.config).transposed
    held: dict[str, Tensor] = {}

    def weight(name: str) -> Tensor:
        if name not in held:  # one tensor at a time: parts of a fused one follow each other
            held.clear()
            held[name] = as_out_in(read_tensor(tensors[name]), transposed)
        return held[name]

    def scores(group: Group) -> Tensor:
        return magnitude_scores(group, weight, power)

    found = [scores(group) for group in groups]
    if units == "columns" and scope == "global":
        found = normalised(found)
    removed = choose(groups, found, ratio, scope, method)
    detail = {"units": units, "scope": scope}
    return write_pruned(
        model, out, ctx, method, groups, removed, ratio=ratio, compact=compact, watch=watch, detail=detail
    )
