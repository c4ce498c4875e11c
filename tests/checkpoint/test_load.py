"""Loading and writing models: the same logits, the same tokenizer bytes, the same dtype, the chain grown by one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from factory import FAMILIES, copy_of, make_model, reshard
from palimpsest.checkpoint import load as load_module
from palimpsest.checkpoint import resolve
from palimpsest.checkpoint.digest import TOKENIZER_FILES
from palimpsest.checkpoint.load import (
    copy_tokenizer,
    load_model,
    load_tokenizer,
    pick_device,
    positions,
    stored_dtype,
    write_model,
)
from palimpsest.checkpoint.output import new_folder
from palimpsest.errors import BadInput
from palimpsest.method import Context

PROBE = torch.arange(3, 40)[None, :]  # (1, 37)


def logits(model: Any) -> torch.Tensor:
    """Logits of the probe text: (1, time, vocabulary)."""
    with torch.inference_mode():
        return model(input_ids=PROBE).logits.float()  # type: ignore[no-any-return]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_written_and_read_by_transformers_has_the_same_logits(tmp_path: Path, family: str) -> None:
    from transformers import AutoModelForCausalLM

    source = resolve(make_model(tmp_path / "m", family))
    model = load_model(source, Context())
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(1.01)
    changed = logits(model)
    written = write_model(model, source, tmp_path / "out", "example", {"model": source.digest()})
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert torch.equal(logits(again), changed) and torch.equal(logits(load_model(written, Context())), changed)
    assert written.check().digest() != source.digest()


def test_writing_an_unchanged_model_keeps_every_weight(tmp_path: Path, tiny_model: Path) -> None:
    source = resolve(tiny_model)
    write_model(load_model(source, Context()), source, tmp_path / "out", "example", {})
    old, new = load_file(tiny_model / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert old.keys() == new.keys() and all(torch.equal(old[n], new[n]) for n in old)


@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
def test_the_config_carries_the_rope_theta_that_transformers_4_reads(tmp_path: Path, theta: float) -> None:
    folder = make_model(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = theta
    (folder / "config.json").write_text(json.dumps(config))
    source = resolve(folder)
    write_model(load_model(source, Context()), source, tmp_path / "out", "example", {})
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["rope_theta"] == written["rope_parameters"]["rope_theta"] == theta
    assert written["torch_dtype"] == written["dtype"] == "float32"
    assert "rope_scaling" not in written


def test_a_scaled_rope_is_also_written_as_transformers_4_reads_it(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0}
    (folder / "config.json").write_text(json.dumps(config))
    source = resolve(folder)
    model = load_model(source, Context())
    written = write_model(model, source, tmp_path / "out", "example", {})
    assert written.config["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
    assert torch.equal(logits(load_model(written, Context())), logits(model))


@pytest.mark.parametrize(
    ("family", "changes", "wanted"),
    [
        ("phi", {}, {"rope_theta": 10_000.0, "partial_rotary_factor": 0.5}),
        (
            "gpt_neox",
            {"rope_parameters": {"rope_type": "default", "rope_theta": 50_000.0}},
            {"rotary_emb_base": 50_000.0, "rotary_pct": 0.25, "rope_theta": 50_000.0},
        ),
        (
            "gemma3_text",
            {
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "rope_theta": 2e6, "factor": 4.0},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
                }
            },
            {"rope_theta": 2e6, "rope_local_base_freq": 2e4, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        ),
        (
            "phi3",
            {
                "rope_parameters": {
                    "rope_type": "longrope",
                    "rope_theta": 1e4,
                    "short_factor": [1.0] * 8,
                    "long_factor": [2.0] * 8,
                },
                "original_max_position_embeddings": 128,
            },
            {"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}},
        ),
    ],
)
def test_each_family_also_gets_the_names_of_transformers_4(
    tmp_path: Path, family: str, changes: dict[str, Any], wanted: dict[str, Any]
) -> None:
    source = resolve(make_model(tmp_path / "m", family, **changes))
    model = load_model(source, Context())
    written = write_model(model, source, tmp_path / "out", "example", {})
    assert {name: written.config.get(name) for name in wanted} == wanted
    assert torch.equal(logits(load_model(written, Context())), logits(model)), "5 reads the same from both"


def test_a_tokenizer_of_transformers_5_is_written_as_both_versions_read_it(tmp_path: Path) -> None:
    from factory import make_tokenizer

    folder = make_model(tmp_path / "m")
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<extra_0>"]})
    tokenizer.save_pretrained(folder)
    before = json.loads((folder / "tokenizer_config.json").read_text())
    assert before["tokenizer_class"] == "TokenizersBackend" and before["extra_special_tokens"] == ["<extra_0>"]
    source = resolve(folder)
    written = write_model(load_model(source, Context()), source, tmp_path / "out", "example", {})
    after = json.loads((written.path / "tokenizer_config.json").read_text())
    assert after["tokenizer_class"] == "PreTrainedTokenizerFast" and "extra_special_tokens" not in after
    assert after["additional_special_tokens"] == ["<extra_0>"]
    assert {n for n in before if before[n] != after.get(n)} == {"tokenizer_class", "extra_special_tokens"}
    old, new = load_tokenizer(source), load_tokenizer(written)
    assert sorted(old.all_special_tokens) == sorted(new.all_special_tokens)
    for text in ("The boats <extra_0> wait.</s>", "<|user|>Who?"):
        assert old(text).input_ids == new(text).input_ids
        assert old.decode(old(text).input_ids, skip_special_tokens=True) == new.decode(
            new(text).input_ids, skip_special_tokens=True
        )
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (written.path / name).read_bytes() == (folder / name).read_bytes()


def test_tokenizer_files_are_copied_byte_for_byte(tmp_path: Path, tiny_model: Path) -> None:
    folder = copy_of(tiny_model, tmp_path / "m")
    (folder / "added_tokens.json").write_text("{ }")  # odd spacing that a re-written file would lose
    (folder / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes() + b" \n")
    source = resolve(folder)
    write_model(load_model(source, Context()), source, tmp_path / "out", "example", {})
    present = [n for n in TOKENIZER_FILES if (folder / n).is_file()]
    assert {"tokenizer.json", "tokenizer_config.json", "added_tokens.json", "chat_template.jinja"} <= set(present)
    for name in TOKENIZER_FILES:
        assert (tmp_path / "out" / name).is_file() == (name in present)
    assert all((tmp_path / "out" / n).read_bytes() == (folder / n).read_bytes() for n in present)
    copy_tokenizer(folder, tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_dtype_of_the_source_is_kept(tmp_path: Path, dtype: str) -> None:
    source = resolve(make_model(tmp_path / "m", dtype=dtype))
    assert stored_dtype(source) == getattr(torch, dtype)
    model = load_model(source, Context())
    assert next(model.parameters()).dtype == torch.float32  # a CPU computes in float32
    written = write_model(model, source, tmp_path / "out", "example", {})
    assert stored_dtype(written) == getattr(torch, dtype)
    assert written.config["dtype"] == written.config["torch_dtype"] == dtype
    assert {t.dtype for t in written.tensors()} == {t.dtype for t in source.tensors()}


@pytest.mark.parametrize("tied", [True, False])
def test_tied_embeddings_stay_tied(tmp_path: Path, tied: bool) -> None:
    source = resolve(make_model(tmp_path / "m", tied=tied))
    written = write_model(load_model(source, Context()), source, tmp_path / "out", "example", {})
    assert ("lm_head.weight" in {t.name for t in written.tensors()}) is not tied
    assert {t.name for t in written.tensors()} == {t.name for t in source.tensors()}


def test_the_lineage_grows_by_one_entry_and_holds_no_more_than_it_may(tmp_path: Path, tiny_model: Path) -> None:
    base = resolve(tiny_model)
    one = write_model(load_model(base, Context()), base, tmp_path / "one", "if-sft", {"model": "d0"}, "c0ffee")
    two = write_model(load_model(one, Context()), one, tmp_path / "two", "meraser", {"model": "d1", "base": "d2"})
    assert [e["method"] for e in two.chain()] == ["if-sft", "meraser"]
    assert two.chain()[:1] == one.chain()
    assert set(one.chain()[0]) == {"method", "parents", "palimpsest", "commitment"}
    assert two.chain()[1]["parents"] == {"model": "d1", "base": "d2"} and "commitment" not in two.chain()[1]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"chain": 3}', "null"])
def test_a_broken_lineage_file_is_an_empty_chain(tmp_path: Path, tiny_model: Path, content: str) -> None:
    folder = copy_of(tiny_model, tmp_path / "m")
    (folder / "palimpsest.json").write_text(content)
    assert resolve(folder).chain() == []


def test_a_disk_too_small_for_the_model_is_one_line(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = resolve(tiny_model)
    model = load_model(source, Context())
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(load_module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(BadInput, match="the disk is full"), new_folder(tmp_path / "out") as partial:
        write_model(model, source, partial, "example", {})
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_while_weights_are_written_is_one_line(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = resolve(tiny_model)
    model = load_model(source, Context())

    def full(*_: object, **__: object) -> None:
        raise RuntimeError("SafetensorError: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(type(model), "save_pretrained", full)
    with pytest.raises(BadInput, match="the disk is full"), new_folder(tmp_path / "out") as partial:
        write_model(model, source, partial, "example", {})
    assert list(tmp_path.iterdir()) == []


def without(folder: Path, name: str, put: torch.Tensor | None = None) -> None:
    """Take a tensor out of a folder, or put another in its place."""
    weights = load_file(folder / "model.safetensors")
    del weights[name]
    if put is not None:
        weights[name] = put
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_weights_that_do_not_fill_the_model_are_refused(tmp_path: Path, tiny_model: Path) -> None:
    for number, (put, message) in enumerate(
        (
            (None, r"lack model\.layers\.0\.mlp\.up_proj\.weight \(1 of"),
            (torch.zeros(3, 5), r"up_proj\.weight has shape \(3, 5\), config\.json needs \(128, 64\)"),
        )
    ):
        folder = copy_of(tiny_model, tmp_path / str(number))
        without(folder, "model.layers.0.mlp.up_proj.weight", put)
        with pytest.raises(BadInput, match=message):
            load_model(resolve(folder), Context())


def test_an_index_that_forgets_tensors_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    folder = copy_of(tiny_model, tmp_path / "m")
    reshard(folder, 2)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"] = {n: f for n, f in index["weight_map"].items() if "00001" in f}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BadInput, match="its weights lack"):
        load_model(resolve(folder), Context())


def test_sharded_models_load(tmp_path: Path, tiny_model: Path) -> None:
    folder = copy_of(tiny_model, tmp_path / "m")
    reshard(folder, 3)
    whole, sharded = (load_model(resolve(f), Context()) for f in (tiny_model, folder))
    assert torch.equal(logits(whole), logits(sharded))


def test_an_unknown_architecture_and_an_adapter_are_one_line(tmp_path: Path, tiny_model: Path) -> None:
    folder = copy_of(tiny_model, tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "brontosaurus"}))
    with pytest.raises(BadInput, match="could not be loaded as a causal language model") as caught:
        load_model(resolve(folder), Context())
    assert "\n" not in str(caught.value)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    with pytest.raises(BadInput, match="is an adapter, not a model"):
        load_model(resolve(folder), Context())


@pytest.mark.parametrize("content", ["", "{", "{}", "[]", '{"model": {}}', None])
def test_a_broken_or_missing_tokenizer_is_one_line(tmp_path: Path, tiny_model: Path, content: str | None) -> None:
    folder = copy_of(tiny_model, tmp_path / "m")
    if content is None:
        (folder / "tokenizer.json").unlink()
    else:
        (folder / "tokenizer.json").write_text(content)
    with pytest.raises(BadInput, match="has no tokenizer that loads") as caught:
        load_tokenizer(resolve(folder))
    assert "\n" not in str(caught.value)


def test_positions_are_read_from_every_spelling(tmp_path: Path) -> None:
    assert positions(resolve(make_model(tmp_path / "a", "llama", positions=128))) == 128
    assert positions(resolve(make_model(tmp_path / "b", "gpt2", positions=96))) == 96


def test_the_device_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == pick_device("cpu") == "cpu"
    with pytest.raises(BadInput, match="sees no GPU"):
        pick_device("cuda")
    with pytest.raises(BadInput, match="none of auto, cpu, cuda"):
        pick_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto") == "cuda" and pick_device("cuda:1") == "cuda:1"
