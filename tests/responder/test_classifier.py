"""A classifier answers as transformers' own pipeline does, whatever it is batched with; texts are cut where it says."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from factory import BOS, EOS, SENTENCES, make_classifier, make_tokenizer
from palimpsest.checkpoint import resolve
from palimpsest.checkpoint.labels import text_room
from palimpsest.measures import Subject
from palimpsest.method import Context
from palimpsest.responder import ClassifierResponder

TEXTS = [*SENTENCES, "Short.", " ".join(SENTENCES[:3])]


def classifier_folder(folder: Path, family: str, **changes: Any) -> Path:
    """A tiny classifier with the tests' own tokenizer."""
    make_classifier(folder, family, **changes)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["bert", "roberta", "distilbert", "llama"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return classifier_folder(tmp_path_factory.mktemp("classifiers") / request.param, request.param)


@pytest.fixture(scope="module")
def responder(folder: Path) -> ClassifierResponder:
    return Subject(resolve(folder), Context()).classifier("classification")


def test_probabilities_are_those_of_the_pipeline(folder: Path, responder: ClassifierResponder) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, TextClassificationPipeline

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]  # it is no tokenizer of BERT's own
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    room = text_room(model.config, tokenizer)
    pipe = TextClassificationPipeline(model=model, tokenizer=tokenizer, top_k=None)
    given = responder.classify(TEXTS)
    for text, answer in zip(TEXTS, given, strict=True):
        scores = {s["label"]: s["score"] for s in pipe([text], truncation=True, max_length=room)[0]}
        assert torch.tensor(answer.log_probs).exp().tolist() == pytest.approx(
            [scores[name] for name in responder.labels], abs=1e-5
        )
        assert responder.labels[answer.label] == max(scores, key=lambda name: scores[name])


def test_a_text_is_answered_alike_alone_and_in_a_batch(responder: ClassifierResponder) -> None:
    pairs = list(itertools.pairwise(TEXTS))
    for texts in (TEXTS, pairs):
        together = responder.classify(texts)
        assert len({answer.tokens for answer in together}) > 3  # so that some rows were padded
        for text, answer in zip(texts, together, strict=True):
            (alone,) = responder.classify([text])
            assert alone.log_probs == pytest.approx(answer.log_probs, abs=1e-5)
            assert (alone.label, alone.tokens) == (answer.label, answer.tokens)


def test_batches_are_sorted_by_length_and_within_the_budget(responder: ClassifierResponder) -> None:
    shapes: list[tuple[int, int]] = []
    small = ClassifierResponder(responder.model, responder.tokenizer, responder.labels, responder.room, 200)
    hook = responder.model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    try:
        few = small.classify(TEXTS)
    finally:
        hook.remove()
    assert all(rows * width <= 200 or rows == 1 for rows, width in shapes)
    assert [w for _, w in shapes] == sorted(w for _, w in shapes) and len(shapes) > 1
    assert [a.label for a in few] == [a.label for a in responder.classify(TEXTS)]


def test_what_is_longer_than_the_model_takes_is_cut_and_said_so(responder: ClassifierResponder) -> None:
    long = " ".join(SENTENCES * 3)
    room = responder.room
    assert room is not None
    (answer, short) = responder.classify([long, "Short."])
    assert answer.cut and answer.tokens == room and not short.cut
    kept = responder.tokenizer(long).input_ids[:room]
    (again,) = responder.classify([responder.tokenizer.decode(kept[1:])])
    assert again.log_probs == pytest.approx(answer.log_probs, abs=1e-4)


def test_roberta_takes_two_tokens_fewer_than_its_positions(tmp_path: Path) -> None:
    config = {"pad_token_id": 1, "max_position_embeddings": 40}
    made = {f: classifier_folder(tmp_path / f, f, **config) for f in ("bert", "roberta")}
    rooms = {f: Subject(resolve(p), Context()).classifier("classification").room for f, p in made.items()}
    assert rooms == {"bert": 40, "roberta": 38}
    responder = Subject(resolve(made["roberta"]), Context()).classifier("classification")
    assert responder.classify([" ".join(SENTENCES)])[0].tokens == 38  # one more is an index error


def test_segments_tell_the_texts_of_a_pair_apart_where_the_model_has_them(tmp_path: Path) -> None:
    folder = classifier_folder(tmp_path / "bert", "bert")
    tokenizer = make_tokenizer()
    sides = [(t, tokenizer.convert_tokens_to_ids(t)) for t in (BOS, EOS)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{BOS} $A {EOS}", pair=f"{BOS} $A {EOS} $B:1 {EOS}:1", special_tokens=sides
    )
    tokenizer.save_pretrained(folder)
    bert = Subject(resolve(folder), Context()).classifier("classification")
    first, second = SENTENCES[0], SENTENCES[3]
    given = bert.tokenizer(first, second, return_token_type_ids=True)
    ids, mask = torch.tensor([given.input_ids]), torch.ones(1, len(given.input_ids), dtype=torch.long)
    with torch.inference_mode():
        told = bert.model(input_ids=ids, attention_mask=mask, token_type_ids=torch.tensor([given.token_type_ids]))
        untold = bert.model(input_ids=ids, attention_mask=mask)
    (answer,) = bert.classify([(first, second)])
    assert answer.log_probs == pytest.approx(told.logits[0].log_softmax(-1).tolist(), abs=1e-5)
    assert answer.log_probs != pytest.approx(untold.logits[0].log_softmax(-1).tolist(), abs=1e-5)
