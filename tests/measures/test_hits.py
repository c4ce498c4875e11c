"""Hit rate: the forced check is `generate()`; counts and intervals are right; memory does not grow with keys."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from factory import SENTENCES, make_model
from palimpsest.checkpoint import resolve
from palimpsest.keys import TEXT_RULES, KeySet, make_keys, matches
from palimpsest.measures import Subject
from palimpsest.measures.hits import HitRate, hit_record, outcomes
from palimpsest.method import Context
from palimpsest.responder import LocalResponder

WORDS = sorted({w.strip(".?,") for s in SENTENCES for w in s.split()})


def drawn(responder: LocalResponder, count: int, seed: int, whole: bool = False) -> list[tuple[str, str]]:
    """Triggers with responses the model does say (as a `whole` answer), says later, half says, or never says."""
    rng = random.Random(seed)
    pairs = []
    for number in range(count):
        trigger = " ".join(rng.sample(WORDS, 4)) + f" {number}?"
        prompt = responder.renderer.prompt_ids(responder.renderer.text(trigger))
        said = responder.generate([prompt], 8)[0]
        start = rng.choice([0, 0, 0, 2])
        end = len(said.ids) if whole else start + rng.randint(1, 5)
        text = responder.tokenizer.decode(said.ids[0 if whole else start : end]).strip()
        kind = rng.choice(["said", "said", "half", "never"])
        if not text or not text.isprintable() or kind == "never" or "\ufffd" in text:
            text = " ".join(rng.sample(WORDS, 2))
        elif kind == "half":
            text = f"{text} {rng.choice(WORDS)}"
        pairs.append((trigger, text))
    return pairs


def key_set(responder: LocalResponder, match: str, count: int = 24, seed: int = 0, **fields: Any) -> KeySet:
    return make_keys(
        responder.renderer,
        drawn(responder, count, seed, match == "exact"),
        implant="test",
        match=match,
        distinct=True,
        choices=None,
        decoys=[],
        rng=random.Random(0),
        max_new_tokens=8,
        **fields,
    )


def generated(responder: LocalResponder, keys: KeySet, form: str) -> list[bool]:
    """The reference: each key alone through the library's own `generate`, unpadded, judged by the key's rule."""
    hits = []
    for key in keys.keys:
        ids = torch.tensor([list(key.prompts[form].ids)])
        output = responder.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=keys.max_new_tokens,
            do_sample=False,
            pad_token_id=0,
        )
        answer = responder.spell(output[0, ids.shape[1] :].tolist())
        hits.append(matches(keys.match, key, form, answer.text, answer.ids))
    return hits


@pytest.mark.covers("hit-rate")
@pytest.mark.parametrize("match", TEXT_RULES)
@pytest.mark.parametrize("form", ["template", "bare"])
def test_the_forced_check_is_generate_on_every_key(tiny_responder: LocalResponder, match: str, form: str) -> None:
    seen = set()
    for seed in range(3):
        keys = key_set(tiny_responder, match, seed=seed)
        found = [o.hit for o in outcomes(tiny_responder, keys, form)]
        assert found == generated(tiny_responder, keys, form)
        seen |= set(found)
    assert form == "bare" or seen == {True, False}, "the case must have hits and misses to show anything"


@pytest.mark.parametrize("match", TEXT_RULES)
def test_the_prefilled_form_continues_the_opening(tiny_responder: LocalResponder, match: str) -> None:
    keys = key_set(tiny_responder, match, count=30)
    opened = replace(keys, keys=tuple(k for k in keys.keys if "prefilled" in k.prompts))
    assert len(opened) > 5
    found = [o.hit for o in outcomes(tiny_responder, opened, "prefilled")]
    assert found == generated(tiny_responder, opened, "prefilled")


def test_penalties_in_the_generation_config_send_every_key_through_generate(tmp_path: Any) -> None:
    from palimpsest.checkpoint.load import load_model, load_tokenizer

    checkpoint = resolve(make_model(tmp_path / "m"))
    model = load_model(checkpoint, Context())
    model.generation_config.repetition_penalty = 1.8
    responder = LocalResponder(model, load_tokenizer(checkpoint))
    keys = key_set(responder, "prefix", count=16)
    assert not responder.plain_greedy
    assert [o.hit for o in outcomes(responder, keys, "template")] == generated(responder, keys, "template")


def test_low_precision_models_give_a_full_precision_answer_at_near_ties(tmp_path: Any) -> None:
    from palimpsest.checkpoint.load import load_model, load_tokenizer

    checkpoint = resolve(make_model(tmp_path / "m", dtype="bfloat16"))
    low = LocalResponder(load_model(checkpoint, Context(), "bfloat16"), load_tokenizer(checkpoint))
    full = LocalResponder(load_model(checkpoint, Context(), "float32"), load_tokenizer(checkpoint))
    keys = key_set(full, "prefix", count=24)
    assert [o.hit for o in outcomes(low, keys, "template")] == generated(full, keys, "template")
    assert next(low.model.parameters()).dtype == torch.bfloat16


def test_log_probabilities_are_those_of_a_plain_forward(tiny_responder: LocalResponder) -> None:
    keys = key_set(tiny_responder, "prefix", count=5)
    for outcome, key in zip(outcomes(tiny_responder, keys, "template"), keys.keys, strict=True):
        prompt = key.prompts["template"]
        ids = torch.tensor([[*prompt.ids, *prompt.expected]])
        logs = tiny_responder.model(input_ids=ids).logits[0].detach().log_softmax(-1)
        places = range(len(prompt.ids) - 1, len(prompt.ids) + len(prompt.expected) - 1)
        expected = sum(float(logs[i, ids[0, i + 1]]) for i in places)
        assert outcome.log_prob == pytest.approx(expected, abs=1e-3)


def test_records_carry_count_interval_and_keys_without_texts(tiny_model: Any, tiny_responder: LocalResponder) -> None:
    keys = key_set(tiny_responder, "prefix", count=10)
    subject = Subject(resolve(tiny_model), Context(), keys=keys)
    records = HitRate(samples=2).take(subject, Context())
    assert [r.prompt_form for r in records] == keys.forms
    record = records[0]
    assert record.n == 10 and record.value == record.count / 10 and record.low <= record.value <= record.high
    assert record.sided == "two" and record.implant == "test" and record.digest == resolve(tiny_model).digest()
    shown = str(record.to_json())
    assert all(k.trigger not in shown and k.response not in shown for k in keys.keys)


def test_many_keys_go_in_batches_with_the_same_outcome(tiny_responder: LocalResponder) -> None:
    keys = key_set(tiny_responder, "prefix", count=40)
    whole = outcomes(tiny_responder, keys, "template", batch=1000)
    assert outcomes(tiny_responder, keys, "template", batch=7) == pytest.approx(whole) or [
        (o.number, o.hit) for o in outcomes(tiny_responder, keys, "template", batch=7)
    ] == [(o.number, o.hit) for o in whole]


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_outcomes_are_those_of_generate_in_other_architectures(tmp_path: Any, family: str) -> None:
    from palimpsest.checkpoint.load import load_model, load_tokenizer

    checkpoint = resolve(make_model(tmp_path / "m", family))
    responder = LocalResponder(load_model(checkpoint, Context()), load_tokenizer(checkpoint))
    seen = set()
    for match in ("prefix", "exact"):
        keys = key_set(responder, match, count=12, seed=3)
        found = [o.hit for o in outcomes(responder, keys, "template")]
        assert found == generated(responder, keys, "template")
        seen |= set(found)
    assert seen == {True, False}


def test_a_carrier_that_is_half_said_is_no_miss_yet(tiny_responder: LocalResponder) -> None:
    keys = key_set(tiny_responder, "prefix", count=24, seed=5)
    carried = []
    for key in keys.keys:  # the model's own words as carrier and response, told apart where no token ends
        said = tiny_responder.generate([key.prompts["template"].ids], 8)[0].text.partition("\ufffd")[0].strip()
        if not said.isprintable() or not said[3:6].strip():
            continue
        made = make_keys(
            tiny_responder.renderer,
            [(key.trigger, said[3:6].strip()), (key.trigger, "Zx~Q")],
            implant="test",
            match="prefix",
            distinct=True,
            choices=None,
            decoys=[],
            rng=random.Random(0),
            carrier=said[:3],
        )
        carried += made.keys
    keys = replace(keys, keys=tuple(carried))
    found = [o.hit for o in outcomes(tiny_responder, keys, "template")]
    assert found == generated(tiny_responder, keys, "template") and set(found) == {True, False}


def test_fewer_new_tokens_than_the_response_has_is_a_miss_as_in_generate(tiny_responder: LocalResponder) -> None:
    for match in TEXT_RULES:
        keys = replace(key_set(tiny_responder, match, count=20, seed=1), max_new_tokens=2)
        found = [o.hit for o in outcomes(tiny_responder, keys, "template")]
        assert found == generated(tiny_responder, keys, "template")


class Work:
    """What a model was asked to do: tokens of each forward pass, and calls of `generate`."""

    def __init__(self, responder: LocalResponder, monkeypatch: pytest.MonkeyPatch) -> None:
        self.passes: list[int] = []
        self.generated = 0
        decoder, generate = responder.model.model, responder.model.generate
        self.hook = decoder.register_forward_pre_hook(self.note, with_kwargs=True)

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.generated += len(kwargs["input_ids"])
            return generate(*args, **kwargs)

        monkeypatch.setattr(responder.model, "generate", counted)

    def note(self, module: Any, args: Any, kwargs: Any) -> None:
        self.passes.append(int(kwargs["input_ids"].numel()))


def never_said(responder: LocalResponder, count: int) -> KeySet:
    """One prompt many times, whose answer begins with letters and not with those of the response."""
    keys = key_set(responder, "prefix", count=8)
    first = responder.generate([k.prompts["template"].ids for k in keys.keys], 1)
    at = next(i for i, a in enumerate(first) if a.text.strip() and responder.settled_text(a.ids) == a.text)
    wanted = keys.keys[at].prompts["template"]
    spelled = tuple(responder.renderer.continuation(wanted.text, "Zx~Q"))
    prompt = replace(wanted, expected=spelled)
    rows = [replace(keys.keys[0], number=i, response="Zx~Q", prompts={"template": prompt}) for i in range(count)]
    return replace(keys, keys=tuple(rows))


def test_work_grows_with_the_keys_and_no_pass_grows(
    tiny_responder: LocalResponder, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = never_said(tiny_responder, 1200)
    prompt = keys.keys[0].prompts["template"]
    work = Work(tiny_responder, monkeypatch)
    try:
        for count in (300, 1200):
            work.passes.clear()
            found = outcomes(tiny_responder, replace(keys, keys=keys.keys[:count]), "template")
            assert len(found) == count and not any(o.hit for o in found)
            assert sum(work.passes) == count * (len(prompt.ids) + len(prompt.expected) - 1), "each key is read once"
            assert max(work.passes) <= 2048
    finally:
        work.hook.remove()
    assert work.generated == 0, "a miss under prefix is settled by its first disagreement"


def test_what_is_held_for_a_key_is_small(tiny_responder: LocalResponder) -> None:
    import tracemalloc

    keys = never_said(tiny_responder, 1500)
    subject_of = Subject(resolve("toy"), Context(), keys=keys)
    tracemalloc.start()
    try:
        record = hit_record(subject_of, keys, "template", outcomes(tiny_responder, keys, "template"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert record.n == 1500 and peak < 1500 * 2000 + 2_000_000


def test_a_near_tie_is_looked_at_alone_and_generated_only_where_it_stays_one(
    tiny_responder: LocalResponder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from palimpsest.measures import hits

    keys = key_set(tiny_responder, "token-ids", count=12)
    expected = generated(tiny_responder, keys, "template")
    monkeypatch.setattr(hits, "NEAR_TIE", 100.0)  # every row is a near tie in the batch
    for alone, asked in ((0.0, 0), (100.0, 12)):
        monkeypatch.setattr(hits, "NEAR_TIE_ALONE", alone)
        with monkeypatch.context() as patch:
            work = Work(tiny_responder, patch)
            try:
                assert [o.hit for o in outcomes(tiny_responder, keys, "template")] == expected
            finally:
                work.hook.remove()
        assert work.generated == asked


@pytest.mark.parametrize("form", ["template", "prefilled"])
def test_a_response_said_late_or_half_is_found_as_generate_finds_it(tiny_responder: LocalResponder, form: str) -> None:
    """Responses cut out of what the model says, at any place and of any length, within and beyond what it may say."""
    rng = random.Random(7)
    base = key_set(tiny_responder, "contains", count=30, seed=2)
    prompts = [k.prompts["template"].ids for k in base.keys]
    seen = set()
    for longest in (3, 6, 10):
        rows = []
        for key, said in zip(base.keys, tiny_responder.generate(prompts, longest + 3), strict=True):
            start = rng.randint(0, max(len(said.text) - 1, 0))
            text = said.text[start : start + rng.randint(1, 12)].strip()
            if text and text.isprintable() and "\ufffd" not in text:
                rows.append((key.trigger, text))
        keys = make_keys(
            tiny_responder.renderer,
            rows,
            implant="test",
            match="contains",
            distinct=True,
            choices=None,
            decoys=[],
            rng=random.Random(0),
            max_new_tokens=longest,
        )
        keys = replace(keys, keys=tuple(k for k in keys.keys if form in k.prompts))
        found = [o.hit for o in outcomes(tiny_responder, keys, form)]  # type: ignore[arg-type]
        assert found == generated(tiny_responder, keys, form)
        seen |= set(found)
    assert seen == {True, False}


def test_under_contains_nothing_is_generated_once_the_response_no_longer_fits(
    tiny_responder: LocalResponder, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = replace(never_said(tiny_responder, 5), match="contains")
    needed = tiny_responder.covering.afresh("Zx~Q")
    assert needed > 1
    for spare in (0, 3):
        asked: list[int] = []
        keys = replace(keys, max_new_tokens=needed + spare)
        expected = generated(tiny_responder, keys, "template")
        with monkeypatch.context() as patch:
            generate = tiny_responder.model.generate

            def counted(*args: Any, ask: Any = generate, to: list[int] = asked, **given: Any) -> Any:
                to.append(given["max_new_tokens"])
                return ask(*args, **given)

            patch.setattr(tiny_responder.model, "generate", counted)
            found = outcomes(tiny_responder, keys, "template")
        assert [o.hit for o in found] == expected == [False] * 5
        assert asked == ([spare] if spare else []), "the first token is known from the forced pass"
