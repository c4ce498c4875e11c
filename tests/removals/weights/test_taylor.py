"""Taylor importances against autograd by another way, moving averages by hand, and the calibration that they read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from factory import make_model
from palimpsest.checkpoint import Checkpoint, resolve
from palimpsest.checkpoint.load import load_model, load_tokenizer
from palimpsest.data.dialogues import Dialogues, pair
from palimpsest.errors import BadInput
from palimpsest.method import Context, build
from palimpsest.prompts import Renderer
from palimpsest.removals.weights.calibration import calibration
from palimpsest.removals.weights.coupling import Group, Part
from palimpsest.removals.weights.prune_taylor import PruneTaylor, gradients
from palimpsest.removals.weights.rewriting import read_tensor
from palimpsest.removals.weights.scoring import Taylor, l2_scores, taylor_scores, taylor_values

VARIANTS: tuple[Taylor, ...] = ("vectorize", "param_first", "param_second", "param_mix")
DATA = Dialogues(
    "made",
    {
        part: tuple(pair(f"{part} question {i}?", f"answer {part} {i} and {i * i}") for i in range(20))
        for part in ("erase", "recover", "test")
    },
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A Llama with four heads of 16 in two KV groups."""
    return resolve(make_model(tmp_path_factory.mktemp("models") / "m", num_key_value_heads=2, head_dim=16))


def loss(network: Any, ids: torch.Tensor) -> torch.Tensor:
    """transformers' own mean loss over all tokens but the first."""
    return network(input_ids=ids, labels=ids).loss


def double_loss(network: Any, ids: torch.Tensor) -> torch.Tensor:
    """The same in float64, which a small step needs."""
    logits = network(input_ids=ids).logits[:, :-1]
    return -logits.log_softmax(-1).gather(2, ids[:, 1:, None]).mean()


# -- by hand -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("importance", ["vectorize", "param_first", "param_second"])
def test_scores_by_hand(importance: Taylor) -> None:
    """One unit of two rows of `a` and two columns of `b`, and another one."""
    a, grad_a = torch.tensor([[1.0, 2.0], [1.0, 0.0], [3.0, 0.0], [0.0, 0.0]]), torch.ones(4, 2)
    grad_a[0] = torch.tensor([1.0, -1.0])  # S: [1 -2], [1 0], [3 0], [0 0]
    b = torch.tensor([[1.0, 1.0, 2.0, 4.0], [1.0, 2.0, 0.0, 5.0]])
    grad_b = torch.ones(2, 4)
    squares_a, squares_b = torch.full((4, 2), 0.5), torch.full((2, 4), 0.5)
    places = np.arange(4).reshape(2, 2)
    group = Group(0, "heads", (Part("a", "out", places), Part("b", "in", places)), size=2)
    grad_b[1, 1] = -1.0  # S of b: columns (1, 1), (1, -2), (2, 0), (4, 5)
    values = {
        "a": taylor_values(a, grad_a, squares_a, importance),
        "b": taylor_values(b, grad_b, squares_b, importance),
    }
    expected = {
        # vectorize: |1-2| + |1| + |2| + |-1| = 5;          |3| + 0 + |2| + |9| = 14
        # param_first: 3 + 1 + 2 + 3 = 9;                   3 + 0 + 2 + 9 = 14
        "vectorize": [5.0, 14.0],
        "param_first": [9.0, 14.0],
        # w^2 / 2: (5 + 1) / 2 + (2 + 5) / 2 = 6.5;         9 / 2 + (4 + 41) / 2 = 27
        "param_second": [6.5, 27.0],
    }
    assert taylor_scores(group, values.__getitem__, importance).tolist() == expected[importance]
    mixed = taylor_values(a, grad_a, squares_a, "param_mix")
    assert mixed[0].tolist() == [1 - 1 * 0.5 / 2, -2 - 4 * 0.5 / 2]


def test_l2_scores_by_hand() -> None:
    a = torch.tensor([[1.0, 2.0], [0.0, 2.0], [0.0, 1.0]])
    b = torch.tensor([[4.0, 0.0, 1.0]])
    places = np.arange(3)[:, None]
    group = Group(0, "channels", (Part("a", "out", places), Part("b", "in", places)))
    assert l2_scores(group, {"a": a, "b": b}.__getitem__).tolist() == pytest.approx([21**0.5, 2.0, 2**0.5])


# -- against autograd by another way -------------------------------------------------------------------------


def test_gradients_are_those_of_the_batch_and_of_its_examples(model: Checkpoint) -> None:
    network = load_model(model, Context(), "float32")
    ids = calibration(DATA, model, 4, 16, 0, "x").ids
    name = "model.layers.0.self_attn.k_proj.weight"
    first, squared = gradients(network, {name}, ids, True)
    weight = dict(network.named_parameters())[name].requires_grad_(True)
    whole = torch.autograd.grad(loss(network, ids), weight)[0]  # one pass over the batch, transformers' own loss
    assert torch.allclose(first[name], whole, atol=1e-6)
    alone = [torch.autograd.grad(loss(network, row[None]), weight)[0] for row in ids]
    assert torch.allclose(squared[name], sum(g**2 for g in alone) / 4, atol=1e-9)  # type: ignore[arg-type]
    assert set(first) == {name}


@pytest.mark.covers("prune-taylor")
def test_first_order_importance_is_the_loss_that_fades_with_a_unit(tmp_path: Path) -> None:
    """d loss / d t at t = 0 where all weights of a channel are scaled by (1 - t), in float64, without autograd.

    An OPT, since RMS norms compute in float32, whatever the model's dtype: too coarse for small steps.
    """
    model = resolve(make_model(tmp_path / "m", "opt"))
    network = load_model(model, Context(), "float32").double()
    ids = calibration(DATA, model, 3, 16, 0, "x").ids
    parameters = dict(network.named_parameters())
    where = "model.decoder.layers.1."
    roles = (("fc1", 0), ("fc2", 1))
    names = {f"{where}{role}.weight" for role, _ in roles}
    first, squared = gradients(network, names, ids, False)
    values = {n: taylor_values(parameters[n].data, first[n], squared[n], "vectorize") for n in names}
    step = 1e-5
    with torch.no_grad():
        for channel in (0, 17, 127):
            slopes = []
            for role, axis in roles:
                row = parameters[f"{where}{role}.weight"].select(axis, channel)
                kept, found = row.clone(), []
                for sign in (1, -1):
                    row.copy_(kept * (1 - sign * step))
                    found.append(float(double_loss(network, ids)))
                row.copy_(kept)
                slopes.append((found[0] - found[1]) / (2 * step))
            group = Group(
                1,
                "channels",
                tuple(
                    Part(f"{where}{role}.weight", "in" if axis else "out", np.array([[channel]]))
                    for role, axis in roles
                ),
            )
            score = float(taylor_scores(group, values.__getitem__, "vectorize")[0])
            assert score == pytest.approx(sum(abs(s) for s in slopes), rel=1e-4)


@pytest.mark.parametrize("importance", VARIANTS)
def test_the_units_of_lowest_importance_go(model: Checkpoint, importance: Taylor, tmp_path: Path) -> None:
    """The whole method, recomputed with one backward pass an example and sums over rows and columns."""
    settings = {"ratio": 0.5, "importance": importance, "samples": 3, "tokens": 16, "start": 0}
    method = build(PruneTaylor, None, settings, {"data": DATA})
    done = method.apply(model, tmp_path / "o", Context(seed=2))
    network = load_model(model, Context(), "float32")
    ids = calibration(DATA, model, 3, 16, 2, "x").ids
    parameters = {n: p.requires_grad_(True) for n, p in network.named_parameters()}
    alone = [
        dict(zip(parameters, torch.autograd.grad(loss(network, r[None]), list(parameters.values())), strict=True))
        for r in ids
    ]
    after = {t.name: read_tensor(t) for t in done.checkpoint.tensors()}

    def value(name: str) -> torch.Tensor:
        w, g = parameters[name].data, sum(a[name] for a in alone) / 3
        second = w**2 * (sum(a[name] ** 2 for a in alone) / 3)
        return {"param_second": second, "param_mix": w * g - second / 2}.get(importance, w * g)

    def score(tensor: torch.Tensor, axis: int) -> torch.Tensor:
        return tensor.sum(axis).abs() if importance == "vectorize" else tensor.abs().sum(axis)

    for layer in range(2):
        where = f"model.layers.{layer}."
        parts = [score(value(f"{where}mlp.{r}_proj.weight"), a) for r, a in (("gate", 1), ("up", 1), ("down", 0))]
        lowest = set(sum(parts).argsort()[:64].tolist())  # type: ignore[union-attr]
        assert set(np.flatnonzero(~after[f"{where}mlp.up_proj.weight"].any(1).numpy()).tolist()) == lowest
        sides = zip("qkvo", (1, 1, 1, 0), strict=True)
        attention = [score(value(f"{where}self_attn.{r}_proj.weight"), a) for r, a in sides]
        gone = int(sum(p.view(2, -1).sum(1) for p in attention).argmin())  # type: ignore[union-attr]
        dead = (~after[f"{where}self_attn.q_proj.weight"].any(1)).view(2, 32).all(1)
        assert dead.tolist() == [gone == 0, gone == 1]
    (record,) = done.records
    assert record.tokens == 48 and record.detail["calibration"] == "made: 3 x 16 tokens"
    assert record.detail["importance"] == importance


def test_rounds_prune_a_like_share_each_and_look_again_between(model: Checkpoint, tmp_path: Path) -> None:
    settings = {"ratio": 0.5, "samples": 3, "tokens": 16, "start": 0, "end": 1}
    method = build(PruneTaylor, None, settings, {"data": DATA})
    done = replace(method, rounds=2).apply(model, tmp_path / "two", Context())
    half = replace(method, ratio=0.25).apply(model, tmp_path / "a", Context())
    again = method.apply(half.checkpoint, tmp_path / "b", Context())
    # the second round on the half-pruned model: zeroed units have importance 0, so they go first again
    assert again.checkpoint.digest() != half.checkpoint.digest()
    for tensor, other in zip(done.checkpoint.tensors(), again.checkpoint.tensors(), strict=True):
        assert torch.equal(read_tensor(tensor), read_tensor(other))


def test_appendix_hs_moving_averages_by_hand(model: Checkpoint, tmp_path: Path) -> None:
    """Two rounds with an own example each: G = 0.8 (0.2 w g1) + 0.2 w' g2, where w' is pruned by a quarter."""
    settings = {"ratio": 0.5, "rounds": 2, "samples": 2, "tokens": 16}
    method = build(PruneTaylor, "appendix_h", settings, {"data": DATA})
    assert (method.heads_beta, method.channels_beta, method.start, method.end) == (0.9, 0.8, 0.0, 1.0)
    done = method.apply(model, tmp_path / "o", Context())
    network = load_model(model, Context(), "float32")
    ids = calibration(DATA, model, 2, 16, 0, "x").ids
    parameters = dict(network.named_parameters())
    roles = [(f"model.layers.{i}.", r, a) for i in range(2) for r, a in (("gate", 1), ("up", 1), ("down", 0))]
    names = [f"{where}mlp.{r}_proj.weight" for where, r, _ in roles]

    def salience(row: torch.Tensor) -> dict[str, torch.Tensor]:
        chosen = [parameters[n].requires_grad_(True) for n in names]
        grads = torch.autograd.grad(loss(network, row[None]), chosen)
        return {n: parameters[n].data * g for n, g in zip(names, grads, strict=True)}

    def lowest(average: dict[str, torch.Tensor], layer: int, count: int) -> list[int]:
        at = f"model.layers.{layer}."
        squares = sum(average[f"{w}mlp.{r}_proj.weight"].pow(2).sum(a) for w, r, a in roles if w == at)
        return squares.argsort(stable=True)[:count].tolist()  # type: ignore[union-attr]

    average = {n: 0.2 * s for n, s in salience(ids[0]).items()}
    with torch.no_grad():  # heads: a quarter of two KV groups is none, so that the first round leaves them
        for layer in range(2):
            for where, role, axis in roles:
                if where == f"model.layers.{layer}.":
                    chosen = torch.tensor(lowest(average, layer, 32))
                    parameters[f"{where}mlp.{role}_proj.weight"].index_fill_(1 - axis, chosen, 0)
    average = {n: 0.8 * average[n] + 0.2 * s for n, s in salience(ids[1]).items()}
    after = {t.name: read_tensor(t) for t in done.checkpoint.tensors()}
    for layer in range(2):
        before = (~parameters[f"model.layers.{layer}.mlp.up_proj.weight"].any(1)).nonzero().flatten().tolist()
        for where, role, axis in roles:
            if where == f"model.layers.{layer}.":  # what has gone stays gone, whatever its average
                average[f"{where}mlp.{role}_proj.weight"].index_fill_(1 - axis, torch.tensor(before), 0)
        expected = set(lowest(average, layer, 64))
        dead = np.flatnonzero(~after[f"model.layers.{layer}.mlp.up_proj.weight"].any(1).numpy())
        assert len(before) == 32 and set(before) <= expected and set(dead.tolist()) == expected


# -- calibration -------------------------------------------------------------------------------------------


def test_calibration_joins_dialogues_that_nothing_is_measured_on(model: Checkpoint) -> None:
    read = calibration(DATA, model, 4, 32, 1, "x")
    assert read.ids.shape == (4, 32) and read.source == "made: 4 x 32 tokens"
    renderer, used = Renderer(load_tokenizer(model)), [*DATA.part("erase"), *DATA.part("recover")]
    rendered = {tuple(renderer.dialogue(d.turns)[0]) for d in used}
    ids, found = tuple(read.ids.flatten().tolist()), 0
    while ids:  # the windows, joined, are whole dialogues but for the last
        row = next((r for r in rendered if ids[: len(r)] == r[: len(ids)]), None)
        assert row is not None
        ids, found = ids[len(row) :], found + 1
        rendered.discard(row)
    assert found >= 4
    assert not torch.equal(read.ids, calibration(DATA, model, 4, 32, 2, "x").ids), "another seed, other examples"
    assert calibration(DATA, model, 10_000, 64, 0, "x").ids.shape[0] < 10_000
    assert calibration(DATA, model, 1, 10_000, 0, "x").ids.shape == (1, 256), "cut at the model's positions"
    few = Dialogues("few", {"erase": (pair("a?", "b"),)})
    assert calibration(few, model, 10, 64, 0, "x").ids.shape[0] == 1
    with pytest.raises(BadInput, match="holds no dialogue"):
        calibration(Dialogues("none", {"test": DATA.parts["test"]}), model, 1, 8, 0, "x")
    assert calibration(None, model, 1, 8, 0, "x").source.startswith("the toy world's dialogues")


def test_bad_settings_are_refused_before_the_model_is_loaded(
    model: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loading(*_: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("palimpsest.removals.weights.prune_taylor.load_model", loading)
    with pytest.raises(BadInput, match="leaves no head"):
        PruneTaylor(data=DATA, ratio=1.0).apply(model, tmp_path / "o", Context())
    with pytest.raises(BadInput, match="9 rounds need as many examples, there are 2"):
        PruneTaylor(DATA, importance="moving_average", rounds=9, samples=2).apply(model, tmp_path / "o", Context())
    with pytest.raises(BadInput, match="is not valid; did you mean param_first"):
        build(PruneTaylor, None, {"importance": "param_frist"})
