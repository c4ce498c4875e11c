"""Random labels: as many words as the true answer, none of them at its place, all from the set."""

from __future__ import annotations

import pytest

from palimpsest.data.dialogues import pair
from palimpsest.data.random_answers import random_answers
from palimpsest.errors import BadInput

ROWS = [pair(f"question {i}?", " ".join("abcdefgh"[(i + j) % 8] for j in range(1 + i % 4))) for i in range(40)]


def test_every_word_is_another_word_of_the_sets_answers() -> None:
    drawn = random_answers(ROWS, 0)
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
