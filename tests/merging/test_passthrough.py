"""Passthrough: tensors as they are, scaled, and in stacks of layers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from safetensors.torch import load_file
from torch import Tensor

from factory import make_model
from merging.tensors import models
from palimpsest.checkpoint import resolve
from palimpsest.errors import BadInput
from palimpsest.merging.folder import merge_to_folder
from palimpsest.merging.passes import merge_tensors
from palimpsest.merging.passthrough import Passthrough
from palimpsest.merging.request import MergeRequest, Part, Slice, Stretch
from palimpsest.method import Context


@pytest.mark.covers("passthrough")
def test_by_hand() -> None:
    assert merge_tensors(Passthrough(), [torch.tensor([1.0, -2.0])]).tolist() == [1.0, -2.0]
    assert merge_tensors(Passthrough(scale=(0.5,)), [torch.tensor([1.0, -2.0])]).tolist() == [0.5, -1.0]


@given(models(1, 1))
def test_it_gives_the_model_back(found: list[Tensor]) -> None:
    assert torch.equal(merge_tensors(Passthrough(), found), found[0])


def test_layers_of_two_models_follow_one_another(tmp_path: Path) -> None:
    """Layers 0 and 1 of one, then layer 1 of the other with output projections of zero: an identity at first."""
    sources = [resolve(make_model(tmp_path / f"m{i}", seed=i, dtype="bfloat16")) for i in range(2)]
    silent = [{"filter": "o_proj", "value": 0.0}, {"filter": "down_proj", "value": 0.0}, {"value": 1.0}]
    request = MergeRequest(
        "passthrough",
        tuple(Part(s) for s in sources),
        slices=(Slice((Stretch(0, 0, 2),)), Slice((Stretch(1, 1, 2, {"scale": silent}),))),
    )
    merged = merge_to_folder(request, tmp_path / "out", Context(threads=1))
    first, second = (load_file(s.path / "model.safetensors") for s in sources)
    made = load_file(tmp_path / "out" / "model.safetensors")
    assert merged.checkpoint.config["num_hidden_layers"] == 3
    for name, tensor in made.items():
        if "layers.2." not in name:
            own = second if name in ("lm_head.weight", "model.norm.weight") else first
            assert torch.equal(tensor, own[name]), name
        elif "o_proj" in name or "down_proj" in name:
            assert tensor.eq(0).all(), name
        else:
            assert torch.equal(tensor, second[name.replace("layers.2.", "layers.1.")]), name


def test_it_takes_one_model(tiny_model: Path, tmp_path: Path) -> None:
    model = resolve(tiny_model)
    with pytest.raises(BadInput, match="passthrough: takes 1 model; here are 2"):
        merge_to_folder(MergeRequest("passthrough", (Part(model), Part(model))), tmp_path / "out", Context())
    two = Slice((Stretch(0, 0, 2), Stretch(1, 0, 2)))
    request = MergeRequest("passthrough", (Part(model), Part(model)), slices=(two,))
    with pytest.raises(BadInput, match="passthrough: takes 1 model; here are 2"):
        merge_to_folder(request, tmp_path / "out", Context())
