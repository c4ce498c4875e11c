"""Parameters by layer, by name and by model: the words of files, of Python and of the command line."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.errors import BadInput
from palimpsest.merging.parameters import first_of, fits, from_words, layered, own_settings, resolve

MLP = [{"filter": "mlp", "value": 0.3}]


@given(value=st.floats(-2, 2), depth=st.floats(0, 1))
def test_a_single_value_is_the_same_everywhere(value: float, depth: float) -> None:
    assert resolve(value, "any", depth) == value == resolve([value], "any", depth)


@given(st.lists(st.floats(-2, 2), min_size=2, max_size=6))
def test_a_gradient_has_its_values_at_even_depths_and_is_linear_between(values: list[float]) -> None:
    steps = len(values) - 1
    for number, value in enumerate(values):
        assert resolve(values, "t", number / steps) == pytest.approx(value, abs=1e-9)
    middle = resolve(values, "t", 0.5 / steps)
    assert middle == pytest.approx((values[0] + values[1]) / 2, abs=1e-9)


def test_gradients_of_words_take_the_word_and_numbers_written_as_words_are_numbers() -> None:
    assert [resolve(["a", "b", "c"], "t", d) for d in (0.0, 0.4, 0.6, 1.0)] == ["a", "a", "b", "c"]
    assert [resolve([True, False], "t", d) for d in (0.0, 0.9, 1.0)] == [True, True, False]
    assert resolve(["0", "1e-2"], "t", 0.5) == pytest.approx(0.005)


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        (None, "x", True),
        ("*", "x", True),
        ("mlp", "model.layers.0.mlp.up_proj.weight", True),
        ("mlp", "model.layers.0.self_attn.q_proj.weight", False),
        ("model.layers.0.*", "model.layers.0.mlp.up_proj.weight", True),
        ("*.up_proj.*", "model.layers.0.mlp.up_proj.weight", True),
        ("layers.0*", "model.layers.0.mlp.up_proj.weight", False),
    ],
)
def test_filters(pattern: str | None, name: str, expected: bool) -> None:
    assert fits(pattern, name) is expected


def test_the_first_filter_that_fits_counts_and_one_without_filter_is_for_the_rest() -> None:
    setting = [{"filter": "mlp", "value": 0.3}, {"filter": "m", "value": [0, 1]}, {"value": 0.9}]
    assert resolve(setting, "x.mlp", 0.5) == 0.3
    assert resolve(setting, "x.m", 0.5) == 0.5
    assert resolve(setting, "x", 0.5) == 0.9
    assert resolve({"value": 0.1}, "x", 0) == 0.1 and resolve(MLP, "x", 0) is None and resolve([], "x", 0) is None


def test_what_no_filter_fits_is_looked_for_in_the_next_scope() -> None:
    assert first_of("w", [{"w": MLP}, {}, {"w": 0.5}], "x", 0) == 0.5
    assert first_of("w", [{"w": MLP}, {"w": 0.5}], "mlp", 0) == 0.3
    assert first_of("v", [{"w": 1}], "x", 0) is None


@pytest.mark.parametrize("wrong", [{"filtr": "x", "value": 1}, [{"filter": "x"}], [1, {"value": 2}], object()])
def test_a_setting_of_another_form_is_refused_with_its_name(wrong: Any) -> None:
    with pytest.raises(BadInput, match="density"):
        resolve(wrong, "x", 0, "density")


def test_words_of_the_command_line() -> None:
    assert from_words({"density": "0.4"}) == {"density": "0.4"}
    assert from_words({"density": "0.4,0.6"}) == {"density": ("0.4", "0.6")}
    assert from_words({"t": "[0,0.5,1]"}) == {"t": [0, 0.5, 1]}
    assert from_words({"density": "0.4", "density@mlp": "0.3", "density@*.0.*": "0.1,0.2"}) == {
        "density": [{"filter": "mlp", "value": "0.3"}, {"filter": "*.0.*", "value": ("0.1", "0.2")}, {"value": "0.4"}]
    }
    assert from_words({"density": (0.4, 0.6), "t": [0, 1]}) == {"density": (0.4, 0.6), "t": [0, 1]}
    for wrong in ({"density@": "1"}, {"t": "[0,1"}):
        with pytest.raises(BadInput):
            from_words(wrong)


@given(plain=st.floats(0, 1), filtered=st.floats(0, 1), name=st.sampled_from(["mlp", "attn"]))
def test_layered_is_the_first_where_it_has_a_value_and_else_the_second(
    plain: float, filtered: float, name: str
) -> None:
    first = [{"filter": "mlp", "value": filtered}]
    both = layered(first, plain)
    assert resolve(both, name, 0) == (filtered if name == "mlp" else plain)
    assert layered(0.7, plain) == 0.7 and layered(None, plain) == plain and layered(first, None) == first
    chained = layered(first, [{"filter": "attn", "value": plain}])
    assert resolve(chained, name, 0) == (filtered if name == "mlp" else plain)


def test_a_filter_says_more_than_a_models_own_weight() -> None:
    shared = from_words({"weight@mlp": "0.1,0.9"})
    first, second, third = own_settings(shared, [{"weight": 0.5}, {"weight": 0.4}], ["weight"]) + own_settings(
        {}, [{}], ["weight"]
    )
    assert [resolve(s["weight"], "mlp", 0) for s in (first, second)] == ["0.1", "0.9"]
    assert [resolve(s["weight"], "attn", 0) for s in (first, second)] == [0.5, 0.4]
    assert third == {}
    with pytest.raises(BadInput, match="2 values for 3 models"):
        own_settings(shared, [{"weight": 1.0}] * 3, ["weight"])
