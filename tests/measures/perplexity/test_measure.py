"""Perplexity: the formula by a plain forward, windows predict each token once, sides are told apart."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from factory import SENTENCES
from palimpsest.asking import evaluate
from palimpsest.checkpoint import resolve
from palimpsest.data.dialogues import Dialogues, pair
from palimpsest.errors import BadInput
from palimpsest.measures import Subject
from palimpsest.measures.perplexity import Perplexity, Reading, read_texts, text_likelihoods
from palimpsest.method import Context, build
from palimpsest.responder import LocalResponder

TEXT = " ".join(SENTENCES)


def plain_nll(responder: LocalResponder, ids: list[int], start: int) -> float:
    logs = responder.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return -sum(float(logs[i - 1, ids[i]]) for i in range(start, len(ids)))


@pytest.mark.covers("perplexity")
def test_one_window_is_the_formula(tiny_responder: LocalResponder) -> None:
    (found,) = text_likelihoods(tiny_responder, [SENTENCES[0]], 256)
    ids = list(tiny_responder.tokenizer(SENTENCES[0]).input_ids)  # BOS first
    assert found.tokens == len(ids) - 1 and found.bytes == len(SENTENCES[0].encode())
    assert found.nll == pytest.approx(plain_nll(tiny_responder, ids, 1), abs=1e-3)


def test_overlapping_windows_predict_each_token_once_with_half_a_window_of_context(
    tiny_responder: LocalResponder,
) -> None:
    window = 32
    (found,) = text_likelihoods(tiny_responder, [TEXT], window)
    bos, *ids = list(tiny_responder.tokenizer(TEXT).input_ids)
    expected, done = 0.0, 0
    while done < len(ids):
        start = max(0, done - window // 2)
        end = min(len(ids), start + window - 1)
        expected += plain_nll(tiny_responder, [bos, *ids[start:end]], 1 + done - start)
        done = end
    assert found.tokens == len(ids)
    assert found.nll == pytest.approx(expected, rel=1e-4)


def test_records_of_both_sides(tiny_model: Any, tmp_path: Path) -> None:
    text = tmp_path / "t.txt"
    text.write_text("\n\n".join(SENTENCES * 20))
    data = Dialogues("d", {"test": tuple(pair(f"q {i}?", s) for i, s in enumerate(SENTENCES))})
    subject = Subject(resolve(tiny_model), Context(), data=data, text=text)
    neutral, dialogue = Perplexity().take(subject, Context())
    assert neutral.task == "neutral" and dialogue.task == "dialogue"
    for record in (neutral, dialogue):
        assert record.value == pytest.approx(math.exp(record.detail["nll_per_token"]))
        assert record.low < record.value * 1.2 and record.high > record.value * 0.8
        assert record.detail["bits_per_byte"] > 0 and record.tokens > 0


@pytest.fixture
def subject(tiny_model: Any, tmp_path: Path) -> Subject:
    """The tiny model with a text of two long paragraphs."""
    text = tmp_path / "t.txt"
    text.write_text("\n\n".join(" ".join(SENTENCES * 10) for _ in range(2)))
    return Subject(resolve(tiny_model), Context(), text=text)


def test_a_stream_is_one_text_whose_interval_is_over_blocks(subject: Subject) -> None:
    settings = {"on": "neutral", "as": "stream", "window": 64, "stride": 16, "bos": "always"}
    (record,) = build(Perplexity, settings=settings).take(subject, Context())
    text = Path(str(subject.text)).read_text()
    (whole,) = text_likelihoods(subject.model, [text], Reading(64, 16, "always"))
    assert record.value == pytest.approx(math.exp(whole.nll / whole.tokens))
    detail = record.detail
    assert detail["predicted"] == {"tokens": whole.tokens, "bytes": len(text.encode()), "words": len(text.split())}
    assert detail["bits_per_byte"] == pytest.approx(math.log2(detail["byte_perplexity"]))
    assert detail["bits_per_word"] == pytest.approx(math.log2(detail["word_perplexity"]))
    assert detail["bits_per_byte"] * len(text.encode()) * math.log(2) == pytest.approx(whole.nll)
    assert "documents" not in detail and detail["blocks"] == record.n > 5 and detail["as"] == "stream"
    assert (detail["window"], detail["stride"], detail["scheme"]) == (64, 16, "stride")
    assert detail["bos"] == {"rule": "always", "ids": [1], "windows": "all"}
    assert record.low is not None and record.high is not None and record.low < record.value < record.high


def test_documents_and_stream_of_one_file_are_told_apart(subject: Subject) -> None:
    (documents,) = Perplexity(on=("neutral",)).take(subject, Context())
    assert documents.n == documents.detail["documents"] == 2
    (stream,) = Perplexity(on=("neutral",), as_="stream").take(subject, Context())
    assert "blocks" in stream.detail and stream.detail["predicted"]["bytes"] < documents.detail["predicted"]["bytes"]


def test_only_the_beginning_of_a_stream_is_read_where_it_is_asked_for(subject: Subject) -> None:
    (record,) = Perplexity(on=("neutral",), as_="stream", tokens=50, bos="always").take(subject, Context())
    assert record.detail["predicted"]["tokens"] == 50 and record.n == 1 and record.low is None
    ids = subject.model.renderer.tokens(Path(str(subject.text)).read_text())[:50]
    assert record.detail["predicted"]["bytes"] == len(subject.model.tokenizer.decode(ids).encode())


def test_presets_read_as_the_field_does(subject: Subject) -> None:
    harness, hugging_face = Perplexity.harness(), Perplexity.hugging_face()
    assert harness.reading(256) == Reading(256, None, "first", "harness")
    assert harness.reading(None).window == 2048 and hugging_face.reading(4096) == Reading(1024, 512, "first")
    (record,) = build(Perplexity, "harness", {"on": "neutral"}).take(subject, Context())
    text = read_texts(subject.text or "")
    expected = text_likelihoods(subject.model, text, Reading(256, None, "first", "harness"))
    assert record.value == pytest.approx(math.exp(sum(e.nll for e in expected) / sum(e.tokens for e in expected)))
    assert record.detail["bos"]["windows"] == "first"


def test_dialogues_are_shown_with_the_prompt_masked_and_not(tiny_model: Any) -> None:
    data = Dialogues("d", {"test": tuple(pair(f"q {i}?", s) for i, s in enumerate(SENTENCES))})
    subject = Subject(resolve(tiny_model), Context(), data=data)
    masked, whole = Perplexity(on=("dialogue", "dialogue-and-prompt")).take(subject, Context())
    assert (masked.task, whole.task) == ("dialogue", "dialogue-and-prompt") and masked.n == whole.n == len(SENTENCES)
    assert (masked.detail["prompt"], whole.detail["prompt"]) == ("masked", "predicted")
    assert masked.detail["predicted"]["tokens"] < whole.detail["predicted"]["tokens"]


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"on": "nothing"}, "'nothing' is none of neutral, dialogue, dialogue-and-prompt"),
        ({"window": 16, "stride": 17}, "stride 17 is longer than the window"),
        ({"bos": "sometimes"}, "'sometimes' is not valid"),
        ({"as": "words"}, "'words' is not valid"),
        ({"stride": 0}, "out of range"),
    ],
)
def test_what_cannot_be_read_is_refused(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(BadInput, match=problem):
        build(Perplexity, settings=settings).validate()


def test_evaluate_takes_the_options_of_a_text(tiny_model: Any, subject: Subject) -> None:
    given = {"as": "stream", "window": "32", "stride": "32", "bos": "never"}
    (record,) = evaluate(tiny_model, perplexity=str(subject.text), reading=given).records
    assert (record.task, record.detail["window"], record.detail["stride"]) == ("neutral", 32, 32)
    (named,) = evaluate(tiny_model, perplexity=subject.text, reading=given, measures=["perplexity"]).records
    assert named.value == record.value, "the same where the measure is named too"
    with pytest.raises(BadInput, match="stride: 'x' is none of"):
        evaluate("toy", reading={"stride": "x"})
