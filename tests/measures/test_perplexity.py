"""Perplexity: the formula by a plain forward, windows predict each token once, sides are told apart."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from factory import SENTENCES
from palimpsest.checkpoint import resolve
from palimpsest.data.dialogues import Dialogues, pair
from palimpsest.errors import BadInput
from palimpsest.measures import Subject
from palimpsest.measures.perplexity import Perplexity, read_texts, text_likelihoods
from palimpsest.method import Context
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


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.txt", "  \n", "no text"),
        ("a.jsonl", '{"text": "x"}\n{oops', ":2: is no JSON"),
        ("a.jsonl", '{"t": 1}', ":1:"),
    ],
)
def test_text_files_that_cannot_be_read_name_file_and_line(
    tmp_path: Path, name: str, content: str, problem: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(BadInput, match=problem):
        read_texts(tmp_path / name)
