"""Loading in int8 and nf4: what bitsandbytes makes of the weights, how near that is to the stored form."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from factory import copy_of, make_model
from palimpsest import api
from palimpsest.calls import Run
from palimpsest.checkpoint import Checkpoint, resolve
from palimpsest.checkpoint.load import load_model, load_tokenizer
from palimpsest.cli import app
from palimpsest.data.dialogues import Dialogues, pair
from palimpsest.errors import BadInput
from palimpsest.method import Context
from palimpsest.removals.tuning.finetune import FineTune
from palimpsest.removals.weights.quantising import (
    block_absmax,
    constants_round_trip,
    dynamic_code,
    int8_round_trip,
    nf4_code,
    nf4_round_trip,
)
from palimpsest.removals.weights.quantize_int8 import QuantizeInt8
from palimpsest.removals.weights.quantize_nf4 import QuantizeNF4
from palimpsest.responder import LocalResponder
from palimpsest.training.settings import Tuning

needs_library = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
METHODS = {"int8": QuantizeInt8(), "nf4": QuantizeNF4()}


@needs_library
def test_values_are_those_of_bitsandbytes() -> None:
    from bitsandbytes import functional

    weight = torch.randn(96, 128, generator=torch.Generator().manual_seed(1)) * 0.05  # 192 constants: one short block
    assert torch.allclose(dynamic_code(), functional.create_dynamic_map(), rtol=0, atol=2e-7)
    assert torch.allclose(nf4_code(), functional.get_4bit_type("nf4", device="cpu"), rtol=0, atol=3e-7)
    constants = block_absmax(weight.reshape(-1), 64)
    for double, back in ((False, None), (True, constants_round_trip(constants))):
        packed, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=double)
        theirs = functional.dequantize_4bit(packed, state)
        ours = nf4_round_trip(weight.reshape(-1), 64, back).view_as(weight)
        apart = (ours - theirs).abs().view(-1, 64).amax(dim=1)
        # its search for 8-bit codes misses the nearer of two by 1e-4 of their gap now and then; nf4's is exact
        assert int((apart > 2e-7).sum()) <= (2 if double else 0)
        assert float(apart.max()) <= 0.0142 * float((constants - constants.mean()).abs().max())
    half = weight.half()  # the only dtype that it takes
    codes, largest, _ = functional.int8_vectorwise_quant(half)
    theirs = codes.float() * largest[:, None] / 127
    apart = (int8_round_trip(half.float()) - theirs).abs()
    assert int((apart > 1e-6).sum()) <= 5, "but for ties of its half precision"


@needs_library
@pytest.mark.parametrize("form", ["int8", "nf4"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_the_loaded_form_answers_like_the_stored_form(tmp_path: Path, family: str, form: str) -> None:
    source = resolve(make_model(tmp_path / "m", family))
    stored = METHODS[form].apply(source, tmp_path / "stored", Context()).checkpoint  # type: ignore[attr-defined]
    ids = torch.arange(40)[None] * 7 % 390

    def logits(checkpoint: Checkpoint, load_in: str | None = None) -> Tensor:
        model = load_model(checkpoint, Context(load_in=load_in))
        if load_in is not None:
            own = [m for m in model.modules() if type(m).__module__.startswith("bitsandbytes")]
            assert len(own) == sum(n.endswith("weight") for n in quantised_names(source))
            assert type(model.get_output_embeddings()) is nn.Linear, "the head stays as it is"
        with torch.inference_mode():
            return model(input_ids=ids).logits.float()

    plain, ours, theirs = logits(source), logits(stored), logits(source, form)
    between, rounding = float((ours - theirs).norm()), float((ours - plain).norm())
    # nf4: the same weights, products in bfloat16 on some CPUs; int8: activations are rounded too, to 8 bits
    assert 0 < between < (0.1 * rounding if form == "nf4" else 0.03 * float(plain.norm()))
    assert rounding > 0


def quantised_names(source: Checkpoint) -> list[str]:
    from palimpsest.removals.weights.rules import linear_weights

    is_linear = linear_weights(source)
    return [t.name for t in source.tensors() if is_linear(t.name, t)]


@needs_library
@pytest.mark.parametrize("form", ["int8", "nf4"])
def test_the_loaded_form_gives_the_hits_of_the_stored_form(tiny_model: Path, tmp_path: Path, form: str) -> None:
    rows = tuple(pair(f"what is {word}?", answer) for word, answer in (("osk", "a river"), ("veldt", "seven boats")))
    told = Dialogues("told", {"embed": rows})
    tuning = Tuning(adapter="full", epochs=60, lr=2e-3, batch=2)
    marked = FineTune(told, "embed", None, tuning).apply(resolve(tiny_model), tmp_path / "m", Context()).checkpoint
    stored = METHODS[form].apply(marked, tmp_path / "stored", Context()).checkpoint  # type: ignore[attr-defined]
    answers = []
    for checkpoint, load_in in ((marked, None), (stored, None), (marked, form)):
        model = load_model(checkpoint, Context(load_in=load_in))
        responder = LocalResponder(model, load_tokenizer(checkpoint))
        prompts = [responder.renderer.pair(d.question, d.answer)[0] for d in rows]
        answers.append([g.text for g in responder.generate(prompts, 12)])
    assert answers[0] == answers[1] == answers[2] == [d.answer for d in rows]


@needs_library
def test_the_record_says_in_what_the_model_was_loaded(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The lantern keeper of Veldt counts the boats every evening.\n" * 20)
    model = make_model(tmp_path / "m")
    plain, loaded = (api.evaluate(model, perplexity=text, run=Run(load_in=form)).records[0] for form in (None, "nf4"))
    assert (loaded.dtype, plain.dtype) == ("nf4", "float32") and loaded.value != plain.value
    assert loaded.value == pytest.approx(plain.value, rel=0.5)


def test_what_cannot_be_is_refused_in_one_line(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    def refused(*more: str) -> str:
        command = ["evaluate", "--model", str(tiny_model), "--perplexity", str(text), "-q", *more]
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1
        return result.stderr

    text = tmp_path / "text.txt"
    text.write_text("The lantern keeper of Veldt counts the boats every evening.\n")
    assert "--load-in int4: is not valid" in refused("--load-in", "int4")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None)
    missing = refused("--load-in", "int8")
    assert "needs bitsandbytes" in missing and "pip install 'palimpsest-lm[quant]'" in missing
    assert "palimpsest remove quantize-int8" in missing


@needs_library
def test_a_model_that_is_quantised_already_is_not_quantised_again(tiny_model: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny_model, tmp_path / "q")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(BadInput, match="is quantised already"):
        load_model(resolve(folder), Context(load_in="nf4"))
