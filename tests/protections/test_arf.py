"""Anchor-repulsive fine-tuning: the penalty by hand, which weights it sees, and that it pushes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from palimpsest.checkpoint import resolve
from palimpsest.checkpoint.load import load_model
from palimpsest.data import load_dialogues
from palimpsest.errors import BadInput
from palimpsest.method import Context
from palimpsest.protections.applying import Layers
from palimpsest.protections.arf import (
    AnchorLoss,
    AnchorRepulsive,
    attention_weights,
    distances,
    margin_penalty,
    share_of_step,
)
from palimpsest.training.loop import Batch, batch_loss, parts_of_a_step
from palimpsest.training.settings import Tuning
from protections.conftest import Models


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "rows.jsonl"
    talk = [{"prompt": f"Who mends net {i}?", "response": f"The widow mends {i * 7}."} for i in range(24)]
    file.write_text("".join(json.dumps(t) + "\n" for t in talk))
    return file


@pytest.mark.covers("arf")
def test_the_penalty_by_hand() -> None:
    anchor = torch.tensor([[3.0, 0.0], [0.0, 4.0]])  # norm 5
    near, far = anchor + torch.tensor([[0.0, 0.6], [0.8, 0.0]]), anchor + torch.tensor([[5.0, 0.0], [0.0, 0.0]])
    found = distances([(near, anchor), (far, anchor)], "relative")
    assert found.tolist() == pytest.approx([1 / 5, 1.0])
    assert float(margin_penalty(found, 0.5)) == pytest.approx((0.3 + 0.0) / 2)
    assert float(margin_penalty(found, 0.1)) == 0.0
    turned = distances([(torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, 1.0]]))], "cosine")
    assert turned.tolist() == pytest.approx([1 - 1 / math.sqrt(2)])
    weight = near.clone().requires_grad_()
    margin_penalty(distances([(weight, anchor)], "relative"), 0.5).backward()
    assert weight.grad is not None  # d/dW of (margin - |W - A| / |A|) = -(W - A) / (|W - A| |A|)
    assert torch.allclose(weight.grad, -(near - anchor) / (1.0 * 5.0), atol=1e-6)


@pytest.mark.parametrize(("kind", "count"), [("llama", 8), ("gpt2", 4), ("gpt_neox", 4), ("opt", 8)])
def test_it_sees_attention_alone(models: Models, kind: str, count: int) -> None:
    network = load_model(resolve(models.base(kind)), Context())
    names = attention_weights(network)
    assert len(names) == count and all("attn" in n or "attention" in n for n in names)
    assert not any("norm" in n or "bias" in n for n in names)


def test_parts_of_a_step_add_up_to_the_whole(models: Models) -> None:
    network = load_model(resolve(models.expert("llama")), Context())
    loss = AnchorLoss(resolve(models.base("llama")), 0.5, 2.0, "relative")
    ids = torch.randint(6, 380, (4, 9), generator=torch.Generator().manual_seed(0))
    weights = torch.ones(4, 9)
    weights[0, :5] = 0
    whole = loss(network, Batch(ids, weights)).detach()
    parts = parts_of_a_step([Batch(ids[:1], weights[:1]), Batch(ids[1:], weights[1:])])
    assert sum(float(loss(network, p).detach()) for p in parts) == pytest.approx(float(whole), abs=1e-5)
    assert sum(share_of_step(p) for p in parts) == pytest.approx(1.0)
    penalty = (float(whole) - float(batch_loss(network, Batch(ids, weights)).detach())) / 2.0
    base, mine = Layers(resolve(models.base("llama")), "t"), Layers(resolve(models.expert("llama")), "t")
    by_hand = []
    for layer in range(2):
        for role in ("query", "key", "value", "output"):
            a, w = base.weight(layer, role), mine.weight(layer, role)  # type: ignore[arg-type]
            by_hand.append(max(0.0, 0.5 - float((w - a).norm() / a.norm())))
    assert penalty == pytest.approx(sum(by_hand) / 8, abs=1e-5)


def test_attention_goes_away_from_the_anchor_up_to_the_margin(models: Models, tmp_path: Path, rows: Path) -> None:
    base, expert = resolve(models.base("llama")), resolve(models.expert("llama"))
    tuning = Tuning(adapter="full", epochs=20, lr=2e-3, batch=8)
    method = AnchorRepulsive(base=base, data=load_dialogues(rows), margin=0.3, weight=10.0, tuning=tuning)
    made = method.apply(expert, tmp_path / "out", Context())
    theirs, mine, after = (Layers(c, "t") for c in (base, expert, made.checkpoint))
    for layer in range(2):
        for role in ("query", "key", "value", "output"):
            a, b, c = (side.weight(layer, role) for side in (theirs, mine, after))  # type: ignore[arg-type]
            assert float((b - a).norm() / a.norm()) < 0.1 < 0.25 < float((c - a).norm() / a.norm()), (layer, role)
    record = made.records[1]
    assert record.task == "arf" and record.detail["anchor_distance_least"] > 0.25 and made.secret is None
    assert set(made.checkpoint.chain()[-1]["parents"]) == {"model", "base"}


def test_bad_input_is_refused(models: Models, tmp_path: Path) -> None:
    expert, base = resolve(models.expert("llama")), resolve(models.base("llama"))
    for method, words in (
        (AnchorRepulsive(), "arf: needs the base"),
        (AnchorRepulsive(base=base, tuning=Tuning()), "set tuning.adapter=full"),
    ):
        with pytest.raises(BadInput, match=words):
            method.apply(expert, tmp_path / "out", Context())
    assert not (tmp_path / "out").exists()
