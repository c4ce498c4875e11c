"""Single weights zeroed, shape kept: which ones are the smallest, exactly, and writing the result as a stream."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from palimpsest.checkpoint import Checkpoint
from palimpsest.errors import BadInput
from palimpsest.method import Context, Made
from palimpsest.records import Record
from palimpsest.removals.change import change
from palimpsest.removals.weights.rewriting import named_tensors, rewrite
from palimpsest.training.finetune import Stopwatch

Drop = Callable[[str, Tensor], Tensor]  # (name, weight) -> mask of what goes, in the weight's shape


def smallest_cut(tensors: Callable[[], Iterable[Tensor]], count: int) -> tuple[float, int]:
    """(value, ties): the `count` smallest numbers are all below `value` and `ties` of those equal to it.

    tensors: gives all numbers, none negative, each time it is called; two passes, one tensor held at a time.
    Numbers that are not negative are ordered as their bits are: the upper 16 bits are counted first, then the lower
    16 of those that share the wanted upper ones.
    """
    upper, left = _bin(sum(np.bincount(b >> 16, minlength=1 << 16) for b in map(_bits, tensors())), count)
    inside = (b[(b >> 16) == upper] & 0xFFFF for b in map(_bits, tensors()))
    lower, left = _bin(sum(np.bincount(b, minlength=1 << 16) for b in inside), left)
    return float(np.array([upper << 16 | lower], dtype=np.uint32).view(np.float32)[0]), left


def _bits(values: Tensor) -> np.ndarray[Any, np.dtype[np.uint32]]:
    return values.detach().float().contiguous().view(-1).numpy().view(np.uint32)


def _bin(counts: Any, wanted: int) -> tuple[int, int]:
    """(bin in which the wanted-th smallest lies, how many of that bin are among the smallest)."""
    below = np.cumsum(counts)
    place = int(np.searchsorted(below, wanted))
    return place, wanted - int(below[place - 1] if place else 0)


def smallest_of_each_row(scores: Tensor, count: int) -> Tensor:
    """Mask of the `count` lowest scores of each row: (out, in); of equal ones the lower column goes first."""
    chosen = scores.argsort(dim=1, stable=True)[:, :count]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, chosen, True)


def smallest_of_runs(scores: Tensor, keep: int, run: int) -> Tensor:
    """Mask of all but the `keep` highest scores in every run of `run` inputs that follow each other: (out, in)."""
    rows, width = scores.shape
    return smallest_of_each_row(scores.reshape(rows * width // run, run), run - keep).view(rows, width)


def pattern_of(text: str, method: str) -> tuple[int, int] | None:
    """(n, m) of "n:m", at most n of m weights in a row stay; None for no pattern. Raises BadInput."""
    if not text:
        return None
    n, _, m = text.partition(":")
    if not (n.isdigit() and m.isdigit() and 0 < int(n) < int(m)):
        raise BadInput(f"{method}: pattern {text!r}: give n:m, of m weights that follow each other n stay, such as 2:4")
    return int(n), int(m)


def check_pattern(pattern: tuple[int, int] | None, widths: Mapping[str, int], method: str) -> None:
    """BadInput where inputs of a projection are no multiple of m. widths: inputs by the weight's name."""
    for name, width in widths.items() if pattern is not None else ():
        if pattern is not None and width % pattern[1]:
            raise BadInput(f"{method}: pattern {pattern[0]}:{pattern[1]}: {name} has {width} inputs, no multiple of m")


def write_masked(
    model: Checkpoint,
    out: Path,
    ctx: Context,
    method: str,
    names: set[str],
    drop: Drop,
    *,
    watch: Stopwatch,
    detail: Mapping[str, Any],
) -> Made:
    """Write the model with what `drop` says zeroed in the tensors called `names`, one tensor at a time."""
    gone = [0]

    def edit(name: str, weight: Tensor) -> None:
        mask = drop(name, weight)
        gone.append(int(mask.sum()))
        weight[mask] = 0

    done = rewrite(model, out, ctx, method, edit, names)
    tensors = named_tensors(model)
    count, among = sum(gone), sum(tensors[name].count for name in names)
    record = pruning_record(method, done.checkpoint, ctx, watch, count, among, done.parameters)
    record.detail |= {**detail, **change(done.moved, done.norm)}
    return Made(done.checkpoint, records=[record])


def pruning_record(
    method: str, made: Checkpoint, ctx: Context, watch: Stopwatch, gone: int, among: int, parameters: int
) -> Record:
    """gone: weights zeroed. among: weights of the pruned projections. parameters: of the whole model."""
    return Record(
        "pruning",
        value=gone / parameters,
        count=gone,
        n=parameters,
        model=made.name,
        chain=made.chain(),
        task=method,
        seed=ctx.seed,
        seconds=watch.seconds,
        detail={"sparsity_of_projections": gone / among if among else 0.0, "projections": among},
    )
