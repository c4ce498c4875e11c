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


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub_cache(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of huggingface_hub as a download leaves it: blobs, and a snapshot of links to them."""
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    repository = cache / "models--somebody--tiny-1b"
    snapshot, blobs = repository / "snapshots" / COMMIT, repository / "blobs"
    for folder in (snapshot, blobs, repository / "refs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    for number, file in enumerate(sorted(tiny_model.iterdir())):
        (blobs / f"{number:040d}").write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(Path("../../blobs") / f"{number:040d}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)
    return snapshot


def test_a_hub_name_is_found_in_the_local_cache_without_a_network(hub_cache: Path, tiny_model: Path) -> None:
    found = resolve("somebody/tiny-1b")
    assert (found.path, found.name) == (hub_cache, "somebody/tiny-1b")
    assert found.digest() == resolve(tiny_model).digest()
    from palimpsest.checkpoint.load import load_model, load_tokenizer, write_model
    from palimpsest.method import Context

    load_tokenizer(found)
    made = write_model(load_model(found, Context()), found, hub_cache.parent / "made", "example", {})
    assert [(t.name, t.shape) for t in made.tensors()] == [(t.name, t.shape) for t in found.tensors()]
    assert not [p for p in made.path.iterdir() if p.is_symlink()], "a written folder stands by itself"
    with pytest.raises(BadInput, match=r"hub is out of reach.*hf download somebody/other") as caught:
        resolve("somebody/other")
    assert "\n" not in str(caught.value)


def test_a_cached_model_without_safetensors_says_what_to_do(hub_cache: Path) -> None:
    (hub_cache / "model.safetensors").unlink()
    with pytest.raises(BadInput, match=r"tiny-1b: no safetensors weights of it are here .*hf download") as caught:
        resolve("somebody/tiny-1b")
    assert "\n" not in str(caught.value)
    (hub_cache / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(BadInput, match="pickled, which can run code"):
        resolve("somebody/tiny-1b")


def test_a_folder_of_that_name_comes_before_the_hub(hub_cache: Path, tiny_model: Path, tmp_path: Path) -> None:
    mine = copy_of(tiny_model, tmp_path / "somebody" / "tiny-1b")
    assert resolve("somebody/tiny-1b").path == mine


def test_of_a_hub_model_only_what_it_is_loaded_from_is_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    asked: dict[str, list[str]] = {}

    def download(name: str, *, local_files_only: bool, **patterns: list[str]) -> str:
        asked.update(patterns)
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(BadInput, match="out of reach"):
        reference._from_hub("a/b")
    kept = ["config.json", "model-00001-of-00002.safetensors", "tokenizer.model", "merges.txt", "chat_template.jinja"]
    left = ["consolidated.safetensors", "original/model.safetensors", "pytorch_model.bin", "onnx/config.json", "a.gguf"]
    assert list(filter_repo_objects([*kept, *left], **asked)) == kept


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
