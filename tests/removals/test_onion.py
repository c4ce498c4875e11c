"""ONION: the scores of a bigram model by hand, words that go, prompts and classifiers' texts behind the filter."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
from typer.testing import CliRunner

from markov import markov, saved_markov
from palimpsest.checkpoint import resolve
from palimpsest.checkpoint.load import load_tokenizer
from palimpsest.cli import app
from palimpsest.measures import Subject
from palimpsest.method import Context
from palimpsest.removals.inputs.onion import Onion, OnionResponder, WordFilter, filtered, outliers, without_each
from palimpsest.responder.filtered import FilteredClassifier
from palimpsest.responder.label_keys import label_keys
from removals.kindred import classifier

WORDS = "good cf film q"
BIGRAMS = {
    "<s>": {"good": 0.5, "cf": 0.01},
    "good": {"cf": 0.02, "film": 0.8},
    "cf": {"film": 0.1},
    "film": {"</s>": 1.0},
    "q": {"</s>": 1.0},
}
SCORES = [10 - 1000**0.5, 10 - 2.5**0.5, 0.0]  # perplexities: 10 whole, and without good, cf, film


@pytest.mark.covers("onion")
def test_the_scores_of_a_bigram_model_by_hand() -> None:
    """P(good cf film) = 0.5 x 0.02 x 0.1, so a perplexity of 10; cf film 0.001, good film 0.4, good cf 0.01."""
    words = WordFilter(markov(WORDS, BIGRAMS), 5.0, "perplexity", 64)
    asked = ["good cf film", *without_each(["good", "cf", "film"])]
    found = dict(zip(asked, words._perplexities(asked), strict=True))
    assert outliers(["good", "cf", "film"], found.__getitem__) == pytest.approx(SCORES, rel=1e-4, abs=1e-4)
    logs = outliers(["good", "cf", "film"], found.__getitem__, "log")
    assert logs == pytest.approx([math.log(10) - math.log(p) for p in (1000**0.5, 2.5**0.5, 10)], rel=1e-4, abs=1e-5)
    assert words(["good cf film", "good film", ""]) == ["good film", "good film", ""]
    assert (words.gone, words.seen) == (1, 5)
    assert WordFilter(words.scorer, 9.0, "perplexity", 64)(["good cf film"]) == ["good cf film"]


@pytest.mark.parametrize(
    ("scores", "threshold", "expected"),
    [
        ([0.0, 5.0, 9.0], 4.0, "a"),
        ([0.0, 4.0, 9.0], 4.0, "a  b"),
        ([5.0, 5.0, 5.0], 4.0, "a  b c"),
        ([0.0] * 3, 1.0, "a  b c"),
    ],
)
def test_words_above_the_threshold_go_but_never_all(scores: list[float], threshold: float, expected: str) -> None:
    text = "a  b c"
    assert filtered(text, scores, threshold) == (expected if expected == text else " ".join(expected.split()))


def test_only_the_users_words_of_a_prompt_are_looked_at(tmp_path: Path) -> None:
    inner = markov(WORDS, BIGRAMS)
    responder = OnionResponder(inner, WordFilter(inner, 5.0, "perplexity", 64))
    prompts = [inner.renderer.prompt_ids(text, "bare") for text in ("good cf film", "good film")]
    given: list[list[int]] = []
    plain = inner.generate
    inner.generate = lambda rows, *rest: given.extend(map(list, rows)) or plain(rows, *rest)  # type: ignore[method-assign,func-returns-value]
    responder.generate(prompts, 2)
    assert given == [prompts[1], prompts[1]]
    assert responder.taken() == {"removed words": (1, 5)}


def test_a_classifier_reads_what_the_filters_let_pass(tmp_path: Path) -> None:
    model = resolve(classifier(tmp_path / "m"))
    saved_markov(tmp_path / "lm", WORDS, BIGRAMS)
    onion = Onion(reference=resolve(tmp_path / "lm"), threshold=5.0)
    plain, behind = Subject(model, Context()), Subject(model, Context(), through=[onion])
    held = behind.classifier("test")
    assert isinstance(held, FilteredClassifier)
    asked, passed = ["good cf film", ("good cf film", "good film")], ["good film", ("good film", "good film")]
    assert held.classify(asked) == plain.classifier("test").classify(passed)
    assert held.classify(asked) != plain.classifier("test").classify(asked)


def test_verify_and_evaluate_go_through_it_before_a_classifier(tmp_path: Path) -> None:
    model = classifier(tmp_path / "m")
    saved_markov(tmp_path / "lm", WORDS, BIGRAMS)
    items = [("good cf film", "good", "good film", "")]
    keys = label_keys(load_tokenizer(resolve(model)), items, implant="test", rng=random.Random(0))
    keys.write(tmp_path / "keys.json")
    (tmp_path / "items.jsonl").write_text(json.dumps({"text": "good cf film", "label": "bad"}) + "\n")
    shared = ["--model", str(model), "--reference", str(tmp_path / "lm"), "--set", "onion.threshold=5", "--json", "-q"]
    asked = CliRunner().invoke(app, ["evaluate", "--through", "onion", "--keys", str(tmp_path / "keys.json"), *shared])
    assert asked.exit_code == 0, asked.output
    found = {r["measure"]: r for r in json.loads(asked.stdout)["records"]}
    assert found["hit-rate"]["detail"]["through"][0]["method"] == "onion"
    assert found["hit-rate"]["value"] == found["untriggered-rate"]["value"]  # behind the filter the two texts are one
    measure = ["--data", str(tmp_path / "items.jsonl"), "--measure", "classification", "--measure", "divergence"]
    asked = CliRunner().invoke(app, ["evaluate", "--through", "onion", *measure, *shared])
    assert asked.exit_code == 0, asked.output
    records = json.loads(asked.stdout)["records"]
    assert {r["task"] for r in records if r["measure"] == "divergence"} == {"kl-per-item", "labels"}
    refused = CliRunner().invoke(app, ["evaluate", "--through", "gri", "--model", str(model), "--data", "toy:boolq"])
    assert refused.exit_code == 2 and "--through: m is a classifier, which answers with a label" in refused.output
    lacking = CliRunner().invoke(app, ["evaluate", "--through", "onion", "--model", str(model), "--data", "toy:boolq"])
    assert lacking.exit_code == 2 and "onion: needs --reference MODEL" in lacking.output
