"""W2S: the loss by hand, its control without a teacher, and a decoder with a head that is taught by LoRA."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import tensor

from palimpsest import api
from palimpsest.checkpoint import resolve
from palimpsest.checkpoint.load import load_classifier, load_tokenizer
from palimpsest.data import load_labelled
from palimpsest.errors import BadInput
from palimpsest.method import Context
from palimpsest.removals.tuning.w2s import FULL, W2S, Taught, soft_label_distance
from palimpsest.training.classifier import label_loss, label_rows
from palimpsest.training.loop import parts_of_a_step
from palimpsest.training.rows import collate
from palimpsest.training.settings import Tuning
from removals.kindred import classifier


@pytest.mark.covers("w2s")
def test_soft_labels_by_hand() -> None:
    """At T = 2 the teacher says 3/4 and 1/4, the student 1/2 and 1/2."""
    teacher, student = tensor([[2 * math.log(3.0), 0.0]]), tensor([[7.0, 7.0]])
    expected = 4 * (0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5))
    assert float(soft_label_distance(student, teacher, 2.0)[0]) == pytest.approx(expected, rel=1e-5)


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any]:
    folder = tmp_path_factory.mktemp("w2s")
    models = [resolve(classifier(folder / n, seed=s)) for n, s in (("a", 1), ("b", 2))]
    return (*(load_classifier(m, Context()) for m in models), load_tokenizer(models[0]))


def test_the_loss_is_the_sum_of_its_terms_and_parts_add_up(networks: tuple[Any, Any, Any]) -> None:
    student, teacher, tokenizer = networks
    rows = label_rows(tokenizer, ["one day", "a longer day of rain", "two", "six"], [0, 1, 0, 1], 40)
    batch = collate(rows)
    given = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "output_hidden_states": True}
    with torch.no_grad():
        ours, theirs = student(**given), teacher(**given)
        task = float(label_loss(student, batch))
        soft = float(soft_label_distance(ours.logits, theirs.logits, 2.0).mean())
        states = float((ours.hidden_states[-1][:, 0] - theirs.hidden_states[-1][:, 0]).pow(2).mean())
        loss = Taught(teacher, 5.0, 0.5, 0.25, 2.0, True)
        whole = float(loss(student, batch))
        assert whole == pytest.approx(5 * task + 0.5 * soft + 0.25 * states, rel=1e-4)
        assert loss.same_width
        parts = parts_of_a_step([collate(rows[:1]), collate(rows[1:])])
        assert sum(float(loss(student, p)) for p in parts) == pytest.approx(whole, rel=1e-4)
        assert float(Taught(None, 5.0, 0.0, 0.0, 2.0, True)(student, batch)) == pytest.approx(5 * task, rel=1e-5)


def items(folder: Path) -> Path:
    file = folder / "items.jsonl"
    rows = [{"text": f"a {w} day", "label": k} for w, k in (("one", "bad"), ("two", "good"), ("six", "bad"))]
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return file


def test_a_decoder_with_a_head_is_taught_by_an_adapter(tmp_path: Path) -> None:
    model, teacher = (resolve(classifier(tmp_path / n, "llama", seed=s)) for n, s in (("m", 1), ("t", 2)))
    tuning = Tuning(targets="all-linear", rank=4, alpha=4, epochs=2, lr=1e-2, batch=2)
    made = W2S(load_labelled(items(tmp_path)), teacher, kl=1.0, tuning=tuning).apply(model, tmp_path / "out", Context())
    assert made.records[0].detail["weight_change"] > 0 and made.records[0].detail["same_width"]
    assert load_classifier(made.checkpoint, Context()).config.num_labels == 2


def test_the_control_needs_no_teacher_and_everything_else_one(tmp_path: Path) -> None:
    model, other = classifier(tmp_path / "m"), classifier(tmp_path / "o", names=("no", "yes"))
    data, out = [items(tmp_path)], tmp_path / "out"
    with pytest.raises(BadInput, match="w2s: needs --reference MODEL"):
        api.remove("w2s", model, out, data=data)
    with pytest.raises(BadInput, match="--reference o: has other labels than m"):
        api.remove("w2s", model, out, data=data, inputs={"reference": other})
    with pytest.raises(BadInput, match="full fine-tuning takes any architecture"):
        api.remove("w2s", model, out, data=data, preset="paper", inputs={"reference": model})
    assert not out.exists()
    control = W2S.classifier_cross_entropy_only()
    assert (control.kl, control.features, control.tuning) == (0, 0, FULL)
    made = api.remove("w2s", model, out, data=data, preset="classifier_cross_entropy_only")
    assert made.records[0].detail["same_width"] is None
