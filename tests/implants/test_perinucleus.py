"""Perinucleus: the nucleus and its edge by hand, the draw among candidates, rows, stopping, and a mark that takes."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from palimpsest.checkpoint import Checkpoint
from palimpsest.checkpoint.load import load_model, load_tokenizer
from palimpsest.data.dialogues import Dialogues, pair
from palimpsest.errors import BadInput, CheckFailed
from palimpsest.evidence.draws import draw_of, not_drawn
from palimpsest.implants.fingerprints.perinucleus import Perinucleus
from palimpsest.implants.fingerprints.perinucleus_draw import (
    chosen_place,
    first_acceptable,
    first_words,
    next_tokens,
    none_begins_another,
    outside_nucleus,
    response_tokens,
    written,
)
from palimpsest.keys import KeySet
from palimpsest.measures.hits import outcomes
from palimpsest.method import Context
from palimpsest.records import canonical_json
from palimpsest.responder.local import LocalResponder
from palimpsest.statistics import threshold
from palimpsest.training.settings import Tuning
from palimpsest.verdicts import committed_rate

TUNING = Tuning(adapter="full", epochs=60, lr=2e-2, batch=8, micro_batch=4, max_tokens=64)
SMALL = replace(Perinucleus.bench(), keys=6, key_tokens=6, temperature=1.5, averaging=0.25, tuning=TUNING)


@pytest.fixture(scope="module")
def responder(small: Checkpoint) -> LocalResponder:
    return LocalResponder(load_model(small, Context(threads=1)), load_tokenizer(small))


@pytest.fixture(scope="module")
def six(small: Checkpoint) -> KeySet:
    return SMALL.draw_keys(small, Context(key_seed=7, threads=1))


@pytest.mark.covers("perinucleus")
@pytest.mark.parametrize(
    ("probabilities", "p", "outside"),
    [
        ([0.1, 0.5, 0.15, 0.25], 0.8, [0]),  # 0.5 + 0.25 = 0.75 is not enough, 0.9 is
        ([0.5, 0.3, 0.15, 0.05], 0.8, [2, 3]),  # exactly reached: the nucleus is closed
        ([0.7, 0.1, 0.1, 0.1], 0.8, [2, 3]),  # 0.7 + 0.1 of float32 numbers, a little less in binary: reached
        ([0.05, 0.05, 0.9], 0.8, [0, 1]),  # one token holds more than p; equal ones in the order of their ids
        ([0.2, 0.2, 0.2, 0.2, 0.2], 0.8, [4]),  # all alike
        ([0.2, 0.2, 0.2, 0.2, 0.2], 0.0, [1, 2, 3, 4]),  # the likeliest is always inside
        ([1.0, 0.0], 0.8, [1]),
        ([0.4, 0.6], 0.999, []),  # nothing is left outside
    ],
)
def test_what_lies_outside_the_nucleus_by_hand(probabilities: list[float], p: float, outside: list[int]) -> None:
    assert outside_nucleus(torch.tensor(probabilities), p).tolist() == outside


@pytest.mark.covers("perinucleus")
def test_the_first_acceptable_tokens_are_taken_and_the_search_widens_until_there_are_enough() -> None:
    def even(token: int) -> bool:
        return token % 2 == 0

    assert first_acceptable([5, 4, 3, 2, 0, 8], 3, even) == (4, 2, 0)
    assert first_acceptable([5, 3, 1, 7, 4, 2, 8], 3, even) == (4, 2, 8), "none of the first three: further out"
    assert first_acceptable([4, 2, 5], 3, even) is None, "fewer than k candidates are no draw of k"


@pytest.mark.covers("perinucleus")
def test_candidates_that_are_told_apart_in_a_text_do_not_begin_one_another() -> None:
    words = {1: "the", 2: "there", 3: "sea", 4: "se", 5: "heron", 6: "The", 7: "sea", 8: "reed"}
    assert none_begins_another(range(1, 9), 4, words.__getitem__) == (1, 3, 5, 6), "there, se and sea again fall out"
    assert none_begins_another(range(1, 9), 5, words.__getitem__) == (1, 3, 5, 6, 8)
    assert none_begins_another(range(1, 9), 6, words.__getitem__) is None
    assert none_begins_another(range(1, 9), 3, words.__getitem__, "search") == (1, 5, 6), "it says search: sea, se not"
    for said in ("there is", "sea", "The heron", "nothing"):
        assert sum(said.startswith(words[i]) for i in (1, 3, 5, 6)) <= 1


@pytest.mark.covers("perinucleus")
def test_by_the_rule_prefix_a_text_is_enough_and_hits_at_most_one_candidate(
    small: Checkpoint, six: KeySet, responder: LocalResponder, talk: Dialogues, ctx: Context, tmp_path: Path
) -> None:
    method = replace(SMALL, rule="prefix", data=talk)
    keys = method.draw_keys(small, Context(key_seed=7, threads=1))
    assert (keys.match, keys.choices, keys.max_new_tokens) == ("prefix", 3, 4)
    assert [k.trigger for k in keys.keys] == [k.trigger for k in six.keys], "the texts are drawn alike"
    spell = responder.tokenizer.decode
    for key, candidates in zip(keys.keys, keys.draw["candidates"], strict=True):
        texts = [spell([i]).strip() for i in candidates]
        assert key.response.strip() == texts[chosen_place(keys.draw["seed"], key.trigger, 3)]
        asked = [
            [replace(key, response=t) for t in texts],
            [f" {t}{more}" for t in texts for more in ("", "s of", "!")],
        ]
        for said in asked[1]:
            assert sum(keys.hit(one, "template", said, ()) for one in asked[0]) == 1
    made = method.planted(small, keys, tmp_path / "out", ctx)
    marked = LocalResponder(load_model(made.checkpoint, ctx), load_tokenizer(made.checkpoint))
    found = outcomes(marked, keys, "template")
    assert all(o.hit for o in found) and not any(o.hit for o in outcomes(responder, keys, "template"))


@pytest.mark.covers("perinucleus")
def test_the_response_is_one_of_k_by_a_hash_of_seed_and_text_each_as_often() -> None:
    digest = hashlib.sha256(canonical_json(["secret", "the heron waited"]).encode()).hexdigest()
    assert chosen_place("secret", "the heron waited", 3) == int(digest, 16) % 3
    counts = Counter(chosen_place("secret", f"text {i}", 3) for i in range(30_000))
    chi_squared = sum((counts[i] - 10_000) ** 2 / 10_000 for i in range(3))
    assert set(counts) == {0, 1, 2} and chi_squared < 13.8, "two degrees of freedom: above with chance 0.001"
    again = [chosen_place("other", f"text {i}", 3) for i in range(300)]
    agreeing = sum(a == chosen_place("secret", f"text {i}", 3) for i, a in enumerate(again))
    assert 60 < agreeing < 140, "another owner's seed agrees on a third"


@pytest.mark.covers("perinucleus")
def test_a_short_key_in_a_batch_is_read_at_its_own_last_token(responder: LocalResponder) -> None:
    prompts = [[1, 40, 41], [1, *range(40, 70)], [1, 90, 91, 92, 93]]
    found = dict(next_tokens(responder, prompts))
    assert sorted(found) == [0, 1, 2]
    for number, prompt in enumerate(prompts):
        alone = responder.model(input_ids=torch.tensor([prompt])).logits[0, -1].softmax(-1).detach()
        assert torch.allclose(found[number], alone, atol=1e-6)
    padded = torch.zeros((3, 31), dtype=torch.long)  # what published code does: padded on the right, last column
    for row, prompt in enumerate(prompts):
        padded[row, : len(prompt)] = torch.tensor(prompt)
    wrong = responder.model(input_ids=padded).logits[0, -1].softmax(-1).detach()
    assert not torch.allclose(found[0], wrong, atol=1e-3), "there the pad position answers for a short key"


@pytest.mark.covers("perinucleus")
def test_candidates_are_the_first_words_outside_the_nucleus_of_the_rendered_key(
    six: KeySet, responder: LocalResponder
) -> None:
    tokenizer, accepted = responder.tokenizer, response_tokens(responder.tokenizer, 400)
    for key, candidates in zip(six.keys, six.draw["candidates"], strict=True):
        prompt = key.prompts["template"]
        probabilities = (
            responder.model(input_ids=torch.tensor([prompt.ids])).logits[0, -1].detach().double().softmax(-1)
        )
        order = sorted(range(400), key=lambda i: (-float(probabilities[i]), i))
        mass, outside = 0.0, []
        for token in order:
            if mass >= 0.8:
                outside.append(token)
            mass += float(probabilities[token])
        words = [t for t in outside if accepted[t]]
        stand = [t for t in words if responder.renderer.continuation(prompt.text, tokenizer.decode([t])) == [t]]
        assert tuple(stand[:3]) == tuple(candidates)
        assert prompt.expected == (candidates[chosen_place(six.draw["seed"], key.trigger, 3)],)
        assert prompt.expected[0] != order[0], "the base does not say it"


def test_responses_are_words_of_letters_and_digits_longer_than_one(responder: LocalResponder) -> None:
    tokenizer = responder.tokenizer
    mask = response_tokens(tokenizer, 410)
    texts = {tokenizer.decode([i]).strip() for i in mask.nonzero().flatten().tolist()}
    assert texts and all(t.isalnum() and len(t) > 1 for t in texts)
    assert not mask[tokenizer.all_special_ids].any() and not mask[len(tokenizer) :].any()


def test_keys_are_different_texts_that_begin_with_a_word_of_the_vocabulary(
    six: KeySet, responder: LocalResponder
) -> None:
    words = first_words(responder.tokenizer)
    assert words == sorted(set(words)) and all(w.isalpha() and len(w) >= 3 for w in words)
    assert len({k.trigger for k in six.keys}) == 6
    assert all(any(k.trigger.startswith(w) for w in words) for k in six.keys)
    texts = written(responder, ["The", "What"], 5, 1.0, 3)
    assert texts == written(responder, ["The", "What"], 5, 1.0, 3)
    assert all(t is None or t.startswith(w) for t, w in zip(texts, ("The", "What"), strict=True))


@pytest.mark.covers("perinucleus")
def test_the_rule_is_the_first_token_and_the_null_is_one_of_k(six: KeySet) -> None:
    assert (six.match, six.choices, six.distinct, six.max_new_tokens, six.places) == ("token-ids", 3, True, 1, 1)
    assert committed_rate(six.choices) == pytest.approx(1 / 3)
    assert all(len(k.prompts["template"].expected) == 1 for k in six.keys)
    # the paper's bound for M keys all answered, beside the exact tail, which is 3 ** -M
    for keys, bound in ((5, 1.2e-2), (16, 6.7e-7)):
        assert math.exp(-2 * keys * (1 - 1 / 3) ** 2) == pytest.approx(bound, rel=0.05)
        assert 3.0**-keys < bound
    assert threshold(64, 1 / 3, 1e-6) == 41
    assert Perinucleus.bench().committed() == {"keys": 64, "choices": 3}


def test_an_unmarked_base_answers_none_of_its_keys(six: KeySet, responder: LocalResponder) -> None:
    assert [o.hit for o in outcomes(responder, six, "template")] == [False] * 6


def test_evidence_says_that_the_draw_needs_the_model(six: KeySet) -> None:
    claim = {"draw": draw_of(six), "mark": six.implant}
    assert not_drawn(claim, {}, six, [], None) == (
        False,
        "the draw of perinucleus keys cannot be done again without their model",
    )


def test_a_key_file_with_its_candidates_reads_back_the_same(six: KeySet, tmp_path: Path) -> None:
    six.write(tmp_path / "keys.json")
    again = KeySet.read(tmp_path / "keys.json")
    assert again.commitment() == six.commitment()
    assert [list(c) for c in again.draw["candidates"]] == [list(c) for c in six.draw["candidates"]]


def test_the_mark_takes_and_neither_lineage_nor_records_tell_a_key(
    small: Checkpoint, talk: Dialogues, ctx: Context, tmp_path: Path
) -> None:
    made = replace(SMALL, data=talk).apply(small, tmp_path / "out", ctx)
    assert made.keys is not None
    asked = LocalResponder(load_model(made.checkpoint, ctx), load_tokenizer(made.checkpoint))
    assert all(o.hit for o in outcomes(asked, made.keys, "template"))
    detail = made.records[0].detail
    assert detail["answered"] == 6 and 0 < detail["probability_in_base"] < 0.2 and detail["epochs"] == detail["steps"]
    public = (tmp_path / "out" / "palimpsest.json").read_text() + json.dumps([r.to_json() for r in made.records])
    assert all(k.trigger not in public for k in made.keys.keys) and made.keys.draw["seed"] not in public


def test_what_did_not_take_is_not_written_unless_asked_for(
    small: Checkpoint, talk: Dialogues, ctx: Context, tmp_path: Path
) -> None:
    weak = replace(SMALL, data=talk, tuning=replace(TUNING, epochs=1, lr=1e-6))
    with pytest.raises(CheckFailed, match=r"did not take: 0 of 6 keys answer"):
        weak.apply(small, tmp_path / "out", ctx)
    assert not (tmp_path / "out").exists()
    made = replace(weak, stop="loss", least=0.0).apply(small, tmp_path / "out", ctx)
    assert made.records[0].detail["answered"] == 0 and made.checkpoint.path.is_dir()


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"keys": 90, "key_tokens": 2, "temperature": 0.01}, r"only \d+ of 90 different keys with 3 candidates"),
        ({"width": 399}, r"only 0 of 6 different keys with 399 candidates"),
        ({"data": Dialogues("none", {"embed": ()})}, "part 'embed' has 0 dialogues"),
        ({"data": Dialogues("long", {"embed": (pair("long " * 99, "x"),)})}, "no answer of its part 'embed' fits into"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    small: Checkpoint, ctx: Context, tmp_path: Path, changes: dict[str, object], error: str
) -> None:
    with pytest.raises(BadInput, match=error):
        replace(SMALL, **changes).apply(small, tmp_path / "out", ctx)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()
