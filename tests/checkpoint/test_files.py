"""Reading folders: what is there is described without reading it, what is broken is one line."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from factory import copy_of, reshard
from palimpsest.checkpoint import resolve
from palimpsest.checkpoint.files import read_header, tensors
from palimpsest.errors import BadInput


def refused(folder: Path, message: str) -> None:
    """The folder is refused by one line."""
    with pytest.raises(BadInput, match=message) as caught:
        resolve(folder)
    assert "\n" not in str(caught.value)


def test_tensors_are_described_and_streamed_as_safetensors_reads_them(tmp_path: Path, tiny_model: Path) -> None:
    folder = copy_of(tiny_model, tmp_path / "m")
    expected = load_file(folder / "model.safetensors")
    reshard(folder, 3)
    found = tensors(folder)
    assert [t.name for t in found] == sorted(expected)
    for tensor in found:
        assert tensor.shape == tuple(expected[tensor.name].shape) and tensor.dtype == "F32"
        blocks = list(tensor.chunks(1000))
        assert all(len(b) <= 1000 for b in blocks)
        assert b"".join(blocks) == expected[tensor.name].numpy().tobytes()


@pytest.mark.parametrize("left", [0, 4, 100, 2000, -1])
def test_a_truncated_file_is_refused_before_anything_is_loaded(tmp_path: Path, tiny_model: Path, left: int) -> None:
    folder = copy_of(tiny_model, tmp_path / "m")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:left])
    refused(folder, r"model\.safetensors: .*truncated")


def test_a_missing_shard_is_named(tmp_path: Path, tiny_model: Path) -> None:
    folder = copy_of(tiny_model, tmp_path / "m")
    reshard(folder, 3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    refused(folder, r"model-00002-of-00003\.safetensors is missing \(1 of 3 shards\)")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 1}}', "\udcff"])
def test_a_broken_index_is_refused(tmp_path: Path, tiny_model: Path, content: str) -> None:
    folder = copy_of(tiny_model, tmp_path / "m")
    (folder / "model.safetensors.index.json").write_text(content, encoding="utf-8", errors="surrogateescape")
    refused(folder, "is no safetensors index")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.ckpt"])
def test_pickled_weights_are_refused_with_the_way_out(tmp_path: Path, tiny_model: Path, name: str) -> None:
    folder = copy_of(tiny_model, tmp_path / "m")
    (folder / "model.safetensors").rename(folder / name)
    refused(folder, rf"pickled \({name}\).*convert them with")


def test_no_weights_at_all_are_refused(tmp_path: Path, tiny_model: Path) -> None:
    folder = copy_of(tiny_model, tmp_path / "m")
    (folder / "model.safetensors").unlink()
    refused(folder, r"has no model\.safetensors")


@pytest.mark.parametrize(
    "header",
    [
        [],
        3,
        {"a": 3},
        {"a": {"dtype": "F32", "shape": [1]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": 4}},
        {"a": {"dtype": "F32", "shape": 2, "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "data_offsets": [0]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": ["x", "y"]}},
    ],
)
def test_a_header_of_another_form_is_refused(tmp_path: Path, header: Any) -> None:
    text = json.dumps(header).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(64))
    with pytest.raises(BadInput, match="is no safetensors file"):
        read_header(tmp_path / "x.safetensors")


def test_something_else_under_the_name_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    folder = copy_of(tiny_model, tmp_path / "m")
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 40) + b"\xff" * 4000)
    refused(folder, "its header is no JSON")
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    refused(folder, "truncated or no safetensors file")
