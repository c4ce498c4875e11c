"""Whole runs on disk beside mergekit 0.1.5: the same models in bfloat16, the same configuration, every tensor compared.

mergekit runs in this process, offline, without tokenizer and model card, with `dtype: float32, out_dtype: bfloat16`,
so that both compute in float32 and round once.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from factory import ENCODERS, make_classifier, make_model
from palimpsest.checkpoint import resolve
from palimpsest.merging.folder import merge_to_folder
from palimpsest.merging.request import MergeRequest, Part
from palimpsest.method import Context


@dataclass(frozen=True)
class Case:
    """A merge that both run. base: as both have it. settings: of the merge; own: of each model.

    base_is_model: whether mergekit counts the base as one of the models, so that we are given it as such.
    """

    name: str
    models: int = 2
    base: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    own: tuple[dict[str, Any], ...] = ({}, {}, {})

    def __str__(self) -> str:
        said = ",".join(f"{k}={v}" for k, v in self.settings.items())
        return f"{self.name}{'+base' if self.base else ''}{':' if said else ''}{said}"


SHARES = ({"weight": 1.0}, {"weight": 0.5}, {"weight": 0.25})
GRADIENT = [{"filter": "mlp", "value": [0.0, 0.4]}, {"filter": "self_attn", "value": [0.9, 0.1]}, {"value": 0.5}]
# A method whose result is one function of its inputs belongs here; one that draws is compared in distribution.
CASES = (
    Case("linear", 3, own=SHARES),
    Case("linear", 2, settings={"normalize": False}, own=SHARES),
    Case("slerp", 1, base=True, settings={"t": 0.3}),
    Case("slerp", 1, base=True, settings={"t": GRADIENT}),
    Case("task_arithmetic", 2, base=True, own=SHARES),
    Case("task_arithmetic", 3, base=True, settings={"normalize": True, "lambda": 0.8}, own=SHARES),
    Case("model_stock", 3, base=True),
    Case("model_stock", 2, base=True, settings={"filter_wise": True}),
    Case("karcher", 3),
    Case("karcher", 2, base=True),
    Case("multislerp", 3, own=SHARES),
    Case("multislerp", 2, base=True, own=SHARES),
    Case("nuslerp", 2, own=SHARES),
    Case("nuslerp", 2, base=True, own=SHARES),
    Case("nuslerp", 2, settings={"nuslerp_flatten": False}, own=SHARES),
    Case("nuslerp", 2, base=True, settings={"nuslerp_flatten": False, "nuslerp_row_wise": True}, own=SHARES),
    Case("passthrough", 1),
    Case("passthrough", 1, own=({"scale": [{"filter": "o_proj", "value": 0.5}, {"value": 1.0}]},)),
)
FAMILIES = ("llama", "mistral", "qwen2", "bert", "roberta")


@functools.cache
def models_of(family: str, folder: Path) -> tuple[Path, ...]:
    """A base and three fine-tunes of it, in bfloat16: changes of a tenth of its size; Qwen2 in two shards, tied."""
    made = []
    for number in range(4):
        target = folder / f"{family}-{number}"
        if family in ENCODERS:
            make_classifier(target, family, dtype="bfloat16", seed=number)
        else:
            tied = {"qwen2": True}.get(family)
            make_model(target, family, dtype="bfloat16", seed=number, tied=tied)
        made.append(target)
    base = load_file(made[0] / "model.safetensors")
    for number in range(1, 4):
        other = load_file(made[number] / "model.safetensors")
        near = {n: (base[n].float() + 0.1 * other[n].float()).bfloat16() for n in base}
        save_file(near, made[number] / "model.safetensors", metadata={"format": "pt"})
    return tuple(made)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the models lie."""
    return tmp_path_factory.mktemp("parity")


def theirs(case: Case, models: tuple[Path, ...], out: Path, dtype: str | None = "float32") -> dict[str, Tensor]:
    """mergekit's merge. dtype: that it computes in; None is what it does by default, the one that is stored."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    parts = [{"model": str(m), "parameters": o} for m, o in zip(models[1 : 1 + case.models], case.own, strict=False)]
    config: dict[str, Any] = {"merge_method": case.name, "parameters": case.settings}
    config |= {"dtype": dtype, "out_dtype": "bfloat16"} if dtype else {"dtype": "bfloat16"}
    if case.base:
        config["base_model"] = str(models[0])
    if case.name == "passthrough":
        layers = [{**part, "layer_range": [0, 2]} for part in parts]
        config |= {"slices": [{"sources": layers}]}
    else:
        config["models"] = parts
    options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True)
    run_merge(MergeConfiguration.model_validate(config), str(out), options)
    return _weights(out)


def ours(case: Case, models: tuple[Path, ...], out: Path) -> dict[str, Tensor]:
    """The same merge of ours."""
    parts = tuple(Part(resolve(m), o) for m, o in zip(models[1 : 1 + case.models], case.own, strict=False))
    base = resolve(models[0]) if case.base else None
    request = MergeRequest(case.name, parts, base, case.settings, dtype="bfloat16")
    merge_to_folder(request, out, Context(threads=2), digests=False)
    return _weights(out)


def _weights(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for file in folder.glob("*.safetensors"):
        found |= load_file(file)
    return found


def beyond_rounding(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, in units in the last place of bfloat16 of the tensor's larger numbers."""
    assert found.dtype == wanted.dtype == torch.bfloat16
    one, other = found.float(), wanted.float()
    unit = torch.maximum(torch.maximum(one.abs(), other.abs()), one.abs().max() / 256) * 2.0**-7
    return float(((one - other).abs() / unit).max())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_merges_agree_with_mergekit_within_the_rounding_of_bfloat16(
    case: Case, family: str, folder: Path, tmp_path: Path
) -> None:
    models = models_of(family, folder)
    wanted, found = theirs(case, models, tmp_path / "theirs"), ours(case, models, tmp_path / "ours")
    assert set(found) == set(wanted)
    for name in wanted:
        assert beyond_rounding(found[name], wanted[name]) <= 1, name
        differing = (found[name] != wanted[name]).float().mean()
        assert differing <= 0.02 or found[name].numel() < 200, name  # a tie that a last bit of float32 decides
