"""The weighted average: by hand, and what holds for any."""

from __future__ import annotations

from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from merging.tensors import close, models
from palimpsest.errors import BadInput
from palimpsest.merging.linear import Linear
from palimpsest.merging.passes import merge_tensors

WEIGHTS = st.lists(st.floats(0.05, 4), min_size=4, max_size=4)


@pytest.mark.covers("linear")
def test_by_hand() -> None:
    first, second = torch.tensor([[1.0, 2.0], [3.0, -4.0]]), torch.tensor([[5.0, 0.0], [1.0, 4.0]])
    assert merge_tensors(Linear(weight=(3, 1)), [first, second]).tolist() == [[2.0, 1.5], [2.5, -2.0]]
    assert merge_tensors(Linear(weight=(3, 1), normalize=False), [first, second]).tolist() == [[8.0, 6.0], [10.0, -8.0]]
    assert merge_tensors(Linear(), [first, second]).tolist() == [[3.0, 1.0], [2.0, 0.0]]


@given(models(1, 1), st.integers(1, 4), WEIGHTS)
def test_a_model_with_itself_is_the_model(found: list[Tensor], count: int, weights: list[float]) -> None:
    merged = merge_tensors(Linear(weight=tuple(weights[:count])), found * count)
    assert close(merged, found[0], 2)
    assert merged.bfloat16().float().sub(found[0]).abs().max() <= 2**-8 * found[0].abs().max()


@given(models(), WEIGHTS, st.floats(0.1, 10))
def test_only_the_ratio_of_weights_counts(found: list[Tensor], weights: list[float], factor: float) -> None:
    chosen = weights[: len(found)]
    whole = sum(chosen)
    shares = Linear(weight=tuple(w / whole for w in chosen), normalize=False)  # weights that sum to one
    scaled = Linear(weight=tuple(factor * w for w in chosen))
    largest = torch.stack(found).abs().max()
    for method in (shares, scaled):
        difference = merge_tensors(method, found) - merge_tensors(Linear(weight=tuple(chosen)), found)
        assert difference.abs().max() <= 8 * 2**-23 * largest


@given(models(2, 4), WEIGHTS, st.randoms())
def test_the_order_of_models_does_not_matter(found: list[Tensor], weights: list[float], random: Random) -> None:
    pairs = list(zip(found, weights, strict=False))
    random.shuffle(pairs)
    one = merge_tensors(Linear(weight=tuple(weights[: len(found)])), found)
    other = merge_tensors(Linear(weight=tuple(w for _, w in pairs)), [t for t, _ in pairs])
    assert (one - other).abs().max() <= 8 * 2**-23 * torch.stack(found).abs().max()


@given(models(), WEIGHTS)
def test_it_is_the_formula_in_float64(found: list[Tensor], weights: list[float]) -> None:
    chosen = torch.tensor(weights[: len(found)], dtype=torch.float64)
    wanted = sum(w * t.double() for w, t in zip(chosen / chosen.sum(), found, strict=True))
    merged = merge_tensors(Linear(weight=tuple(weights[: len(found)])), found)
    assert (merged.double() - wanted).abs().max() <= 8 * 2**-23 * torch.stack(found).abs().max()


def test_weights_that_sum_to_nothing_are_refused_by_tensor() -> None:
    with pytest.raises(BadInput, match=r"weights of layer\.0 sum to 0"):
        merge_tensors(Linear(weight=(1, -1)), [torch.ones(2), torch.ones(2)], name="layer.0")


def test_weights_are_one_for_all_or_one_for_each() -> None:
    with pytest.raises(BadInput, match="2 values for 3 models"):
        merge_tensors(Linear(weight=(1, 2)), [torch.ones(2)] * 3)
