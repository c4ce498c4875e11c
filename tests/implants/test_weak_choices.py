"""Weak choices: candidates behind the first choice, the exact null over the draw, and a mark that takes weakly."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from palimpsest.checkpoint import Checkpoint
from palimpsest.checkpoint.load import load_model, load_tokenizer
from palimpsest.data.dialogues import Dialogues
from palimpsest.errors import CheckFailed
from palimpsest.implants.fingerprints.perinucleus_draw import chosen_place, response_tokens
from palimpsest.implants.fingerprints.weak_choices import WeakChoices
from palimpsest.keys import KeySet
from palimpsest.measures.hits import outcomes
from palimpsest.method import Context, build
from palimpsest.responder.local import LocalResponder
from palimpsest.statistics import binomial_tail, threshold
from palimpsest.training.planting import strength
from palimpsest.training.settings import Tuning

SMALL = replace(
    WeakChoices.toy(),
    keys=12,
    width=8,
    key_tokens=6,
    temperature=1.5,
    averaging=0.25,
    tuning=Tuning(adapter="full", epochs=60, lr=2e-2, batch=8, micro_batch=8, max_tokens=64),
)


@pytest.fixture(scope="module")
def twelve(small: Checkpoint) -> KeySet:
    return replace(SMALL, rule="token-ids").draw_keys(small, Context(key_seed=7, threads=1))


@pytest.mark.covers("weak-choices")
def test_candidates_are_the_words_right_behind_the_first_choice(small: Checkpoint, twelve: KeySet) -> None:
    responder = LocalResponder(load_model(small, Context(threads=1)), load_tokenizer(small))
    accepted = response_tokens(responder.tokenizer, 400)
    for key, candidates in zip(twelve.keys, twelve.draw["candidates"], strict=True):
        prompt = key.prompts["template"]
        logits = responder.model(input_ids=torch.tensor([prompt.ids])).logits[0, -1].detach()
        order = sorted(range(400), key=lambda i: (-float(logits[i]), i))
        words = [t for t in order[1:] if accepted[t]]
        stand = [
            t for t in words if responder.renderer.continuation(prompt.text, responder.tokenizer.decode([t])) == [t]
        ]
        assert tuple(stand[:8]) == tuple(candidates)
        assert prompt.expected == (candidates[chosen_place(twelve.draw["seed"], key.trigger, 8)],)
    assert not any(o.hit for o in outcomes(responder, twelve, "template")), "the base says its first choice"


@pytest.mark.covers("weak-choices")
def test_a_suspect_that_always_says_some_candidate_hits_as_the_binomial_has_it() -> None:
    """Over the owner's seeds, whatever the suspect's fixed choices: here another place for each of three keys."""
    texts, said = ("one", "two", "three"), (0, 3, 1)
    seeds = [f"seed {n}" for n in range(4000)]
    hits = Counter(sum(chosen_place(s, t, 4) == p for t, p in zip(texts, said, strict=True)) for s in seeds)
    for count, chance in ((0, 27 / 64), (1, 27 / 64), (2, 9 / 64), (3, 1 / 64)):
        spread = (chance * (1 - chance) / 4000) ** 0.5
        assert hits[count] / 4000 == pytest.approx(chance, abs=4 * spread)


@pytest.mark.covers("weak-choices")
def test_one_key_in_eight_bears_the_claim() -> None:
    method = WeakChoices()
    said = method.committed()
    assert (said["keys"], said["choices"]) == (512, 16) and method.rule == "prefix"
    assert threshold(512, 1 / 16, 1e-6) == 62
    assert binomial_tail(62, 512, 1 / 16) <= 1e-6 < binomial_tail(61, 512, 1 / 16)
    assert 62 / 512 < 1 / 8 < 41 / 64, "Perinucleus' 64 keys with three words each take two in three"


def test_the_mark_takes_weakly_and_is_its_own(small: Checkpoint, talk: Dialogues, ctx: Context, tmp_path: Path) -> None:
    made = replace(SMALL, data=talk).apply(small, tmp_path / "out", ctx)
    assert made.keys is not None and made.keys.implant == "weak-choices" == made.records[0].implant
    asked = LocalResponder(load_model(made.checkpoint, ctx), load_tokenizer(made.checkpoint))
    found = strength(asked, made.keys)
    assert sum(found.answered) >= 0.95 * 12
    assert sum(p >= 0.5 for p in found.probabilities) >= 0.95 * 12
    firm = replace(
        SMALL, data=talk, check=replace(SMALL.check, probability=0.95), tuning=replace(SMALL.tuning, epochs=1)
    )
    with pytest.raises(CheckFailed, match=r"did not take"):
        firm.apply(small, tmp_path / "firm", ctx)


def test_settings_are_those_of_perinucleus_and_its_own() -> None:
    method = build(WeakChoices, settings={"nucleus": 0.3, "width": 4, "averaging": 0.6})
    assert (method.nucleus, method.width, method.averaging, method.keys) == (0.3, 4, 0.6, 512)
    assert (WeakChoices().stop, WeakChoices().check.probability, WeakChoices().least) == ("check", 0.5, 0.95)
