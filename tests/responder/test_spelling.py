"""Settled text: it begins every longer answer, for each kind of decoder; other decoders settle nothing."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory import SENTENCES, make_tokenizer
from palimpsest.responder.spelling import SettledText


def wrapped(tokenizer: Any) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@functools.cache
def tokenizer_of(kind: str) -> Any:
    """Byte-level BPE; SentencePiece as Llama 2 has it, with bytes for what it does not know; Metaspace; WordPiece."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    if kind == "byte-level":
        return make_tokenizer()
    if kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.decoder = decoders.WordPiece()
        wordpiece = trainers.WordPieceTrainer(vocab_size=200, special_tokens=["<unk>", "<s>", "</s>"])
        tokenizer.train_from_iterator(SENTENCES, wordpiece)
        return wrapped(tokenizer)
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=["<unk>", "<s>", "</s>", *bytes_], show_progress=False)
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    if kind == "metaspace":
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.train_from_iterator(SENTENCES, trainer)
    raw = tokenizer.to_str()
    again = Tokenizer.from_str(raw.replace('"special":true', '"special":false'))
    again.decoder = decoders.Metaspace()
    if kind == "sentencepiece":
        again.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    return wrapped(again)


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
