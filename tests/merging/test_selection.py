"""The k largest: the same as a full stable sort would give, whatever the values and the chunks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from palimpsest.merging import selection
from palimpsest.merging.passes import Chunk, MergeMethod, Passes, TensorFacts, merge_tensors
from palimpsest.merging.selection import largest


@dataclass(frozen=True)
class _Kept(MergeMethod):
    """What is kept of the first model: by `trim` of its numbers, or the `mask` of their magnitudes."""

    keep: int
    masked: bool = False
    base: ClassVar = "none"

    def passes(self, tensor: TensorFacts) -> Passes:
        (cut,) = yield from largest(lambda chunk: [chunk.models[0].abs()], [self.keep], tensor)

        def apply(chunk: Chunk) -> Tensor:
            numbers = chunk.models[0]
            return cut.mask(numbers.abs(), chunk) if self.masked else cut.trim(numbers, chunk)

        return apply


def by_sorting(numbers: Tensor, keep: int) -> Tensor:
    """1 for the `keep` largest magnitudes, lower positions first among equals."""
    order = torch.argsort(numbers.abs(), descending=True, stable=True)
    mask = torch.zeros_like(numbers)
    mask[order[: max(0, keep)]] = 1
    return mask


def check(numbers: Tensor, keep: int, size: int) -> None:
    mask = by_sorting(numbers, keep)
    assert torch.equal(merge_tensors(_Kept(keep, masked=True), [numbers], size=size), mask)
    assert torch.equal(merge_tensors(_Kept(keep), [numbers], size=size), numbers * mask)


few_values = st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, 1e-45, -3e38, 0.5]), min_size=1, max_size=60)
any_values = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=60)


@given(st.one_of(few_values, any_values), st.integers(-1, 61), st.integers(1, 70))
def test_exactly_the_largest_are_kept_and_ties_go_to_lower_positions(values: list[float], keep: int, size: int) -> None:
    check(torch.tensor(values), keep, size)


@pytest.fixture
def small_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of a few thousand numbers take the way of large ones: a sample, a bracket, a fallback."""
    monkeypatch.setattr(selection, "_SMALL", 1 << 10)


def _shaped(kind: str, count: int) -> Tensor:
    made = torch.Generator().manual_seed(0)
    numbers = torch.randn(count, generator=made)
    if kind == "tied":
        return numbers.mul(3).round()
    if kind == "zeros":
        return numbers * (numbers.abs() > 1.5)
    if kind == "sorted":  # runs of the sample are nothing like each other
        return numbers.abs().sort().values
    if kind == "rows":
        return numbers * torch.logspace(-3, 3, count // 100).repeat_interleave(100)[:count]
    if kind == "constant":
        return torch.full((count,), -0.25)
    return numbers


@pytest.mark.usefixtures("small_samples")
@pytest.mark.parametrize("kind", ["normal", "tied", "zeros", "sorted", "rows", "constant"])
@pytest.mark.parametrize("share", [0.0001, 0.1, 0.5, 0.9, 0.9999])
def test_large_tensors_are_cut_exactly_too(kind: str, share: float) -> None:
    numbers = _shaped(kind, 30_000)
    check(numbers, int(share * 30_000), 7_000)


@pytest.mark.usefixtures("small_samples")
@pytest.mark.parametrize("bracket", [(5.0, 6.0), (0.0, 1e-9), (0.5, 0.5), (1.0, 2.0), (0.0, 0.0)])
@pytest.mark.parametrize("kind", ["normal", "tied", "zeros"])
def test_a_sample_that_misled_does_not_change_the_cut(
    monkeypatch: pytest.MonkeyPatch, bracket: tuple[float, float], kind: str
) -> None:
    monkeypatch.setattr(selection, "_bracket", lambda *_: bracket)
    check(_shaped(kind, 20_000), 9_000, 3_000)


def test_the_bracket_is_wider_where_runs_differ_more() -> None:
    even = np.abs(np.random.default_rng(0).standard_normal(16_384)).astype(np.float32)
    uneven = even * np.logspace(-2, 2, 64).repeat(256).astype(np.float32)

    def width(sample: Any) -> float:
        low, high = selection._bracket(sample, 0.5, 256)
        return float(np.mean((sample >= low) & (sample <= high)))

    assert width(even) < 0.05 < 0.15 < width(uneven)


@given(any_values, st.integers(1, 60))
def test_the_kth_largest_by_counting_is_that_of_a_sort(values: list[float], keep: int) -> None:
    magnitudes = np.abs(np.array(values, np.float32))
    keep = min(keep, len(values))
    value, left = selection._ranked(magnitudes, keep)
    assert value == np.sort(magnitudes)[len(values) - keep]
    assert left == keep - np.count_nonzero(magnitudes > value)
