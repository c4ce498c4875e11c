"""Gauges compose and invert within the one form: as weights, not only as functions."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from factory import FAMILIES
from palimpsest.checkpoint import Checkpoint
from palimpsest.symmetry import (
    Gauge,
    Rotation,
    SignedPermutation,
    check,
    components_of,
    compose,
    draw,
    edit_for,
    identity,
    inverse,
)
from symmetry.networks import Network, drawn, everything, legality, load, network, write

TURNED = [
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "phi",
    "gpt_neox",
    "phi3",
    "olmo",
]  # untied and without post-norms: a rotation is legal


def changed(model: Network, *gauges: Gauge) -> dict[str, Tensor]:
    """The weights under some gauges that fold nothing, one after the other."""
    weights = {n: p.detach().clone() for n, p in model.model.named_parameters()}
    for gauge in gauges:
        edit, names, _ = edit_for(gauge, model.checkpoint)
        for name, weight in weights.items():
            if name in names:
                edit(name, weight)
    return weights


def stored(checkpoint: Checkpoint) -> dict[str, Tensor]:
    return load_file(checkpoint.path / "model.safetensors")


def same(first: dict[str, Tensor], second: dict[str, Tensor], tolerance: float = 2e-5) -> None:
    assert first.keys() == second.keys()
    for name, weight in first.items():
        torch.testing.assert_close(
            weight, second[name], atol=tolerance, rtol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def equal(first: Gauge, second: Gauge) -> None:
    """The same numbers in every field."""
    for a, b in zip(first.layers, second.layers, strict=True):
        for part in fields(a):
            x, y = getattr(a, part.name), getattr(b, part.name)
            if isinstance(x, Tensor):
                torch.testing.assert_close(x, y, atol=2e-5, rtol=2e-5, msg=lambda m, n=part.name: f"{n}: {m}")
            elif part.name == "norms":
                assert x.keys() == y.keys()
                for place in x:
                    torch.testing.assert_close(x[place], y[place], atol=1e-5, rtol=1e-5)
            else:
                assert x is None and y is None, part.name
    early, late = first.residual, second.residual
    assert type(early) is type(late)
    if isinstance(early, Rotation) and isinstance(late, Rotation):
        torch.testing.assert_close(early.matrix, late.matrix, atol=1e-5, rtol=0)
    elif isinstance(early, SignedPermutation) and isinstance(late, SignedPermutation):
        assert torch.equal(early.index, late.index) and torch.equal(early.sign, late.sign)
    assert (first.final_norm is None) == (second.final_norm is None)
    if first.final_norm is not None and second.final_norm is not None:
        torch.testing.assert_close(first.final_norm, second.final_norm)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_composing_is_applying_one_after_the_other(family: str) -> None:
    model = network(family)
    first, second = (draw(model.config, everything(legality(model), False), drawn(n)) for n in (1, 2))
    both = compose(second, first, model.config)
    check(both, model.config)
    same(changed(model, first, second), changed(model, both))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_inverse_gives_the_weights_back(family: str) -> None:
    model = network(family)
    gauge = draw(model.config, everything(legality(model), False), drawn(3))
    back = inverse(gauge, model.config)
    check(back, model.config)
    same(changed(model, gauge, back), changed(model))
    same(changed(model, compose(back, gauge, model.config)), changed(model))


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("turned", [False, True])
def test_composing_is_associative(family: str, turned: bool) -> None:
    model = network(family)
    if turned and family not in TURNED:
        assert not legality(model).allows("residual-rotation")
        return
    a, b, c = (draw(model.config, everything(legality(model), turned), drawn(n)) for n in (4, 5, 6))
    config = model.config
    left, right = compose(compose(c, b, config), a, config), compose(c, compose(b, a, config), config)
    check(left, config)
    equal(left, right)


@settings(max_examples=15)
@given(family=st.sampled_from(sorted(FAMILIES)), chosen=st.data(), seed=st.integers(0, 1 << 30))
def test_any_components_compose_to_something_legal(family: str, chosen: st.DataObject, seed: int) -> None:
    model = network(family)
    allowed = everything(legality(model), bool(seed % 2))
    subset = st.sets(st.sampled_from(allowed), min_size=1)
    first, second = (draw(model.config, chosen.draw(subset), drawn(seed + n)) for n in (0, 1))
    both = compose(second, first, model.config)
    check(both, model.config)
    check(inverse(both, model.config), model.config)
    lost = {"norms", "final-norm"} if isinstance(second.residual, Rotation) else set()
    assert set(components_of(both)) >= (set(components_of(first)) | set(components_of(second))) - lost
    assert model.moved_by(both) < 1e-4


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "olmo"])
def test_rotations_compose_on_files_and_come_back_with_the_gains_folded(family: str, tmp_path: Path) -> None:
    model = network(family)
    first, second = (draw(model.config, everything(legality(model)), drawn(n)) for n in (7, 8))
    one = write(model.checkpoint, first, tmp_path / "one")
    two = write(one, second, tmp_path / "two")
    both = write(model.checkpoint, compose(second, first, model.config), tmp_path / "both")
    same(stored(two), stored(both), 1e-4)
    back = write(one, inverse(first, model.config), tmp_path / "back")
    turned = draw(model.config, ("residual-rotation",), drawn()).residual
    assert isinstance(turned, Rotation)
    folding = Gauge(identity(model.config).layers, Rotation(torch.eye(len(turned.matrix))))
    same(stored(back), stored(write(model.checkpoint, folding, tmp_path / "folded")), 1e-4)
    before, after = model.logits(), load(back).logits()
    assert float((after - before).abs().max() / before.abs().max()) < 1e-4


def test_the_identity_changes_no_tensor() -> None:
    model = network("llama")
    _, names, config = edit_for(identity(model.config), model.checkpoint)
    assert names == set() and config == {}
    check(identity(model.config), model.config)
    gauge = draw(model.config, everything(legality(model)), drawn())
    equal(compose(gauge, identity(model.config), model.config), gauge)
    equal(compose(identity(model.config), gauge, model.config), gauge)


def test_hand_worked_head_permutations_compose() -> None:
    """Two groups of two heads: (g1 h1) to the front, then the groups swapped."""
    from dataclasses import replace

    config = network("qwen2").config
    plain = identity(config)
    first = Gauge(
        tuple(replace(x, groups=torch.tensor([1, 0]), queries=torch.tensor([[1, 0], [0, 1]])) for x in plain.layers)
    )
    both = compose(first, first, config).layers[0]
    assert both.groups is not None and both.queries is not None
    # heads 0..3, group g holds 2g, 2g + 1. First: [3, 2, 0, 1]. Again: positions [3, 2, 0, 1] of that: [1, 0, 3, 2].
    assert both.groups.tolist() == [0, 1] and both.queries.tolist() == [[1, 0], [1, 0]]
