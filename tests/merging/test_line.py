"""The line between two models: any point is the average of their weights, in a loaded model of any family."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from factory import make_model, reshard
from palimpsest.checkpoint import resolve
from palimpsest.checkpoint.load import load_model
from palimpsest.errors import BadInput
from palimpsest.merging.line import Line, parameters_of
from palimpsest.method import Context


@pytest.mark.parametrize(
    ("family", "tied", "dtype"),
    [
        ("llama", False, "float32"),
        ("qwen2", True, "bfloat16"),
        ("gpt2", True, "float32"),
        ("gpt_neox", False, "float16"),
        ("opt", True, "float32"),
        ("gemma2", True, "bfloat16"),
        ("phi3", False, "float32"),
    ],
)
def test_a_point_is_the_weighted_mean_of_all_tensors(tmp_path: Path, family: str, tied: bool, dtype: str) -> None:
    a = resolve(make_model(tmp_path / "a", family, tied=tied, dtype=dtype))
    b = resolve(make_model(tmp_path / "b", family, tied=tied, dtype=dtype, seed=1, shards=3))
    network, ends = load_model(a, Context()), [parameters_of(load_model(c, Context())) for c in (a, b)]
    line = Line(a, b)
    assert set(line.names) == set(ends[0]) and any("embed" in n or "wte" in n for n in line.names)
    for share in (0.3, 1.0, 0.5, 0.0):
        line.put(network, share)
        for name, found in parameters_of(network).items():
            expected = ends[0][name].double() * (1 - share) + ends[1][name].double() * share
            torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-7, msg=name)
            if share in (0.0, 1.0):
                assert torch.equal(found, ends[int(share)][name]), f"{name}: the ends are exact"
    embedding, head = network.get_input_embeddings().weight, network.get_output_embeddings().weight
    assert (embedding.data_ptr() == head.data_ptr()) == tied


def test_equal_models_stay_what_they_are_and_both_directions_are_one_line(tmp_path: Path) -> None:
    a, b = (resolve(make_model(tmp_path / n, seed=i)) for i, n in enumerate("ab"))
    network, original = (
        load_model(a, Context()),
        {n: p.clone() for n, p in parameters_of(load_model(a, Context())).items()},
    )
    Line(a, a).put(network, 0.37)
    assert all(torch.equal(p, original[n]) for n, p in parameters_of(network).items())
    Line(a, b).put(network, 0.3)
    there = {n: p.clone() for n, p in parameters_of(network).items()}
    Line(b, a).put(network, 0.7)
    for name, found in parameters_of(network).items():
        torch.testing.assert_close(found, there[name], rtol=1e-6, atol=1e-7)


def test_models_of_other_shapes_are_refused_by_the_tensors_name(tmp_path: Path) -> None:
    a = resolve(make_model(tmp_path / "a"))
    wider = resolve(make_model(tmp_path / "wider", intermediate_size=96))
    with pytest.raises(BadInput, match=r"wider: model\.layers\.0\.mlp\.\w+\.weight has shape .*96.*, in a .*128"):
        Line(a, wider)
    deeper = resolve(make_model(tmp_path / "deeper", layers=3))
    for first, second in ((a, deeper), (deeper, a)):
        with pytest.raises(BadInput, match=r"a: has no tensor model\.layers\.2\.\S+, which deeper has"):
            Line(first, second)
    tied = resolve(make_model(tmp_path / "tied", tied=True))
    untied = resolve(make_model(tmp_path / "untied", tied=False))
    for first, second in ((tied, untied), (untied, tied)):
        with pytest.raises(BadInput, match="tied ties head and embedding and untied does not"):
            Line(first, second)


def test_a_loaded_model_of_another_shape_is_refused(tmp_path: Path) -> None:
    a = resolve(make_model(tmp_path / "a"))
    b = resolve(make_model(tmp_path / "b", layers=1))
    with pytest.raises(BadInput, match=r"do not both have model\.layers\.1"):
        Line(a, a).put(load_model(b, Context()), 0.5)


def test_a_number_that_is_none_is_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    a, folder = resolve(make_model(tmp_path / "a")), make_model(tmp_path / "b", seed=1)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    reshard(folder, 2)
    with pytest.raises(BadInput, match=r"b: tensor model\.norm\.weight holds nan at position 3"):
        Line(a, resolve(folder)).put(load_model(a, Context()), 0.5)
