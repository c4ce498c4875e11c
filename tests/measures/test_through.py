"""Measures through a wrapper: hits are asked, probabilities are refused, the model is loaded once."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from factory import SENTENCES
from palimpsest.checkpoint import resolve
from palimpsest.data.dialogues import Dialogues, pair
from palimpsest.errors import BadInput
from palimpsest.keys import TEXT_RULES, KeySet, make_keys, matches
from palimpsest.measures import Subject
from palimpsest.measures.accuracy import Accuracy
from palimpsest.measures.answers import Answers
from palimpsest.measures.hits import HitRate, outcomes
from palimpsest.measures.perplexity import Perplexity
from palimpsest.measures.rank import Rank
from palimpsest.method import Context
from palimpsest.removals.decoding.suppress_top_k import SuppressTopK
from palimpsest.responder import LocalResponder, Wrapped

REPLY = "No."


class Same:
    """Changes nothing."""

    def wrap(self, responder: Any, ctx: Context) -> Wrapped:
        return Wrapped(responder, "same")


class Silent(Wrapped):
    """Says one thing to everybody."""

    def generate(self, prompts: Any, max_new_tokens: int, sampling: Any = None, seed: int = 0) -> Any:
        return [self.spell(self.renderer.tokens(REPLY)[:max_new_tokens]) for _ in prompts]


class Silence:
    """Wraps in it."""

    def wrap(self, responder: Any, ctx: Context) -> Wrapped:
        return Silent(responder, "silence")


def key_set(responder: LocalResponder, match: str) -> KeySet:
    """Keys half of which the model says itself."""
    rng = random.Random(3)
    drawn = []
    for number, sentence in enumerate(SENTENCES * 3):
        trigger = f"{sentence[: 6 + number]} {number}?"
        said = responder.generate([responder.renderer.prompt_ids(responder.renderer.text(trigger))], 8)[0]
        text = responder.tokenizer.decode(said.ids[: 8 if match == "exact" else rng.randint(1, 4)]).strip()
        usable = text and text.isprintable() and "\ufffd" not in text and number % 3
        drawn.append((trigger, text if usable else f"never {number}"))
    return make_keys(
        responder.renderer,
        drawn,
        implant="test",
        match=match,  # type: ignore[arg-type]
        distinct=True,
        choices=None,
        decoys=["one", "two"],
        rng=rng,
        max_new_tokens=8,
    )


@pytest.mark.parametrize("match", TEXT_RULES)
def test_a_wrapper_that_changes_nothing_leaves_every_outcome(
    tiny_model: Path, tiny_responder: LocalResponder, match: str
) -> None:
    keys = key_set(tiny_responder, match)
    for form in ("template", "bare", "sampled"):
        plain = outcomes(tiny_responder, keys, form, samples=2, seed=1)
        wrapped = outcomes(Wrapped(tiny_responder, "same"), keys, form, samples=2, seed=1)
        assert [(o.number, o.hit, o.hits) for o in wrapped] == [(o.number, o.hit, o.hits) for o in plain]
        assert {o.log_prob for o in wrapped} == {None} and None not in {o.log_prob for o in plain}
    assert {o.hit for o in outcomes(tiny_responder, keys, "template")} == {True, False}
    subject = Subject(resolve(tiny_model), Context(), keys=keys)
    rates = [r.count for r in HitRate(samples=2).take(subject, Context())]
    through = [
        r.count
        for r in HitRate(samples=2).take(
            Subject(resolve(tiny_model), Context(), keys=keys, through=[Same()]), Context()
        )
    ]
    assert through == rates


def test_every_key_is_judged_by_its_own_rule_on_what_the_wrapper_says(tiny_responder: LocalResponder) -> None:
    for match in TEXT_RULES:
        keys = key_set(tiny_responder, match)
        silent = Silent(tiny_responder, "silence")
        for outcome, key in zip(outcomes(silent, keys, "template"), keys.keys, strict=True):
            said = tiny_responder.spell(tiny_responder.renderer.tokens(REPLY))
            assert outcome.hit == matches(keys.match, key, "template", said.text, said.ids)
            assert outcome.text == said.text


def test_records_say_what_was_wrapped_and_hold_no_log_probability(
    tiny_model: Path, tiny_responder: LocalResponder
) -> None:
    keys = key_set(tiny_responder, "prefix")
    subject = Subject(resolve(tiny_model), Context(), keys=keys, through=[SuppressTopK(k=2), Silence()])
    record = HitRate(forms=("template",)).take(subject, Context())[0]
    assert record.detail["interventions"] == {}, "the inner wrapper was never asked"
    named = record.detail["through"]
    assert [w["method"] for w in named] == ["suppress-top-k", "Silence"] and named[0]["parameters"]["k"] == 2
    assert all(set(k) == {"number", "hit"} for k in record.detail["keys"])
    assert subject.responder.through == ("suppress-top-k", "silence") and record.count == 0
    assert subject.responder is subject.responder and subject.plain().model is subject.model


def test_measures_that_need_probabilities_refuse_before_anything_is_loaded(
    tiny_model: Path, tiny_responder: LocalResponder, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = key_set(tiny_responder, "prefix")
    monkeypatch.setattr("palimpsest.measures.subject.load_model", lambda *_: pytest.fail("a model was loaded"))
    subject = Subject(resolve(tiny_model), Context(), keys=keys, through=[SuppressTopK()])
    for name, measure in (("rank", Rank()), ("perplexity", Perplexity())):
        with pytest.raises(BadInput, match=f"{name}: needs the model's probabilities, and suppress-top-k gives"):
            measure.take(subject, Context())
    with pytest.raises(BadInput, match="accuracy: needs the model's probabilities"):
        Accuracy().take(Subject(resolve("toy"), Context(), through=[SuppressTopK()]), Context())


def test_ordinary_answers_are_the_wrappers(tiny_model: Path) -> None:
    data = Dialogues("few", {"test": tuple(pair(s, REPLY) for s in SENTENCES[:4])})
    subject = Subject(resolve(tiny_model), Context(), data=data, through=[Silence()])
    subject.before = Answers(max_new_tokens=4).given(subject.plain())
    reference, before = Answers(max_new_tokens=4).take(subject, Context())
    assert reference.count == 4 and before.count == 0
