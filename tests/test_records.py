"""Records: JSON and back, empty fields left out, one spelling a value."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.records import Record, canonical_json, peak_bytes, read_jsonl, versions, write_jsonl

numbers = st.none() | st.floats(allow_nan=False, allow_infinity=False)
words = st.none() | st.text(max_size=12)
plain = st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=3)
records = st.builds(
    Record,
    measure=st.sampled_from(["hit-rate", "perplexity"]),
    value=numbers,
    count=st.none() | st.integers(0, 99),
    low=numbers,
    model=words,
    chain=st.lists(plain, max_size=2),
    control=words,
    seed=st.none() | st.integers(),
    detail=plain,
    versions=st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2),
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
)


@given(st.lists(records, max_size=4))
def test_records_written_and_read_are_the_same_records(tmp_path: Path, listed: list[Record]) -> None:
    write_jsonl(tmp_path / "records.jsonl", listed)
    assert read_jsonl(tmp_path / "records.jsonl") == listed


def test_empty_fields_are_left_out_and_zero_is_not_empty() -> None:
    assert Record("hit-rate", value=0.0, count=0, n=10).to_json() == {
        "measure": "hit-rate",
        "value": 0.0,
        "count": 0,
        "n": 10,
    }


def test_fields_of_newer_versions_are_ignored() -> None:
    assert Record.from_json({"measure": "x", "value": 1.0, "invented_later": 3}) == Record("x", 1.0)


@given(values)
def test_canonical_json_is_one_spelling_a_value(value: object) -> None:
    text = canonical_json(value)
    assert json.loads(text) == value
    assert canonical_json(json.loads(text)) == text and "\n" not in text


@given(st.dictionaries(st.text(max_size=6), st.integers(), max_size=6))
def test_canonical_json_does_not_depend_on_the_order_of_fields(value: dict[str, int]) -> None:
    assert canonical_json(value) == canonical_json(dict(reversed(value.items())))


def test_what_json_cannot_say_has_no_canonical_form() -> None:
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="JSON"):
            canonical_json({"value": value})


def test_versions_and_memory_are_those_of_this_process() -> None:
    assert "python" in versions() and "torch" in versions()
    assert 10 * 2**20 < peak_bytes() < 2**40
