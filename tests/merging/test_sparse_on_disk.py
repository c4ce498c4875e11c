"""The sparse methods through the engine: how a merge is divided up changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from factory import make_model, reshard
from palimpsest.checkpoint import resolve
from palimpsest.merging import engine, selection
from palimpsest.merging.folder import merge_to_folder
from palimpsest.merging.request import MergeRequest, Part
from palimpsest.method import Context

METHODS: list[tuple[str, dict[str, Any]]] = [
    ("ties", {"density": 0.3}),
    ("breadcrumbs-ties", {"density": 0.3, "gamma": 0.1}),
    ("dare", {"density": 0.3}),
    ("dare-ties", {"density": 0.3}),
    ("della", {"density": 0.5}),
    ("sce", {"select_topk": 0.3}),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A base and two models, bfloat16."""
    root = tmp_path_factory.mktemp("sparse")
    return [make_model(root / f"m{i}", seed=i, dtype="bfloat16") for i in range(3)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for f in sorted(folder.glob("*.safetensors")) for k, v in load_file(f).items()}


@pytest.mark.parametrize(("name", "settings"), METHODS, ids=lambda v: v if isinstance(v, str) else "")
def test_threads_shards_and_chunks_change_nothing(
    models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, settings: dict[str, Any]
) -> None:
    monkeypatch.setattr(selection, "_SMALL", 1 << 10)  # so that tensors are sampled

    def merged(folders: list[Path], out: Path, threads: int) -> dict[str, torch.Tensor]:
        base, *others = (resolve(f) for f in folders)
        request = MergeRequest(name, tuple(Part(m, {}) for m in others), base, settings, seed=4)
        merge_to_folder(request, out, Context(threads=threads))
        return weights(out)

    whole = merged(models, tmp_path / "whole", 1)
    again = [make_model(tmp_path / f"m{i}", seed=i, dtype="bfloat16") for i in range(3)]
    for folder in again:
        reshard(folder, 3)
    monkeypatch.setattr(engine, "CHUNK", 1000)
    parts = merged(again, tmp_path / "parts", 3)
    assert whole.keys() == parts.keys()
    for tensor, numbers in whole.items():
        differ = (numbers != parts[tensor]).float().mean().item()
        assert differ <= (0.001 if name == "sce" else 0.0), tensor  # its weights are sums, rounded chunk by chunk
