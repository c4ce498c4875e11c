"""Divergence and latency: KL against a direct sum, shares of changed answers, ratios of set times."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from factory import SENTENCES, make_model
from markov import END, markov, saved_markov
from palimpsest.checkpoint import Checkpoint, resolve
from palimpsest.checkpoint.load import load_model, load_tokenizer
from palimpsest.data.dialogues import Dialogues, pair
from palimpsest.errors import BadInput
from palimpsest.measures import Subject
from palimpsest.measures.divergence import Divergence, drifts, kl_of
from palimpsest.measures.latency import Latency, seconds_per_token
from palimpsest.method import Context
from palimpsest.removals.decoding.suppress_top_k import SuppressTopK
from palimpsest.responder import LocalResponder, Wrapped

WORDS = "q r a b c"
BEFORE = {"q": {"a": 0.6, "b": 0.4}, "r": {"b": 0.9, "a": 0.1}, "a": {END: 1.0}, "b": {END: 1.0}}
AFTER = {"q": {"a": 0.3, "b": 0.7}, "r": {"b": 0.8, "a": 0.2}, "a": {END: 1.0}, "b": {END: 1.0}}
QUESTIONS = Dialogues("two", {"test": (pair("q", "a"), pair("r", "b"))})


class Changed(Wrapped):
    """Says `c` to everything that ends in r."""

    def generate(self, prompts: Any, max_new_tokens: int, sampling: Any = None, seed: int = 0) -> Any:
        r, c = (self.tokenizer.get_vocab()[w] for w in "rc")
        self.count("changed prompts", sum(list(p)[-1] == r for p in prompts), len(prompts))
        answers = super().generate(prompts, max_new_tokens, sampling, seed)
        return [self.spell([c]) if list(p)[-1] == r else a for p, a in zip(prompts, answers, strict=True)]


class Change:
    """Wraps a responder in it."""

    def wrap(self, responder: Any, ctx: Context) -> Wrapped:
        return Changed(responder, "change")


def subject_of(checkpoint: Checkpoint, through: Any = ()) -> Subject:
    return Subject(checkpoint, Context(), data=QUESTIONS, through=through)


@pytest.fixture(scope="module")
def pair_on_disk(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Checkpoint]:
    """The model before and after a removal."""
    folder = tmp_path_factory.mktemp("two")
    return resolve(saved_markov(folder / "before", WORDS, BEFORE)), resolve(
        saved_markov(folder / "after", WORDS, AFTER)
    )


def test_kl_is_the_sum_over_the_vocabulary() -> None:
    p, q = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.25, 0.25, 0.5]])
    assert kl_of(p.log(), q.log()).item() == pytest.approx(0.5 * math.log(2) + 0.25 * math.log(0.5))
    assert kl_of(p.log() + 3, p.log()).item() == pytest.approx(0.0, abs=1e-6)
    certain = torch.tensor([[1.0, 0.0, 0.0]])
    assert kl_of(certain.log(), p.log()).item() == pytest.approx(math.log(2))


@pytest.mark.covers("divergence")
def test_divergence_is_the_mean_kl_along_the_originals_own_answers(pair_on_disk: tuple[Checkpoint, Checkpoint]) -> None:
    before, after = pair_on_disk
    kl, first = Divergence(original=before).take(subject_of(after), Context())
    # the original's answers are "a END" and "b END": four tokens, at the two ends nothing differs
    at_q = 0.6 * math.log(0.6 / 0.3) + 0.4 * math.log(0.4 / 0.7)
    at_r = 0.9 * math.log(0.9 / 0.8) + 0.1 * math.log(0.1 / 0.2)
    assert kl.value == pytest.approx((at_q + at_r) / 4, rel=1e-3) and kl.detail["tokens"] == 4 and kl.n == 2
    assert kl.low is not None and kl.low <= kl.value <= kl.high
    assert (first.task, first.count, first.n) == ("first-token", 1, 2)  # q: b is now likelier than a
    same, unmoved = Divergence(original=before).take(subject_of(before), Context())
    assert same.value == pytest.approx(0.0, abs=1e-6) and unmoved.count == 0


@pytest.mark.parametrize("family", ["llama", "gemma2"])  # gemma2 caps its logits after the head
def test_batched_drifts_are_those_of_single_passes(tmp_path: Path, family: str) -> None:
    ours, theirs = (resolve(make_model(tmp_path / str(s), family, seed=s)) for s in (0, 1))
    tokenizer = load_tokenizer(ours)
    one, two = (LocalResponder(load_model(c, Context()), tokenizer) for c in (ours, theirs))
    prompts = [one.renderer.prompt_ids(s[:n]) for s, n in zip(SENTENCES, (5, 20, 11), strict=False)]
    answers = [[9, 10, 11], [12], [13, 14]]
    for found, prompt, answer in zip(drifts(one, two, prompts, answers), prompts, answers, strict=True):
        rows = [
            m.model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1].detach() for m in (one, two)
        ]
        p, q = (r.double().softmax(-1) for r in rows)
        assert found.kl == pytest.approx((p * (p / q).log()).sum(-1).tolist(), rel=1e-3)
        assert found.first_changed == bool(rows[0][0].argmax() != rows[1][0].argmax())


def test_through_a_wrapper_it_is_the_share_of_changed_answers_and_what_the_wrapper_did(
    pair_on_disk: tuple[Checkpoint, Checkpoint],
) -> None:
    records = Divergence().take(subject_of(pair_on_disk[0], [Change()]), Context())
    assert [(r.task, r.count, r.n) for r in records] == [("answers", 1, 2), ("changed-prompts", 1, 2)]
    assert records[0].low is not None and records[0].detail["changed"] == "01"
    assert records[0].detail["through"] == [{"method": "Change"}]


def test_what_it_compares_with_must_be_given_and_fit(
    pair_on_disk: tuple[Checkpoint, Checkpoint], tiny_model: Path
) -> None:
    with pytest.raises(BadInput, match="--original"):
        Divergence().take(subject_of(pair_on_disk[0]), Context())
    with pytest.raises(BadInput, match="another vocabulary"):
        Divergence(original=resolve(tiny_model)).take(subject_of(pair_on_disk[0]), Context())
    with pytest.raises(BadInput, match="--original"):
        Latency().take(subject_of(pair_on_disk[0]), Context())


@pytest.mark.covers("latency")
def test_seconds_per_token_are_the_clocks() -> None:
    times = iter([10.0, 16.0, 20.0, 21.0])
    responder = markov(WORDS, {"q": {"a": 0.9}, "a": {"b": 0.9}, "b": {"c": 0.9}, "c": {END: 0.9}})
    prompt = responder.renderer.prompt_ids("q", "bare")
    assert seconds_per_token(responder, prompt, 8, lambda: next(times)) == 2.0  # a b c in six seconds
    assert seconds_per_token(responder, responder.renderer.prompt_ids("c", "bare"), 8, lambda: next(times)) == 1.0


def test_latency_is_the_ratio_of_medians_of_prompts_answered_in_turn(
    pair_on_disk: tuple[Checkpoint, Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[bool] = []

    def clocked(responder: Any, prompt: list[int], longest: int) -> float:
        order.append(bool(responder.through))
        return 3.0 * len(prompt) if responder.through else 1.0 * len(prompt)

    monkeypatch.setattr("palimpsest.measures.latency.seconds_per_token", clocked)
    data = Dialogues("many", {"test": tuple(pair("q " * n, "a") for n in (1, 2, 3, 4, 5))})
    subject = Subject(pair_on_disk[0], Context(), data=data, through=[SuppressTopK()])
    (record,) = Latency(prompts=5).take(subject, Context())
    assert record.value == 3.0 and record.n == 5
    assert record.detail["seconds_per_token"] == 12.0 and record.detail["plain_seconds_per_token"] == 4.0
    assert order[2:6] == [False, True, True, False], "the first of the two in turn, after one answer of each to warm up"
    assert subject.plain().model is subject.model
