"""The k largest of a tensor that is only seen in chunks: exact, in one or two passes, without sorting it.

A sample gives a narrow bracket around the wanted value; one pass counts what lies above the bracket and keeps
what lies in it, and the value is found among those. Where the sample misled, two counting passes over the bits of the
numbers (as a radix sort would look at them) find it.

Tie rule: of equal values those with the lower position in the flattened tensor are kept, so that exactly k are.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from palimpsest.merging.passes import Chunk, Gather, Pass, Sample, TensorFacts

Values = Callable[[Chunk], list[Tensor]]
_SMALL = 1 << 20  # numbers: a smaller tensor is ranked whole
_ERRORS = 3.0  # standard errors of the sample on either side of the wanted value


@dataclass(frozen=True)
class Cut:
    """Where the k largest end: all above `value`, and of those equal to it the first `quota[number]` of a chunk.

    keeps: "all" and "none" need no value. Values are not negative.
    """

    value: float = 0.0
    quota: dict[int, int] = field(default_factory=dict)
    keeps: str = ""

    def mask(self, values: Tensor, chunk: Chunk) -> Tensor:
        """1 where a value is among the k largest of its tensor, else 0: (n,), in the place of `values`."""
        if self.keeps:
            return values.fill_(1.0 if self.keeps == "all" else 0.0)
        at = self._equal(values, chunk)
        torch.hardshrink(values, self.value, out=values).sign_()
        if at is not None:
            values[at] = 1.0
        return values

    def trim(self, delta: Tensor, chunk: Chunk) -> Tensor:
        """`delta` where its magnitude is among the k largest, else 0: (n,), in the place of `delta`."""
        if self.keeps:
            return delta if self.keeps == "all" else delta.zero_()
        at = None
        if self.value > 0 and self.quota.get(chunk.number):  # at a value of zero what is kept or dropped is zero
            at = self._equal(torch.abs(delta, out=chunk.new()), chunk)
        kept = None if at is None else delta[at]
        torch.hardshrink(delta, self.value, out=delta)
        if at is not None and kept is not None:
            delta[at] = kept
        return delta

    def _equal(self, values: Tensor, chunk: Chunk) -> Tensor | None:
        """Positions in the chunk of the values equal to the cut that are kept, None where there are none."""
        quota = self.quota.get(chunk.number, 0)
        if not quota:
            return None
        at = np.flatnonzero(values.cpu().numpy() == self.value)[:quota]
        return torch.from_numpy(at).to(values.device)


def largest(values: Values, keep: list[int], tensor: TensorFacts) -> Generator[Pass, Any, list[Cut]]:
    """The cuts that keep exactly keep[i] of the i-th values, none negative, that `values` makes of each chunk."""
    wanted = [i for i, k in enumerate(keep) if 0 < k < tensor.count]
    cuts = [Cut(keeps="none" if k <= 0 else "all" if k >= tensor.count else "") for k in keep]
    if not wanted:
        return cuts
    if tensor.count <= _SMALL:
        brackets = {i: (0.0, float("inf")) for i in wanted}
    else:
        sample = Sample(lambda chunk: [v.cpu().numpy().copy() for v in values(chunk)])
        seen = yield sample
        brackets = {i: _bracket(seen[i], keep[i] / tensor.count, sample.run) for i in wanted}
    parts = yield Gather(lambda chunk: _inside(values(chunk), brackets))
    missed = []
    for i in wanted:
        found = _among([part[i] for part in parts], keep[i])
        if found is None:
            missed.append(i)
        else:
            cuts[i] = found
    if missed:
        exact = yield from _by_bits(values, {i: keep[i] for i in missed})
        for i, cut in exact.items():
            cuts[i] = cut
    return cuts


def _bracket(sample: np.ndarray[Any, Any], share: float, run: int) -> tuple[float, float]:
    """(low, high) such that the value with `share` of all above it very probably lies between, both included.

    The margin is three standard errors of the share above the value, by the spread of the sample's runs: rows of a
    matrix differ in scale, so that the numbers of a run are no independent draws.
    """
    last = len(sample) - 1
    ranked = np.sort(sample)
    above = sample > ranked[round((1 - share) * last)]
    by_run = above[: len(sample) // run * run].reshape(-1, run).mean(1)
    independent = np.sqrt(share * (1 - share) / len(sample))
    margin = _ERRORS * max(independent, float(by_run.std()) / np.sqrt(len(by_run)))
    low, high = (round((1 - share + m) * last) for m in (-margin, margin))
    return 0.0 if low <= 0 else float(ranked[low]), float("inf") if high >= last else float(ranked[high])


@dataclass(frozen=True)
class _Inside:
    """Of one chunk: how many values lie above the bracket, and equal to its ends; and those between."""

    above: int
    at_high: int
    at_low: int
    between: np.ndarray[Any, Any]
    high: float
    low: float


def _inside(values: list[Tensor], brackets: dict[int, tuple[float, float]]) -> dict[int, _Inside]:
    found = {}
    for i, (low, high) in brackets.items():
        array = values[i].cpu().numpy()
        over = array > high
        above = int(np.count_nonzero(over))
        within = array >= low
        within ^= over  # both ends included
        if np.count_nonzero(within) > len(array) // 4:  # very many of one value, perhaps: ends are not to be held
            between = array[(array > low) & (array < high)]
            at_high = int(np.count_nonzero(array == high))
            at_low = int(np.count_nonzero(array == low)) if low < high else 0
        else:
            held = array[np.flatnonzero(within)]
            at_high = int(np.count_nonzero(held == high))
            at_low = int(np.count_nonzero(held == low)) if low < high else 0
            between = held[(held > low) & (held < high)]
        found[i] = _Inside(above, at_high, at_low, between, high, low)
    return found


def _among(parts: list[_Inside], keep: int) -> Cut | None:
    """The cut, from what lies in the bracket; None where it lies outside."""
    left = keep - sum(p.above for p in parts)
    if left <= 0:
        return None
    at_high = [p.at_high for p in parts]
    if left <= sum(at_high):
        return _cut(parts[0].high, at_high, left)
    left -= sum(at_high)
    between = np.concatenate([p.between for p in parts])
    if left <= len(between):
        value, left = _ranked(between, left)
        return _cut(value, [int(np.count_nonzero(p.between == value)) for p in parts], left)
    left -= len(between)
    at_low = [p.at_low for p in parts]
    return _cut(parts[0].low, at_low, left) if left <= sum(at_low) else None


def _ranked(values: np.ndarray[Any, Any], keep: int) -> tuple[float, int]:
    """(the keep-th largest of some values, how many of those equal to it are kept).

    Numbers that are not negative are ordered as their bits are; these are counted in at most 2**16 bins, and the bin
    looked at again. Many equal values, of which partitioning makes heavy weather, cost nothing more.
    """
    bits = values.astype(np.float32, copy=False).view(np.uint32)
    while True:
        lowest = int(bits.min())
        shift = max(0, (int(bits.max()) - lowest).bit_length() - 16)
        places = (bits - np.uint32(lowest)) >> np.uint32(shift)
        at, keep = _bin_of(np.bincount(places), keep)
        if shift == 0:
            return float(np.array([lowest + at], np.uint32).view(np.float32)[0]), keep
        bits = bits[places == at]


def _cut(value: float, equal: list[int], left: int) -> Cut:
    """A cut at `value` with `left` of the equal ones, lower positions first."""
    quota: dict[int, int] = {}
    for number, count in enumerate(equal):
        if left <= 0:
            break
        if count:
            quota[number] = min(count, left)
            left -= count
    return Cut(value, quota)


def _by_bits(values: Values, keep: dict[int, int]) -> Generator[Pass, Any, dict[int, Cut]]:
    """The same by counting: the upper 16 bits of a float32 first, then the lower 16 of those that share them.

    Numbers that are not negative are ordered as their bits are.
    """
    upper = yield Gather(lambda chunk: {i: _histogram(values(chunk)[i], None) for i in keep})
    bins: dict[int, tuple[int, int]] = {}
    for i, k in keep.items():
        bins[i] = _bin_of(sum(part[i] for part in upper), k)
    lower = yield Gather(lambda chunk: {i: _histogram(values(chunk)[i], at) for i, (at, _) in bins.items()})
    found = {}
    for i, (at, left) in bins.items():
        low, rest = _bin_of(sum(part[i] for part in lower), left)
        value = float(np.array([at << 16 | low], dtype=np.uint32).view(np.float32)[0])
        found[i] = _cut(value, [int(part[i][low]) for part in lower], rest)
    return found


def _histogram(values: Tensor, upper: int | None) -> np.ndarray[Any, Any]:
    bits = values.cpu().numpy().astype(np.float32, copy=False).view(np.uint32)
    if upper is None:
        return np.bincount(bits >> 16, minlength=1 << 16)
    return np.bincount(bits[(bits >> 16) == upper] & 0xFFFF, minlength=1 << 16)


def _bin_of(counts: np.ndarray[Any, Any], keep: int) -> tuple[int, int]:
    """(the bin in which the keep-th largest lies, how many of that bin are kept)."""
    from_top = np.cumsum(counts[::-1])
    place = int(np.searchsorted(from_top, keep))
    before = int(from_top[place - 1]) if place else 0
    return len(counts) - 1 - place, keep - before
