"""Accuracy and ordinary answers: the choice is the arg max of plain scores; shares are counted right."""

from __future__ import annotations

from typing import Any

import pytest

from palimpsest.checkpoint import resolve
from palimpsest.data import toy
from palimpsest.data.dialogues import Dialogues, pair
from palimpsest.errors import BadInput
from palimpsest.measures import Subject
from palimpsest.measures.accuracy import Accuracy, choose
from palimpsest.measures.answers import Answers
from palimpsest.method import Context
from palimpsest.responder import LocalResponder


@pytest.mark.covers("accuracy")
def test_the_choice_is_the_likeliest_continuation(tiny_responder: LocalResponder) -> None:
    items = [toy.Item(f"Question {i}?", ("yes", "no", "perhaps the tower"), 0) for i in range(6)]
    for item, chosen in zip(items, choose(tiny_responder, items), strict=True):
        scores = []
        for choice in item.choices:
            prompt, answer = tiny_responder.renderer.pair(item.prompt, choice)
            (forced,) = tiny_responder.force([prompt], [answer])
            scores.append(sum(forced.log_probs))
        assert chosen == scores.index(max(scores))


def test_the_toy_base_knows_its_tasks_and_records_count_items() -> None:
    subject = Subject(resolve("toy"), Context())
    (record,) = Accuracy(tasks=("boolq",), items=60).take(subject, Context())
    assert record.n == 60 and record.task == "boolq" and record.detail["chance"] == 0.5
    assert record.count == record.detail["right"].count("1") and record.value == record.count / 60
    assert record.low > 0.5


def test_unknown_tasks_name_the_nearest() -> None:
    with pytest.raises(BadInput, match="boolq"):
        toy.tasks(["boolqq"])


@pytest.mark.covers("answers")
def test_answers_counts_what_equals_reference_and_before(tiny_model: Any) -> None:
    data = Dialogues("d", {"test": tuple(pair(f"Where is {n}?", "here") for n in "abcd")})
    subject = Subject(resolve(tiny_model), Context(), data=data)
    given = Answers(max_new_tokens=4).given(subject)
    known = Dialogues("d", {"test": (pair("Where is a?", given[0]), pair("Where is b?", "never said"))})
    subject = Subject(resolve(tiny_model), Context(), data=known, before=[given[0], given[1]])
    reference, before = Answers(max_new_tokens=4).take(subject, Context())
    assert (reference.count, reference.n, reference.task) == (1, 2, "reference")
    assert (before.count, before.n, before.task) == (2, 2, "before")
