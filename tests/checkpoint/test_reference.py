"""What `--model` may name, and what is refused before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from factory import copy_of
from palimpsest.checkpoint import Checkpoint, reference, resolve
from palimpsest.errors import BadInput


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub must not be asked."""
    monkeypatch.setattr(reference, "_from_hub", lambda name: pytest.fail(f"asked the hub for {name}"))


@pytest.mark.usefixtures("no_hub")
def test_a_folder_is_named_by_its_last_part_and_known_by_its_absolute_path(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = resolve(str(tiny_model))
    assert (found.path, found.name, found.is_adapter) == (tiny_model, "tiny", False)
    assert found.config["model_type"] == "llama" and found.chain() == []
    monkeypatch.chdir(tiny_model.parent)
    assert resolve("tiny") == resolve("./tiny") == resolve(tiny_model) == resolve(found) == found


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize("name", ["toy", "toy:unrelated"])
def test_the_toy_models_are_always_there(name: str) -> None:
    found = resolve(name)
    assert found.name == name and found.config["model_type"] == "llama"


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize("name", ["/no/such/folder", "/no-such", "./no/such", "../nowhere", "~/nowhere", "a/b/c", ""])
def test_a_path_is_never_a_hub_name(name: str) -> None:
    with pytest.raises(BadInput, match="there is no model folder"):
        resolve(name)


@pytest.mark.parametrize("name", ["somebody/no-such-model", "gpt2-of-nobody", "not a name!", "a--b/c..d"])
def test_a_hub_name_without_a_network_is_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="there is no folder") as caught:
        resolve(name)
    assert "\n" not in str(caught.value) and name in str(caught.value)


@pytest.mark.usefixtures("no_hub")
def test_folders_that_are_no_models_are_one_line(tmp_path: Path, tiny_model: Path) -> None:
    outer = tmp_path / "embedded"
    copy_of(tiny_model, outer / "model")
    (outer / "keys.json").write_text("{}")
    with pytest.raises(BadInput, match=rf"holds a secret beside a model; use {outer / 'model'}"):
        resolve(outer)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=r"has no config\.json"):
        resolve(tmp_path / "empty")
    with pytest.raises(BadInput, match="is a file"):
        resolve(tiny_model / "config.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is no JSON"),
        (b"\xff", "is no JSON"),
        (b"[]", "is no JSON object"),
        (json.dumps({"auto_map": {"AutoModel": "modeling.Mine"}}).encode(), "remote code"),
    ],
)
def test_a_broken_config_and_remote_code_are_refused(
    tmp_path: Path, tiny_model: Path, content: bytes, message: str
) -> None:
    folder = copy_of(tiny_model, tmp_path / "m")
    (folder / "config.json").write_bytes(content)
    with pytest.raises(BadInput, match=message):
        resolve(folder)


def test_an_adapter_is_known_as_one(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    save_file({"a": torch.ones(2)}, tmp_path / "adapter_model.safetensors")
    found = Checkpoint(tmp_path, "a").check()
    assert found.is_adapter and found.config == {"peft_type": "LORA"}
    assert [t.name for t in found.tensors()] == ["a"] and len(found.digest()) == 64
