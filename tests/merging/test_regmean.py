"""RegMean: by hand, that it is the least-squares solution it is named for, and whole merges on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from factory import make_model
from merging.tensors import random_tensors
from merging.test_fisher import DATA
from palimpsest.checkpoint import resolve
from palimpsest.merging.folder import merge_to_folder
from palimpsest.merging.forward import read_models
from palimpsest.merging.passes import merge_tensors
from palimpsest.merging.regmean import RegMean, input_products, regression_factors, shrunk
from palimpsest.merging.request import MergeRequest, Part
from palimpsest.method import Context


@pytest.mark.covers("regmean")
def test_by_hand() -> None:
    """With inputs along the axes each column is an average by their squares: 1 to 3 and 4 to 1."""
    factors = regression_factors(
        [torch.diag(torch.tensor([1.0, 4.0])).double(), torch.diag(torch.tensor([3.0, 1.0])).double()]
    )
    merged = torch.tensor([[2.0, 10.0]]) @ factors[0] + torch.tensor([[6.0, 0.0]]) @ factors[1]
    assert merged.tolist() == [pytest.approx([5.0, 8.0], rel=1e-5)]
    assert shrunk(torch.tensor([[2.0, 1.0], [1.0, 3.0]]), 0.9).tolist() == [[2.0, 0.9], [0.9, 3.0]]


def test_no_other_matrix_is_nearer_to_what_the_models_answer() -> None:
    inputs = [x.double() for x in random_tensors(2, (30, 6), 1)]
    layers = [w.double() for w in random_tensors(2, (4, 6), 2)]
    factors = regression_factors([x.T @ x for x in inputs])
    merged = sum(w @ f.double() for w, f in zip(layers, factors, strict=True))
    both = torch.cat(inputs)
    answers = torch.cat([x @ w.T for x, w in zip(inputs, layers, strict=True)])
    wanted = torch.linalg.lstsq(both, answers).solution.T
    assert torch.allclose(merged, wanted, atol=1e-4)


def test_inputs_that_are_never_there_leave_the_mean() -> None:
    products = [torch.zeros(3, 3).double() for _ in range(2)]
    for p in products:
        p[0, 0] = 2.0
    for factors in (regression_factors(products), regression_factors([torch.zeros(3, 3).double()] * 2)):
        for factor in factors:
            assert torch.allclose(factor, torch.eye(3) / 2)


def test_without_statistics_it_is_the_average() -> None:
    found = random_tensors(2, (3, 4), 0)
    assert torch.allclose(merge_tensors(RegMean(), found), (found[0] + found[1]) / 2)


def test_products_are_those_of_the_layers_inputs_however_often_the_rows_are_read(tiny_model: Path) -> None:
    ((network, rows),) = read_models([resolve(tiny_model)], DATA, 4, Context(threads=1), "regmean")
    found = input_products(network, rows)
    again = input_products(network, rows, held=4 * 64 * 64)
    assert found.keys() == again.keys() and all(torch.equal(found[n], again[n]) for n in found)
    assert "lm_head.weight" in found and found["model.layers.0.mlp.down_proj.weight"].shape == (128, 128)
    seen = []
    handle = network.model.layers[1].self_attn.q_proj.register_forward_pre_hook(lambda _, x: seen.append(x[0][0]))
    with torch.no_grad():
        for row in rows:
            network(input_ids=torch.tensor([row.ids]))
    handle.remove()
    x = torch.cat(seen).double()
    wanted = x.T @ x / len(x)
    assert torch.allclose(found["model.layers.1.self_attn.q_proj.weight"].double(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_whole_merge_regresses_linear_layers_and_averages_the_rest(family: str, tmp_path: Path) -> None:
    folders = [make_model(tmp_path / f"m{i}", family, seed=i, tied=family == "qwen2") for i in range(2)]
    checkpoints = [resolve(f) for f in folders]
    request = MergeRequest(
        "regmean", tuple(Part(c) for c in checkpoints), settings={"alpha": 0.8}, inputs={"data": DATA}
    )
    merge_to_folder(request, tmp_path / "out", Context(threads=2))
    made = load_file(tmp_path / "out" / "model.safetensors")
    stored = [load_file(f / "model.safetensors") for f in folders]
    reading = read_models(checkpoints, DATA, 256, Context(threads=1), "regmean")
    products = [input_products(network, rows) for network, rows in reading]
    assert len(products[0]) == 14 + (family == "llama")
    for name in made:
        both = [s[name] for s in stored]
        wanted = (both[0] + both[1]) / 2
        if name in products[0]:
            factors = regression_factors([shrunk(p[name], 0.8) for p in products])
            wanted = both[0] @ factors[0] + both[1] @ factors[1]
        assert torch.allclose(made[name], wanted, atol=2e-5), name
        assert (name in products[0]) == (not torch.allclose(made[name], (both[0] + both[1]) / 2, atol=1e-4)), name


def test_a_model_with_itself_is_the_model(tiny_model: Path, tmp_path: Path) -> None:
    parts = (Part(resolve(tiny_model)),) * 3
    merge_to_folder(MergeRequest("regmean", parts, inputs={"data": DATA}), tmp_path / "out", Context(threads=1))
    made, wanted = load_file(tmp_path / "out" / "model.safetensors"), load_file(tiny_model / "model.safetensors")
    for name in wanted:
        assert torch.allclose(made[name], wanted[name], atol=1e-6), name
