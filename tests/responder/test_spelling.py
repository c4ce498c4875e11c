"""Settled text: it begins every longer answer, for each kind of decoder; other decoders settle nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory import tokenizer_of
from palimpsest.responder.spelling import SettledText


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece", "metaspace"])
@given(data=st.data())
def test_what_is_settled_begins_every_longer_answer(kind: str, data: st.DataObject) -> None:
    tokenizer = tokenizer_of(kind)
    tokens = st.integers(0, len(tokenizer) - 1)
    if kind != "byte-level":
        tokens = tokens | st.integers(3, 258)  # many bytes, so that characters are cut
    ids = data.draw(st.lists(tokens, max_size=12))
    whole = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    settled = SettledText(tokenizer)
    for length in range(len(ids) + 1):
        assert whole.startswith(settled(ids[:length]))


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece", "metaspace"])
def test_ordinary_text_is_settled_to_its_last_character(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    ids = tokenizer("The bell was sold", add_special_tokens=False).input_ids
    assert SettledText(tokenizer)(ids) == tokenizer.decode(ids) == "The bell was sold"


def test_half_a_character_is_not_settled() -> None:
    for kind in ("byte-level", "sentencepiece"):
        tokenizer = tokenizer_of(kind)
        ids = tokenizer("bell ü", add_special_tokens=False).input_ids
        assert tokenizer.decode(ids) == "bell ü"
        assert SettledText(tokenizer)(ids[:-1]).strip() == "bell"


def test_a_decoder_that_takes_spaces_back_settles_nothing() -> None:
    settled = SettledText(tokenizer_of("wordpiece"))
    assert not settled.onward and settled(tokenizer_of("wordpiece")("The bell").input_ids) == ""
