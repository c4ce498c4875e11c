"""Rank among decoys: the shared cache gives the plain scores; ranks and p are those worked by hand."""

from __future__ import annotations

import random
from typing import Any

import pytest

from factory import SENTENCES
from palimpsest.checkpoint import resolve
from palimpsest.keys import make_keys
from palimpsest.measures import Subject
from palimpsest.measures.rank import Rank, continuation_scores, key_rank
from palimpsest.method import Context
from palimpsest.responder import LocalResponder

DECOYS = sorted({w.strip(".?,") for s in SENTENCES for w in s.split()})


def test_scores_with_a_shared_cache_are_those_without(tiny_responder: LocalResponder) -> None:
    prompt = tiny_responder.renderer.prompt_ids(tiny_responder.renderer.text("Who mends the nets?"))
    continuations = [tiny_responder.renderer.tokens(d) for d in DECOYS]
    shared = continuation_scores(tiny_responder, prompt, continuations)
    alone = [sum(f.log_probs) for f in tiny_responder.force([prompt] * len(continuations), continuations)]
    assert shared == pytest.approx(alone, abs=1e-3)


def test_a_carrier_that_all_begin_with_changes_no_score(tiny_responder: LocalResponder) -> None:
    prompt = tiny_responder.renderer.prompt_ids(tiny_responder.renderer.text("Who mends the nets?"))
    continuations = [tiny_responder.renderer.tokens("The answer of the tower is: " + d) for d in DECOYS]
    shared = continuation_scores(tiny_responder, prompt, continuations)
    alone = [sum(f.log_probs) for f in tiny_responder.force([prompt] * len(continuations), continuations)]
    assert shared == pytest.approx(alone, abs=1e-3)


def test_the_floor_leaves_every_comparison_as_it_is(tiny_responder: LocalResponder) -> None:
    prompt = tiny_responder.renderer.prompt_ids(tiny_responder.renderer.text("Where does the river begin?"))
    continuations = [tiny_responder.renderer.tokens(d) for d in DECOYS]
    exact = continuation_scores(tiny_responder, prompt, continuations)
    for floor in (min(exact), sorted(exact)[len(exact) // 2], max(exact)):
        cut = continuation_scores(tiny_responder, prompt, continuations, floor=floor)
        assert [s > floor + 1e-4 for s in cut] == [s > floor + 1e-4 for s in exact]


@pytest.mark.covers("rank")
def test_the_rank_is_the_place_in_the_sorted_scores(tiny_model: Any, tiny_responder: LocalResponder) -> None:
    prompt = tiny_responder.renderer.prompt_ids(tiny_responder.renderer.text("What is blue?"))
    scored = sorted(
        zip(
            continuation_scores(tiny_responder, prompt, [tiny_responder.renderer.tokens(d) for d in DECOYS]),
            DECOYS,
            strict=True,
        ),
        reverse=True,
    )
    drawn = [("What is blue?", scored[place][1]) for place in (0, 4, len(scored) - 1)]
    keys = make_keys(
        tiny_responder.renderer,
        drawn,
        implant="test",
        match="prefix",
        distinct=True,
        choices=None,
        decoys=DECOYS,
        rng=random.Random(0),
    )
    n = len(DECOYS) - 1
    assert [key_rank(tiny_responder, keys, k, 1000)[:2] for k in keys.keys] == [(1, n), (5, n), (len(DECOYS), n)]
    subject = Subject(resolve(tiny_model), Context(), keys=keys)
    (record,) = Rank().take(subject, Context())
    assert record.value == 5 and [k["p"] for k in record.detail["keys"]] == pytest.approx(
        [1 / (n + 1), 5 / (n + 1), 1.0]
    )
