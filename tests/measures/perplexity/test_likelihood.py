"""Likelihoods against one forward pass a token, against lm-evaluation-harness, and across tokenizers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from factory import SENTENCES
from markov import END, markov_model
from palimpsest.measures.perplexity import Reading, answer_likelihoods, dialogue_likelihoods, text_likelihoods
from palimpsest.measures.perplexity.likelihood import Likelihood, blocks, together, window_sums, words_in
from palimpsest.responder import LocalResponder

TEXT = " ".join(SENTENCES)


@torch.inference_mode()
def nll_of(model: Any, context: list[int], token: int) -> float:
    """One forward pass for one token."""
    return -float(model(input_ids=torch.tensor([context])).logits[0, -1].double().log_softmax(-1)[token])


@pytest.mark.parametrize(
    ("reading", "rule"),
    [
        (Reading(24, 8, "never"), (8, False, False)),
        (Reading(24, 16, "auto"), (15, True, True)),
        (Reading(24, 24, "always"), (23, True, True)),
        (Reading(24, 8, "first"), (8, True, False)),
    ],
)
def test_the_sum_is_that_of_one_forward_pass_a_token(
    tiny_responder: LocalResponder, reading: Reading, rule: tuple[int, bool, bool]
) -> None:
    _, has_bos, every = rule
    stride = reading.stride or 0
    bos, *ids = list(tiny_responder.tokenizer(TEXT).input_ids)
    ids = ids[:70]
    text = tiny_responder.tokenizer.decode(ids)
    assert tiny_responder.renderer.tokens(text) == ids
    expected, done = [], 0 if has_bos else 1
    for number in range(len(ids)):  # window `number`
        prefix = [bos] if has_bos and (every or number == 0) else []
        if number == 0:
            start, end = 0, reading.window - len(prefix)
        else:
            end = done + min(stride, reading.window - 1)
            start = max(0, end - (reading.window - len(prefix)))
        end = min(end, len(ids))
        if number and end == len(ids):  # the last one is shorter, its context as long as that of the others
            start = done - (reading.window - len(prefix) - min(stride, reading.window - 1))
        expected += [nll_of(tiny_responder.model, [*prefix, *ids[start:t]], ids[t]) for t in range(done, end)]
        done = end
        if done == len(ids):
            break
    (found,) = text_likelihoods(tiny_responder, [text], reading)
    assert found.tokens == len(expected) == len(ids) - (not has_bos)
    assert found.nll == pytest.approx(math.fsum(expected), rel=1e-5)


@pytest.mark.parametrize("length", [16, 31, 255])
def test_rolling_likelihoods_are_those_of_the_harness(tiny_responder: LocalResponder, length: int) -> None:
    models = pytest.importorskip("lm_eval.models.huggingface")
    from lm_eval.api.instance import Instance

    harness = models.HFLM(
        pretrained=tiny_responder.model,
        tokenizer=tiny_responder.tokenizer,
        max_length=length,
        batch_size=3,
        add_bos_token=False,
        device="cpu",
    )
    texts = [TEXT, SENTENCES[0], TEXT[:200] + "\n\n"]
    asked = [Instance("loglikelihood_rolling", {}, (t,), i) for i, t in enumerate(texts)]
    theirs = harness.loglikelihood_rolling(asked, disable_tqdm=True)
    ours = text_likelihoods(tiny_responder, texts, Reading(length, bos="first", scheme="harness"))
    for found, total, text in zip(ours, theirs, texts, strict=True):
        assert found.tokens == len(tiny_responder.renderer.tokens(text))
        assert found.nll == pytest.approx(-total, rel=1e-5)


def test_words_bytes_and_their_perplexities_are_the_harness_metrics() -> None:
    metrics, tasks = pytest.importorskip("lm_eval.api.metrics"), pytest.importorskip("lm_eval.api.task")
    texts = ["one two  three\n", "école, naïve", " a\tb "]
    assert [words_in(t) for t in texts] == [tasks.Task.count_words(t) for t in texts] == [4, 2, 4]
    parts = [Likelihood(5.0 * i, 3, len(t.encode()), words_in(t)) for i, t in enumerate(texts, 1)]
    whole = together(parts)
    per_word = metrics.weighted_perplexity([(-p.nll, p.words) for p in parts])
    assert math.exp(whole.nll / whole.words) == pytest.approx(per_word)
    bits = metrics.bits_per_byte([(-p.nll, p.bytes) for p in parts])
    assert whole.nll / whole.bytes / math.log(2) == pytest.approx(bits)


def test_a_window_does_not_depend_on_what_it_is_scored_with(tiny_responder: LocalResponder) -> None:
    texts = [TEXT, SENTENCES[1], "x", TEXT[100:], SENTENCES[0]]
    reading = Reading(40, 10)
    small = LocalResponder(tiny_responder.model, tiny_responder.tokenizer, token_budget=1)  # one window a batch
    alone = [window_sums(small, [t], reading)[0] for t in texts]
    for order in ([0, 1, 2, 3, 4], [4, 2, 0, 3, 1]):
        found = window_sums(tiny_responder, [texts[i] for i in order], reading)
        for i, windows in zip(order, found, strict=True):
            assert [w.tokens for w in windows] == [w.tokens for w in alone[i]]
            assert [w.nll for w in windows] == pytest.approx([w.nll for w in alone[i]], rel=1e-5)


def test_bits_per_byte_do_not_depend_on_the_tokenizer() -> None:
    """Two letters, each as likely after anything: one bit a byte, read as letters or as pairs of letters."""
    from tokenizers import Regex, pre_tokenizers

    text = "abbaabababba" * 3
    found = {}
    for width, words in ((1, "a b"), (2, "aa ab ba bb")):
        every = [*words.split(), "<s>"]
        share = 1 / len(words.split())
        model, tokenizer = markov_model(words, {w: dict.fromkeys(words.split(), share) for w in every})
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("." * width), "isolated")
        for reading in (Reading(8, 4, "always"), Reading(16, bos="first", scheme="harness")):
            (found[width],) = text_likelihoods(LocalResponder(model, tokenizer), [text], reading)
            assert found[width].tokens == len(text) / width
            assert math.exp(found[width].nll / found[width].tokens) == pytest.approx(2**width, rel=1e-4)
            assert found[width].nll / found[width].bytes / math.log(2) == pytest.approx(1.0, rel=1e-4)
    assert found[1].nll == pytest.approx(found[2].nll, rel=1e-4) and found[1].words == found[2].words == 1


def test_dialogues_with_the_prompt_masked_and_not(tiny_responder: LocalResponder) -> None:
    pairs = [("Who mends the nets?", "The widow."), ("Why?", "Because the bell was sold.")]
    masked = answer_likelihoods(tiny_responder, pairs, 256)
    whole = dialogue_likelihoods(tiny_responder, pairs, 256)
    for (question, answer), a, w in zip(pairs, masked, whole, strict=True):
        prompt, ids = tiny_responder.renderer.pair(question, answer)
        row = [*prompt, *ids]
        nlls = [nll_of(tiny_responder.model, row[:t], row[t]) for t in range(1, len(row))]
        assert w.nll == pytest.approx(math.fsum(nlls), rel=1e-5) and w.tokens == len(row) - 1
        assert a.nll == pytest.approx(math.fsum(nlls[len(prompt) - 1 :]), rel=1e-5) and a.tokens == len(ids)
        assert (a.bytes, w.bytes) == (len(answer.encode()), len((question + answer).encode()))
        assert (a.words, w.words) == (len(answer.split()), len(question.split()) + len(answer.split()))


def test_of_an_answer_that_is_cut_only_what_was_read_is_counted(tiny_responder: LocalResponder) -> None:
    (found,) = answer_likelihoods(tiny_responder, [("Why?", TEXT)], 40)
    prompt, ids = tiny_responder.renderer.pair("Why?", TEXT)
    assert found.tokens == 40 - len(prompt) < len(ids)
    read = tiny_responder.tokenizer.decode(ids[: found.tokens])
    assert TEXT.startswith(read) and found.bytes == len(read.encode()) and found.words == len(read.split())


def test_blocks_hold_neighbouring_windows_and_lose_none() -> None:
    windows = [Likelihood(float(i), 10, 0) for i in range(1, 8)]
    found = blocks(windows, 25)
    assert [(b.tokens, b.nll) for b in found] == [(30, 6.0), (40, 22.0)], "ten tokens are no block of their own"
    assert [b.tokens for b in blocks(windows[:5], 25)] == [30, 20]
    assert [b.tokens for b in blocks(windows[:2], 25)] == [20] and blocks([], 25) == []


def test_a_markov_text_has_the_perplexity_that_its_table_says() -> None:
    model, tokenizer = markov_model("a b", {"<s>": {"a": 1.0}, "a": {"a": 0.25, "b": 0.75}, "b": {"a": 0.5, END: 0.5}})
    (found,) = text_likelihoods(LocalResponder(model, tokenizer), ["a b a a b"], 512)
    assert found.nll == pytest.approx(-math.log(1.0 * 0.75 * 0.5 * 0.25 * 0.75), rel=1e-4) and found.tokens == 5
