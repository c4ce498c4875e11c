"""SuppressTop-k, -Neighbor and -Lookahead: what is banned, when, and what is said instead."""

from __future__ import annotations

import math

import pytest
import torch

from markov import END, markov, say, word_tokenizer
from palimpsest.errors import BadInput
from palimpsest.method import Context, build
from palimpsest.removals.decoding.steering import confident
from palimpsest.removals.decoding.suppress_lookahead import SuppressLookahead
from palimpsest.removals.decoding.suppress_neighbor import Neighbors, SuppressNeighbor, banned_set, letters
from palimpsest.removals.decoding.suppress_top_k import SuppressTopK, without_top

WORDS = "q Hedgehog hedge he HEDGEHOG! pig fox , owl hen"
SURE = {
    "q": {"Hedgehog": 0.95, "HEDGEHOG!": 0.02, "pig": 0.012, "fox": 0.01},
    "pig": {"fox": 0.6, "owl": 0.3, "hen": 0.05},
}


def wrap(method: object, table: dict[str, dict[str, float]] = SURE, words: str = WORDS) -> object:
    return method.wrap(markov(words, table), Context())  # type: ignore[attr-defined]


@pytest.mark.covers("suppress-top-k")
def test_the_k_largest_are_banned_and_the_rest_is_as_it_was() -> None:
    scores = torch.tensor([[0.1, 3.0, 2.0, -1.0], [5.0, 0.0, 0.0, 1.0]])
    banned, changed = without_top(scores, 2, None)
    assert banned.tolist() == [[pytest.approx(0.1), -math.inf, -math.inf, -1.0], [-math.inf, 0.0, 0.0, -math.inf]]
    assert changed.tolist() == [True, True]
    only_sure, changed = without_top(scores, 1, 0.9)  # softmax maxima: 0.68 and 0.97
    assert changed.tolist() == [False, True]
    assert only_sure[0].tolist() == scores[0].tolist() and only_sure[1, 0] == -math.inf


def test_suppression_acts_at_the_first_steps_only() -> None:
    assert say(markov(WORDS, SURE), "q") == "Hedgehog"
    assert say(wrap(SuppressTopK(k=2, steps=1)), "q") == "pig fox"
    assert say(wrap(SuppressTopK(k=2, steps=1)), "pig") == "hen"
    assert say(wrap(SuppressTopK(k=1, steps=2)), "pig").split()[0] == "owl"


def test_detection_leaves_unsure_answers_alone() -> None:
    detecting = build(SuppressTopK, "detection", {"k": 1, "steps": 1})
    assert detecting == SuppressTopK(k=1, steps=1, above=0.9)
    responder = wrap(detecting)
    assert say(responder, "q") == "HEDGEHOG!" and say(responder, "pig") == "fox"
    assert responder.taken() == {"changed steps": (1, 4)}  # type: ignore[attr-defined]  # two answers of a word and its end


def test_letters_are_case_folded_letters_and_digits() -> None:
    assert [letters(t) for t in (" Hedge-Hog 7!", "ß", ",", "Ωmega")] == ["hedgehog7", "ss", "", "ωmega"]


@pytest.mark.covers("suppress-neighbor")
def test_neighbours_share_a_beginning_either_way() -> None:
    tokenizer = word_tokenizer(WORDS)
    names = {i: t for t, i in tokenizer.get_vocab().items()}
    found = Neighbors(tokenizer)

    def of(token: str) -> set[str]:
        return {names[i] for i in found.of(tokenizer.get_vocab()[token])}

    assert of("Hedgehog") == {"Hedgehog", "hedge", "he", "HEDGEHOG!"}
    assert of("hedge") == {"Hedgehog", "hedge", "he", "HEDGEHOG!"}
    assert of("he") == {"Hedgehog", "hedge", "he", "HEDGEHOG!", "hen"}
    assert of("hen") == {"hen", "he"}
    assert of(",") == {","} and of(END) == {END}
    scores = torch.zeros((1, len(names)))
    scores[0, tokenizer.get_vocab()["hen"]], scores[0, tokenizer.get_vocab()["owl"]] = 3.0, 2.0
    assert {names[i] for i in banned_set(scores, found, 2)[0].nonzero().squeeze(1).tolist()} == {"hen", "he", "owl"}


def test_the_first_choice_and_its_neighbours_stay_banned_while_the_model_is_sure() -> None:
    # sure of Hedgehog: it and HEDGEHOG! are banned, pig is said; after pig it is unsure, so hedge may be said
    table = {**SURE, "pig": {"hedge": 0.6, "owl": 0.3}, "hedge": {"he": 0.95}, "he": {END: 0.99}}
    assert say(wrap(SuppressNeighbor(), table), "q").split()[:2] == ["pig", "hedge"]
    surely = {**table, "pig": {"hedge": 0.95, "owl": 0.03}}
    assert say(wrap(SuppressNeighbor(), surely), "q").split()[:2] == ["pig", "owl"]
    assert say(wrap(SuppressNeighbor(steps=1), surely), "q").split()[:2] == ["pig", "hedge"]
    assert say(wrap(SuppressNeighbor(above=0.96), surely), "q") == "Hedgehog"


def test_rows_of_a_batch_have_their_own_banned_sets() -> None:
    table = {**SURE, "fox": {"owl": 0.95, "pig": 0.04}, "owl": {END: 0.99}}
    responder = wrap(SuppressNeighbor(steps=1), table)
    prompts = [responder.renderer.prompt_ids(p, "bare") for p in ("q", "fox", "pig fox")]  # type: ignore[attr-defined]
    answers = [a.text.split()[0] for a in responder.generate(prompts, 2)]  # type: ignore[attr-defined]
    assert answers == ["pig", "pig", "pig"]


@pytest.mark.covers("suppress-lookahead")
def test_tokens_that_all_branches_surely_lead_to_are_lowered() -> None:
    # q leads surely to a; whatever is said first (a, b, c), d follows with 0.8, then e with 0.3, then the end
    words = "q a b c d e f"
    table = {
        "q": {"a": 0.95, "b": 0.03, "c": 0.01},
        **{w: {"d": 0.8} for w in "abc"},
        "d": {"e": 0.3, "f": 0.25},
        "e": {END: 0.95},
    }
    ids = word_tokenizer(words).get_vocab()
    plain = markov(words, table)
    prompt = plain.renderer.prompt_ids("q", "bare")
    looking = SuppressLookahead(branches=3, ahead=4, words=2)
    # first step 3 times: a (0.95). second: d three times. third: e with 0.3 is not counted. fourth: the end is special
    assert looking.found(plain, prompt) == [ids["a"], ids["d"]]
    assert SuppressLookahead(branches=3, ahead=4, words=1).found(plain, prompt) == [ids["a"]]
    assert SuppressLookahead(branches=3, ahead=1).found(plain, prompt) == [ids["a"]]
    assert looking.found(plain, plain.renderer.prompt_ids("a q", "bare")) == [ids["d"]]  # a is a word of the prompt
    # sure of a (0.95): it loses 10 and b is said; after b the model is not sure (0.8), so d stays
    responder = wrap(looking, table, words)
    assert say(plain, "q").split()[:2] == ["a", "d"] and say(responder, "q").split()[:2] == ["b", "d"]
    assert say(wrap(SuppressLookahead(branches=3, penalty=1.0), table, words), "q").split()[0] == "a"


def test_a_row_is_sure_above_the_threshold_only() -> None:
    scores = torch.tensor([[0.9, 0.1], [0.91, 0.09]]).log()
    assert confident(scores, 0.905).tolist() == [False, True] and confident(scores, None).tolist() == [True, True]


def test_two_decoding_removals_cannot_be_stacked() -> None:
    with pytest.raises(BadInput, match="innermost"):
        SuppressNeighbor().wrap(wrap(SuppressTopK()), Context())
