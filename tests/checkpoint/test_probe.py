"""Stored probe values: what they are, that the same model gives them again, and that another one is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from factory import FAMILIES, copy_of, make_model
from palimpsest.checkpoint import Checkpoint, probe, resolve
from palimpsest.checkpoint.load import load_model, load_tokenizer, to_dtype, write_model
from palimpsest.checkpoint.probe import FILE, TOKENS, check_probe, log_probabilities, tolerance, write_probe
from palimpsest.errors import BadInput
from palimpsest.method import Context

CPU = Context(device="cpu")


def written(source: Path, out: Path) -> Checkpoint:
    checkpoint = resolve(source)
    return write_model(load_model(checkpoint, CPU, "float32"), checkpoint, out, "example", {})


def stored(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / FILE).read_text(encoding="utf-8")))


def edit(folder: Path, name: str, **changes: Any) -> None:
    file = folder / name
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_the_values_are_those_of_a_plain_pass_over_the_stored_text(tmp_path: Path, tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = written(tiny_model, tmp_path / "out").path
    found = stored(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert found["ids"] == tokenizer(probe.TEXT).input_ids[:TOKENS] and found["places"] == [7, 15, 23, 31]
    with torch.inference_mode():
        logits = AutoModelForCausalLM.from_pretrained(folder)(input_ids=torch.tensor([found["ids"]])).logits[0]
    top = logits[[7, 15, 23, 31]].log_softmax(-1).topk(5)
    assert found["top"] == top.indices.tolist()
    torch.testing.assert_close(torch.tensor(found["log_probabilities"]), top.values, atol=2e-6, rtol=0)
    assert found["dtype"] == "float32" and set(found) == {
        "format", "text", "ids", "places", "top", "log_probabilities", "dtype", "transformers",
    }  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_what_was_written_loads_in_every_dtype(tmp_path: Path, family: str, dtype: str) -> None:
    made = written(make_model(tmp_path / "m", family, dtype=dtype), tmp_path / "out")
    assert stored(made.path)["dtype"] == dtype
    for loaded in ("float32", "bfloat16", "float16") if family in ("llama", "gpt2", "gemma2") else ("float32", dtype):
        model = load_model(made, CPU, loaded)
        apart = check_probe(model, made.path)
        exact = loaded in ("float32", dtype)
        assert apart is not None and apart < (1e-5 if exact else tolerance(getattr(torch, loaded), dtype) / 3)
        assert {p.dtype for p in model.parameters()} == {getattr(torch, loaded)}, "the check leaves the model alone"


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in ("opt", "gpt2", "gpt_neo")])
def test_a_rope_theta_that_is_read_otherwise_is_refused(tmp_path: Path, family: str) -> None:
    made = written(make_model(tmp_path / "m", family), tmp_path / "out")
    rope = json.loads((made.path / "config.json").read_text())["rope_parameters"]
    if "rope_theta" in rope:
        edit(made.path, "config.json", rope_parameters={**rope, "rope_theta": 500_000.0})
    else:  # Gemma 3
        changed = {kind: {**part, "rope_theta": 50 * part["rope_theta"]} for kind, part in rope.items()}
        edit(made.path, "config.json", rope_parameters=changed)
    with pytest.raises(
        BadInput, match=r"is not the model that was saved.*rope_theta.*remove palimpsest-probe"
    ) as caught:
        load_model(resolve(made.path), CPU)
    assert "\n" not in str(caught.value)
    (made.path / FILE).unlink()
    load_model(resolve(made.path), CPU)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_edited_tensor_is_refused(tmp_path: Path, dtype: str) -> None:
    made = written(make_model(tmp_path / "m", dtype=dtype), tmp_path / "out")
    weights = load_file(made.path / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][:8] *= -1
    save_file(weights, made.path / "model.safetensors", metadata={"format": "pt"})
    for loaded in ("float32", dtype):
        with pytest.raises(BadInput, match="is not the model that was saved"):
            load_model(resolve(made.path), CPU, loaded)


def test_another_tokenizer_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    made = written(tiny_model, tmp_path / "out")
    load_tokenizer(made)
    file = made.path / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["merges"] = content["model"]["merges"][:20]
    file.write_text(json.dumps(content))
    with pytest.raises(BadInput, match=r"is not the one that the model was saved with.*from number") as caught:
        load_tokenizer(resolve(made.path))
    assert "\n" not in str(caught.value)


def test_rotary_frequencies_are_not_rounded_with_the_weights(tmp_path: Path, tiny_model: Path) -> None:
    model = load_model(resolve(tiny_model), CPU)
    before = model.model.rotary_emb.inv_freq.clone()
    assert to_dtype(model, torch.bfloat16) is model and next(model.parameters()).dtype == torch.bfloat16
    assert torch.equal(model.model.rotary_emb.inv_freq, before)


def test_the_digest_does_not_cover_the_probe(tmp_path: Path, tiny_model: Path) -> None:
    made = written(tiny_model, tmp_path / "out")
    digest = made.digest()
    (made.path / FILE).unlink()
    assert resolve(made.path).digest() == digest


def test_models_without_a_probe_and_quantised_ones_are_not_compared(tmp_path: Path, tiny_model: Path) -> None:
    model = load_model(resolve(tiny_model), CPU)
    assert check_probe(model, tiny_model) is None
    made = written(tiny_model, tmp_path / "out")
    assert check_probe(model, made.path) is not None
    model.config.quantization_config = {"quant_method": "none"}
    assert check_probe(model, made.path) is None


@pytest.mark.parametrize(
    "content", ["", "[]", '{"format": 1}', '{"format": 2}', "null", '{"format": 1, "ids": [], "places": [], "top": []}']
)
def test_a_broken_probe_is_one_line(tmp_path: Path, tiny_model: Path, content: str) -> None:
    folder = copy_of(tiny_model, tmp_path / "m")
    (folder / FILE).write_text(content)
    with pytest.raises(BadInput, match="holds no probe values that this version reads"):
        load_model(resolve(folder), CPU)


def test_a_model_without_a_tokenizer_is_probed_by_plain_numbers(tmp_path: Path, tiny_model: Path) -> None:
    folder = copy_of(tiny_model, tmp_path / "m")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).unlink()
    made = written(folder, tmp_path / "out")
    found = stored(made.path)
    assert found["text"] is None and found["ids"] == [(37 * i + 11) % 400 for i in range(32)]
    load_model(made, CPU)


def test_a_vocabulary_too_small_for_the_tokenizer_and_few_positions_still_have_a_probe(
    tmp_path: Path, tiny_model: Path
) -> None:
    tokenizer = load_tokenizer(resolve(tiny_model))
    short = resolve(make_model(tmp_path / "short", "gpt2", positions=10))
    made = written(short.path, tmp_path / "out")
    assert len(stored(made.path)["ids"]) == 10 and stored(made.path)["places"] == [1, 4, 6, 9]
    model = load_model(made, CPU)
    model.config.vocab_size = 10
    write_probe(model, tmp_path, tokenizer, 3)
    assert stored(tmp_path)["text"] is None and stored(tmp_path)["ids"] == [1, 8, 5]
    assert stored(tmp_path)["places"] == [0, 1, 2]


def test_a_model_that_was_ruined_is_still_the_model_that_was_saved(tmp_path: Path, tiny_model: Path) -> None:
    source = resolve(tiny_model)
    model = load_model(source, CPU)
    with torch.no_grad():
        model.model.norm.weight.fill_(math.nan)
    made = write_model(model, source, tmp_path / "out", "example", {})
    assert stored(made.path)["log_probabilities"][0] == [None] * 5 and "NaN" not in (made.path / FILE).read_text()
    assert check_probe(load_model(made, CPU), made.path) == 0.0
    with pytest.raises(BadInput, match="is not the model that was saved"):
        check_probe(load_model(source, CPU), made.path)


def testcomputing_in_float32_gives_the_model_back_as_it_was(tiny_model: Path) -> None:
    model = load_model(resolve(tiny_model), CPU, "bfloat16").train()
    before = {n: (p.data_ptr(), p.dtype) for n, p in model.named_parameters()}
    ids = list(range(10, 30))
    low = log_probabilities(model, ids, [19])
    assert {n: (p.data_ptr(), p.dtype) for n, p in model.named_parameters()} == before and model.training
    wide = log_probabilities(to_dtype(model, torch.float32), ids, [19])
    torch.testing.assert_close(low, wide, atol=1e-5, rtol=0)
    with pytest.raises(IndexError):
        log_probabilities(to_dtype(model, torch.bfloat16), ids, [99])
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
