"""Methods: built from words, with presets, dotted settings, ranges and types; every mistake is one line."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from palimpsest.errors import BadInput, nearest
from palimpsest.method import Context, build, coerce, input_fields, method, param, presets, settings_of, takes
from palimpsest.training.settings import Tuning

if TYPE_CHECKING:
    from palimpsest.checkpoint import Checkpoint


@method("removals", "example-method", paper="0000.00000")
@dataclass(frozen=True)
class Example:
    """An example."""

    base: Checkpoint | None = takes("the base")
    share: float = param(0.25, "a share", low=0.0, high=1.0)
    count: int = param(8, "a count", low=1)
    bound: float | None = param(1.0, "a bound, or none", low=0.0)
    rule: Literal["first", "last-of-all"] = param("first", "a rule")
    bits: Literal[4, 8] = param(8, "bits")
    layers: tuple[int, ...] = param((1, 2), "layers", low=0)
    betas: tuple[float, float] = param((0.9, 0.999), "moments", low=0.0, high=1.0)
    quick: bool = param(False, "a switch")
    label: str = param("x", "a word")
    erase: Tuning = param(Tuning(epochs=2), "how it erases")

    @classmethod
    def paper(cls) -> Example:
        """The paper's values."""
        return cls(share=0.5, erase=Tuning(epochs=9, lr=3e-4))

    @classmethod
    def released_code(cls) -> Example:
        """The code's values."""
        return cls(count=3)


def test_without_words_the_defaults_stand() -> None:
    assert build(Example) == Example()
    assert Example.info.name == "example-method"  # type: ignore[attr-defined]
    assert set(input_fields(Example)) == {"base"}


def test_a_preset_comes_first_settings_win_over_it() -> None:
    assert build(Example, "paper") == Example.paper()
    assert build(Example, "released-code") == build(Example, "released_code") == Example.released_code()
    mixed = build(Example, "paper", {"share": "0.1", "erase.epochs": "4"})
    assert mixed.share == 0.1 and mixed.erase.epochs == 4 and mixed.erase.lr == 3e-4
    assert set(presets(Example)) == {"paper", "released_code"}


def test_dotted_settings_nested_mappings_and_hyphens_name_the_same_field() -> None:
    wanted = dataclasses.replace(Example(), erase=Tuning(epochs=2, micro_batch=4))
    for settings in ({"erase.micro_batch": 4}, {"erase.micro-batch": "4"}, {"erase": {"micro_batch": 4}}):
        assert build(Example, None, settings) == wanted


def test_inputs_are_set_as_they_are_and_are_no_parameters() -> None:
    assert build(Example, inputs={"base": "checkpoint"}).base == "checkpoint"
    with pytest.raises(BadInput, match="unknown parameter 'base'"):
        build(Example, None, {"base": "x"})
    assert "base" not in settings_of(build(Example, inputs={"base": "x"}))


def test_settings_are_plain_nested_values() -> None:
    values = settings_of(Example.paper())
    assert values["share"] == 0.5 and values["erase"]["epochs"] == 9
    nested = values.pop("erase")
    assert build(Example, None, {**values, **{f"erase.{k}": v for k, v in nested.items()}}) == Example.paper()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shar": 1}, "example-method: shar: unknown parameter 'shar'; did you mean share"),
        ({"erase.epoch": 1}, "erase.epoch: unknown parameter 'epoch'; did you mean epochs"),
        ({"erase": {"epoch": 1}}, "erase.epoch: unknown parameter"),
        ({"erase": 3}, "give its parts: erase.adapter"),
        ({"share.x": 1}, "share has no parts"),
        ({"share": "1.5"}, r"1.5 is out of range \[0.0, 1.0\]"),
        ({"share": "-0.1"}, "out of range"),
        ({"count": 0}, r"0 is out of range \[1, \]"),
        ({"layers": "1,-2"}, "-2 is out of range"),
        ({"erase.rank": 0}, "erase.rank: 0 is out of range"),
        ({"count": 2.5}, "2.5 is not a whole number"),
        ({"count": "many"}, "'many' is not a whole number"),
        ({"count": True}, "not a whole number"),
        ({"share": "nan"}, "not a number"),
        ({"share": float("nan")}, "not a number"),
        ({"share": "[1,"}, "not a number"),
        ({"share": None}, "not a number"),
        ({"quick": "perhaps"}, "not true or false"),
        ({"quick": 1}, "not true or false"),
        ({"rule": "firt"}, "'firt' is not valid; did you mean first"),
        ({"bits": "5"}, "'5' is not valid"),
        ({"betas": "0.9"}, "does not have 2 parts"),
        ({"betas": "0.9,2"}, "out of range"),
        ({"bound": "loose"}, "'loose' is none of"),
    ],
    ids=str,
)
def test_a_wrong_setting_is_one_line_that_says_where_and_what_is_right(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        build(Example, None, settings)
    assert "\n" not in str(caught.value)


def test_an_unknown_preset_brings_the_nearest() -> None:
    with pytest.raises(BadInput, match="example-method has no preset 'papr'; did you mean paper"):
        build(Example, "papr")


@pytest.mark.parametrize(
    ("text", "hint", "value"),
    [
        ("1e-3", float, 1e-3),
        ("1E5", float, 1e5),
        ("3", float, 3.0),
        (3, float, 3.0),
        ("-0.5", float, -0.5),
        ("8", int, 8),
        (8.0, int, 8),
        ("1e3", int, 1000),
        ("true", bool, True),
        ("no", bool, False),
        ("none", float | None, None),
        ("null", float | None, None),
        (None, float | None, None),
        ("2", float | None, 2.0),
        ("7", str, "7"),
        (7, str, "7"),
        ("true", str, "true"),
        ("4", Literal[4, 8], 4),
        (4, Literal[4, 8], 4),
        ("1,2,3", tuple[int, ...], (1, 2, 3)),
        ([1, "2"], tuple[int, ...], (1, 2)),
        (5, tuple[int, ...], (5,)),
        ("[1, 2]", tuple[int, ...], (1, 2)),
        ("a,b", tuple[str, ...], ("a", "b")),
        ("0.9,0.95", tuple[float, float], (0.9, 0.95)),
    ],
    ids=str,
)
def test_words_become_values_of_the_annotated_type(text: Any, hint: Any, value: Any) -> None:
    found = coerce(text, hint, "here")
    assert found == value and type(found) is type(value)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_any_float_written_out_is_read_back(value: float) -> None:
    assert coerce(repr(value), float, "x") == value
    assert coerce(f"{value:.3e}", float, "x") == float(f"{value:.3e}")


@given(st.integers(-(10**15), 10**15))
def test_any_whole_number_written_out_is_read_back(value: int) -> None:
    assert coerce(str(value), int, "x") == value


@given(st.text(max_size=20), st.sampled_from([int, float, bool, float | None, tuple[int, ...], Literal["a", "b"]]))
def test_no_word_raises_anything_but_bad_input(text: str, hint: Any) -> None:
    try:
        value = coerce(text, hint, "place")
    except BadInput as error:
        assert str(error).startswith("place: ")
    else:
        assert not (isinstance(value, float) and math.isnan(value))


@given(st.floats(-2, 3))
def test_a_value_is_taken_exactly_when_it_is_in_range(value: float) -> None:
    if 0.0 <= value <= 1.0:
        assert build(Example, None, {"share": value}).share == value
    else:
        with pytest.raises(BadInput, match="out of range"):
            build(Example, None, {"share": value})


@given(st.text("abcdefghijklmnop", min_size=1, max_size=8))
def test_an_unknown_parameter_is_never_taken(name: str) -> None:
    assume(name not in {f.name for f in dataclasses.fields(Example)})
    with pytest.raises(BadInput, match="unknown parameter"):
        build(Example, None, {name: 1})


def test_methods_are_frozen_and_of_a_known_kind() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Example().share = 0.5  # type: ignore[misc]
    with pytest.raises(ValueError, match="did you mean removals"):
        method("removal", "x")


def test_nearest_takes_underscores_and_lists_few_names() -> None:
    assert nearest("if_sft", ["if-sft", "utf"]) == "; did you mean if-sft?"
    assert nearest("zzz", ["utf", "badnet"]) == "; valid names: badnet, utf"
    assert nearest("zzz", []) == "; there is no name to give"
    assert "30 names are valid" in nearest("zzz", [f"n{i}" for i in range(30)])


def test_keys_are_drawn_from_the_systems_entropy_unless_a_seed_is_given() -> None:
    assert Context(key_seed=1).key_randomness().random() == Context(key_seed=1).key_randomness().random()
    assert Context(key_seed=1).key_randomness().random() != Context(key_seed=2).key_randomness().random()
    assert Context(seed=1).key_randomness().random() != Context(seed=1).key_randomness().random()


@method("removals", "keyword-example", paper="0000.00000")
@dataclass(frozen=True)
class Keyword:
    """A parameter whose name is a word of Python's grammar."""

    lambda_: float = param(1.0, "a factor", low=0.0)


def test_a_field_named_after_a_keyword_is_called_as_people_call_it() -> None:
    assert build(Keyword, settings={"lambda": "0.5"}) == build(Keyword, settings={"lambda_": 0.5}) == Keyword(0.5)
    assert settings_of(Keyword(0.5)) == {"lambda": 0.5}
    with pytest.raises(BadInput, match=r"lambda: -1.0 is out of range"):
        build(Keyword, settings={"lambda": -1})
    with pytest.raises(BadInput, match=r"did you mean lambda[?]"):
        build(Keyword, settings={"lamda": 1})
