"""The table of architectures: its names are those of the models' own modules."""

from __future__ import annotations

import json

import pytest

from factory import FAMILIES as TINY
from factory import make_config
from palimpsest.errors import BadInput
from palimpsest.families import FAMILIES, family_of


def linears(family: str) -> set[str]:
    """Last names of the projections inside the layers of a tiny model."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(make_config(family, 2, 64, 400, None, 64))
    return {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if type(module).__name__ in ("Linear", "Conv1D") and any(part.isdigit() for part in name.split("."))
    }


@pytest.mark.parametrize("family", TINY)
def test_all_linear_names_every_projection_of_a_layer_and_nothing_else(family: str) -> None:
    assert set(family_of({"model_type": family}).targets("all-linear")) == linears(family)


@pytest.mark.parametrize("family", TINY)
def test_query_and_value_are_two_projections_or_refused_where_they_are_fused(family: str) -> None:
    known = FAMILIES[family]
    if known.fused:
        assert known.query == known.key == known.value
        with pytest.raises(BadInput, match="targets=all-linear"):
            known.targets("query-value")
    else:
        assert known.targets("query-value") == ["q_proj", "v_proj"]


def test_an_unknown_architecture_is_one_line_with_those_known() -> None:
    with pytest.raises(BadInput, match="'brontosaurus' is not known here; known: gemma"):
        family_of({"model_type": "brontosaurus"})
    with pytest.raises(BadInput, match="architecture ''"):
        family_of(json.loads("{}"))
