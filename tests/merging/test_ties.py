"""TIES by hand, and what holds of every sparse method."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from palimpsest.merging.breadcrumbs import Breadcrumbs, BreadcrumbsTies
from palimpsest.merging.dare import Dare, DareTies
from palimpsest.merging.della import Della, DellaLinear
from palimpsest.merging.passes import merge_tensors
from palimpsest.merging.sce import Sce
from palimpsest.merging.task_arithmetic import TaskArithmetic
from palimpsest.merging.ties import Ties

HALF = {"density": (0.5, 0.7), "weight": (0.3, 0.6)}


def some(count: int, *shape: int, seed: int = 0, stored: torch.dtype = torch.bfloat16) -> list[Tensor]:
    """A base and `count` models near it, with the values that bfloat16 has."""
    made = torch.Generator().manual_seed(seed)
    base = (torch.randn(shape, generator=made) * 0.02).to(stored).float()
    return [base, *((base + torch.randn(shape, generator=made) * 0.002).to(stored).float() for _ in range(count))]


@pytest.mark.covers("ties")
def test_trim_elect_and_the_disjoint_mean_by_hand() -> None:
    base = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0])
    first = base + torch.tensor([4.0, -3.0, 2.0, 0.5, 0.0])  # the three largest are 4, -3, 2
    second = base + torch.tensor([2.0, 5.0, 0.5, -0.5, -4.0])  # 5, -4, 2
    merged = merge_tensors(Ties(density=(0.6,), weight=(1.0,)), [first, second], base)
    # sums 6, 2, 2, 0, -4: signs + + + + -; those that agree: both, second, first, none, second
    assert merged.tolist() == [1 + 3, 1 + 5, 1 + 2, 1, 1 - 4]


def test_weights_decide_the_election_and_the_mean() -> None:
    base = torch.zeros(2)
    models = [torch.tensor([1.0, 1.0]), torch.tensor([-2.0, 3.0])]
    merged = merge_tensors(Ties(weight=(0.75, 0.25), lambda_=2.0), models, base)
    assert merged.tolist() == [2 * 1.0, 2 * (0.75 * 1 + 0.25 * 3)]  # 0.75 against -0.5: the first wins
    assert merge_tensors(Ties(weight=(0.75, 0.25), normalize=False), models, base).tolist() == [0.75, 1.5]


def test_a_negative_weight_votes_against_its_task_vector() -> None:
    base = torch.zeros(3)
    models = [torch.tensor([1.0, 1.0, 1.0]), torch.tensor([2.0, -2.0, 0.5])]
    merged = merge_tensors(Ties(weight=(1.0, -1.0)), models, base)
    # weighted: 1, 1, 1 and -2, 2, -0.5; sums -1, 3, 0.5; divisors -1, 1 - 1 = 0 (counted as 1), 1
    assert merged.tolist() == [2.0, 3.0, 1.0]


def test_a_sum_of_zero_elects_plus() -> None:
    merged = merge_tensors(Ties(), [torch.tensor([1.5]), torch.tensor([-1.5])], torch.zeros(1))
    assert merged.tolist() == [1.5]


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=20), st.floats(0.01, 1))
def test_two_that_cancel_exactly_elect_plus_whatever_the_weight(values: list[float], weight: float) -> None:
    delta, base = torch.tensor(values), torch.zeros(len(values))
    merged = merge_tensors(Ties(weight=(weight,)), [delta, -delta], base)
    assert torch.equal(merged, merge_tensors(Ties(weight=(weight,)), [-delta, delta], base))
    assert torch.allclose(merged, delta.abs())


def test_equal_magnitudes_at_the_cut_are_kept_by_position() -> None:
    merged = merge_tensors(Ties(density=(0.5,)), [torch.tensor([1.0, -1.0, 1.0, 1.0])], torch.zeros(4))
    assert merged.tolist() == [1.0, -1.0, 0.0, 0.0]


def test_the_rescaling_restores_the_norm() -> None:
    base, model = some(1, 40, 16)
    merged = merge_tensors(Ties(density=(0.3,), rescale="l1"), [model], base)
    assert (merged - base).abs().sum().item() == pytest.approx((model - base).abs().sum().item(), rel=1e-5)


SPARSE: list[Any] = [
    Ties(**HALF), Ties(**HALF, rescale="l1"), Breadcrumbs(**HALF, gamma=(0.1,)), BreadcrumbsTies(**HALF),
    Dare(**HALF), Dare(**HALF, rescale="l1"), DareTies(**HALF), Della(**HALF), DellaLinear(**HALF),
    Della(**HALF, rescale="none"), Sce(select_topk=0.4), Sce(),
]  # fmt: skip


@pytest.mark.parametrize("method", SPARSE, ids=lambda m: f"{m.info.name}-{getattr(m, 'rescale', '')}")
@given(size=st.integers(1, 700))
def test_the_size_of_chunks_changes_nothing(method: Any, size: int) -> None:
    base, *models = some(2, 20, 33)
    whole = merge_tensors(method, models, base, seed=3)
    parts = merge_tensors(method, models, base, seed=3, size=size)
    # Norms and fused additions may round otherwise in another chunk; an entry kept or dropped shows by far more.
    assert torch.allclose(whole, parts, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", [Breadcrumbs, Dare, DellaLinear])
@pytest.mark.parametrize("normalize", [True, False])
def test_density_one_is_task_arithmetic(kind: Any, normalize: bool) -> None:
    base, *models = some(3, 20, 33)
    shared = {"weight": (0.2, 0.5, -0.1), "normalize": normalize, "lambda_": 0.7}
    plain = merge_tensors(TaskArithmetic(**shared), models, base)
    assert torch.allclose(merge_tensors(kind(density=(1.0,), **shared), models, base), plain, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", [Ties, BreadcrumbsTies, DareTies, Della])
def test_one_model_at_density_one_is_itself(kind: Any) -> None:
    base, model = some(1, 20, 33)
    merged = merge_tensors(kind(density=(1.0,)), [model], base)
    assert torch.allclose(merged, model, rtol=1e-6) and torch.equal(merged.bfloat16(), model.bfloat16())


@pytest.mark.parametrize("method", [Ties((0.4,)), BreadcrumbsTies((0.4,)), Breadcrumbs((0.4,)), Sce(0.4)])
def test_the_order_of_models_changes_nothing(method: Any) -> None:
    base, *models = some(2, 20, 33)
    assert torch.equal(merge_tensors(method, models, base), merge_tensors(method, models[::-1], base))


@pytest.mark.parametrize("method", SPARSE, ids=lambda m: f"{m.info.name}-{getattr(m, 'rescale', '')}")
@pytest.mark.parametrize("shape", [(), (1,), (3,), (5, 1)])
def test_tiny_and_equal_tensors_merge_without_nan(method: Any, shape: tuple[int, ...]) -> None:
    base, *models = some(2, *shape)
    assert torch.isfinite(merge_tensors(method, models, base)).all()
    assert torch.equal(merge_tensors(method, [base, base], base), base)
