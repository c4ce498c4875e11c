"""Task arithmetic: by hand, and that one expert at 1.0 is the expert again."""

from __future__ import annotations

from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from merging.tensors import ULP, models
from palimpsest.merging.passes import merge_tensors
from palimpsest.merging.task_arithmetic import TaskArithmetic


@pytest.mark.covers("task-arithmetic")
def test_by_hand() -> None:
    base, first, second = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([2.0, 1.0, 0.0]), torch.tensor([1.0, 4.0, 2.0])
    merged = merge_tensors(TaskArithmetic(weight=(0.5, 2.0)), [first, second], base)
    assert merged.tolist() == [1.5, 7.0, 2.5]
    halved = merge_tensors(TaskArithmetic(weight=(0.5, 2.0), lambda_=0.5), [first, second], base)
    assert halved.tolist() == [1.25, 4.0, 1.75]
    shared = merge_tensors(TaskArithmetic(weight=(1.0, 3.0), normalize=True), [first, second], base)
    assert shared.tolist() == [1.25, 3.25, 1.5]


@given(models(2, 2))
def test_one_expert_at_one_is_the_expert(found: list[Tensor]) -> None:
    """Within one unit in the last place of the larger operand; the same bits in bfloat16 away from cancellation."""
    base, expert = found
    merged = merge_tensors(TaskArithmetic(), [expert], base)
    assert ((merged - expert).abs() <= ULP * torch.maximum(base.abs(), expert.abs())).all()
    stored_base, stored = base.bfloat16(), expert.bfloat16()
    again = merge_tensors(TaskArithmetic(), [stored], stored_base).bfloat16()
    fits = stored_base.float().abs() <= 2**15 * stored.float().abs()
    assert torch.equal(again[fits], stored[fits])


@given(models(1, 3))
def test_experts_that_are_the_base_leave_it(found: list[Tensor]) -> None:
    base = found[0]
    assert torch.equal(merge_tensors(TaskArithmetic(weight=(0.7,)), [base] * len(found), base), base)


@given(models(3, 4), st.randoms())
def test_the_order_of_experts_does_not_matter(found: list[Tensor], random: Random) -> None:
    base, *experts = found
    shuffled = list(experts)
    random.shuffle(shuffled)
    one, other = (merge_tensors(TaskArithmetic(weight=(0.4,)), e, base) for e in (experts, shuffled))
    assert (one - other).abs().max() <= 8 * ULP * torch.stack(found).abs().max()


@given(models(2, 4), st.floats(-2, 2))
def test_lambda_scales_all_weights(found: list[Tensor], factor: float) -> None:
    base, *experts = found
    one = merge_tensors(TaskArithmetic(weight=(0.5,), lambda_=factor), experts, base)
    other = merge_tensors(TaskArithmetic(weight=(0.5 * factor,)), experts, base)
    assert torch.equal(one, other)
