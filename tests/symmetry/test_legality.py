"""What an architecture does not allow breaks its function, and is refused with the reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from factory import FAMILIES
from palimpsest.errors import BadInput
from palimpsest.symmetry import COMPONENTS, Gauge, LayerGauge, Rotation, SignedPermutation, check, draw, identity, legal
from palimpsest.symmetry.editing import Editor
from symmetry.networks import Network, drawn, network

BROKEN = 1e-2  # of the largest logit; exact ones stay below 1e-4


def everywhere(config: dict[str, Any], **parts: Any) -> Gauge:
    return Gauge(tuple(replace(layer, **parts) for layer in identity(config).layers))


def diagonal(groups: int, size: int) -> Tensor:
    """PaRaMS' free scaling: another factor for each dimension of a head."""
    return torch.diag_embed(1 + torch.rand(groups, size, generator=drawn(9)))


def reflection(groups: int, size: int) -> Tensor:
    """MergeBarrier's form: 1 - 2 V V^T with a few orthonormal directions V."""
    v = torch.linalg.qr(torch.randn(groups, size, 3, generator=drawn(9)))[0]
    return torch.eye(size) - 2 * v @ v.mT


def signs(count: int) -> Tensor:
    return torch.tensor([1.0, -1.0]).repeat(count // 2)


def neighbours(pairs: int) -> Tensor:
    """Rotations of the pairs (2 j, 2 j + 1), which turn together in other layouts than this one: (2 pairs, 2 pairs)."""
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    return torch.block_diag(*[turn] * pairs)


ILLEGAL: dict[str, tuple[str, Callable[[dict[str, Any]], Gauge], str]] = {
    "a free diagonal on queries and keys that turn": (
        "llama", lambda c: everywhere(c, query_key_still=diagonal(4, 16)), "each pair at its own speed"),
    "a reflection of queries and keys that turn": (
        "mistral", lambda c: everywhere(c, query_key_still=reflection(2, 16)), "each pair at its own speed"),
    "pairs of neighbours, as another layout has them": (
        "llama", lambda c: everywhere(c, query_key_still=neighbours(8).expand(4, 16, 16)), "at its own speed"),
    "a matrix on the turning part of GPT-NeoX": (
        "gpt_neox", lambda c: everywhere(c, query_key_still=reflection(4, 16)), r"not \(4, 12, 12\)"),
    "complex numbers where queries are normed": (
        "qwen3", lambda c: everywhere(c, query_key=torch.full((2, 8), 1j, dtype=torch.complex64)), "a sign a pair"),
    "scales of up before GELU": (
        "gpt2", lambda c: everywhere(c, up_scale=1 + torch.rand(256, generator=drawn(9))), "neurons may only change"),
    "negative scales before ReLU": (
        "opt", lambda c: everywhere(c, up_scale=signs(128)), "is negative somewhere"),
    "signs under LayerNorm": (
        "phi", lambda c: Gauge(identity(c).layers, SignedPermutation(torch.arange(64), signs(64))), "take the mean"),
    "a rotation under LayerNorm that moves the mean": (
        "gpt_neox", lambda c: Gauge(identity(c).layers, Rotation(turn(64))), r"moves \(1, ..., 1\)"),
    "a rotation of a tied model": (
        "gemma", lambda c: Gauge(identity(c).layers, Rotation(turn(64))), "which is also the embedding"),
    "a rotation past norms of what blocks give": (
        "olmo2", lambda c: Gauge(identity(c).layers, Rotation(turn(64))), "cannot be folded forward"),
    "the last norm's gain of a tied model": (
        "gpt2", lambda c: replace(identity(c), final_norm=torch.linspace(0.5, 2.0, 64)), "the head is the embedding"),
}  # fmt: skip


def turn(size: int) -> Tensor:
    return torch.linalg.qr(torch.randn(size, size, generator=drawn(9)))[0]


@pytest.mark.parametrize("what", ILLEGAL)
def test_what_is_not_legal_breaks_the_function_and_is_refused_with_the_reason(what: str) -> None:
    family, gauge_of, reason = ILLEGAL[what]
    model = network(family)
    gauge = gauge_of(model.config)
    with pytest.raises(BadInput, match=reason):
        check(gauge, model.config)
    assert model.moved(Editor(gauge, model.checkpoint)) > BROKEN


def gate_scaled(model: Network, factor: float) -> float:
    """Move of the logits where rows of gate are multiplied and columns of down divided."""
    scale = torch.linspace(1.0, factor, 128)

    def edit(name: str, tensor: Tensor) -> None:
        if "gate_proj" in name:
            tensor.mul_(scale[:, None])
        elif "down_proj" in name:
            tensor.div_(scale)

    return model.moved(edit)


def test_a_scaled_gate_breaks_the_function_and_no_gauge_can_say_it() -> None:
    model = network("llama")
    assert gate_scaled(model, 3.0) > BROKEN and gate_scaled(model, 1.0) == 0.0
    assert "never the gate" in legal(model.config).freedoms["up-scale"].why
    assert not [f for f in LayerGauge.__dataclass_fields__ if "gate" in f]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_component_is_allowed_with_a_form_or_refused_with_a_reason(family: str) -> None:
    allowed = legal(network(family).config)
    assert set(allowed.freedoms) == set(COMPONENTS)
    assert set(allowed.allowed) | set(allowed.refused) == set(COMPONENTS)
    assert all(allowed.freedoms[c].why for c in COMPONENTS)
    for component, why in allowed.refused.items():
        with pytest.raises(BadInput) as refused:
            draw(network(family).config, (component,), drawn())
        assert why in str(refused.value) and f"what a {family} model computes" in str(refused.value)


FORMS: dict[str, dict[str, str]] = {  # of the derivations, by hand
    "llama": {"query-key": "pairs", "up-scale": "signed", "residual-rotation": "rotation", "final-norm": "gains"},
    "qwen3": {"query-key": "signs", "query-key-norm": "gains", "up-scale": "signed"},
    "gemma2": {"query-key": "pairs", "residual-rotation": "", "residual-permutation": "signs", "final-norm": ""},
    "gemma3_text": {"query-key": "signs", "query-key-norm": "gains", "residual-rotation": ""},
    "olmo2": {"query-key": "signs", "query-key-norm": "gains-by-group", "norms": "", "residual-rotation": ""},
    "olmo": {"norms": "", "final-norm": "", "residual-rotation": "rotation-of-centred"},
    "opt": {"query-key": "matrix", "up-scale": "positive", "residual-permutation": "one-sign", "residual-rotation": ""},
    "gpt2": {"query-key": "matrix", "up-scale": "", "norms": "gains", "residual-permutation": "one-sign"},
    "gpt_neox": {"query-key": "pairs+matrix", "up-scale": "", "residual-rotation": "rotation-of-centred"},
    "phi": {"query-key": "pairs+matrix", "up-scale": "", "final-norm": "gains"},
    "phi3": {"query-key": "pairs", "up-scale": "signed", "residual-rotation": "rotation"},
}


@pytest.mark.parametrize("family", FORMS)
def test_the_forms_are_those_of_the_derivations(family: str) -> None:
    allowed = legal(network(family).config)
    assert {c: allowed.form(c) for c in FORMS[family]} == FORMS[family]
    assert (
        allowed.form("value-output") == "matrix" and allowed.form("heads") == allowed.form("neurons") == "permutation"
    )


def test_an_activation_that_is_not_known_leaves_neurons_their_order_alone() -> None:
    config = {**network("opt").config}
    assert legal({**config, "activation_function": "leaky_relu"}).form("up-scale") == "positive"
    for name in ("swooshx", "gelu", "silu", "relu2"):
        assert "neurons may only change places" in legal({**config, "activation_function": name}).refused["up-scale"]
    del config["activation_function"]
    assert "does not say which activation" in legal(config).refused["up-scale"]


def test_settings_that_take_a_symmetry_away_are_read() -> None:
    olmo, opt = network("olmo").config, network("opt").config
    assert "clip_qkv" in legal({**olmo, "clip_qkv": 8.0}).refused["value-output"]
    assert legal({**olmo, "clip_qkv": 8.0}).form("query-key") == "signs"
    assert "word_embed_proj_dim" in legal({**opt, "word_embed_proj_dim": 32}).refused["residual-permutation"]
    assert "no gains" in legal({**opt, "layer_norm_elementwise_affine": False}).refused["norms"]
    assert "before the head" in legal({**opt, "_remove_final_layer_norm": True}, untied=True).refused["final-norm"]
    bert = {"model_type": "bert", "hidden_size": 64, "num_attention_heads": 4, "architectures": ["BertModel"]}
    assert legal(bert).form("query-key") == "matrix"
    assert "of distances" in legal({**bert, "position_embedding_type": "relative_key"}).refused["query-key"]


def test_an_unknown_architecture_says_what_is_safe_in_theory() -> None:
    with pytest.raises(
        BadInput, match=r"'brontosaurus' has no symmetries known here.*values and output may take an inv"
    ):
        legal({"model_type": "brontosaurus"})


def test_a_gauge_of_other_shapes_or_broken_numbers_is_refused() -> None:
    config = network("llama").config
    whole = draw(config, ("value-output", "neurons", "heads", "query-key"), drawn())
    layer = whole.layers[0]
    assert layer.value_output is not None and layer.neurons is not None and layer.query_key is not None
    wrong: list[tuple[LayerGauge, str]] = [
        (
            replace(layer, value_output=layer.value_output[:2]),
            r"value_output has shape \(2, 16, 16\), not \(4, 16, 16\)",
        ),
        (replace(layer, value_output=layer.value_output * torch.nan), "not finite"),
        (replace(layer, value_output=torch.ones(4, 16, 16)), "condition number"),
        (replace(layer, neurons=layer.neurons.clone().fill_(3)), "no permutation of 128"),
        (replace(layer, query_key=layer.query_key.real), "no complex tensor"),
        (replace(layer, query_key=layer.query_key * 0), "between 1e-4 and 1e4"),
        (replace(layer, query_key_norm=torch.ones(8)), "there are no gains"),
        (replace(layer, norms={"attention-out": torch.ones(64)}), "no free gain at 'attention-out'"),
        (replace(layer, norms={"attention-in": torch.ones(63)}), r"not \(64,\)"),
        (replace(layer, queries=torch.zeros(4, 2, dtype=torch.int64)), "queries has shape"),
    ]
    for broken, reason in wrong:
        with pytest.raises(BadInput, match=f"layer 1: .*{reason}"):
            check(Gauge((layer, broken)), config)
    with pytest.raises(BadInput, match="of 1 layers, the model has 2"):
        check(Gauge((layer,)), config)
    with pytest.raises(BadInput, match="is no rotation"):
        check(Gauge(whole.layers, Rotation(1.1 * torch.eye(64))), config)
    with pytest.raises(BadInput, match="take one"):
        draw(config, ("residual-permutation", "residual-rotation"), drawn())
    with pytest.raises(BadInput, match="did you mean residual-rotation"):
        draw(config, ("residual-rotations",), drawn())


def test_the_tables_of_the_documentation_are_those_of_the_code() -> None:
    from palimpsest.symmetry.table import tables

    page = (Path(__file__).parents[2] / "docs" / "protections" / "symmetries.md").read_text(encoding="utf-8")
    for table in tables():
        assert table in page
    allowed = page[: page.index("## Why")]
    assert sum(line.startswith("|") for line in allowed.splitlines()) == sum(t.count("\n") + 1 for t in tables())
