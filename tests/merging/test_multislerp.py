"""Multi-SLERP: by hand, against the steps as mergekit describes them in float64, and where directions cancel."""

from __future__ import annotations

import math
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from merging.tensors import close, models, random_tensors
from palimpsest.errors import BadInput
from palimpsest.merging.multislerp import MultiSlerp
from palimpsest.merging.passes import merge_tensors

WEIGHTS = st.lists(st.floats(0.1, 4), min_size=4, max_size=4)


def by_steps(found: list[Tensor], weights: list[float]) -> Tensor:
    """In float64 with the tangent step that the method leaves out: project, average, map back."""
    flat = torch.stack([f.double().flatten() for f in found])
    shares = torch.tensor(weights, dtype=torch.float64)
    shares = shares / shares.sum()
    norms = flat.norm(dim=1)
    units = flat / norms.unsqueeze(1)
    mean = shares @ units
    mean = mean / mean.norm()
    tangent = shares @ (units - (units @ mean).unsqueeze(1) * mean)
    length = tangent.norm() + 1e-8
    back = mean * torch.cos(length) + tangent * torch.sin(length) / length
    return (back * (shares @ norms)).view(found[0].shape)


@pytest.mark.covers("multislerp")
def test_by_hand() -> None:
    """Two orthogonal directions of lengths 1 and 3 with equal weights: halfway between them, of length 2."""
    merged = merge_tensors(MultiSlerp(), [torch.tensor([1.0, 0.0]), torch.tensor([0.0, 3.0])])
    assert merged.tolist() == pytest.approx([math.sqrt(2), math.sqrt(2)])
    base = torch.tensor([5.0, -5.0])
    moved = merge_tensors(MultiSlerp(), [base + torch.tensor([1.0, 0.0]), base + torch.tensor([0.0, 3.0])], base)
    assert moved.tolist() == pytest.approx([5 + math.sqrt(2), -5 + math.sqrt(2)])


@given(models(2, 4), WEIGHTS)
def test_the_tangent_step_never_moves(found: list[Tensor], weights: list[float]) -> None:
    if found[0].numel() > 7:  # random vectors of few numbers may nearly cancel
        chosen = weights[: len(found)]
        assert close(merge_tensors(MultiSlerp(weight=tuple(chosen)), found), by_steps(found, chosen), 64)


@given(models(1, 1), st.integers(1, 4), WEIGHTS)
def test_a_model_with_itself_is_the_model(found: list[Tensor], count: int, weights: list[float]) -> None:
    method = MultiSlerp(weight=tuple(weights[:count]))
    assert close(merge_tensors(method, found * count), found[0], 4)
    assert torch.equal(merge_tensors(method, found * count, found[0]), found[0])


@given(models(2, 4), WEIGHTS, st.randoms())
def test_the_order_of_models_does_not_matter(found: list[Tensor], weights: list[float], random: Random) -> None:
    pairs = list(zip(found, weights, strict=False))
    random.shuffle(pairs)
    if found[0].numel() > 7:
        one = merge_tensors(MultiSlerp(weight=tuple(weights[: len(found)])), found)
        other = merge_tensors(MultiSlerp(weight=tuple(w for _, w in pairs)), [t for t, _ in pairs])
        assert close(one, other, 32)


def test_weights_may_be_taken_as_they_are() -> None:
    found = random_tensors(3, (6, 6), 4)
    once = merge_tensors(MultiSlerp(weight=(1, 2, 1)), found)
    assert close(merge_tensors(MultiSlerp(weight=(1, 2, 1), normalize_weights=False), found), 4 * once)
    assert close(merge_tensors(MultiSlerp(weight=(0.25, 0.5, 0.25), normalize_weights=False), found), once)


def test_directions_that_cancel_are_averaged_where_there_are_two_and_refused_where_there_are_more() -> None:
    vector = torch.tensor([3.0, 4.0, 0.5])
    assert torch.allclose(merge_tensors(MultiSlerp(), [vector, -0.3 * vector]), 0.35 * vector)
    with pytest.raises(BadInput, match=r"layer\.3 cancel out"):
        merge_tensors(MultiSlerp(weight=(2, 1, 1)), [vector, -vector, -vector], name="layer.3")


def test_nearly_cancelling_directions_are_measured_and_not_guessed() -> None:
    """The mean of two directions 1e-4 short of opposite is 5e-5 long: products in float32 cannot tell."""
    first, across = random_tensors(2, (200, 300), 8)
    second = -first + 1e-4 * across
    wanted = by_steps([first, second], [1, 1])
    assert (merge_tensors(MultiSlerp(), [first, second]).double() - wanted).norm() <= 5e-3 * wanted.norm()


def test_tensors_that_no_model_changed_stay() -> None:
    base = torch.tensor([1.0, 2.0])
    assert torch.equal(merge_tensors(MultiSlerp(), [base, base, base], base), base)
    merged = merge_tensors(MultiSlerp(), [base, base, base + torch.tensor([3.0, 0.0])], base)
    assert merged.tolist() == pytest.approx([2.0, 2.0])  # the one change, at a third of its length
    nothing = torch.zeros(3)
    assert merge_tensors(MultiSlerp(), [nothing] * 3).tolist() == [0.0, 0.0, 0.0]


def test_weights_that_sum_to_nothing_are_refused() -> None:
    with pytest.raises(BadInput, match="sum to 0"):
        merge_tensors(MultiSlerp(weight=(1, -1)), random_tensors(2, (3,), 1))
