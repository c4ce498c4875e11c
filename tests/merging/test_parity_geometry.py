"""The averages and geometric methods against mergekit's functions on tensors, in the cases a whole model has few of."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from merging.tensors import close, fine_tunes, random_tensors
from palimpsest.merging.karcher import Karcher
from palimpsest.merging.linear import Linear
from palimpsest.merging.model_stock import ModelStock
from palimpsest.merging.multislerp import MultiSlerp
from palimpsest.merging.nuslerp import NuSlerp
from palimpsest.merging.passes import merge_tensors
from palimpsest.merging.slerp import Slerp
from palimpsest.merging.task_arithmetic import TaskArithmetic

# name in mergekit, our method, its parameters (a tuple: one for each model), models, with a base or not
CASES: list[tuple[str, Any, dict[str, Any], int, bool]] = [
    ("linear", Linear(weight=(1, 2, 0.5)), {"weight": (1.0, 2.0, 0.5)}, 3, False),
    ("linear", Linear(weight=(1, 2, 0.5), normalize=False), {"weight": (1.0, 2.0, 0.5), "normalize": False}, 3, False),
    ("task_arithmetic", TaskArithmetic(weight=(1, 0.3), lambda_=0.7), {"weight": (1.0, 0.3), "lambda": 0.7}, 2, True),
    (
        "task_arithmetic",
        TaskArithmetic(weight=(1, 3), normalize=True),
        {"weight": (1.0, 3.0), "normalize": True},
        2,
        True,
    ),
    ("slerp", Slerp(t=0.3), {"t": 0.3}, 1, True),
    ("nuslerp", NuSlerp(weight=(1, 3)), {"weight": (1.0, 3.0)}, 2, False),
    ("nuslerp", NuSlerp(weight=(1, 3)), {"weight": (1.0, 3.0)}, 2, True),
    ("nuslerp", NuSlerp(nuslerp_flatten=False), {"weight": (1.0, 1.0), "nuslerp_flatten": False}, 2, True),
    (
        "nuslerp",
        NuSlerp(nuslerp_flatten=False, nuslerp_row_wise=True),
        {"weight": (1.0, 1.0), "nuslerp_flatten": False, "nuslerp_row_wise": True},
        2,
        True,
    ),
    ("multislerp", MultiSlerp(weight=(1, 2, 3)), {"weight": (1.0, 2.0, 3.0)}, 3, False),
    (
        "multislerp",
        MultiSlerp(weight=(1, 2, 3), normalize_weights=False),
        {"weight": (1.0, 2.0, 3.0), "normalize_weights": False},
        3,
        True,
    ),
    ("karcher", Karcher(tol=1e-9), {"tol": 1e-9}, 3, False),  # where steps end differs by less than tol
    ("karcher", Karcher(max_iter=2, tol=1e-9), {"max_iter": 2, "tol": 1e-9}, 3, True),
    ("model_stock", ModelStock(), {}, 3, True),
    ("model_stock", ModelStock(filter_wise=True), {"filter_wise": True}, 3, True),
]


def theirs(name: str, settings: dict[str, Any], models: list[Tensor], base: Tensor | None) -> Tensor:
    """What mergekit makes of these tensors; the base, where there is one, stands first among its inputs."""
    from mergekit.merge_methods.api import merge_tensors as merge

    inputs = models if base is None else [base, *models]
    parameters = {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}
    return merge(inputs, name, parameters=parameters, base_index=None if base is None else 0)


def ours(method: Any, models: list[Tensor], base: Tensor | None) -> Tensor:
    """The same of ours, in chunks of 60 numbers; a base that counts as a model stands first."""
    counts = base is not None and method.base == "model"
    return merge_tensors(method, [base, *models] if counts else models, None if counts else base, size=60)  # type: ignore[list-item]


@pytest.mark.parametrize(("name", "method", "settings", "count", "has_base"), CASES)
@pytest.mark.parametrize("far", [None, 1.0, 1e-2])
@pytest.mark.parametrize("shape", [(50,), (24, 20), (4, 5, 6)])
def test_methods_agree_with_mergekit_in_float32(
    name: str, method: Any, settings: dict[str, Any], count: int, has_base: bool, far: float | None, shape: tuple[int]
) -> None:
    """Independent models, and fine-tunes near their base; within the rounding of float32."""
    if far is None:
        base, *models = random_tensors(count + 1, shape, 11)
    else:
        base, models = fine_tunes(count, shape, 12, far)
    chosen = base if has_base else None
    found, wanted = ours(method, models, chosen), theirs(name, settings, models, chosen)
    largest = max(1.0, float(torch.stack([base, *models]).abs().max() / wanted.abs().max()))
    assert close(found, wanted, 64 * largest)


@pytest.mark.parametrize(("name", "method", "settings", "count", "has_base"), CASES)
def test_models_that_are_their_base_agree_with_mergekit(
    name: str, method: Any, settings: dict[str, Any], count: int, has_base: bool
) -> None:
    """Tensors that no fine-tune changed; where mergekit gives none, the base."""
    base = random_tensors(1, (6, 8), 13)[0]
    chosen = base if has_base else None
    refused = name == "multislerp" and has_base  # by mergekit, where there are three or more
    wanted = base if refused else theirs(name, settings, [base] * count, chosen)
    assert close(ours(method, [base] * count, chosen), wanted)


def test_where_we_differ_from_mergekit() -> None:
    """Each of these is in docs/merging-methods.md, with its reason."""
    base, first, second, third = random_tensors(4, (6, 8), 14)
    with pytest.raises(ValueError, match="weighted sum of the input tensors is zero"):
        theirs("multislerp", {"weight": 1.0}, [base] * 3, base)
    assert torch.equal(ours(MultiSlerp(), [base] * 3, base), base)

    small = [1e-5 * v for v in (first, first + second, first + third)]  # cosines counted against lengths of 1e-3
    kept = theirs("model_stock", {}, small, torch.zeros(6, 8))
    assert kept.norm() < 0.2 * ours(ModelStock(), small, torch.zeros(6, 8)).norm()
