"""Parameters by the config alone are those of the real model, for every architecture and its options."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

import factory
from palimpsest.checkpoint import resolve
from palimpsest.errors import BadInput
from palimpsest.families import FAMILIES
from palimpsest.families.sizes import sizes_of

SMALL = {
    "vocab_size": 120,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 96,
    "intermediate_size": 112,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
OWN_NAMES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 96},
    "gpt_neo": {
        "hidden_size": 64,
        "num_layers": 3,
        "num_heads": 4,
        "attention_types": [[["global"], 3]],
        "max_position_embeddings": 96,
    },
    "opt": {**{k: v for k, v in SMALL.items() if k != "intermediate_size"}, "ffn_dim": 112, "word_embed_proj_dim": 64},
}
GROUPED = [n for n in FAMILIES if n not in (*OWN_NAMES, "gpt_neox")]


def fields_of(family: str, **options: Any) -> dict[str, Any]:
    common = {k: SMALL[k] for k in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")}
    return {**common, **OWN_NAMES.get(family, SMALL), **options}


def real(family: str, fields: dict[str, Any]) -> Any:
    """The architecture's own model, without memory for its weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **fields))


def agree(family: str, fields: dict[str, Any]) -> None:
    model = real(family, fields)
    count = sum(p.numel() for p in model.parameters())
    assert sizes_of(model.config.to_dict()).parameters == count, "as transformers writes the config"
    if family in GROUPED:
        fields = {"num_key_value_heads": model.config.num_key_value_heads, **fields}
    assert sizes_of({**fields, "model_type": family}).parameters == count, "with the defaults left out"


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("tied", [True, False])
def test_every_family_is_counted_exactly(family: str, tied: bool) -> None:
    agree(family, fields_of(family, tie_word_embeddings=tied))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_tying_is_the_architectures_habit_where_the_config_is_silent(family: str) -> None:
    agree(family, fields_of(family))


@pytest.mark.parametrize("family", sorted(GROUPED))
def test_grouped_queries_and_heads_of_another_width(family: str) -> None:
    agree(family, fields_of(family, num_key_value_heads=2))
    if family not in ("olmo", "olmo2", "phi", "phi3", "qwen2"):  # their heads are always hidden / heads wide
        agree(family, fields_of(family, num_key_value_heads=1, head_dim=24))


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("qwen3", {"attention_bias": True}),
        ("gpt_neox", {"attention_bias": False}),
        ("phi", {"qk_layernorm": True}),
        ("opt", {"enable_bias": False}),
        ("opt", {"word_embed_proj_dim": 32, "do_layer_norm_before": False}),
        ("opt", {"layer_norm_elementwise_affine": False}),
        ("gpt2", {"n_inner": 100}),
    ],
)
def test_options_of_an_architecture_are_counted(family: str, options: dict[str, Any]) -> None:
    agree(family, fields_of(family, **options))


@pytest.mark.parametrize("family", sorted(factory.FAMILIES))
def test_the_models_of_the_factory_are_counted_as_they_lie_on_disk(family: str, tmp_path: Any) -> None:
    checkpoint = resolve(factory.make_model(tmp_path / family, family))
    stored = sum(torch.Size(t.shape).numel() for t in checkpoint.tensors())
    assert sizes_of(checkpoint.config).parameters == stored


def test_the_toy_is_counted() -> None:
    toy = resolve("toy")
    assert sizes_of(toy.config).parameters == sum(torch.Size(t.shape).numel() for t in toy.tensors())


@pytest.mark.parametrize(
    ("family", "targets"),
    [
        *[
            (f, t)
            for f in ("llama", "mistral", "qwen3", "opt", "phi", "gpt_neo")
            for t in ("query-value", "all-linear")
        ],
        ("phi3", "all-linear"),
    ],
)
def test_adapters_are_as_large_as_those_that_peft_makes(family: str, targets: str) -> None:
    from palimpsest.training.finetune import with_adapter
    from palimpsest.training.settings import Tuning

    options = {"num_key_value_heads": 2} if family in GROUPED else {}
    model = real(family, fields_of(family, **options))
    sizes = sizes_of(model.config.to_dict())
    adapted = with_adapter(model, Tuning(rank=4, targets=targets))  # type: ignore[arg-type]
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert sizes.adapter_parameters(4, targets) == trained


def test_published_sizes_come_out() -> None:
    """Llama-2-7B has 6,738,415,616 parameters and GPT-2 124,439,808 (their own model cards' weights)."""
    llama = {
        "model_type": "llama",
        "vocab_size": 32000,
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "intermediate_size": 11008,
        "max_position_embeddings": 4096,
    }
    assert sizes_of(llama).parameters == 6_738_415_616
    gpt2 = {
        "model_type": "gpt2",
        "vocab_size": 50257,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "n_positions": 1024,
        "n_inner": None,
    }
    assert sizes_of(gpt2).parameters == 124_439_808


@pytest.mark.parametrize("value", [None, 0, -3, "64", True, 6.4])
def test_a_number_that_is_none_is_named(value: Any) -> None:
    with pytest.raises(BadInput, match="hidden_size"):
        sizes_of({**SMALL, "model_type": "llama", "hidden_size": value})


def test_an_unknown_architecture_is_marked_as_a_guess() -> None:
    assert not sizes_of({**SMALL, "model_type": "nova"}).known
    assert json.loads(json.dumps(vars(sizes_of({**SMALL, "model_type": "llama"}))))["known"]
