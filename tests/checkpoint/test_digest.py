"""Digests: the content's alone, whatever the sharding, and all of the content."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from factory import copy_of, make_model, reshard
from palimpsest.checkpoint import digest as digest_module
from palimpsest.checkpoint import resolve
from palimpsest.checkpoint.files import TensorInfo


def digest(folder: Path) -> str:
    """The digest as a fresh process would take it."""
    return resolve(folder).digest()


def test_the_factory_makes_the_same_model_from_the_same_arguments(tmp_path: Path, tiny_model: Path) -> None:
    assert digest(make_model(tmp_path / "again")) == digest(tiny_model)
    assert digest(make_model(tmp_path / "seed", seed=1)) != digest(tiny_model)


def test_sharding_and_order_inside_files_do_not_matter(tmp_path: Path, tiny_model: Path) -> None:
    copies = [copy_of(tiny_model, tmp_path / name) for name in ("one", "three", "backwards")]
    reshard(copies[1], 3)
    reshard(copies[2], 2, backwards=True)
    assert len(list(copies[1].glob("*.safetensors"))) == 3
    assert {digest(folder) for folder in copies} == {digest(tiny_model)}


def test_order_of_the_configs_fields_the_folders_name_and_file_metadata_do_not_matter(
    tmp_path: Path, tiny_model: Path
) -> None:
    other = copy_of(tiny_model, tmp_path / "renamed")
    config = json.loads((other / "config.json").read_text())
    shuffled = dict(reversed(config.items())) | {"transformers_version": "4.0.0", "_name_or_path": "elsewhere"}
    (other / "config.json").write_text(json.dumps(shuffled))
    save_file(load_file(other / "model.safetensors"), other / "model.safetensors", metadata={"by": "someone"})
    (other / "README.md").write_text("no part of the model")
    assert digest(other) == digest(tiny_model)


def _weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] += 1e-6
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _name(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.other"] = weights.pop("model.norm.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _shape(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"].reshape(8, 8)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-5}))


def _tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes() + b"\n")


def _template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages }}")


@pytest.mark.parametrize("change", [_weight, _name, _shape, _config, _tokenizer, _template])
def test_any_change_of_content_changes_the_digest(tmp_path: Path, tiny_model: Path, change) -> None:  # type: ignore[no-untyped-def]
    other = copy_of(tiny_model, tmp_path / "other")
    assert digest(other) == digest(tiny_model)
    change(other)
    assert digest(other) != digest(tiny_model)


def test_the_dtype_is_part_of_the_content(tmp_path: Path) -> None:
    folders = [make_model(tmp_path / dtype, dtype=dtype) for dtype in ("float32", "bfloat16", "float16")]
    assert len({digest(f) for f in folders}) == 3


def test_a_second_digest_reads_no_weights(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copy_of(tiny_model, tmp_path / "m")
    first = digest(folder)
    monkeypatch.setattr(TensorInfo, "chunks", lambda *_: pytest.fail("the weights were read again"))
    assert digest(folder) == first


def test_a_cache_that_cannot_be_written_or_is_broken_changes_nothing(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = digest(tiny_model)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path / "file"))
    assert digest(tiny_model) == right
    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path / "cache"))
    assert digest(tiny_model) == right
    (entry,) = (tmp_path / "cache" / "digests").iterdir()
    for broken in ("", "{}", "[1]", "\x00"):
        entry.write_text(broken)
        assert digest(tiny_model) == right


def test_the_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PALIMPSEST_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert digest_module.cache_folder() == tmp_path / "palimpsest"
