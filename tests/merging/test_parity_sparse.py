"""The sparse methods against mergekit's own, both in float32 on weights stored in bfloat16."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mergekit.merge_methods import registry
from mergekit.merge_methods.base import ParameterScope, PerInputValues, TensorGroup
from mergekit.sparsify import RescaleNorm, bernoulli, della_magprune
from torch import Tensor

from merging.test_ties import some
from palimpsest.merging.breadcrumbs import Breadcrumbs, BreadcrumbsTies, band
from palimpsest.merging.consensus import positive_share
from palimpsest.merging.dare import Dare, DareTies
from palimpsest.merging.della import Della, DellaLinear
from palimpsest.merging.passes import Chunk, TensorFacts, merge_tensors
from palimpsest.merging.sce import Sce, variance
from palimpsest.merging.ties import Ties

SHAPES = [(64, 64), (172, 64), (64,), (300, 64)]  # of a small Llama: projection, MLP, norm, embedding


def reference(name: str, base: Tensor, models: list[Tensor], **given: Any) -> Tensor:
    """What mergekit makes of them; lists are values of each model."""
    found = registry.get(name)
    values: dict[str, Any] = {}
    for spec in found.spec.parameters:
        value = given.pop(spec.name, spec.default)
        if spec.scope != ParameterScope.SHARED:
            value = PerInputValues(list(enumerate(value if isinstance(value, list) else [value] * len(models), 1)))
        values[spec.name] = value
    assert not given
    group = TensorGroup.from_tensors([base, *models], base_index=0)
    merged = found.merge_group(group, **values)
    assert isinstance(merged, Tensor) and merged.dtype == torch.float32
    return merged


def tied(values: Tensor, cuts: list[int]) -> Tensor:
    """Where a value is, within rounding, both the last that is kept and the first that is dropped of the k largest."""
    ranked = values.flatten().sort(descending=True).values
    found = torch.zeros_like(values, dtype=torch.bool)
    for k in cuts:
        if 0 < k < len(ranked) and torch.isclose(ranked[k - 1], ranked[k], rtol=1e-6, atol=0):
            found |= torch.isclose(values, ranked[k], rtol=2e-6, atol=0)
    return found


def check(ours: Tensor, theirs: Tensor, at_ties: Tensor) -> None:
    assert at_ties.float().mean() < 0.1
    assert torch.allclose(ours[~at_ties], theirs[~at_ties], rtol=1e-5, atol=1e-7)  # a hundredth of a bfloat16 step


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("density", [0.0, 0.01, 0.35, 0.8, 1.0])
def test_ties(shape: tuple[int, ...], normalize: bool, rescale: bool, density: float) -> None:
    base, *models = some(3, *shape)
    densities, weights = [density, 0.5, 0.9], [0.4, 1.0, -0.3]
    shared: dict[str, Any] = {"normalize": normalize, "lambda_": 0.8, "rescale": "l1" if rescale else "none"}
    ours = merge_tensors(Ties(tuple(densities), tuple(weights), **shared), models, base)
    given = {"normalize": normalize, "rescale": rescale, "lambda": 0.8}
    theirs = reference("ties", base, models, density=densities, weight=weights, **given)
    ties = torch.zeros(shape, dtype=torch.bool)
    for model, share in zip(models, densities, strict=True):
        ties |= tied((model - base).abs(), [positive_share(TensorFacts("w", shape, 3), share)])
    check(ours, theirs, ties)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize(("density", "gamma"), [(0.4, 0.01), (0.4, 0.2), (0.95, 0.2), (1.0, 0.1), (0.005, 0.0)])
@pytest.mark.parametrize("name", ["breadcrumbs", "breadcrumbs_ties"])
def test_breadcrumbs(name: str, shape: tuple[int, ...], rescale: bool, density: float, gamma: float) -> None:
    base, *models = some(2, *shape)
    kind: Any = Breadcrumbs if name == "breadcrumbs" else BreadcrumbsTies
    ours = kind((density,), (gamma,), (0.6, 0.7), rescale="l1" if rescale else "none")
    given: dict[str, Any] = {"density": density, "gamma": gamma, "weight": [0.6, 0.7], "rescale": rescale}
    ties = torch.zeros(shape, dtype=torch.bool)
    for model in models:
        ties |= tied((model - base).abs(), list(band(base.numel(), density, gamma)))
    check(merge_tensors(ours, models, base), reference(name, base, models, **given), ties)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("share", [0.125, 0.5, 1.0])
def test_sce(shape: tuple[int, ...], count: int, share: float) -> None:
    base, *models = some(count, *shape)
    models = [base + (m - base) * 2.0**i for i, m in enumerate(models)]  # of different sizes
    flat = [m.flatten().clone() for m in models]  # task vectors take the place of the models
    varying = variance(Chunk(TensorFacts("w", shape, count), flat, base.flatten()))
    if share < 1:  # of equal variances other ones are taken, which changes the weights: cut where none are equal
        ranked = varying[varying > 0].sort(descending=True).values
        apart = torch.nonzero(ranked[:-1] > ranked[1:] * (1 + 1e-5)).flatten() + 1
        cut = int(apart[(apart - share * len(ranked)).abs().argmin()])
        share = (cut + 0.5) / len(ranked)
    ours = merge_tensors(Sce(share, floor=1e-6), models, base)
    check(ours, reference("sce", base, models, select_topk=share), torch.zeros(shape, dtype=torch.bool))


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties", "della", "della_linear"])
def test_random_methods_agree_where_nothing_is_random(name: str) -> None:
    base, *models = some(3, 64, 64)
    kinds: dict[str, Any] = {"dare_linear": Dare, "dare_ties": DareTies, "della": Della, "della_linear": DellaLinear}
    ours = merge_tensors(kinds[name](weight=(0.4, 0.9, -0.2), lambda_=0.5), models, base)
    given = {"weight": [0.4, 0.9, -0.2], "lambda": 0.5}
    check(ours, reference(name, base, models, **given), torch.zeros(64, 64, dtype=torch.bool))


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_dare_keeps_as_many_and_has_the_same_norm(density: float) -> None:
    torch.manual_seed(99)  # not that of the weights, whose stream it would repeat
    base, model = some(1, 256, 200, stored=torch.float32)
    delta = model - base
    ours = merge_tensors(Dare((density,), rescale="l1"), [model], torch.zeros_like(base) + base) - base
    theirs = bernoulli(delta, density, RescaleNorm.l1)
    error = (2 * density * (1 - density) / delta.numel()) ** 0.5
    rates = [(d.abs() > 1e-8).float().mean().item() for d in (ours, theirs)]
    assert abs(rates[0] - rates[1]) < 4.5 * error
    for found in (ours, theirs):
        assert found.abs().sum().item() == pytest.approx(delta.abs().sum().item(), rel=1e-4)


def test_della_keeps_each_rank_as_often_and_has_the_same_norm() -> None:
    torch.manual_seed(99)  # not that of the weights, whose stream it would repeat
    delta = some(1, 2000, 50, stored=torch.float32)[1]
    ours = merge_tensors(DellaLinear((0.5,), (0.3,), rescale="l1"), [delta], torch.zeros_like(delta))
    theirs = della_magprune(delta, 0.5, 0.3, RescaleNorm.l1)
    order = delta.abs().argsort(1)
    probability = torch.linspace(0.2, 0.8, 50)
    error = (probability * (1 - probability) / 2000).sqrt()
    for found in (ours, theirs):
        rates = (found != 0).float().gather(1, order).mean(0)
        assert ((rates - probability).abs() < 4.5 * error).all()
        assert found.abs().sum().item() == pytest.approx(delta.abs().sum().item(), rel=1e-4)
