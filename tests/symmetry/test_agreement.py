"""What was written is compared with its original: in float32 before rounding, and as stored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from factory import copy_of, make_classifier, make_model
from palimpsest.checkpoint import Checkpoint
from palimpsest.errors import BadInput, CheckFailed
from palimpsest.method import Context
from palimpsest.symmetry import Gauge, draw, edit_for, identity, legal
from palimpsest.symmetry.agreement import fixed_batch, same_function
from symmetry.networks import drawn, everything, write

CTX = Context(threads=1)


def protected(folder: Path, family: str, **changes: object) -> tuple[Checkpoint, Checkpoint, Gauge]:
    """A tiny model, all its symmetries at once, and the gauge."""
    model = Checkpoint(make_model(folder / "m", family, **changes), family)  # type: ignore[arg-type]
    gauge = draw(model.config, everything(legal(model.config)), drawn())
    return model, write(model, gauge, folder / "out"), gauge


@pytest.mark.parametrize(
    ("family", "dtype"),
    [("qwen2", "bfloat16"), ("gemma3_text", "bfloat16"), ("gpt2", "float16"), ("gpt_neox", "bfloat16")],
)
def test_before_rounding_the_function_is_the_same_and_after_it_nearly(family: str, dtype: str, tmp_path: Path) -> None:
    model, changed, gauge = protected(tmp_path, family, dtype=dtype, shards=3)
    found = same_function(model, changed, CTX, gauge)
    found.require("changed")
    assert found.dtype == dtype and found.n == 4 * 48 + 32 and found.gauged
    assert found.relative_error < 1e-5 < found.stored_error < 64 * torch.finfo(getattr(torch, dtype)).eps
    assert 0.9 < found.argmax_agreement <= 1.0
    assert {t.dtype for t in changed.tensors()} == {t.dtype for t in model.tensors()}
    without = same_function(model, changed, CTX)
    assert without.relative_error == without.stored_error == found.stored_error and not without.gauged


def test_float32_is_compared_as_it_is_stored(tmp_path: Path) -> None:
    model, changed, gauge = protected(tmp_path, "llama", shards=2)
    found = same_function(model, changed, CTX, gauge)
    found.require("changed")
    assert 0 < found.relative_error == found.stored_error < 1e-5 and found.argmax_agreement == 1.0
    assert found == same_function(model, changed, CTX, gauge)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_another_function_is_found_out(dtype: str, tmp_path: Path) -> None:
    model, changed, gauge = protected(tmp_path, "llama", dtype=dtype)
    spoilt = Checkpoint(copy_of(changed.path, tmp_path / "spoilt"), "spoilt")
    weights = load_file(spoilt.path / "model.safetensors")
    name = "model.layers.1.self_attn.o_proj.weight"
    weights[name] = weights[name].roll(3, dims=1).contiguous()
    save_file(weights, spoilt.path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckFailed, match="spoilt: computes another function: its"):
        same_function(model, spoilt, CTX, gauge).require("spoilt")
    save_file(weights | {name: torch.full_like(weights[name], torch.nan)}, spoilt.path / "model.safetensors")
    with pytest.raises(CheckFailed, match="spoilt: its logits are not finite"):
        same_function(model, spoilt, CTX, gauge).require("spoilt")


def test_a_number_beyond_float16_is_one_line_before_anything_appears(tmp_path: Path) -> None:
    model = Checkpoint(make_model(tmp_path / "m", "llama", dtype="float16"), "llama")
    far = torch.ones(128)
    far[5] = 9000.0
    weights = load_file(model.path / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][5, 3] = 60.0
    save_file(weights, model.path / "model.safetensors", metadata={"format": "pt"})
    gauge = Gauge((identity(model.config).layers[0], replace(identity(model.config).layers[1], up_scale=far)))
    with pytest.raises(BadInput, match=r"layers.1.mlp.up_proj.weight: 5.4e\+05 is beyond float16, which ends at 65504"):
        write(model, gauge, tmp_path / "out")


def test_a_tensor_that_nothing_describes_is_refused(tmp_path: Path) -> None:
    model = Checkpoint(make_model(tmp_path / "m", "llama"), "odd")
    weights = load_file(model.path / "model.safetensors")
    save_file(weights | {"model.layers.0.self_attn.sinks.weight": torch.zeros(4)}, model.path / "model.safetensors")
    with pytest.raises(BadInput, match=r"odd: nothing describes tensor model.layers.0.self_attn.sinks"):
        edit_for(draw(model.config, ("neurons",), drawn()), model)


@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_classifiers_keep_their_answers(family: str, dtype: str, tmp_path: Path) -> None:
    model = Checkpoint(make_classifier(tmp_path / "m", family, dtype=dtype), family)
    allowed = legal(model.config)
    assert allowed.allowed == ("value-output", "query-key", "heads", "neurons", "residual-permutation")
    for components in (*((c,) for c in allowed.allowed), allowed.allowed):
        gauge = draw(model.config, components, drawn(4))
        changed = write(model, gauge, tmp_path / "-".join(components))
        found = same_function(model, changed, CTX, gauge)
        found.require(family)
        before, after = (load_file(c.path / "model.safetensors") for c in (model, changed))
        assert any(not torch.equal(before[n], after[n]) for n in before)
        assert found.relative_error < 1e-5 and found.n == 32


def test_the_stream_of_an_encoder_is_what_it_gives(tmp_path: Path) -> None:
    model = Checkpoint(make_classifier(tmp_path / "m", "bert"), "bert")
    plain = {**model.config, "architectures": ["BertModel"]}
    assert "is the residual stream itself" in legal(plain).refused["residual-permutation"]
    assert legal(plain).allows("value-output")


def test_the_batch_is_fixed_and_fits(tmp_path: Path) -> None:
    model = Checkpoint(make_classifier(tmp_path / "m", "roberta"), "roberta")
    rows = fixed_batch(model)
    assert rows == fixed_batch(model) and len(rows) == 32
    padding = model.config["pad_token_id"]
    assert all(padding not in row and max(row) < model.config["vocab_size"] for row in rows)
