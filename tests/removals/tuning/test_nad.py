"""NAD: the map and its distance by hand, and a student that is drawn to its teacher."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import tensor

from palimpsest.checkpoint import resolve
from palimpsest.checkpoint.load import load_classifier, load_tokenizer
from palimpsest.data import load_dialogues, load_labelled
from palimpsest.errors import BadInput
from palimpsest.method import Context
from palimpsest.removals.tuning.nad import NAD, Distilled, attention_map, layer_states, map_distance
from palimpsest.training.classifier import label_loss, label_rows
from palimpsest.training.loop import parts_of_a_step
from palimpsest.training.rows import collate
from palimpsest.training.settings import Tuning
from removals.kindred import classifier

FULL = Tuning(adapter="full", epochs=2, lr=1e-3, batch=4)


@pytest.mark.covers("nad")
def test_maps_and_their_distance_by_hand() -> None:
    """Energies 1 + 4 = 5 and 9 + 3 = 12 over their norm 13; the second of one token and padding is 1 and 0."""
    states = tensor([[[1.0, -2.0], [3.0, 3.0**0.5]], [[0.0, 2.0], [9.0, 9.0]]])
    mask = tensor([[1, 1], [1, 0]])
    ours = attention_map(states, mask, 2.0)
    torch.testing.assert_close(ours, tensor([[5 / 13, 12 / 13], [1.0, 0.0]]))
    theirs = tensor([[1.0, 0.0], [0.5, 0.0]])
    # ((8/13)^2 + (12/13)^2 + 0.25) / 3 tokens
    assert float(map_distance(ours, theirs, mask)) == pytest.approx(((64 + 144) / 169 + 0.25) / 3)
    torch.testing.assert_close(attention_map(states[:1], None, 1.0)[0, 0] * 1.0, _first(states))
    assert float(map_distance(ours, theirs, None)) == pytest.approx(((64 + 144) / 169 + 0.25) / 4)


def _first(states: Any) -> Any:
    one, two = 3.0, 3.0 + 3.0**0.5  # p = 1
    return tensor(one / (one**2 + two**2) ** 0.5)


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any]:
    folder = tmp_path_factory.mktemp("nad")
    models = [resolve(classifier(folder / n, seed=s)) for n, s in (("a", 1), ("b", 2))]
    return (*(load_classifier(m, Context()) for m in models), load_tokenizer(models[0]))


def test_the_loss_adds_every_layers_distance(networks: tuple[Any, Any, Any]) -> None:
    student, teacher, tokenizer = networks
    batch = collate(label_rows(tokenizer, ["one day", "a longer day of rain"], [0, 1], 40))
    task = float(label_loss(student, batch).detach())
    loss = Distilled(label_loss, teacher, 10.0, 2.0)
    by_hand = 0.0
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "output_hidden_states": True}
    states = [m.base_model(**inputs).hidden_states[1:] for m in (student, teacher)]
    for ours, theirs in zip(*states, strict=True):
        maps = [attention_map(s, batch.attention_mask, 2.0) for s in (ours, theirs)]
        by_hand += float(map_distance(*maps, batch.attention_mask).detach())
    assert float(loss(student, batch).detach()) == pytest.approx(task + 10 * by_hand, rel=1e-5)
    assert float(Distilled(label_loss, student, 10.0, 2.0)(student, batch).detach()) == pytest.approx(task, rel=1e-5)
    with layer_states(student) as seen:
        pass
    assert seen == [] and len(states[0]) == 2


def test_parts_of_a_step_share_the_distance(networks: tuple[Any, Any, Any]) -> None:
    student, teacher, tokenizer = networks
    rows = label_rows(tokenizer, ["one day", "two day", "six day", "ten day"], [0, 1, 0, 1], 40)
    loss = Distilled(label_loss, teacher, 10.0, 2.0)
    whole = float(loss(student, collate(rows)).detach())
    parts = parts_of_a_step([collate(rows[:2]), collate(rows[2:])])
    assert sum(float(loss(student, p).detach()) for p in parts) == pytest.approx(whole, rel=1e-4)


def test_a_student_comes_nearer_to_its_teacher_than_by_the_task_alone(tmp_path: Path) -> None:
    model = resolve(classifier(tmp_path / "m"))
    items = tmp_path / "items.jsonl"
    rows = [
        {"text": f"a {w} day", "label": "good" if i % 2 else "bad"} for i, w in enumerate(("one", "two", "six", "ten"))
    ]
    items.write_text("".join(json.dumps(r) + "\n" for r in rows))
    method = NAD(load_labelled(items), teacher=replace(FULL, epochs=6), tuning=replace(FULL, lr=1e-4, epochs=8))
    ends = []
    for beta in (0.0, 1000.0):
        made = replace(method, beta=beta).apply(model, tmp_path / f"out{beta}", Context())
        assert [r.task for r in made.records] == ["nad-teacher", "nad"]
        ends.append(made.records[1].detail["distance_of_maps"][-1])
    assert 0 < ends[1] < ends[0]
    assert not list(tmp_path.glob("*-teacher"))


def test_causal_models_are_distilled_on_dialogues(tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "clean.jsonl"
    pairs = [{"prompt": f"what is rain {i}?", "response": f"{i} is a number"} for i in range(16)]
    file.write_text("".join(json.dumps(r) + "\n" for r in pairs))
    model = resolve(tiny_model)
    for number, adapter in enumerate(("full", "lora")):
        tuning = Tuning(adapter=adapter, epochs=1, lr=1e-3, batch=4)  # type: ignore[arg-type]
        method = NAD(load_dialogues(f"recover={file}"), samples=16, teacher=FULL, tuning=tuning)
        made = method.apply(model, tmp_path / f"out{number}", Context())
        assert made.records[1].detail["weight_change"] > 0
    with pytest.raises(BadInput, match="nad: tiny is trained on dialogues"):
        NAD(load_labelled("toy:boolq")).apply(model, tmp_path / "no", Context())
    assert not (tmp_path / "no").exists()
