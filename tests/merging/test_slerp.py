"""SLERP: by hand, against the formula in float64, and at the places where the formula breaks down."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from merging.tensors import close, fine_tunes, models, random_tensors
from palimpsest.merging.passes import merge_tensors
from palimpsest.merging.slerp import Slerp


def direct(first: Tensor, second: Tensor, t: float) -> Tensor:
    """The formula in float64; the angle by half-angles (Kahan), which is exact for small ones too."""
    a, b = first.double().flatten(), second.double().flatten()
    a_unit, b_unit = a / a.norm(), b / b.norm()
    angle = 2 * math.atan2(float((a_unit - b_unit).norm()), float((a_unit + b_unit).norm()))
    merged = (math.sin((1 - t) * angle) * a + math.sin(t * angle) * b) / math.sin(angle)
    return merged.view(first.shape)


@pytest.mark.covers("slerp")
def test_by_hand() -> None:
    """A third of the way through a right angle: cos 30 and sin 30 degrees."""
    merged = merge_tensors(Slerp(t=1 / 3), [torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])])
    assert merged.tolist() == pytest.approx([math.cos(math.pi / 6), 2 * math.sin(math.pi / 6)])


def test_above_the_threshold_it_is_linear() -> None:
    first, second = torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.01])
    assert merge_tensors(Slerp(t=0.25), [first, second]).tolist() == pytest.approx([1.0, 0.0025])
    curved = merge_tensors(Slerp(t=0.25, dot_threshold=1.0), [first, second])
    assert close(curved, direct(first, second, 0.25), 2)


@given(models(2, 2), st.floats(0, 1))
def test_it_is_the_formula_in_float64(found: list[Tensor], t: float) -> None:
    if found[0].numel() > 1:
        assert close(merge_tensors(Slerp(t=t, dot_threshold=1.0), found), direct(*found, t), 32)


@pytest.mark.parametrize("far", [1e-1, 1e-2, 1e-3, 1e-4, 1e-6])
def test_a_fine_tune_and_its_base_are_no_hard_case(far: float) -> None:
    base, (model,) = fine_tunes(1, (64, 300), 3, far)
    for threshold in (0.9995, 1.0):
        merged = merge_tensors(Slerp(t=0.3, dot_threshold=threshold), [base, model])
        within = 16 if threshold == 1.0 else 16 + 1e-3 / 2**-23  # linear above the threshold: 0.0005 of the size
        assert close(merged, direct(base, model, 0.3), within)


@given(models(1, 1), st.floats(0, 1))
def test_a_model_with_itself_is_the_model(found: list[Tensor], t: float) -> None:
    for threshold in (0.9995, 1.0):
        assert close(merge_tensors(Slerp(t=t, dot_threshold=threshold), found * 2), found[0], 2)


@given(models(2, 2), st.floats(0, 1))
def test_the_order_matters_as_the_share_says(found: list[Tensor], t: float) -> None:
    one, other = merge_tensors(Slerp(t=t), found), merge_tensors(Slerp(t=1 - t), found[::-1])
    assert (one - other).abs().max() <= 1e-5 * torch.stack(found).abs().max()


def test_the_ends_are_the_models() -> None:
    found = random_tensors(2, (5, 6), 0)
    assert close(merge_tensors(Slerp(t=0), found), found[0], 2)
    assert close(merge_tensors(Slerp(t=1), found), found[1], 2)


def test_zeros_and_antipodes_give_numbers() -> None:
    vector, nothing = torch.tensor([3.0, 4.0]), torch.zeros(2)
    assert merge_tensors(Slerp(), [nothing, nothing]).tolist() == [0.0, 0.0]
    quarter = math.sin(math.pi / 4)  # a vector of zeros counts as orthogonal
    assert merge_tensors(Slerp(), [vector, nothing]).tolist() == pytest.approx([3 * quarter, 4 * quarter])
    for threshold in (0.9995, 1.0):
        merged = merge_tensors(Slerp(t=0.25, dot_threshold=threshold), [vector, -vector])
        assert merged.tolist() == pytest.approx([1.5, 2.0])
