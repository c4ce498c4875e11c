"""DELLA: probabilities by rank within a row, and the scale of what is kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from merging.test_ties import some
from palimpsest.errors import BadInput
from palimpsest.merging.della import Della, DellaLinear, by_rank, keep_levels
from palimpsest.merging.passes import merge_tensors
from palimpsest.merging.randomness import FULL, draws


@pytest.mark.covers("della-linear")
def test_each_kept_entry_is_divided_by_its_own_probability() -> None:
    base = torch.zeros(2, 3)
    model = torch.tensor([[0.1, -3.0, 2.0], [5.0, 4.0, -4.0]])  # ranks 0 2 1 and 2 0 1: equal ones by position
    probability = torch.tensor([[0.25, 0.75, 0.5], [0.75, 0.25, 0.5]])
    drawn = torch.from_numpy(draws(2, "w", 0, 0, 6) / FULL).reshape(2, 3)
    expected = torch.where(drawn < probability, model / probability, torch.zeros(()))
    method = DellaLinear(density=(0.5,), epsilon=(0.25,))
    assert torch.allclose(merge_tensors(method, [model], base, name="w", seed=2), expected)


@pytest.mark.covers("della")
def test_the_election_is_among_what_is_kept_and_averages_those_that_agree() -> None:
    base, models = torch.zeros(1, 2), [torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, -8.0]])]
    method = Della(density=(0.5,), epsilon=(0.25,))
    for seed in range(30):
        sparse = [
            [
                float(value) / p if d / FULL < p else 0.0
                for value, p, d in zip(model[0], (0.25, 0.75), draws(seed, "w", i, 0, 2), strict=True)
            ]
            for i, model in enumerate(models)
        ]
        for place, merged in enumerate(merge_tensors(method, models, base, name="w", seed=seed)[0].tolist()):
            column = [row[place] for row in sparse]
            agreeing = [v for v in column if v * (1 if sum(column) >= 0 else -1) > 0]
            assert merged == pytest.approx(sum(agreeing) / max(1, len(agreeing)))


@given(st.integers(1, 300), st.floats(0.05, 0.95), st.floats(0.0, 1.0))
def test_levels_rise_with_rank_and_average_to_the_density(row: int, density: float, part: float) -> None:
    epsilon = 0.999 * part * min(density, 1 - density)
    levels = keep_levels(row, density, epsilon)
    assert levels is not None
    assert (np.diff(levels.astype(np.int64)) >= 0).all()
    assert levels.mean() / FULL == pytest.approx(density, abs=1e-8)


@given(st.lists(st.sampled_from([0.0, 1e-45, 1.0, 1 + 2**-23, 2.0, 3e38]), min_size=1, max_size=40), st.integers(1, 4))
def test_ranks_are_those_of_a_stable_sort_within_rows(values: list[float], rows: int) -> None:
    matrix = np.stack([np.roll(np.array(values, np.float32), i) for i in range(rows)])
    level = np.arange(len(values), dtype=np.uint32) + 7
    ranks = by_rank(matrix, level) - 7
    assert np.array_equal(ranks, np.argsort(np.argsort(matrix, axis=1, kind="stable"), axis=1))


@pytest.mark.parametrize("row", [2, 3, 896, 1024, 1025])
def test_rows_that_end_in_zeros_are_ranked_as_the_others_are(row: int) -> None:
    made = np.random.default_rng(row)
    matrix = np.abs(made.standard_normal((6, row))).astype(np.float32)
    matrix[::2] = matrix[::2].astype(np.float16)  # 11 bits: many equal
    ranks = by_rank(matrix, np.arange(row, dtype=np.uint32))
    assert np.array_equal(ranks, np.argsort(np.argsort(matrix, axis=1, kind="stable"), axis=1))


def test_large_entries_are_kept_more_often_and_the_mean_is_the_task_vector() -> None:
    base, model = torch.zeros(40), torch.linspace(0.1, 1, 40)
    method = DellaLinear(density=(0.5,), epsilon=(0.3,))
    runs = torch.stack([merge_tensors(method, [model], base, seed=seed) for seed in range(2000)])
    probability = torch.linspace(0.2, 0.8, 40)
    error = (probability * (1 - probability) / 2000).sqrt()
    assert (((runs != 0).float().mean(0) - probability).abs() < 4.5 * error).all()
    assert ((runs.mean(0) - model).abs() < 4.5 * model * error / probability).all()


def test_the_rescaling_of_mergekit_keeps_the_norm_exactly() -> None:
    base, model = some(1, 30, 40)
    merged = merge_tensors(DellaLinear(density=(0.4,), rescale="l1"), [model], base)
    assert (merged - base).abs().sum().item() == pytest.approx((model - base).abs().sum().item(), rel=1e-5)


def test_a_row_of_one_entry_is_kept_with_probability_density() -> None:
    assert keep_levels(1, 0.5, 0.2) == FULL // 2


def test_probabilities_outside_zero_and_one_are_refused() -> None:
    base, model = some(1, 4, 4)
    with pytest.raises(BadInput, match=r"density 0\.9 and epsilon 0\.15"):
        merge_tensors(Della(density=(0.9,)), [model], base)
