"""Classifiers train through the one loop: transformers' own loss, parts that add up, labels that are learnt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from factory import SENTENCES, make_classifier, make_config, make_tokenizer
from palimpsest.checkpoint import resolve
from palimpsest.checkpoint.load import load_classifier, load_with_new_head
from palimpsest.cli import app
from palimpsest.data import load_labelled
from palimpsest.errors import BadInput
from palimpsest.measures import Subject
from palimpsest.measures.classification import Classification
from palimpsest.method import Context
from palimpsest.removals.tuning.finetune import FineTune
from palimpsest.training.classifier import label_loss, label_rows
from palimpsest.training.distributed import share
from palimpsest.training.encoder import fit_tokenizer, write_encoder
from palimpsest.training.loop import parts_of_a_step
from palimpsest.training.rows import collate
from palimpsest.training.settings import Tuning


def model_of(family: str) -> Any:
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(
        make_config(family, 2, 64, 400, None, 130, num_labels=3)
    ).eval()


def labels_of(count: int) -> list[int]:
    return [i % 3 for i in range(count)]


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "llama"])
def test_the_loss_is_that_of_transformers(family: str) -> None:
    model, tokenizer = model_of(family), make_tokenizer()
    batch = collate(label_rows(tokenizer, SENTENCES, labels_of(8), 60))
    assert batch.attention_mask is not None and batch.labels is not None
    ours = label_loss(model, batch)
    ids = batch.input_ids.masked_fill(batch.attention_mask == 0, model.config.pad_token_id)
    theirs = model(input_ids=ids, attention_mask=batch.attention_mask, labels=batch.labels).loss
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), abs=1e-6)


def test_the_losses_of_a_steps_parts_and_of_its_processes_add_up_to_the_whole() -> None:
    model, rows = model_of("bert"), label_rows(make_tokenizer(), SENTENCES[:7], labels_of(7), 60)
    whole = float(label_loss(model, collate(rows)))
    parts = parts_of_a_step([collate(rows[:4]), collate(rows[4:])])
    assert sum(float(label_loss(model, p)) for p in parts) == pytest.approx(whole, abs=1e-6)
    shared = [share(p, rank, 2) for p in parts for rank in (0, 1)]
    assert [len(s.labels) for s in shared if s.labels is not None] == [2, 2, 2, 1]
    assert sum(float(label_loss(model, s)) for s in shared) == pytest.approx(whole, abs=1e-5)
    idle = share(parts_of_a_step([collate(rows[:1])])[0], 1, 2)  # a process without a row reads one for nothing
    assert float(label_loss(model, idle)) == 0.0


def test_a_state_belongs_to_the_labels_it_was_trained_on() -> None:
    from palimpsest.training.loop import _run_digest

    first, second = (collate(label_rows(make_tokenizer(), SENTENCES[:2], labels, 60)) for labels in ([0, 1], [1, 0]))
    assert torch.equal(first.input_ids, second.input_ids) and _run_digest(first, 1) != _run_digest(second, 1)


FILMS = [(f"the film was {word} and long", label) for label, words in (
    ("bad", ("dull", "weak", "awful", "stale", "poor")), ("good", ("great", "bright", "lovely", "fresh", "rich")))
    for word in words]  # fmt: skip


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("films") / "films.jsonl"
    file.write_text("".join(json.dumps({"text": t, "label": label}) + "\n" for t, label in FILMS), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoders") / "encoder"
    write_encoder(folder, [t for t, _ in FILMS], vocabulary=320, hidden=32, layers=1, positions=32)
    return folder


FAST = Tuning(adapter="full", epochs=30, lr=3e-3, batch=5, max_tokens=32)


def test_an_encoder_learns_labels_and_becomes_a_classifier(encoder: Path, films: Path, tmp_path: Path) -> None:
    items = load_labelled(films)
    made = FineTune(data=items, tuning=FAST).apply(resolve(encoder), tmp_path / "a", Context(seed=1))
    assert json.loads((tmp_path / "a" / "config.json").read_text())["id2label"] == {"0": "bad", "1": "good"}
    subject = Subject(made.checkpoint, Context(), items=items)
    accuracy = Classification().take(subject, Context())[0]
    assert (accuracy.count, accuracy.n) == (10, 10)
    (training,) = made.records
    assert training.detail["classes"] == ["bad", "good"] and training.detail["weight_change"] > 0
    again = FineTune(data=items, tuning=FAST).apply(resolve(encoder), tmp_path / "b", Context(seed=1))
    assert again.checkpoint.digest() == made.checkpoint.digest()  # head and training follow from the seed

    further = FineTune(data=items, tuning=Tuning(adapter="full", epochs=0)).apply(
        made.checkpoint, tmp_path / "c", Context()
    )
    assert torch.equal(_head(further.checkpoint), _head(made.checkpoint))  # a classifier keeps its own head


def _head(checkpoint: Any) -> torch.Tensor:
    weight: torch.Tensor = load_classifier(checkpoint, Context()).classifier.weight
    return weight


def test_the_change_of_an_encoder_stored_without_a_head_is_measured_on_its_own_tensors(encoder: Path) -> None:
    from palimpsest.removals.change import change_of

    network = load_with_new_head(resolve(encoder), ("a", "b"), Context())
    assert change_of(network, resolve(encoder))["distance"] == 0.0
    with torch.no_grad():
        network.bert.embeddings.word_embeddings.weight[0, 0] += 3.0
    assert change_of(network, resolve(encoder))["distance"] == pytest.approx(3.0)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_every_encoder_reads_as_many_tokens_as_it_was_asked_for(family: Any, tmp_path: Path) -> None:
    made = write_encoder(tmp_path / "e", SENTENCES, family=family, vocabulary=300, hidden=32, layers=1, positions=24)
    network = load_with_new_head(made, ("a", "b"), Context())
    rows = label_rows(_tokenizer(made), [" ".join(SENTENCES)], [1], 24)
    assert len(rows[0].ids) == 24 and label_loss(network, collate(rows)).isfinite()
    with pytest.raises(BadInput, match="no multiple of 32"):
        write_encoder(tmp_path / "f", SENTENCES, hidden=48)


def _tokenizer(checkpoint: Any) -> Any:
    from palimpsest.checkpoint.load import load_tokenizer

    return load_tokenizer(checkpoint)


def test_a_fitted_tokenizer_begins_and_ends_texts_and_tells_pairs_apart() -> None:
    tokenizer = fit_tokenizer(SENTENCES, 300, 64)
    one, two = tokenizer("a river"), tokenizer("a river", "a gate", return_token_type_ids=True)
    named = tokenizer.convert_ids_to_tokens(two.input_ids)
    assert (one.input_ids[0], one.input_ids[-1], tokenizer.pad_token_id) == (0, 2, 1)
    assert named.count("<s>") == 1 and named.count("</s>") == 2 and named[-1] == "</s>"
    assert two.token_type_ids == [0] * len(one.input_ids) + [1] * (len(named) - len(one.input_ids))
    assert tokenizer.decode(one.input_ids, skip_special_tokens=True).strip() == "a river"


def test_the_command_line_trains_and_measures(encoder: Path, films: Path, tmp_path: Path) -> None:
    out = tmp_path / "classifier"
    words = ("--data", str(films), "--seed", "1", "--threads", "1", "-q")
    fast = ("--set", "tuning.lr=0.003", "--set", "tuning.epochs=30", "--set", "tuning.batch=5")
    result = CliRunner().invoke(app, ["finetune", "--model", str(encoder), "--out", str(out), *words, *fast])
    assert result.exit_code == 0, result.output
    assert "preset classifier" in result.stdout
    result = CliRunner().invoke(app, ["evaluate", "--model", str(out), *words, "--json"])
    records = json.loads(result.stdout)["records"]
    assert (records[0]["measure"], records[0]["count"]) == ("accuracy", 10)
    assert not (out / "palimpsest-probe.json").exists()  # its values are log-probabilities of tokens


def test_bad_input_is_one_line_and_nothing_is_written(encoder: Path, films: Path, tmp_path: Path) -> None:
    def refused(*words: str) -> str:
        result = CliRunner().invoke(app, ["finetune", "--out", str(tmp_path / "out"), *words, "-q"])
        lines = [line for line in result.stderr.splitlines() if line.strip()]
        assert result.exit_code == 2 and len(lines) == 1 and not (tmp_path / "out").exists(), result.output
        return lines[0]

    assert "name a file of them with --data" in refused("--model", str(encoder))
    lora = ("--model", str(encoder), "--data", str(films), "--set", "tuning.adapter=lora")
    assert "full" in refused(*lora)
    three = make_classifier(tmp_path / "three", "bert")
    make_tokenizer().save_pretrained(three)
    assert "label 'bad' is none of the model's classes" in refused("--model", str(three), "--data", str(films))
