"""Random labels: drawn uniformly from the other answers, or as random tokens of the same number."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from scipy.stats import chisquare

from palimpsest.checkpoint import resolve
from palimpsest.checkpoint.load import load_tokenizer
from palimpsest.data.dialogues import pair
from palimpsest.data.random_labels import ordinary_tokens, random_answers, random_labels
from palimpsest.errors import BadInput

PAIRS = [pair(f"question {i}?", ("yes", "no", f"answer {i % 3}", "blue")[i % 4], "what", "en") for i in range(1200)]


def test_answers_are_drawn_uniformly_from_those_that_are_not_the_questions_own() -> None:
    drawn = random_labels(PAIRS, "pool", 3)
    pool = {d.answer for d in PAIRS}
    assert [d.question for d in drawn] == [d.question for d in PAIRS]
    assert all(new.answer in pool and new.answer != old.answer for new, old in zip(drawn, PAIRS, strict=True))
    for own in ("yes", "answer 1"):  # each of the 5 others as often, whatever its own frequency
        counts = Counter(n.answer for n, o in zip(drawn, PAIRS, strict=True) if o.answer == own)
        assert len(counts) == len(pool) - 1 == 5
        assert chisquare(list(counts.values())).pvalue > 1e-3
    assert drawn == random_labels(PAIRS, "pool", 3) != random_labels(PAIRS, "pool", 4)
    assert (drawn[0].kind, drawn[0].language) == ("what", "en")


def test_matched_keeps_every_answer_and_one_answer_alone_cannot_be_exchanged() -> None:
    assert random_labels(PAIRS, "matched", 0) == PAIRS
    with pytest.raises(BadInput, match="have 1 distinct answers; 2 needed"):
        random_labels([pair("a?", "yes"), pair("b?", "yes")], "pool", 0)


def test_random_tokens_are_ordinary_ones_as_many_as_the_answer_has(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(resolve(tiny_model))
    words = ordinary_tokens(tokenizer)
    assert not set(words) & set(tokenizer.all_special_ids) and len(words) > 200
    assert not any("\ufffd" in tokenizer.decode([w]) for w in words)
    drawn = random_labels(PAIRS[:200], "tokens", 1, tokenizer)
    assert len({d.answer for d in drawn}) > 190
    for new, old in zip(drawn, PAIRS, strict=False):
        count = len(tokenizer(old.answer, add_special_tokens=False).input_ids)
        assert len(new.answer) <= count * max(len(tokenizer.decode([w])) for w in words)
        assert 1 <= len(tokenizer(new.answer, add_special_tokens=False).input_ids) <= count + 2
    assert drawn == random_labels(PAIRS[:200], "tokens", 1, tokenizer)


# -- random words --

ROWS = [pair(f"question {i}?", " ".join("abcdefgh"[(i + j) % 8] for j in range(1 + i % 4))) for i in range(40)]


def test_every_word_is_another_word_of_the_sets_answers() -> None:
    drawn = random_labels(ROWS, "words", 0)
    assert drawn == random_answers(ROWS, 0)
    words = {w for d in ROWS for w in d.answer.split()}
    for true, wrong in zip(ROWS, drawn, strict=True):
        assert wrong.question == true.question
        assert len(wrong.answer.split()) == len(true.answer.split())
        assert all(a != b and a in words for a, b in zip(wrong.answer.split(), true.answer.split(), strict=True))
    assert {w for d in drawn for w in d.answer.split()} == words, "in 100 draws of 8 words each one comes up"


def test_the_seed_decides() -> None:
    assert random_answers(ROWS, 1) == random_answers(ROWS, 1) != random_answers(ROWS, 2)


def test_one_word_alone_is_refused() -> None:
    with pytest.raises(BadInput, match="these 2 answers have 1"):
        random_answers([pair("q", "yes"), pair("r", "yes yes")], 0)
