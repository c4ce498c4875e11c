"""Single weights that go: magnitude's exact counts, Wanda's scores, SparseGPT's updates, and what they calibrate on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from factory import FAMILIES, make_model
from palimpsest.checkpoint import Checkpoint, resolve
from palimpsest.checkpoint.load import load_model
from palimpsest.data.dialogues import Dialogues, pair
from palimpsest.errors import BadInput
from palimpsest.families import family_of
from palimpsest.method import Context, build
from palimpsest.removals.weights.calibration import calibration
from palimpsest.removals.weights.layer_inputs import walk
from palimpsest.removals.weights.magnitude import Magnitude, below
from palimpsest.removals.weights.rewriting import read_tensor
from palimpsest.removals.weights.sparsegpt import Hessian, SparseGPT, sparsegpt
from palimpsest.removals.weights.unstructured import smallest_cut, smallest_of_each_row, smallest_of_runs
from palimpsest.removals.weights.wanda import InputNorms, Wanda, wanda_scores

ROWS = tuple(pair(f"What is number {i}?", f"It is {i} and {i * i}, or nearly so.") for i in range(40))
DATA = Dialogues("made", {"erase": ROWS})
SMALL = {"samples": 3, "tokens": 24}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A Llama of two layers; float16, so that many magnitudes are equal."""
    return resolve(make_model(tmp_path_factory.mktemp("models") / "m", dtype="float16"))


def weights(model: Checkpoint) -> dict[str, Tensor]:
    return {t.name: read_tensor(t) for t in model.tensors()}


def projections(tensors: dict[str, Tensor]) -> list[str]:
    return [n for n in tensors if n.endswith("_proj.weight")]


# -- magnitude ---------------------------------------------------------------------------------------------


@given(st.lists(st.lists(st.sampled_from([0.0, 1e-30, 0.5, 0.5000001, 2.0, 3e8]), min_size=1), min_size=1), st.data())
def test_exactly_as_many_of_the_smallest_are_found_as_sorting_finds(values: list[list[float]], data: Any) -> None:
    tensors = [torch.tensor(v) for v in values]
    everything = torch.cat(tensors)
    count = data.draw(st.integers(0, len(everything) - 1))
    value, ties = smallest_cut(lambda: tensors, count)
    mask = below(everything, value, ties)
    assert int(mask.sum()) == count
    assert torch.equal(everything[mask].sort().values, everything.sort().values[:count])
    expected = everything.argsort(stable=True)[:count].sort().values
    assert torch.equal(mask.nonzero().flatten(), expected), "of equal ones the first go"


@pytest.mark.covers("magnitude")
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_the_smallest_weights_of_the_projections_go(model: Checkpoint, scope: str, tmp_path: Path) -> None:
    made = build(Magnitude, None, {"sparsity": 0.3, "scope": scope}).apply(model, tmp_path / "o", Context())
    before, after = weights(model), weights(made.checkpoint)
    names = projections(before)
    assert len(names) == 14
    together = [names] if scope == "global" else [[n] for n in names]
    gone = 0
    for some in together:
        old = torch.cat([before[n].view(-1) for n in some])
        new = torch.cat([after[n].view(-1) for n in some])
        expected = old.clone()
        expected[old.float().abs().argsort(stable=True)[: int(0.3 * len(old))]] = 0
        assert torch.equal(new, expected)
        gone += int(0.3 * len(old))
    assert all(torch.equal(before[n], after[n]) for n in before if n not in names)
    (record,) = made.records
    assert record.count == gone and record.detail["projections"] == sum(before[n].numel() for n in names)
    assert record.detail["sparsity_of_projections"] == pytest.approx(0.3, abs=1e-3)
    assert record.value == gone / sum(t.numel() for t in before.values())


# -- layer by layer ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_going_layer_by_layer_is_the_forward_pass(family: str, tmp_path: Path) -> None:
    """Each projection is shown what it is given in a forward pass of the whole model."""
    model = resolve(make_model(tmp_path / "m", family))
    network, known = load_model(model, Context()), family_of(model.config)
    ids = torch.arange(3, 99).view(2, 48)
    expected: dict[tuple[int, str], list[Tensor]] = {}
    handles = []
    for number, module in enumerate(network.get_submodule(known.layers)):
        names = dict.fromkeys(known.name(r) for r in ("query", "output", "up", "down"))
        for name in names:
            seen = expected.setdefault((number, name), [])
            handles.append(
                module.get_submodule(name).register_forward_pre_hook(
                    lambda _, inputs, seen=seen: seen.append(inputs[0].reshape(-1, inputs[0].shape[-1]))
                )
            )
    with torch.no_grad():
        for row in ids:
            network(input_ids=row[None])
    for handle in handles:
        handle.remove()
    for layer in walk(network, known, ids):
        found: dict[str, list[Tensor]] = {}
        layer.observe(layer.projections(known), lambda name, x, found=found: found.setdefault(name, []).append(x))
        for name, inputs in found.items():
            if (layer.number, name) in expected:
                wanted = expected.pop((layer.number, name))
                assert torch.allclose(torch.cat(inputs), torch.cat(wanted), atol=1e-5)
    assert not expected


# -- Wanda -------------------------------------------------------------------------------------------------


def test_wanda_scores_and_masks_by_hand() -> None:
    norms = InputNorms(3, torch.device("cpu"))
    norms.add(torch.tensor([[3.0, 0.0, 1.0], [4.0, 1.0, 0.0]]))
    norms.add(torch.tensor([[0.0, 0.0, 1.0]]))
    assert norms.norms.tolist() == pytest.approx([5.0, 1.0, 2**0.5])
    weight = torch.tensor([[1.0, -6.0, 2.0], [0.1, 1.0, 1.0]])
    scores = wanda_scores(weight, norms.norms)
    assert scores.flatten().tolist() == pytest.approx([5.0, 6.0, 2 * 2**0.5, 0.5, 1.0, 2**0.5])
    assert smallest_of_each_row(scores, 1).tolist() == [[False, False, True], [True, False, False]]
    runs = torch.tensor([[1.0, 4.0, 3.0, 2.0, 0.0, 9.0, 8.0, 7.0]])
    assert smallest_of_runs(runs, 2, 4).tolist() == [[True, False, False, True, True, False, False, True]]
    assert smallest_of_runs(runs, 1, 4).sum() == 6, "n of m stay"


@pytest.mark.covers("wanda")
@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_wanda_prunes_by_the_inputs_that_the_pruned_model_gives(family: str, tmp_path: Path) -> None:
    """Recomputed with hooks on whole forward passes: layer 1 sees the outputs of the pruned layer 0."""
    model = resolve(make_model(tmp_path / "m", family))
    known = family_of(model.config)
    settings = {"sparsity": 0.4, **SMALL}
    made = build(Wanda, None, settings, {"data": DATA}).apply(model, tmp_path / "o", Context(seed=1))
    ids = calibration(DATA, model, 3, 24, 1, "x").ids
    network, pruned = load_model(model, Context()), load_model(made.checkpoint, Context())
    state = pruned.state_dict()
    zeros = total = 0
    for number, module in enumerate(network.get_submodule(known.layers)):
        squares: dict[str, Tensor] = {}
        names = list(dict.fromkeys(known.name(r) for r in ("query", "key", "value", "output", "gate", "up", "down")))
        names = [n for n in names if n]
        for name in names:
            module.get_submodule(name).register_forward_pre_hook(
                lambda _, x, name=name, squares=squares: squares.__setitem__(
                    name, squares.get(name, 0) + x[0].pow(2).sum((0, 1))
                )
            )
        with torch.no_grad():
            network(input_ids=ids)
        for name in names:
            weight = module.get_submodule(name).weight.data
            seen = weight.T if known.transposed else weight
            count = int(0.4 * seen.shape[1])
            lowest = (seen.abs() * squares[name].sqrt()).argsort(1)[:, :count]
            seen.scatter_(1, lowest, 0.0)
            assert torch.equal(state[f"{known.layers}.{number}.{name}.weight"], weight)
            zeros, total = zeros + int((weight == 0).sum()), total + weight.numel()
    (record,) = made.records
    assert record.count == zeros and record.detail["sparsity_of_projections"] == zeros / total
    assert record.tokens == 72 and record.detail["calibration"] == "made: 3 x 24 tokens"
    original = load_model(model, Context()).state_dict()
    touched = {n for n in state if not torch.equal(state[n], original[n])}
    assert len(touched) == 2 * len(names)
    moved = sum(float((state[n] - original[n]).pow(2).sum()) for n in touched) ** 0.5
    assert record.detail["distance"] == pytest.approx(moved, rel=1e-5) and 0 < record.detail["weight_change"] < 1


def test_a_pattern_keeps_n_of_m_everywhere(model: Checkpoint, tmp_path: Path) -> None:
    for method in (Wanda, SparseGPT):
        made = build(method, None, {"pattern": "2:4", **SMALL}, {"data": DATA}).apply(
            model, tmp_path / method.__name__, Context()
        )
        after = weights(made.checkpoint)
        for name in projections(after):
            assert int((after[name].view(-1, 4) != 0).sum(1).max()) == 2
        assert made.records[0].detail["sparsity_of_projections"] == pytest.approx(0.5, abs=0.001)


# -- SparseGPT -----------------------------------------------------------------------------------------------


def correlated(tokens: int = 400, width: int = 96, seed: int = 0) -> Tensor:
    """Inputs (tokens, in) that depend on each other and differ in scale, as those of a model do."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(tokens, width, generator=generator) @ torch.randn(width, width, generator=generator)
    return mixed / width**0.5 * torch.rand(width, generator=generator).mul(3).exp()


def hessian_of(inputs: Tensor) -> Tensor:
    gathered = Hessian(inputs.shape[1], torch.device("cpu"))
    for part in inputs.split(150):
        gathered.add(part)
    return gathered.value


def test_the_hessian_is_that_of_the_squared_error() -> None:
    x = correlated(50, 8)
    w = torch.randn(8, dtype=torch.float64, requires_grad=True)
    exact = torch.autograd.functional.hessian(lambda w: (x.double() @ w).pow(2).mean(), w)
    assert torch.allclose(hessian_of(x).double(), exact, rtol=1e-4)


@pytest.mark.parametrize("column", [0, 3, 7])
def test_one_pruned_weight_is_the_optimal_brain_surgeons_step(column: int) -> None:
    """delta = -w_p / [H^-1]_pp * H^-1 e_p over the columns from p on (2301.00774, eq. 3), and p = 0 is the whole."""
    x = correlated(300, 8, 5)
    h = hessian_of(x).double()
    w = torch.randn(1, 8, generator=torch.Generator().manual_seed(2))
    damped = h + 1e-6 * h.diagonal().mean() * torch.eye(8)
    inverse = torch.linalg.inv(damped[column:, column:])
    w[0, column] = 1e-4  # the cheapest by far, so that of 8 weights of which 7 stay it is the one that goes
    found = sparsegpt(w, h.float(), 0.0, (7, 8), 8, 1e-6)
    expected = w[0].double().clone()
    expected[column:] -= w[0, column].double() / inverse[0, 0] * inverse[:, 0]
    expected[column] = 0
    assert int((found == 0).sum()) == 1 and found[0, column] == 0
    assert torch.allclose(found[0].double(), expected, atol=1e-7)


@pytest.mark.covers("sparsegpt")
def test_the_outputs_change_less_than_by_magnitude_or_wanda_with_as_many_zeros() -> None:
    x, held_out = correlated(800).split(400)
    w = torch.randn(32, 96, generator=torch.Generator().manual_seed(1))
    norms = InputNorms(96, torch.device("cpu"))
    norms.add(x)
    found = sparsegpt(w, hessian_of(x), 0.5, block=32)
    by_wanda = w.masked_fill(smallest_of_each_row(wanda_scores(w, norms.norms), 48), 0)
    by_size = w.masked_fill(smallest_of_each_row(w.abs().reshape(1, -1), 32 * 48).view_as(w), 0)
    assert [int((m == 0).sum()) for m in (found, by_wanda, by_size)] == [32 * 48] * 3
    errors = [float(((m - w) @ x.T).pow(2).mean()) for m in (found, by_wanda, by_size)]
    assert errors[0] < errors[1] < errors[2]
    away = [float(((m - w) @ held_out.T).pow(2).mean()) for m in (found, by_wanda)]
    assert away[0] < away[1], "and on inputs that it was not made for"


def test_without_a_correlation_nothing_is_made_up_for_and_dead_inputs_go() -> None:
    w = torch.randn(4, 6, generator=torch.Generator().manual_seed(3))
    diagonal = torch.tensor([4.0, 1.0, 0.0, 9.0, 1.0, 2.0]).diag()
    found = sparsegpt(w, diagonal, 0.5, block=6, damping=1e-8)
    scores = w.pow(2) * diagonal.diagonal()  # as Wanda's, squared: [H^-1]_jj is 1 / H_jj
    scores[:, 2] = 0
    expected = w.masked_fill(smallest_of_each_row(scores.reshape(1, -1), 12).view_as(w), 0)
    expected[:, 2] = 0
    assert torch.allclose(found, expected, atol=1e-6)
    assert sparsegpt(w, torch.eye(6), 0.0).equal(w)


def test_sparsegpt_goes_through_a_model_and_keeps_its_function_better(model: Checkpoint, tmp_path: Path) -> None:
    """On the calibration text itself the logits stay nearer than Wanda's."""
    settings = {"sparsity": 0.5, "samples": 8, "tokens": 64}
    ids = calibration(DATA, model, 8, 64, 0, "x").ids
    with torch.no_grad():
        original = load_model(model, Context())(input_ids=ids).logits
        away = {}
        for method in (SparseGPT, Wanda, Magnitude):
            own = settings if method is not Magnitude else {"sparsity": 0.5}
            inputs = {"data": DATA} if method is not Magnitude else {}
            made = build(method, None, own, inputs).apply(model, tmp_path / method.__name__, Context())
            assert made.records[0].detail["sparsity_of_projections"] == pytest.approx(0.5, abs=0.001)
            now = load_model(made.checkpoint, Context())(input_ids=ids).logits
            away[method] = float((now - original).pow(2).mean())
    assert away[SparseGPT] < away[Wanda] < away[Magnitude]


def test_a_singular_hessian_is_one_line() -> None:
    with pytest.raises(BadInput, match="take more damping"):
        sparsegpt(torch.ones(2, 4), -torch.eye(4) - torch.ones(4, 4), 0.5, damping=1e-8)


# -- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sparsity": 1}, "leaves no weight"),
        ({"pattern": "4:2"}, "pattern '4:2': give n:m"),
        ({"pattern": "two"}, "give n:m"),
        ({"pattern": "2:7"}, "has 64 inputs, no multiple of m"),
    ],
)
def test_bad_settings_are_refused_before_the_model_is_loaded(
    model: Checkpoint, settings: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loading(*_: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("palimpsest.removals.weights.layerwise.load_model", loading)
    for method in (Wanda, SparseGPT):
        with pytest.raises(BadInput, match=message):
            build(method, None, settings, {"data": DATA}).apply(model, tmp_path / "o", Context())
    if "sparsity" in settings:
        with pytest.raises(BadInput, match=message):
            build(Magnitude, None, settings).apply(model, tmp_path / "o", Context())
    assert not (tmp_path / "o").exists()
