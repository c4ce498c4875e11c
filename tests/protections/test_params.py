"""PaRaMS: the assignment against brute force, the shape of the scales on each kind of attention, dropping."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from factory import make_model
from merging.folders import weights_of
from palimpsest.checkpoint import resolve
from palimpsest.errors import BadInput
from palimpsest.method import Context, build
from palimpsest.protections.applying import Layers
from palimpsest.protections.assignment import furthest, inner_products
from palimpsest.protections.dropping import dropping, feed_forward_names
from palimpsest.protections.params import PaRaMS
from palimpsest.protections.secret import Secret
from protections.conftest import Models


def test_the_assignment_of_five_neurons_is_the_best_of_all_orders() -> None:
    drawn = torch.Generator().manual_seed(0)
    for _ in range(5):
        pre, mine = torch.randn(5, 7, generator=drawn), torch.randn(5, 7, generator=drawn)
        order = furthest(pre @ mine.T)
        distances = {o: float((pre - mine[list(o)]).square().sum()) for o in itertools.permutations(range(5))}
        assert distances[tuple(order.tolist())] == pytest.approx(max(distances.values()))


@pytest.mark.covers("params")
@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2"])
def test_neurons_go_as_far_from_the_base_as_any_order_takes_them(models: Models, tmp_path: Path, kind: str) -> None:
    base, expert = resolve(models.base(kind)), resolve(models.expert(kind))
    theirs, mine = Layers(base, "params"), Layers(expert, "params")
    rows = []
    for side in (theirs, mine):  # a neuron as one long row: gate, up, down, and the biases that go with rows
        parts = [side.weight(1, r).T if r == "down" else side.weight(1, r) for r in side.roles()]
        parts += [b[:, None] for r in side.roles() if r != "down" and (b := side.bias(1, r)) is not None]
        rows.append(torch.cat(parts, dim=1))
    products = inner_products(theirs, mine, 1)
    assert torch.allclose(products, rows[0] @ rows[1].T, atol=1e-4)
    made = PaRaMS(base=base, scaling=False).apply(expert, tmp_path / "out", Context())
    assert isinstance(made.secret, Secret)
    order = made.secret.gauge().layers[1].neurons
    assert order is not None and sorted(order.tolist()) == list(range(len(order)))
    after = Layers(made.checkpoint, "params")
    for role in mine.roles():
        old, new = mine.weight(1, role), after.weight(1, role)
        assert torch.equal(new, old[:, order] if role == "down" else old[order]), role
    moved = float((rows[0] - rows[1][order]).square().sum())
    drawn = torch.Generator().manual_seed(0)
    others = [torch.randperm(len(order), generator=drawn) for _ in range(50)]
    assert moved > max(float((rows[0] - rows[1][o]).square().sum()) for o in others)


@pytest.mark.parametrize(
    ("kind", "form"), [("llama", "pair-tied"), ("gpt2", "free"), ("gpt_neox", "pair-tied and free"), ("qwen3", "gains")]
)
def test_queries_and_keys_are_scaled_as_is_legal(models: Models, tmp_path: Path, kind: str, form: str) -> None:
    expert = resolve(models.expert(kind))
    method = PaRaMS(base=resolve(models.base(kind)), low=0.25, high=3.0)
    made = method.apply(expert, tmp_path / "out", Context(key_seed=2))
    assert made.records[0].detail["query_key"] == form and isinstance(made.secret, Secret)
    before, after = Layers(expert, "t"), Layers(made.checkpoint, "t")
    ratio = (after.weight(0, "query") / before.weight(0, "query")).median(dim=1).values
    sizes = before.sizes
    per_row = ratio.view(sizes.groups, sizes.shared, sizes.head)
    assert torch.allclose(per_row, per_row[:, :1].expand_as(per_row), atol=1e-3), "one scale for a group's queries"
    half = per_row[:, 0, : 2 * sizes.pairs]
    assert torch.allclose(half[:, : sizes.pairs], half[:, sizes.pairs :], atol=1e-3), "one number a pair"
    if form != "gains":
        assert float(ratio.min()) >= 0.25 - 1e-3 and float(ratio.max()) <= 3.0 + 1e-3 and float(ratio.std()) > 0.3
    values = (after.weight(0, "value") / before.weight(0, "value")).median(dim=1).values
    assert float(values.min()) >= 0.25 - 1e-3 and float(values.std()) > 0.3


def test_dropping_takes_its_share_of_the_feed_forward_and_nothing_else(models: Models) -> None:
    base, expert = resolve(models.base("llama")), resolve(models.expert("llama"))
    names = feed_forward_names(expert)
    assert names == {f"model.layers.{i}.mlp.{r}_proj.weight" for i in (0, 1) for r in ("gate", "up", "down")}
    theirs, mine = weights_of(base.path), weights_of(expert.path)
    for against, times in ((None, 1.0), (None, 1 / 0.7), (base, 1.0), (base, 1 / 0.7)):
        edit = dropping(expert, against, 0.3, times != 1.0, 5)
        for name in sorted(names):
            found, again = mine[name].clone(), mine[name].clone()
            edit(name, found)
            edit(name, again)
            assert torch.equal(found, again), "the same mask every time"
            origin = theirs[name] if against is not None else torch.zeros(())
            whole = origin + (mine[name] - origin) * times
            gone = found == origin
            share = float(gone.double().mean())
            assert share == pytest.approx(0.3, abs=4 * (0.21 / found.numel()) ** 0.5)
            assert torch.allclose(found[~gone], whole[~gone], atol=1e-6)


def test_the_dropout_variant_says_that_the_function_changed(models: Models, tmp_path: Path) -> None:
    base, expert = resolve(models.base("llama")), resolve(models.expert("llama"))
    plain = PaRaMS(base=base).apply(expert, tmp_path / "a", Context(key_seed=1))
    made = PaRaMS(base=base, dropout=0.2, scaling=False).apply(expert, tmp_path / "b", Context(key_seed=1))
    assert plain.records[0].detail["exact"] is True and made.records[0].detail["exact"] is False
    gate = weights_of(tmp_path / "b")["model.layers.0.mlp.gate_proj.weight"]
    assert float((gate == 0).double().mean()) == pytest.approx(0.2, abs=0.03)
    assert build(PaRaMS, "dropout-variant").dropped == "update"


def test_bad_input_is_refused_before_anything_is_written(models: Models, tmp_path: Path) -> None:
    expert = resolve(models.expert("llama"))
    other = resolve(make_model(tmp_path / "other", "qwen2"))
    wide = resolve(make_model(tmp_path / "wide", intermediate_size=96, num_key_value_heads=2))
    for method, words in (
        (PaRaMS(), "params: needs the base"),
        (PaRaMS(base=wide), "is of another architecture or size"),
        (PaRaMS(base=resolve(models.base("llama")), low=3.0), "low 3.0 is above high 2.0"),
        (PaRaMS(base=resolve(models.base("llama")), dropout=1.0), "dropout 1 leaves nothing"),
    ):
        with pytest.raises(BadInput, match=words):
            method.apply(expert, tmp_path / "out", Context())
    gelu = PaRaMS(base=resolve(models.base("gpt2")), up_scale=True)
    with pytest.raises(BadInput, match="neurons may only change places"):
        gelu.apply(resolve(models.expert("gpt2")), tmp_path / "out", Context())
    assert other.path.exists() and not (tmp_path / "out").exists()
