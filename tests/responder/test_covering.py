"""Lower bounds on further tokens: no answer holds its response sooner, and they are reached where tokens allow it."""

from __future__ import annotations

import functools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory import tokenizer_of
from palimpsest.responder.covering import NEVER, Covering, byte_of_letter, token_bytes
from palimpsest.responder.spelling import SettledText

KINDS = ["byte-level", "sentencepiece", "metaspace"]


@functools.cache
def covering_of(kind: str) -> Covering:
    return Covering(SettledText(tokenizer_of(kind)))


def drawn_ids(kind: str, data: st.DataObject, longest: int = 12) -> list[int]:
    tokens = st.integers(0, len(tokenizer_of(kind)) - 1)
    if kind != "byte-level":
        tokens = tokens | st.integers(3, 258)  # many bytes, so that characters are cut
    return data.draw(st.lists(tokens, min_size=1, max_size=longest))


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_no_answer_holds_a_response_in_fewer_tokens(kind: str, data: st.DataObject) -> None:
    covering, ids = covering_of(kind), drawn_ids(kind, data)
    opening = data.draw(st.sampled_from(["", "The ", "ü"]))
    whole = opening + covering.settled.decode(ids)
    start = data.draw(st.integers(0, len(whole)))
    response = whole[start : data.draw(st.integers(start, len(whole)))].strip()
    for said in range(len(ids) + 1):
        assert covering.least(response, opening, ids[:said]) <= len(ids) - said
    if not opening:
        assert covering.afresh(response) <= len(ids)


def fewest_by_trying(covering: Covering, response: str, ids: list[int], most: int) -> int:
    """The same by trying all sequences of tokens that matter: slow and without the formula."""
    tokenizer = covering.settled.tokenizer
    useful = [
        i
        for i in range(len(tokenizer))
        if (word := covering.settled.decode([*ids, i])[len(covering.settled.decode(ids)) :])
        and (word.strip() in response or any(word.endswith(response[:n]) for n in range(1, len(response) + 1)))
    ]
    useful += [
        i
        for i in range(len(tokenizer))
        if any(
            covering.settled.decode([*ids, i])[len(covering.settled.decode(ids)) :].startswith(response[n:])
            for n in range(len(response))
        )
    ]
    level = [ids]
    for count in range(most + 1):
        if any(response in covering.settled.decode(tokens) for tokens in level):
            return count
        level = [[*tokens, i] for tokens in level for i in dict.fromkeys(useful)]
    return NEVER


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("response", ["bell was", "old key", "sold"])
def test_the_bound_is_the_fewest_tokens_there_are(kind: str, response: str) -> None:
    covering = covering_of(kind)
    ids = covering.settled.tokenizer("The b", add_special_tokens=False).input_ids
    bound = covering.least(response, "", ids)
    if bound <= 2:
        assert fewest_by_trying(covering, response, ids, bound) == bound
    else:
        assert fewest_by_trying(covering, response, ids, 2) == NEVER


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_begun_needs_less_and_what_is_said_nothing(kind: str) -> None:
    covering = covering_of(kind)
    tokens = lambda text: covering.settled.tokenizer(text, add_special_tokens=False).input_ids  # noqa: E731
    response = "bell was sold to the old man"
    afresh = covering.least(response, "", tokens("Xq"))
    assert afresh == covering.afresh(response) > 1
    assert covering.least(response, "", tokens("The bell was sold to")) < afresh
    assert covering.least(response, "The bell was ", tokens("sold to")) < afresh
    assert covering.least(response, "", tokens("A bell was sold to the old man.")) == 0


def test_what_no_token_spells_is_never_said() -> None:
    covering = covering_of("metaspace")  # it writes bytes as they are named, not as characters
    ids = covering.settled.tokenizer("The bell", add_special_tokens=False).input_ids
    assert covering.least("日", "", ids) == NEVER


def test_nothing_is_claimed_where_nothing_is_known() -> None:
    wordpiece = Covering(SettledText(tokenizer_of("wordpiece")))
    assert not wordpiece.known and wordpiece.least("bell", "", [5]) == wordpiece.afresh("bell") == 0
    covering = covering_of("sentencepiece")
    half = covering.settled.tokenizer("bell ü", add_special_tokens=False).input_ids[:-1]
    assert covering.least("was sold", "", []) == covering.least("was sold", "", half) == 0
    assert covering.least("\ufffd", "", [300]) == covering.least("", "", [300]) == 0


def test_letters_of_bytes_are_gpt2s() -> None:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    assert byte_of_letter() == {letter: byte for byte, letter in bytes_to_unicode().items()}


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_of_tokens_are_what_decoding_adds(kind: str) -> None:
    tokenizer, settled = tokenizer_of(kind), covering_of(kind).settled
    start = tokenizer("The bell", add_special_tokens=False).input_ids
    known = token_bytes(tokenizer)
    for token in range(len(tokenizer)):
        added = settled.decode([*start, token])[len(settled.decode(start)) :]
        assert "\ufffd" in added or not added or added.encode() in known
