"""Shards: any order of writing gives files that safetensors reads; space is taken at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from palimpsest.merging.writing import Shards, Slot


def raw(tensor: torch.Tensor) -> memoryview:
    return memoryview(tensor.flatten().view(torch.uint8).numpy())


@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=8), largest=st.integers(1, 400), order=st.randoms())
def test_what_is_written_in_any_order_and_in_pieces_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], largest: int, order: object
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    tensors = {f"t{i}": torch.arange(float(n)) + i for i, n in enumerate(sizes)}
    shards = Shards(
        folder, [Slot(n, "F32", tuple(t.shape), 4 * t.numel()) for n, t in tensors.items()], "model", largest
    )
    pieces = [(n, at) for n, t in tensors.items() for at in range(0, 4 * t.numel(), 8)]
    order.shuffle(pieces)  # type: ignore[attr-defined]
    for name, at in pieces:
        shards.write(name, at, raw(tensors[name])[at : at + 8])
    shards.close()
    found: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        found |= load_file(file)
    assert {n: t.tolist() for n, t in found.items()} == {n: t.tolist() for n, t in tensors.items()}


def test_shards_are_no_larger_than_asked_and_their_index_names_all(tmp_path: Path) -> None:
    slots = [Slot(f"t{i}", "BF16", (10,), 20) for i in range(7)]
    Shards(tmp_path, slots, largest=50).close()
    files = sorted(p.name for p in tmp_path.glob("*.safetensors"))
    assert files == [f"model-{i:05d}-of-00004.safetensors" for i in range(1, 5)]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == files and len(index["weight_map"]) == 7
    assert index["metadata"]["total_size"] == 140


def test_one_tensor_larger_than_a_shard_has_a_shard_of_its_own(tmp_path: Path) -> None:
    Shards(
        tmp_path, [Slot("a", "F32", (5,), 20), Slot("b", "F32", (50,), 200), Slot("c", "F32", (5,), 20)], largest=40
    ).close()
    assert len(list(tmp_path.glob("*.safetensors"))) == 3


def test_a_single_file_has_no_index_and_is_as_large_as_it_will_be(tmp_path: Path) -> None:
    Shards(tmp_path, [Slot("a", "F32", (5,), 20)]).close()
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    assert load_file(tmp_path / "model.safetensors")["a"].tolist() == [0.0] * 5
