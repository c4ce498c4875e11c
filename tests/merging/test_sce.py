"""SCE: what is selected, how models are weighed, who is erased."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.merging.passes import Chunk, TensorFacts, merge_tensors
from palimpsest.merging.sce import Sce, model_weights, variance


@pytest.mark.covers("sce")
def test_select_calculate_erase_by_hand() -> None:
    base = torch.full((4,), 10.0)
    models = [base + torch.tensor([1.0, 3.0, 2.0, 5.0]), base + torch.tensor([3.0, -1.0, 2.0, 4.0])]
    # variances 1, 4, 0, 0.25: three are not 0, int(0.7 * 3) = 2 positions are selected, the first two
    # mean squares 10 / 4 of both; sums 4 and 2: both agree at the first, the first model at the second
    assert merge_tensors(Sce(select_topk=0.7), models, base).tolist() == [12.0, 13.0, 10.0, 10.0]


def test_models_weigh_as_the_squares_of_their_task_vectors() -> None:
    base, models = torch.zeros(2), [torch.tensor([1.0, 1.0]), torch.tensor([3.0, -3.0])]
    # weights 0.1 and 0.9; sums 4 and -2
    assert merge_tensors(Sce(), models, base).tolist() == pytest.approx([0.1 * 1 + 0.9 * 3, -3.0])


def test_small_task_vectors_are_weighed_too_unless_a_floor_is_set() -> None:
    assert model_weights([1e-9, 3e-9], 0.0) == pytest.approx([0.25, 0.75])
    assert model_weights([1e-9, 3e-9], 1e-6) == [0.5, 0.5]
    assert model_weights([0.0, 0.0], 0.0) == [0.5, 0.5]


def test_nothing_selected_is_the_base() -> None:
    base = torch.zeros(3)
    models = [base + 1, base + 2]
    assert torch.equal(merge_tensors(Sce(select_topk=0.0), models, base), base)
    assert torch.equal(merge_tensors(Sce(select_topk=0.3), models, base), base)  # int(0.3 * 3) is 0
    assert torch.equal(merge_tensors(Sce(select_topk=0.9), [base + 1, base + 1], base), base)  # no variance


@given(st.lists(st.lists(st.floats(-100, 100, width=32), min_size=3, max_size=3), min_size=1, max_size=6))
def test_variance_is_the_population_variance_and_zero_where_all_agree(rows: list[list[float]]) -> None:
    models = [torch.tensor(row) for row in rows]
    found = variance(Chunk(TensorFacts("w", (3,), len(models)), models, torch.zeros(3)))
    exact = torch.stack(models).double().var(0, unbiased=False)
    assert torch.allclose(found.double(), exact, rtol=1e-5, atol=1e-35)
    equal = variance(Chunk(TensorFacts("w", (3,), 7), [models[0]] * 7, torch.zeros(3)))
    assert not equal.any()
