"""full-gauge: every legal symmetry at once, its secret, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from factory import make_classifier, make_model
from palimpsest.checkpoint import Checkpoint
from palimpsest.errors import BadInput
from palimpsest.method import Context, build
from palimpsest.protections.full_gauge import FullGauge
from palimpsest.protections.secret import read_secret
from palimpsest.removals.weights.rewriting import rewrite
from palimpsest.symmetry import Rotation, SignedPermutation, components_of, edit_for, legal
from palimpsest.symmetry.agreement import same_function

CTX = Context(threads=1, key_seed=5)


@pytest.mark.covers("full-gauge")
@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"num_key_value_heads": 2, "attention_bias": True}),
        ("qwen2", {"tied": True, "dtype": "bfloat16", "shards": 3}),
        ("gpt2", {}),
        ("opt", {"dtype": "float16"}),
        ("gpt_neox", {"dtype": "bfloat16"}),
    ],
)
def test_all_legal_symmetries_are_applied_and_the_secret_makes_the_same_weights_again(
    family: str, changes: dict[str, object], tmp_path: Path
) -> None:
    model = Checkpoint(make_model(tmp_path / "m", family, **changes), family)  # type: ignore[arg-type]
    made = FullGauge().apply(model, tmp_path / "out", CTX)
    allowed = legal(model.config)
    turned = "residual-rotation" in allowed.allowed
    assert made.secret is not None
    made.secret.write(tmp_path / "secret.safetensors")
    gauge = read_secret(tmp_path / "secret.safetensors").gauge()
    assert isinstance(gauge.residual, Rotation if turned else SignedPermutation)
    left_out = {"residual-permutation"} if turned else set()
    assert set(components_of(gauge)) == set(allowed.allowed) - left_out
    found = same_function(model, made.checkpoint, CTX, gauge)
    found.require("full-gauge")
    assert found.relative_error < 1e-5
    edit, names, config = edit_for(gauge, model)
    again = rewrite(model, tmp_path / "again", CTX, "again", edit, names, config=config).checkpoint
    assert [t.name for t in made.checkpoint.tensors()] == [t.name for t in model.tensors()]
    for file in sorted(again.path.glob("*.safetensors")):
        first, second = load_file(file), load_file(made.checkpoint.path / file.name)
        assert first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)
    (record,) = made.records
    assert set(record.detail["components"]) == set(components_of(gauge))
    assert record.detail["not_legal_here"] == allowed.refused
    assert record.value is not None and record.value > 1  # as far as the weights are long: nothing is where it was


def test_the_secret_is_drawn_anew_unless_a_seed_is_given(tiny_model: Path, tmp_path: Path) -> None:
    model = Checkpoint(tiny_model, "tiny")
    digests = [
        FullGauge().apply(model, tmp_path / f"out{i}", Context(threads=1, key_seed=seed)).checkpoint.digest()
        for i, seed in enumerate((5, 5, 6, None, None))
    ]
    assert digests[0] == digests[1] and len(set(digests)) == 4


def test_digits_and_chosen_components(tiny_model: Path, tmp_path: Path) -> None:
    model = Checkpoint(tiny_model, "tiny")
    made = build(FullGauge, "digits").apply(model, tmp_path / "digits", CTX)
    assert made.records[0].detail["exact_digits"] is True
    assert "residual-rotation" not in made.records[0].detail["components"]
    before, after = load_file(model.path / "model.safetensors"), load_file(made.checkpoint.path / "model.safetensors")
    assert all(
        torch.equal(torch.frexp(before[n].abs()).mantissa.flatten().sort().values,
                    torch.frexp(after[n].abs()).mantissa.flatten().sort().values)
        for n in before
    )  # fmt: skip
    some = build(FullGauge, settings={"components": "heads,value-output"}).apply(model, tmp_path / "some", CTX)
    assert some.records[0].detail["components"] == {"heads": "permutation", "value-output": "matrix"}
    moved = load_file(some.checkpoint.path / "model.safetensors")
    kept = [n for n in before if torch.equal(before[n], moved[n])]
    assert len(kept) == len(before) - 2 * 4 and not any("_proj" in n for n in kept if "self_attn" in n)


def test_what_is_not_legal_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    model = Checkpoint(make_model(tmp_path / "m", "gpt2"), "gpt2")
    for components, reason in (
        (("up-scale",), "full-gauge: up-scale would change what a gpt2 model computes: up is followed by"),
        (("residual-rotation",), "it can be untied"),
        (("all", "norms"), "give `all` alone"),
        (("head",), "there is no symmetry 'head'; did you mean heads"),
    ):
        with pytest.raises(BadInput, match=reason):
            FullGauge(components=components).apply(model, tmp_path / "out", CTX)
    assert not (tmp_path / "out").exists()


def test_a_tied_model_is_untied_where_it_is_asked_for(tmp_path: Path) -> None:
    model = Checkpoint(make_model(tmp_path / "m", "gemma", dtype="bfloat16"), "gemma")
    made = FullGauge(untie=True).apply(model, tmp_path / "out", CTX)
    assert made.secret is not None and isinstance(made.secret.gauge().residual, Rotation)  # type: ignore[attr-defined]
    assert made.checkpoint.config["tie_word_embeddings"] is False
    found = same_function(model, made.checkpoint, CTX, made.secret.gauge(), untie=True)  # type: ignore[attr-defined]
    found.require("gemma")
    assert found.relative_error < 1e-5


def test_classifiers_can_be_protected(tmp_path: Path) -> None:
    model = Checkpoint(make_classifier(tmp_path / "m", "bert"), "bert")
    made = FullGauge().apply(model, tmp_path / "out", CTX)
    same_function(model, made.checkpoint, CTX).require("bert")
    assert made.records[0].detail["components"]["residual-permutation"] == "one-sign"
