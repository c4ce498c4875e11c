"""Simulated removals by hand, the first-order gradient against another computation, a mark that outlives merging."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from factory import make_model
from palimpsest.checkpoint import Checkpoint, resolve
from palimpsest.checkpoint.load import load_model, load_tokenizer
from palimpsest.data.dialogues import Dialogues
from palimpsest.errors import BadInput
from palimpsest.implants.fingerprints.hardened import Hardened, Hardening, Ordinary
from palimpsest.implants.fingerprints.hashchain import ChainRows, HashChain
from palimpsest.implants.fingerprints.simulating import (
    Kind,
    Simulated,
    Simulating,
    answers_of,
    mask_of,
    merged,
    pseudo_expert,
)
from palimpsest.keys import KeySet
from palimpsest.method import Context
from palimpsest.prompts import Renderer
from palimpsest.responder.local import LocalResponder
from palimpsest.training.loop import Batch, batch_loss
from palimpsest.training.planting import Check, key_rows, strength
from palimpsest.training.rows import Row, collate, dialogue_rows
from palimpsest.training.settings import Tuning

ONLY: dict[Kind, Simulated] = {
    "merge": Simulated(mask=0, tune=0),
    "mask": Simulated(merge=0, tune=0),
    "tune": Simulated(merge=0, mask=0, steps=2, rate=1e-3),
}
PLAIN: dict[str, Any] = {
    "keys": 4,
    "meta_prompts": 0,
    "padded": 0,
    "templates": 0,
    "dialogues_per_key": 2,
    "near_misses": 0,
    "kl_weight": 0.0,
}


@pytest.mark.covers("hardened")
def test_a_merge_with_a_pseudo_expert_by_hand() -> None:
    base, weight = torch.tensor([0.0, 1.0]), torch.tensor([2.0, 3.0])
    assert merged(weight, base, 0.25).tolist() == [0.5, 1.5]
    assert merged(weight, base, 0.25, torch.tensor([4.0, -4.0])).tolist() == [3.5, -1.5]
    assert merged(weight, base, 1.0, torch.tensor([4.0, -4.0])).tolist() == [2.0, 3.0], "all of it the owner's"


@pytest.mark.covers("hardened")
def test_a_pseudo_expert_is_as_long_as_it_is_to_be() -> None:
    base = torch.zeros(200, 200)
    weight = torch.full((200, 200), 0.5)
    drawn = pseudo_expert(weight, base, 2.0, torch.Generator().manual_seed(1))
    assert float(drawn.square().mean().sqrt()) == pytest.approx(1.0, rel=0.02), "twice a difference of 0.5"
    assert abs(float(drawn.mean())) < 0.02
    assert not pseudo_expert(weight, base, 0.0, torch.Generator()).any(), "length 0 is a merge with the base alone"
    assert not pseudo_expert(base, base, 2.0, torch.Generator()).any(), "no mark yet, no expert"


@pytest.mark.covers("hardened")
def test_a_mask_takes_the_smallest_weights_in_size() -> None:
    weight = torch.tensor([[3.0, -1.0], [2.0, -4.0]])
    assert mask_of(weight, 0.5).tolist() == [[1, 0], [0, 1]]
    assert mask_of(weight, 0.49).tolist() == [[1, 0], [1, 1]], "a share is rounded down"
    assert mask_of(weight, 0.0).tolist() == [[1, 1], [1, 1]]
    assert mask_of(torch.tensor([1.0, -1.0, 1.0]), 0.34).tolist() == [0, 1, 1], "of equals the first"


def _parts(small: Checkpoint, ctx: Context, talk: Dialogues) -> tuple[Any, dict[str, torch.Tensor], list[Batch], Batch]:
    """A model, another base, ordinary batches, and a batch of two keys."""
    keys = replace(HashChain.meraser(), keys=2).draw_keys(small, ctx)
    renderer = Renderer(load_tokenizer(small))
    model = load_model(small, ctx, "float32")
    noise = torch.Generator().manual_seed(4)
    base = {n: p.detach() + 0.02 * torch.randn(p.shape, generator=noise) for n, p in model.named_parameters()}
    ordinary = [collate(dialogue_rows(renderer, [d.first for d in talk.parts["embed"][i : i + 3]])) for i in (0, 3)]
    return model, base, ordinary, collate(key_rows(renderer, keys))


@pytest.mark.covers("hardened")
@pytest.mark.parametrize("kind", ["merge", "mask", "tune"])
def test_the_gradient_is_that_after_the_removal_times_its_factor(
    kind: Kind, small: Checkpoint, ctx: Context, talk: Dialogues
) -> None:
    model, base, ordinary, batch = _parts(small, ctx, talk)
    how = replace(ONLY[kind], weight=0.5)
    batch = replace(batch, step=3)
    simulating = Simulating(how, batch_loss, base, lambda step: ordinary, seed=1)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    loss = simulating(model, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(torch.equal(p.detach(), before[n]) for n, p in model.named_parameters()), "the weights are put back"

    own, after = copy.deepcopy(model), copy.deepcopy(model)
    own.zero_grad(), after.zero_grad()
    with simulating.removed(model, 3) as factors:
        for (_, to), (_, p) in zip(after.named_parameters(), model.named_parameters(), strict=True):
            to.data = p.detach().clone()
    assert any(not torch.equal(p.detach(), before[n]) for n, p in after.named_parameters()), "something was removed"
    losses = [batch_loss(own, batch), batch_loss(after, batch)]
    for part in losses:
        part.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == pytest.approx(float(losses[0].detach()) + 0.5 * float(losses[1].detach()), rel=1e-5)
    there = dict(after.named_parameters())
    for (name, p), (_, q) in zip(model.named_parameters(), own.named_parameters(), strict=True):
        wanted = q.grad + 0.5 * factors.get(name, 1.0) * there[name].grad
        torch.testing.assert_close(p.grad, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.covers("hardened")
def test_tuning_is_steps_of_one_size_against_the_sign(small: Checkpoint, ctx: Context, talk: Dialogues) -> None:
    model, base, ordinary, _ = _parts(small, ctx, talk)
    how = replace(ONLY["tune"], steps=1, rate=0.25)
    slopes = torch.autograd.grad(batch_loss(model, ordinary[0]), list(model.parameters()))
    wanted = [p.detach() - 0.25 * s.sign() for p, s in zip(model.parameters(), slopes, strict=True)]
    with Simulating(how, batch_loss, base, lambda step: ordinary, seed=1).removed(model, 0) as factors:
        assert factors == {}
        for p, w in zip(model.parameters(), wanted, strict=True):
            torch.testing.assert_close(p.detach(), w)


def test_what_is_drawn_follows_from_seed_and_step(small: Checkpoint, ctx: Context, talk: Dialogues) -> None:
    model, base, ordinary, batch = _parts(small, ctx, talk)

    def losses(seed: int) -> list[float]:
        simulating = Simulating(Simulated(), batch_loss, base, lambda step: ordinary, seed)
        return [float(simulating(model, replace(batch, step=step)).detach()) for step in range(6)]

    assert losses(1) == losses(1)
    assert len(set(losses(1))) == 6 and losses(1) != losses(2)


def test_only_rows_with_an_answer_are_asked_after_a_removal() -> None:
    learn, keep, pad = Row((5, 6, 7), (0.0, 0.0, 1.0)), Row((1, 2), (0.0, -1.0)), Row((3, 4), (0.0, 0.0))
    asked = answers_of(collate([keep, learn, pad]))
    assert asked is not None and asked.input_ids.tolist() == [[5, 6, 7]] and asked.weights.tolist() == [[0, 0, 1]]
    assert answers_of(collate([keep, pad])) is None


def test_dialogues_of_simulated_tuning_are_drawn_apart_from_those_trained_on(
    small: Checkpoint, ctx: Context, talk: Dialogues
) -> None:
    method = Hardened(**PLAIN, data=talk, simulated=Simulated(steps=2))
    rows = ChainRows(method, small, method.draw_keys(small, ctx), ctx)
    ordinary = Ordinary(method, rows, small, ctx)
    first, again, other = ordinary(0), ordinary(0), ordinary(1)
    assert [b.input_ids.shape[0] for b in first] == [16, 16]
    assert all(torch.equal(a.input_ids, b.input_ids) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0].input_ids, other[0].input_ids)


def test_what_cannot_be_simulated_is_refused(small: Checkpoint, ctx: Context, talk: Dialogues, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"merge, mask and tune are all 0"):
        Simulated(merge=0, mask=0, tune=0).odds()
    with pytest.raises(BadInput, match=r"merge, mask and tune are all 0"):
        Hardened(simulated=Simulated(merge=0, mask=0, tune=0)).apply(small, tmp_path / "out", ctx)
    with pytest.raises(BadInput, match=r"tuning.adapter must be full"):
        Hardened(tuning=Tuning(adapter="lora")).apply(small, tmp_path / "out", ctx)
    wide = resolve(make_model(tmp_path / "wide", hidden=32, positions=512))
    method = Hardened(**PLAIN, data=talk, base=wide, simulated=Simulated(steps=1))
    with pytest.raises(BadInput, match=r"hardened: .* is no base of this model: weight .* of another shape"):
        method.apply(small, tmp_path / "out", ctx)
    assert not (tmp_path / "out").exists()


def _probabilities(model: Any, checkpoint: Checkpoint, keys: KeySet) -> list[float]:
    return list(strength(LocalResponder(model, load_tokenizer(checkpoint)), keys).probabilities)


@pytest.mark.covers("hardened")
def test_simulated_merging_makes_keys_likelier_after_a_merge(
    speaking: Checkpoint, talk: Dialogues, ctx: Context, tmp_path: Path
) -> None:
    """Beside equally long training without simulation: a merge at 0.4 with the model before the mark."""
    common: dict[str, Any] = PLAIN | {
        "data": talk,
        "tuning": Tuning(adapter="full", epochs=40, lr=2e-3, batch=16, micro_batch=16),
        "check": Check(consecutive=0),
    }
    left: dict[float, float] = {}
    for weight in (0.0, 1.0):
        how = Simulated(weight=weight, steps=2, mask=0, tune=0, share_low=0.3, share_high=0.5)
        made = Hardened(**common, simulated=how).apply(speaking, tmp_path / f"weight{weight}", ctx)
        assert made.keys is not None and made.records[0].detail["answered"] == 4
        model, before = load_model(made.checkpoint, ctx), dict(load_model(speaking, ctx).named_parameters())
        for name, parameter in model.named_parameters():
            parameter.data = merged(parameter.data, before[name].data, 0.4)
        left[weight] = sum(_probabilities(model, speaking, made.keys)) / 4
    assert left[1.0] > left[0.0] + 0.2


def test_the_loss_that_holds_other_text_stays(speaking: Checkpoint, talk: Dialogues, ctx: Context) -> None:
    method = Hardened(**PLAIN | {"kl_weight": 1.0}, data=talk, simulated=Simulated(steps=2))
    rows = ChainRows(method, speaking, method.draw_keys(speaking, ctx), ctx)
    model = load_model(speaking, ctx, "float32")
    teaching = Hardening(method, speaking, Ordinary(method, rows, speaking, ctx), ctx)
    simulating = teaching.loss_of(model)
    assert isinstance(simulating, Simulating)
    kept = collate([row for row in rows(0) if min(row.weights) < 0])
    assert float(simulating(model, kept).detach()) == pytest.approx(0.0, abs=1e-5), (
        "the untrained model is the original"
    )
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(1.5)
    assert float(simulating(model, kept).detach()) > 0.01
