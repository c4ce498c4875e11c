"""Quantised checkpoints on disk: which weights are rounded, along which dimension, and what stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from factory import make_model
from merging.folders import config_of, weights_of
from palimpsest.checkpoint import Checkpoint, resolve
from palimpsest.checkpoint.load import load_model
from palimpsest.errors import BadInput
from palimpsest.merging import engine
from palimpsest.method import Context, build
from palimpsest.removals.weights.quantising import (
    block_absmax,
    constants_round_trip,
    int8_groups_round_trip,
    int8_round_trip,
    nf4_round_trip,
)
from palimpsest.removals.weights.quantize_int8 import QuantizeInt8
from palimpsest.removals.weights.quantize_nf4 import QuantizeNF4

RoundTrip = Callable[[Tensor], Tensor]


def double_nf4(weight: Tensor) -> Tensor:
    flat = weight.reshape(-1)
    return nf4_round_trip(flat, 64, constants_round_trip(block_absmax(flat, 64))).view_as(weight)


METHODS: list[tuple[object, RoundTrip]] = [
    (QuantizeInt8(), int8_round_trip),
    (QuantizeInt8("tensor"), lambda w: int8_round_trip(w, w.abs().max())),
    (QuantizeInt8("group", 24), lambda w: int8_groups_round_trip(w, 24)),
    (QuantizeNF4(), lambda w: nf4_round_trip(w.reshape(-1)).view_as(w)),
    (QuantizeNF4(block=128), lambda w: nf4_round_trip(w.reshape(-1), 128).view_as(w)),
    (QuantizeNF4.qlora(), double_nf4),
]


def expected_weights(checkpoint: Checkpoint, round_trip: RoundTrip) -> dict[str, Tensor]:
    """Every parameter of the model, its linear modules but the head rounded as (out, in) matrices."""
    model = load_model(checkpoint, Context())
    found = {name: p.detach().clone() for name, p in model.named_parameters()}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and module is not model.get_output_embeddings():
            turned = isinstance(module, Conv1D)
            weight = module.weight.detach()
            rounded = round_trip(weight.T.contiguous() if turned else weight)
            found[f"{name}.weight"] = rounded.T if turned else rounded
    return found


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    folder = tmp_path_factory.mktemp("families")
    return {f: resolve(make_model(folder / f, f)) for f in ("llama", "gpt2", "gpt_neox", "opt", "phi3")}


@pytest.mark.covers("quantize-int8", "quantize-nf4")
@pytest.mark.parametrize("number", range(len(METHODS)))
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "opt", "phi3"])
def test_all_linear_layers_and_nothing_else_are_rounded_as_matrices_of_outputs_and_inputs(
    families: dict[str, Checkpoint], tmp_path: Path, family: str, number: int
) -> None:
    method, round_trip = METHODS[number]
    made = method.apply(families[family], tmp_path / "out", Context(threads=1))
    expected = expected_weights(families[family], round_trip)
    found = {n: p.detach() for n, p in load_model(made.checkpoint, Context()).named_parameters()}
    assert found.keys() == expected.keys()
    for name in expected:
        assert torch.allclose(found[name], expected[name], rtol=0, atol=1e-7), name
    before = {n: p.detach() for n, p in load_model(families[family], Context()).named_parameters()}
    changed = {n for n in before if not torch.equal(before[n], found[n])}
    change = sum(float((found[n] - before[n]).double().square().sum()) for n in changed) ** 0.5
    size = sum(float(before[n].double().square().sum()) for n in changed) ** 0.5
    detail = made.records[0].detail
    assert detail["tensors"] == len(changed) and detail["numbers"] == sum(before[n].numel() for n in changed)
    assert made.records[0].value == pytest.approx(change / size, rel=1e-5)
    assert detail["distance"] == pytest.approx(change, rel=1e-5)


@pytest.mark.parametrize(
    ("method", "bits"),
    [
        (QuantizeInt8(), 8 + 32 * 1152 / 81920),
        (QuantizeInt8("group", 32), 9.0),
        (QuantizeNF4(), 4.5),
        (QuantizeNF4(block=256), 4.125),
    ],
)
def test_the_record_says_bits_a_weight(tiny_model: Path, tmp_path: Path, method: object, bits: float) -> None:
    # two layers of 64 x 64 (q, k, v, o), 128 x 64 (gate, up) and 64 x 128 (down): 2 (4 * 64 + 2 * 128 + 64) rows
    made = method.apply(resolve(tiny_model), tmp_path / "out", Context())  # type: ignore[attr-defined]
    assert made.records[0].detail["bits"] == pytest.approx(bits)


@pytest.mark.parametrize("name", ["quantize-int8", "quantize-nf4"])
def test_dtype_shape_config_and_tokenizer_stay_and_quantising_again_changes_nothing(tmp_path: Path, name: str) -> None:
    source = resolve(make_model(tmp_path / "m", "mistral", dtype="bfloat16", shards=2))
    method = {"quantize-int8": QuantizeInt8(), "quantize-nf4": QuantizeNF4()}[name]
    once = method.apply(source, tmp_path / "once", Context()).checkpoint
    twice = method.apply(once, tmp_path / "twice", Context())
    assert twice.checkpoint.digest() == once.digest() != source.digest()
    assert twice.records[0].value == 0
    before, after = weights_of(source.path), weights_of(once.path)
    assert {n: (t.dtype, t.shape) for n, t in before.items()} == {n: (t.dtype, t.shape) for n, t in after.items()}
    assert config_of(once.path).items() >= {k: v for k, v in config_of(source.path).items() if k != "dtype"}.items()
    assert (once.path / "tokenizer.json").read_bytes() == (source.path / "tokenizer.json").read_bytes()
    assert [e["method"] for e in twice.checkpoint.chain()] == [name, name]
    assert once.chain()[0]["parents"] == {"model": source.digest()}


def test_the_size_of_chunks_changes_nothing(
    families: dict[str, Checkpoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = [m.apply(families["llama"], tmp_path / f"a{i}", Context()) for i, (m, _) in enumerate(METHODS)]  # type: ignore[attr-defined]
    monkeypatch.setattr(engine, "CHUNK", 1 << 9)
    cut = [m.apply(families["llama"], tmp_path / f"b{i}", Context()) for i, (m, _) in enumerate(METHODS)]  # type: ignore[attr-defined]
    assert [w.checkpoint.digest() for w in whole] == [c.checkpoint.digest() for c in cut]
    assert [c.records[0].value for c in cut] == [pytest.approx(w.records[0].value, rel=1e-9) for w in whole]


def test_the_head_is_rounded_when_asked_for_and_never_where_it_is_the_embedding(tmp_path: Path) -> None:
    own = resolve(make_model(tmp_path / "own", tied=False))
    made = QuantizeInt8(head=True).apply(own, tmp_path / "out", Context()).checkpoint
    before, after = weights_of(own.path), weights_of(made.path)
    assert torch.equal(after["lm_head.weight"], int8_round_trip(before["lm_head.weight"]))
    assert torch.equal(after["model.embed_tokens.weight"], before["model.embed_tokens.weight"])
    tied = resolve(make_model(tmp_path / "tied", tied=True))
    for method in (QuantizeInt8(head=True), QuantizeNF4(head=True)):
        with pytest.raises(BadInput, match="output head is its embedding"):
            method.apply(tied, tmp_path / "no", Context())
    assert not (tmp_path / "no").exists()


def test_bad_input_is_one_line(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="quantize-nf4: block: '65' is not valid"):
        build(QuantizeNF4, None, {"block": "65"})
    with pytest.raises(BadInput, match="quantize-int8: group: 1 is out of range"):
        build(QuantizeInt8, None, {"group": "1"})
    assert build(QuantizeNF4, "qlora", {"block": "128"}) == QuantizeNF4(block=128, double=True)
    from safetensors.torch import load_file, save_file

    from factory import copy_of

    broken = copy_of(tiny_model, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match=r"up_proj\.weight holds nan at position 197"):
        QuantizeNF4().apply(resolve(broken), tmp_path / "out", Context())
