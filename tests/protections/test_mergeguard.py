"""MergeGuard: masks, shifts and critical layers by hand; the penalty; what is spared in the written model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from factory import make_model
from kin import moved
from merging.folders import weights_of
from palimpsest.checkpoint import resolve
from palimpsest.checkpoint.load import load_model
from palimpsest.data import load_dialogues
from palimpsest.errors import BadInput
from palimpsest.method import Context, build
from palimpsest.protections.mergeguard import (
    MergeGuard,
    SpreadLoss,
    critical_layers,
    important_mask,
    shifted,
    token_accuracy,
)
from palimpsest.training.loop import Batch, batch_loss, parts_of_a_step
from palimpsest.training.rows import Row
from palimpsest.training.settings import Tuning
from protections.conftest import Models

STILL = Tuning(adapter="full", epochs=0)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "rows.jsonl"
    talk = [{"prompt": f"Who mends net {i}?", "response": f"The widow mends {i * 7}."} for i in range(24)]
    file.write_text("".join(json.dumps(t) + "\n" for t in talk))
    return file


@pytest.mark.covers("mergeguard")
def test_mask_and_shift_by_hand() -> None:
    base = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    weight = torch.tensor([[1.5, 0.0, 1.1], [1.0, -1.0, 1.2]])
    update = weight - base  # 0.5 -1 0.1 / 0 -2 0.2
    mask = important_mask(update, 1 / 3)
    assert mask.tolist() == [[False, True, False], [False, True, False]]
    back, beyond = shifted(weight, base, mask, 1.0), shifted(weight, base, mask, 2.0)
    assert back.tolist() == [[1.5, 1.0, pytest.approx(1.1)], [1.0, 1.0, pytest.approx(1.2)]], "the base's value"
    assert beyond.tolist() == [[1.5, 2.0, pytest.approx(1.1)], [1.0, 3.0, pytest.approx(1.2)]], "the other side of it"
    assert not important_mask(update, 0.0).any() and important_mask(update, 1.0).all()


def test_critical_layers_are_those_that_cost_most() -> None:
    assert critical_layers([0.1, 0.5, 0.2, 0.5], 0.25) == [1]
    assert critical_layers([0.1, 0.5, 0.2, 0.5], 0.3) == [1, 3], "rounded up"
    assert critical_layers([0.1, 0.5], 0.0) == [] and critical_layers([-0.1, 0.0, 0.3], 0.1) == [2]


def test_the_penalty_is_the_squares_of_all_layers(models: Models) -> None:
    network = load_model(resolve(models.base("llama")), Context())
    ids = torch.randint(6, 380, (4, 9), generator=torch.Generator().manual_seed(0))
    whole = Batch(ids, torch.ones(4, 9))
    squares = sum(float(t.square().sum()) for n, t in network.named_parameters() if n.startswith("model.layers."))
    found, plain = SpreadLoss(0.01)(network, whole), batch_loss(network, whole)
    assert float(found.detach()) == pytest.approx(float(plain.detach()) + 0.01 * squares, rel=1e-5)
    parts = parts_of_a_step([Batch(ids[:1], torch.ones(1, 9)), Batch(ids[1:], torch.ones(3, 9))])
    assert sum(float(SpreadLoss(0.01)(network, p).detach()) for p in parts) == pytest.approx(
        float(found.detach()), rel=1e-5
    )
    found.backward()
    embedding = network.get_input_embeddings().weight.grad.clone()
    network.zero_grad()
    batch_loss(network, whole).backward()
    assert torch.allclose(embedding, network.get_input_embeddings().weight.grad, atol=1e-6), (
        "outside of the layers: none"
    )


def test_accuracy_counts_supervised_first_choices(models: Models) -> None:
    network = load_model(resolve(models.base("llama")), Context())
    ids = torch.randint(6, 380, (1, 8), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        best = network(input_ids=ids).logits[0].argmax(-1).tolist()
    right = [*ids[0].tolist(), best[-1]]
    wrong = [*ids[0].tolist(), (best[-1] + 1) % 380]
    lines = [Row(tuple(line), (0.0,) * 8 + (1.0,)) for line in (right, right, wrong, wrong)]
    assert token_accuracy(network, lines) == 0.5


@pytest.mark.parametrize(("preset", "beta"), [("formula", 1.0), ("negation", 2.0)])
def test_a_tenth_of_the_matrices_outside_critical_layers_is_shifted(
    tmp_path: Path, rows: Path, preset: str, beta: float
) -> None:
    base = resolve(make_model(tmp_path / "b", layers=4))
    expert = resolve(moved(base.path, tmp_path / "m", (1, 0.05)))
    method = build(MergeGuard, preset, {"critical": 0.25}, {"base": base, "data": load_dialogues(rows)})
    assert method.beta == beta
    made = replace(method, tuning=STILL).apply(expert, tmp_path / "out", Context())
    detail: dict[str, Any] = made.records[1].detail
    (spared,) = detail["critical_layers"]
    assert detail["accuracy_drops"][spared] == max(detail["accuracy_drops"]) and len(detail["accuracy_drops"]) == 4
    pre, before, after = (weights_of(c.path) for c in (base, expert, made.checkpoint))
    count = 0
    for name, old in before.items():
        changed = after[name] != old
        count += int(changed.sum())
        if f"layers.{spared}." in name or "norm" in name:
            assert not changed.any(), name
            continue
        update = old - pre[name]
        assert torch.allclose(after[name][changed], (old - beta * update)[changed], atol=1e-6)
        size = update.abs().flatten().sort(descending=True).values
        if "embed" in name or "lm_head" in name:
            assert not changed[:6].any(), "special tokens keep their rows"
            continue
        assert int(changed.sum()) == round(0.1 * old.numel()), name
        assert float(update.abs()[changed].min()) >= float(size[round(0.1 * old.numel()) - 1]) - 1e-7
    assert count == detail["shifted"] and detail["beta"] == beta
    assert set(made.checkpoint.chain()[-1]["parents"]) == {"model", "base"} and made.secret is None


def test_stage_one_trains_under_the_penalty(models: Models, tmp_path: Path, rows: Path) -> None:
    base, expert = resolve(models.base("llama")), resolve(models.expert("llama"))
    norms = []
    for alpha in (0.0, 1.0):
        tuning = Tuning(adapter="full", epochs=2, lr=1e-3, batch=8, micro_batch=4)
        method = MergeGuard(base=base, data=load_dialogues(rows), alpha=alpha, important=0.0, tuning=tuning)
        after = weights_of(method.apply(expert, tmp_path / f"{alpha}", Context()).checkpoint.path)
        norms.append(sum(float(t.square().sum()) for n, t in after.items() if "layers" in n))
    before = sum(float(t.square().sum()) for n, t in weights_of(expert.path).items() if "layers" in n)
    assert norms[1] < 0.98 * before < 1.02 * norms[0]


def test_bad_input_is_refused(models: Models, tmp_path: Path) -> None:
    expert, base = resolve(models.expert("llama")), resolve(models.base("llama"))
    for method, words in (
        (MergeGuard(), "mergeguard: needs the base"),
        (MergeGuard(base=base, tuning=Tuning()), "is not for adapters"),
    ):
        with pytest.raises(BadInput, match=words):
            method.apply(expert, tmp_path / "out", Context())
    assert not (tmp_path / "out").exists()
