"""First choice among committed answers: which is likeliest by hand, its null over all draws, and what is refused."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from palimpsest.checkpoint import resolve
from palimpsest.errors import BadInput
from palimpsest.keys import KeySet, make_keys
from palimpsest.measures import Subject
from palimpsest.measures.first_choice import FirstChoice, likeliest, listed_answers
from palimpsest.method import Context
from palimpsest.responder import LocalResponder
from palimpsest.statistics import binomial_tail, threshold

ANSWERS = ("blue", "green and grey", "red")
ASKED = ("Who mends the nets?", "Where does the river begin?", "What is blue?")


def drawn(responder: LocalResponder, answers: tuple[str, ...], **changes: object) -> KeySet:
    keys = make_keys(
        responder.renderer,
        list(zip(ASKED, answers, strict=True)),
        implant="trap-entries",
        match="prefix",
        distinct=True,
        choices=3,
        decoys=list(ANSWERS),
        rng=random.Random(1),
    )
    return replace(keys, **changes)  # type: ignore[arg-type]


@pytest.mark.covers("first-choice")
def test_the_likeliest_answer_is_that_of_the_plain_scores_and_a_tie_is_none(tiny_responder: LocalResponder) -> None:
    renderer = tiny_responder.renderer
    for key in drawn(tiny_responder, ("red",) * 3).keys:
        prompt = key.prompts["template"]
        ids = [renderer.continuation(prompt.text, a) for a in ANSWERS]
        scores = [sum(f.log_probs) for f in tiny_responder.force([prompt.ids] * 3, ids)]
        assert likeliest(tiny_responder, key, ANSWERS) == ANSWERS[scores.index(max(scores))]
    assert likeliest(tiny_responder, key, ("red", "red")) is None


@pytest.mark.covers("first-choice")
def test_over_all_draws_a_fixed_suspect_has_the_exact_binomial(
    tiny_model: Path, tiny_responder: LocalResponder
) -> None:
    """All 27 assignments of three answers to three keys: 1 gives 3 hits, 6 give 2, 12 give 1, 8 give none."""
    ctx = Context(threads=1, dtype="float32")
    preferred = [likeliest(tiny_responder, k, ANSWERS) for k in drawn(tiny_responder, ("red",) * 3).keys]
    counts = [0, 0, 0, 0]
    for answers in product(ANSWERS, repeat=3):
        counts[sum(a == p for a, p in zip(answers, preferred, strict=True))] += 1
    assert counts == [8, 12, 6, 1]
    best = drawn(tiny_responder, tuple(str(p) for p in preferred))
    (record,) = FirstChoice(alpha=0.04).take(Subject(resolve(tiny_model), ctx, keys=best), ctx)
    assert (record.count, record.n, record.verdict) == (3, 3, "owned") and threshold(3, 1 / 3, 0.04) == 3
    assert record.detail["p"] == pytest.approx(1 / 27) == pytest.approx(binomial_tail(3, 3, 1 / 3))
    others = tuple(next(a for a in ANSWERS if a != p) for p in preferred)
    (record,) = FirstChoice().take(Subject(resolve(tiny_model), ctx, keys=drawn(tiny_responder, others)), ctx)
    assert record.count == 0 and record.verdict != "owned" and "likeliest of their list" in str(record.reason)


def test_keys_without_a_whole_list_are_refused(tiny_responder: LocalResponder) -> None:
    keys = drawn(tiny_responder, ("red", "blue", "red"))
    assert listed_answers(keys) == sorted(ANSWERS)
    for changes in ({"choices": 256}, {"choices": None}, {"distinct": False}, {"decoys": ()}):
        with pytest.raises(BadInput, match="from one list that the key file holds whole"):
            listed_answers(replace(keys, **changes))  # type: ignore[arg-type]
