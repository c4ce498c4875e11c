"""DARE: what is kept, how it is scaled, and that the draws are fair."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from merging.test_ties import some
from palimpsest.merging.dare import Dare, DareTies
from palimpsest.merging.passes import merge_tensors
from palimpsest.merging.randomness import kept


@pytest.mark.covers("dare")
def test_what_the_draws_keep_is_divided_by_the_density() -> None:
    base, deltas = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([1.0, 2.0, 4.0, 8.0])
    mask = torch.from_numpy(kept(5, "w", 0, 0, 4, 0.25)).float()
    merged = merge_tensors(Dare(density=(0.25,), weight=(0.5,)), [base + deltas], base, name="w", seed=5)
    assert merged.tolist() == (base + 0.5 * deltas * mask * 4).tolist()


@pytest.mark.covers("dare-ties")
def test_the_election_is_among_what_the_draws_keep() -> None:
    base = torch.zeros(64)
    models = [torch.ones(64), torch.full((64,), -3.0)]
    merged = merge_tensors(DareTies(density=(0.5,)), models, base, name="w", seed=1)
    first, second = (torch.from_numpy(kept(1, "w", i, 0, 64, 0.5)) for i in range(2))
    expected = torch.where(second, -6.0, torch.where(first, 2.0, 0.0))  # where the second is kept it outweighs
    assert torch.equal(merged, expected)


@pytest.mark.parametrize(("rescale", "scale"), [("paper", 1.0), ("none", 0.3)])
def test_the_mean_over_seeds_is_the_task_vector_times_the_scale(rescale: Any, scale: float) -> None:
    base, model = torch.zeros(50), torch.linspace(-1, 1, 50)
    method = Dare(density=(0.3,), rescale=rescale)
    runs = torch.stack([merge_tensors(method, [model], base, seed=seed) for seed in range(2000)])
    error = model.abs() * (scale / 0.3) * (0.3 * 0.7 / 2000) ** 0.5
    assert ((runs.mean(0) - scale * model).abs() <= 4.5 * error + 1e-6).all()


def test_the_rescaling_of_mergekit_keeps_the_norm_exactly() -> None:
    base, model = some(1, 30, 40)
    merged = merge_tensors(Dare(density=(0.2,), rescale="l1"), [model], base)
    assert (merged - base).abs().sum().item() == pytest.approx((model - base).abs().sum().item(), rel=1e-5)


def test_density_zero_leaves_the_base() -> None:
    base, model = some(1, 30, 40)
    for rescale in ("paper", "l1", "none"):
        assert torch.equal(merge_tensors(Dare(density=(0.0,), rescale=rescale), [model], base), base)


def test_each_model_and_each_tensor_has_draws_of_its_own() -> None:
    base, model = torch.zeros(256), torch.ones(256)
    method = Dare(density=(0.5,), rescale="none")
    twice = merge_tensors(method, [model, model], base, name="w")
    assert set(twice.tolist()) == {0.0, 1.0, 2.0}
    assert not torch.equal(twice, merge_tensors(method, [model, model], base, name="v"))
    assert torch.equal(twice, merge_tensors(method, [model, model], base, name="w"))
