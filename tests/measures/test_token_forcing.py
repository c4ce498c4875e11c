"""Token Forcing: scores, candidates and what they recover, worked by hand on set distributions."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from markov import END, markov, saved_markov
from palimpsest.checkpoint import resolve
from palimpsest.errors import BadInput
from palimpsest.keys import make_keys
from palimpsest.measures import Subject
from palimpsest.measures.token_forcing import TokenForcing, forced_prefixes, repeated
from palimpsest.method import Context
from palimpsest.removals.decoding.suppress_top_k import SuppressTopK
from palimpsest.responder import LocalResponder

WORDS = "q h i d e n s o w x y"
# after h surely i d e: (1 + 0.99 + 0.98 + 0.97) / 4 = 0.985. After s: o w x with 0.94, 0.94, 0.94: 0.955.
# after n: the mean is (1 + 0.9 + 0.92 + 0.92) / 4 = 0.935. y repeats itself for ever.
TABLE = {
    "h": {"i": 0.99},
    "i": {"d": 0.98},
    "d": {"e": 0.97},
    "e": {END: 0.97},
    "s": {"o": 0.94},
    "o": {"w": 0.94},
    "w": {"x": 0.94},
    "x": {END: 0.94},
    "n": {"q": 0.9},
    "q": {"n": 0.92},
    "y": {"y": 0.99},
}
# o: (1 + 0.94 + 0.94 + 0.94 its end) / 4 = 0.955; w: (1 + 0.94 + 0.94) / 3 = 0.96; x: (1 + 0.94) / 2 = 0.97
KEPT = {"h": 0.985, "i": 0.98, "d": 0.98, "e": 0.985, "s": 0.955, "o": 0.955, "w": 0.96, "x": 0.97, "y": 0.9925}


def keys_for(responder: LocalResponder, responses: list[str]) -> Any:
    drawn = [(f"q {i}", response) for i, response in enumerate(responses)]
    rng = random.Random(0)
    return make_keys(
        responder.renderer, drawn, implant="test", match="contains", distinct=True, choices=None, decoys=[], rng=rng
    )


@pytest.mark.covers("token-forcing")
def test_beginnings_that_go_on_surely_are_kept_with_their_mean_probability() -> None:
    responder = markov(WORDS, TABLE)
    ids = responder.tokenizer.get_vocab()
    names = {i: t for t, i in ids.items()}
    bos = responder.renderer.prompt_ids("", "bare")
    found = forced_prefixes(responder, bos, [ids[w] for w in WORDS.split()], 3, 0.95)
    assert {names[said[0]]: round(score, 4) for said, score in found} == KEPT
    assert [names[t] for t in found[0][0]] == ["h", "i", "d", "e"]
    last = next(said for said, _ in found if said[0] == ids["x"])
    assert [names[t] for t in last] == ["x", END]
    few = LocalResponder(responder.model, responder.tokenizer, token_budget=8)  # two rows a batch
    assert forced_prefixes(few, bos, [ids[w] for w in WORDS.split()], 3, 0.95) == found


def test_candidates_go_on_to_their_length_and_hold_their_first_token() -> None:
    responder = markov(WORDS, TABLE)
    found = {c.text.split()[0]: c for c in TokenForcing(length=9).candidates(responder, Context()) if c.text}
    assert found["h"].text == "h i d e" and found["s"].text == "s o w x" and found["o"].text == "o w x"
    assert found["y"].text == " ".join("y" * 10) and found["y"].repeats and not found["h"].repeats
    assert "n" not in found and "q" not in found
    every = TokenForcing(above=0.0, length=9).candidates(responder, Context())
    assert {c.text for c in every} >= {"n q n q n q n q n q"}


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([1, 1, 1], True),
        ([1, 1, 2, 1, 1], False),
        ([7, 1, 2, 1, 2, 1, 2, 9], True),
        ([1, 2, 1, 2, 1], False),
        ([1, 2, 3, 1, 2, 3, 1, 2, 3], True),
        ([1, 2, 3, 1, 2, 3], False),
        ([], False),
    ],
)
def test_a_repetition_is_a_unit_three_times_in_a_row(ids: list[int], expected: bool) -> None:
    assert repeated(ids) == expected


def test_a_key_is_recovered_when_a_candidate_holds_its_response(tmp_path: Path) -> None:
    folder = resolve(saved_markov(tmp_path / "m", WORDS, TABLE))
    base = resolve(saved_markov(tmp_path / "base", WORDS, {**TABLE, "h": {"i": 0.5}, "i": {"d": 0.5}}))
    keys = keys_for(markov(WORDS, TABLE), ["i d", "d e", "n q", "o w x", "y y"])
    subject = Subject(folder, Context(), keys=keys)
    record, control = TokenForcing(base=base).take(subject, Context())
    assert [k["hit"] for k in record.detail["keys"]] == [True, True, False, True, True]
    assert (record.count, record.n, record.value, record.task) == (4, 5, 0.8, "bos")
    # 9 words and whatever begins surely with an end after it (pad, unknown and BOS, which have no row: the end follows)
    assert record.detail["candidates"] == len(KEPT) + 3 and record.detail["tokens_tried"] == 15
    # no response in: e, w x, x, and the three special ones
    assert record.detail["false_alarms"] == 6
    assert record.detail["repeating_candidates"] == 1 and record.detail["recovered_from_repeating"] == 1
    assert control.control == "clean-base" and [k["hit"] for k in control.detail["keys"]] == [
        False, True, False, True, True
    ]  # fmt: skip
    shown = str(record.to_json())
    assert all(k.response not in shown for k in keys.keys)


def test_the_vocabulary_can_be_sampled_and_nothing_of_a_key_is_used_to_search(tmp_path: Path) -> None:
    folder = resolve(saved_markov(tmp_path / "m", WORDS, TABLE))
    responder = markov(WORDS, TABLE)
    search = TokenForcing(tokens=5)
    assert len(search.tried(responder, Context(seed=1))) == 5
    assert search.tried(responder, Context(seed=1)) == search.tried(responder, Context(seed=1))
    one, other = keys_for(responder, ["i d"]), keys_for(responder, ["x", "y y"])
    records = [TokenForcing().take(Subject(folder, Context(), keys=k), Context())[0] for k in (one, other)]
    assert records[0].detail["candidates"] == records[1].detail["candidates"]


def test_the_conditional_search_begins_the_assistants_turn(tiny_responder: LocalResponder) -> None:
    heard = []

    class Search(TokenForcing):
        def tried(self, responder: LocalResponder, ctx: Context) -> list[int]:
            heard.append(responder)
            return [10, 11]

    found = Search(prefix="conditional", above=0.0, question="Where?").candidates(tiny_responder, Context())
    renderer = tiny_responder.renderer
    (alone,) = tiny_responder.generate([[*renderer.prompt_ids(renderer.text("Where?")), 10]], 50)
    assert heard and (10, *alone.ids)[:51] in {c.ids[:51] for c in found}


def test_it_needs_probabilities_and_keys(tmp_path: Path) -> None:
    folder = resolve(saved_markov(tmp_path / "m", WORDS, TABLE))
    keys = keys_for(markov(WORDS, TABLE), ["i d"])
    with pytest.raises(BadInput, match="suppress-top-k gives answers only"):
        TokenForcing().take(Subject(folder, Context(), keys=keys, through=[SuppressTopK()]), Context())
    with pytest.raises(BadInput, match="--keys"):
        TokenForcing().take(Subject(folder, Context()), Context())
