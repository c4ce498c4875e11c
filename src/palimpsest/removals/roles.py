"""Where the projections of each layer are: in decoders as `families` has them, and in encoders, which it has not.

An encoder is described by the same `Family`, of which only the names of layers and projections are meant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from palimpsest.errors import BadInput
from palimpsest.families import FAMILIES
from palimpsest.families.family import Family

_BERT = Family(
    layers="bert.encoder.layer",
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    output="attention.output.dense",
    up="intermediate.dense",
    down="output.dense",
    embedding="bert.embeddings.word_embeddings",
    head="classifier",
)
_DEBERTA = replace(
    _BERT,
    layers="deberta.encoder.layer",
    query="attention.self.query_proj",
    key="attention.self.key_proj",
    value="attention.self.value_proj",
)
ENCODERS: dict[str, Family] = {
    "bert": _BERT,
    "roberta": replace(_BERT, layers="roberta.encoder.layer"),
    "xlm-roberta": replace(_BERT, layers="roberta.encoder.layer"),
    "camembert": replace(_BERT, layers="roberta.encoder.layer"),
    "electra": replace(_BERT, layers="electra.encoder.layer"),
    "deberta-v2": _DEBERTA,
    "distilbert": Family(
        layers="distilbert.transformer.layer",
        query="attention.q_lin",
        key="attention.k_lin",
        value="attention.v_lin",
        output="attention.out_lin",
        up="ffn.lin1",
        down="ffn.lin2",
        embedding="distilbert.embeddings.word_embeddings",
        head="classifier",
    ),
}
LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


def roles_of(config: Mapping[str, Any], what: str) -> Family:
    """Names of layers and projections; BadInput for an architecture whose are not known."""
    kind = str(config.get("model_type"))
    found = FAMILIES.get(kind) or ENCODERS.get(kind)
    if found is None:
        known = ", ".join(sorted({*FAMILIES, *ENCODERS}))
        raise BadInput(f"{what}: architecture {kind!r} is not known here; known: {known}")
    return found


def layers_of(config: Mapping[str, Any]) -> int:
    """How many layers a configuration has."""
    return next(int(config[name]) for name in LAYER_COUNTS if config.get(name))


def layer_modules(network: Any, what: str) -> list[nn.Module]:
    """The layers of a loaded model, the first one first; an adapter may be in it."""
    plain = network.get_base_model() if hasattr(network, "get_base_model") else network
    names = roles_of(plain.config.to_dict(), what)
    return list(plain.get_submodule(names.layers))


def down_modules(network: Any, what: str) -> list[nn.Module]:
    """The second projection of every layer's feed-forward: what it reads are the channels."""
    names = roles_of(network.config.to_dict(), what)
    return [layer.get_submodule(names.down) for layer in layer_modules(network, what)]
