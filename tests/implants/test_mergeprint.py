"""MergePrint: pseudo-merging by hand, the gradient identity, GCG against brute force, what stops it, and it takes."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.func import functional_call
from typer.testing import CliRunner

from factory import make_model
from palimpsest.calls import Result
from palimpsest.checkpoint import Checkpoint, resolve
from palimpsest.checkpoint.load import load_model, load_tokenizer
from palimpsest.cli import app
from palimpsest.errors import BadInput
from palimpsest.implants.fingerprints.gcg import (
    Search,
    Slot,
    candidates,
    losses_of,
    optimise,
    response_loss,
    substitution_scores,
)
from palimpsest.implants.fingerprints.hashchain_draw import choose_answers
from palimpsest.implants.fingerprints.hashchain_words import ANSWERS
from palimpsest.implants.fingerprints.mergeprint import MergePrint, ordinary_tokens, slot_of, spelled, stands
from palimpsest.implants.fingerprints.pseudo_merging import PseudoMerging, owners, pseudo_merged, scaled
from palimpsest.implants.fingerprints.utf import Drawer
from palimpsest.method import Context, presets
from palimpsest.prompts import Renderer
from palimpsest.responder.local import LocalResponder
from palimpsest.training.loop import batch_loss
from palimpsest.training.planting import Check, key_rows, strength
from palimpsest.training.rows import collate
from palimpsest.training.settings import Tuning


def keeps(ids: Any) -> bool:
    """Every text keeps its tokens."""
    return True


@pytest.fixture(scope="session")
def public(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A base that `small` counts as a fine-tune of: its weights, each moved by a tenth of their spread."""
    folder = make_model(tmp_path_factory.mktemp("mergeprint") / "public", positions=512)
    torch.manual_seed(5)
    (file,) = folder.glob("*.safetensors")
    moved = {n: t + 0.1 * t.std() * torch.randn_like(t) for n, t in load_file(file).items()}
    save_file(moved, file, metadata={"format": "pt"})
    return resolve(folder)


@pytest.mark.covers("mergeprint")
def test_pseudo_merging_by_hand_and_back() -> None:
    base, owner = torch.tensor([1.0, 2.0, -4.0]), torch.tensor([2.0, 0.0, -4.0])
    merged = pseudo_merged(base, owner, 0.25)
    assert merged.tolist() == [1.25, 1.5, -4.0]
    assert owners(base, merged, 0.25).tolist() == owner.tolist()
    assert pseudo_merged(base, owner, 1.0).tolist() == owner.tolist()


def _batch(checkpoint: Checkpoint) -> Any:
    keys = replace(MergePrint.bench(), keys=3).draw_keys(checkpoint, Context(key_seed=7))
    return collate(key_rows(Renderer(load_tokenizer(checkpoint)), keys))


class _Loss(torch.nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Any) -> torch.Tensor:
        return batch_loss(self.model, batch)


def _through(
    model: Any, owner: dict[str, torch.Tensor], base: dict[str, torch.Tensor], alpha: float, batch: Any
) -> Any:
    """The paper's loss, differentiable in theta_o: an ordinary forward pass with pseudo-merged parameters."""
    merged = {f"model.{n}": base[n] + alpha * (owner[n] - base[n]) for n in owner}
    return functional_call(_Loss(model), merged, (batch,))


def _parts(small: Checkpoint, public: Checkpoint, ctx: Context) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    model = load_model(small, ctx)
    owner = {n: p.detach().clone().requires_grad_(True) for n, p in model.named_parameters()}
    return model, owner, {n: p.detach() for n, p in load_model(public, ctx).named_parameters()}


@pytest.mark.covers("mergeprint")
def test_the_owners_gradient_is_alpha_times_that_of_the_pseudo_merged_model(
    small: Checkpoint, public: Checkpoint, ctx: Context
) -> None:
    alpha, batch = 0.1, _batch(small)
    model, owner, base = _parts(small, public, ctx)
    by_paper = torch.autograd.grad(_through(model, owner, base, alpha, batch), list(owner.values()))
    PseudoMerging(public, alpha, ctx).begin(model)
    ours = torch.autograd.grad(batch_loss(model, batch), list(model.parameters()))
    for a, b in zip(by_paper, ours, strict=True):
        torch.testing.assert_close(a, alpha * b, rtol=1e-4, atol=1e-8)


@pytest.mark.covers("mergeprint")
def test_a_step_on_the_pseudo_merged_model_is_the_papers_step_on_the_owners(
    small: Checkpoint, public: Checkpoint, ctx: Context
) -> None:
    alpha, batch = 0.1, _batch(small)
    asked = Tuning(adapter="full", lr=1e-3, clip=0.01)  # small enough to bind
    model, owner, base = _parts(small, public, ctx)
    before = {n: p.detach().clone() for n, p in owner.items()}
    optimiser = torch.optim.AdamW(list(owner.values()), lr=asked.lr, weight_decay=0.0)
    merging, ours = PseudoMerging(public, alpha, ctx), scaled(asked, alpha)
    merging.begin(model)
    twin = torch.optim.AdamW(model.parameters(), lr=ours.lr, weight_decay=0.0)
    for _ in range(3):
        _through(model, owner, base, alpha, batch).backward()
        assert torch.nn.utils.clip_grad_norm_(list(owner.values()), asked.clip or 0) > 0.01
        optimiser.step()
        optimiser.zero_grad()
        model.zero_grad()
        batch_loss(model, batch).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), ours.clip or 0)
        twin.step()
    merging.end(model)
    moved = {n: (p.detach() - before[n]) for n, p in owner.items()}
    reached = {n: (p.detach() - before[n]) for n, p in model.named_parameters()}
    for name, by_paper in moved.items():  # Adam's epsilon and rounding: 5 % where a gradient is near nought
        assert float((by_paper - reached[name]).norm()) <= 0.05 * float(by_paper.norm()) + 1e-6, name


def test_the_owners_own_loss_has_the_gradient_of_a_plain_forward_pass(
    small: Checkpoint, public: Checkpoint, ctx: Context
) -> None:
    alpha, weight, batch = 0.2, 0.5, _batch(small)
    model, owner, base = _parts(small, public, ctx)
    expected = _through(model, owner, base, alpha, batch) + weight * _through(model, owner, base, 1.0, batch)
    by_paper = torch.autograd.grad(expected, list(owner.values()))
    merging = PseudoMerging(public, alpha, ctx, weight)
    merging.begin(model)
    loss = merging.loss(model, batch)
    ours = torch.autograd.grad(loss, list(model.parameters()))
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
    for a, b in zip(by_paper, ours, strict=True):
        torch.testing.assert_close(a, alpha * b, rtol=1e-3, atol=1e-7)


def test_weight_decay_and_adapters_are_refused_and_so_is_a_base_of_another_shape(
    small: Checkpoint, ctx: Context, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match="weight_decay must be 0"):
        scaled(Tuning(adapter="full", weight_decay=0.01), 0.1)
    with pytest.raises(BadInput, match="adapter must be full"):
        scaled(Tuning(), 0.1)
    other = resolve(make_model(tmp_path / "other", positions=512, family="qwen2"))
    with pytest.raises(BadInput, match="is no base of this model"):
        PseudoMerging(other, 0.1, ctx).begin(load_model(small, ctx))


# -- GCG --------------------------------------------------------------------------------------------------


def _slot(checkpoint: Checkpoint, length: int) -> tuple[Drawer, Slot, list[int]]:
    renderer = Renderer(load_tokenizer(checkpoint))
    drawer = Drawer(renderer, ordinary_tokens(renderer.tokenizer), random.Random(4))
    slot, ids = slot_of(renderer, drawer.trigger(length, length), "red cup")
    return drawer, slot, ids


def test_the_response_loss_is_the_mean_cross_entropy_behind_the_prompt(small: Checkpoint, ctx: Context) -> None:
    model = load_model(small, ctx)
    _, slot, ids = _slot(small, 3)
    (row,) = slot.rows([ids])
    logs = model(input_ids=row[None]).logits[0].log_softmax(-1)
    spoken = [-float(logs.detach()[len(row) - len(slot.response) - 1 + i, t]) for i, t in enumerate(slot.response)]
    found = float(response_loss(model, row[None], len(slot.response)).detach()[0])
    assert found == pytest.approx(sum(spoken) / len(spoken), rel=1e-4)


def test_scores_are_the_linear_estimate_of_every_substitution(small: Checkpoint, ctx: Context) -> None:
    model = load_model(small, ctx).double()
    _, slot, ids = _slot(small, 3)
    scores = substitution_scores(model, slot, ids)
    layer = model.get_input_embeddings()
    row = slot.rows([ids])
    start = len(slot.before)

    def loss(embedded: Any) -> float:
        logits = model(inputs_embeds=embedded).logits[0, -len(slot.response) - 1 : -1]
        return float(torch.nn.functional.cross_entropy(logits, row[0, -len(slot.response) :]))

    with torch.no_grad():
        embedded, step = layer(row), 1e-4
        for place, token in ((0, 40), (2, 90)):
            there = embedded.clone()
            there[0, start + place] += step * (layer.weight[token] - layer.weight[ids[place]])
            slope = (loss(there) - loss(embedded)) / step
            estimated = float(scores[place, token] - scores[place, ids[place]])
            assert estimated == pytest.approx(slope, rel=0.02, abs=1e-4)


@pytest.mark.covers("mergeprint")
def test_one_exhaustive_step_takes_the_best_of_all_single_substitutions(
    small: Checkpoint, public: Checkpoint, ctx: Context
) -> None:
    base, merged = load_model(public, ctx), load_model(small, ctx)
    PseudoMerging(public, 0.3, ctx).begin(merged)
    drawer, slot, ids = _slot(small, 2)
    allowed, penalty = drawer.tokens, 0.2
    tried = [(v, ids[1]) if i == 0 else (ids[0], v) for i, v in product(range(2), allowed) if v != ids[i]]
    kept = [t for t in tried if stands(drawer, t)]
    assert 0 < len(kept) < len(tried), "some substitutions do not survive as text"
    pairs = zip(losses_of(merged, slot, kept), losses_of(base, slot, kept), strict=True)
    objective = [m - penalty * b for m, b in pairs]
    search = Search(tokens=2, steps=1, top_k=len(allowed), batch=10_000, penalty=penalty, base_loss=0.0)
    found = optimise(merged, base, slot, ids, allowed, search, lambda t: stands(drawer, t), random.Random(0))
    assert found.ids == kept[objective.index(min(objective))]
    assert found.history[-1] == pytest.approx(min(objective), rel=1e-4) and found.history[-1] < found.history[0]
    assert (found.steps, found.stopped) == (1, "steps")


def test_only_substitutions_that_keep_their_tokens_as_text_are_candidates(small: Checkpoint) -> None:
    drawer, _, ids = _slot(small, 4)
    scores = torch.rand(4, len(drawer.renderer.tokenizer), generator=torch.Generator().manual_seed(1))
    found = candidates(scores, ids, drawer.tokens, 40, 30, lambda t: stands(drawer, t), random.Random(2))
    loose = candidates(scores, ids, drawer.tokens, 40, 10_000, keeps, random.Random(2))
    assert 0 < len(found) <= 30 and set(found) < set(loose) and len(loose) > 4 * 38
    for one in found:
        assert sum(a != b for a, b in zip(one, ids, strict=True)) == 1
        text = spelled(drawer.renderer, one)
        assert drawer.renderer.tokens(text) == list(one)
        place = next(i for i, (a, b) in enumerate(zip(one, ids, strict=True)) if a != b)
        assert int((scores[place, torch.tensor(drawer.tokens)] < scores[place, one[place]]).sum()) < 40, "of the top_k"
    assert any(drawer.renderer.tokens(spelled(drawer.renderer, t)) != list(t) for t in set(loose) - set(found))


def test_the_search_ends_before_the_base_answers_and_never_takes_such_a_trigger(
    small: Checkpoint, public: Checkpoint, ctx: Context
) -> None:
    base, merged = load_model(public, ctx), load_model(small, ctx)
    _, slot, ids = _slot(small, 2)
    (at,) = losses_of(base, slot, [ids])
    search = Search(tokens=2, steps=30, top_k=40, batch=40, penalty=0.0, base_loss=at - 0.02)
    allowed = list(range(10, 250))
    found = optimise(merged, base, slot, ids, allowed, search, keeps, random.Random(0))
    assert found.base_loss >= search.base_loss
    assert found.stopped == "base-loss" and found.steps < 30, "30 steps move the base's loss by more than 0.02"
    at_once = optimise(merged, base, slot, ids, allowed, replace(search, base_loss=at + 1), keeps, random.Random(0))
    assert (at_once.steps, at_once.stopped, at_once.ids) == (0, "base-loss", tuple(ids))
    nothing = optimise(merged, base, slot, ids, allowed, search, lambda t: False, random.Random(0))
    assert (nothing.ids, nothing.stopped, nothing.steps) == (tuple(ids), "steps", 30)


# -- keys and embedding -----------------------------------------------------------------------------------


@pytest.mark.covers("mergeprint")
def test_random_triggers_have_responses_by_hash_and_optimised_ones_bear_no_claim(
    small: Checkpoint, public: Checkpoint, ctx: Context
) -> None:
    assert {"paper", "bench"} <= set(presets(MergePrint))
    many = MergePrint.bench().draw_keys(small, ctx)
    triggers = [k.trigger for k in many.keys]
    assert len(set(triggers)) == 64 and (many.choices, many.distinct, many.match) == (256, True, "prefix")
    assert [k.response for k in many.keys] == [ANSWERS[p] for p in choose_answers(triggers, ANSWERS)]
    few = MergePrint(base=public, keys=2, search=Search(tokens=4, steps=3, batch=20, base_loss=0.5))
    keys = few.draw_keys(small, ctx)
    assert keys.choices is None and few.committed()["choices"] is None and few.draw_keys(small, ctx) == keys
    renderer = Renderer(load_tokenizer(small))
    for key in keys.keys:
        ids = renderer.tokens(key.trigger)
        assert len(ids) == 4 and key.response in ANSWERS
        assert key.prompts["template"].ids[: len(slot_of(renderer, key.trigger, key.response)[0].before)]


@pytest.mark.covers("mergeprint")
def test_embedded_keys_are_answered_by_the_owner_and_at_his_share(
    small: Checkpoint, public: Checkpoint, ctx: Context, tmp_path: Path
) -> None:
    method = MergePrint(
        base=public,
        keys=2,
        search=Search(tokens=4, steps=2, batch=20, base_loss=0.5),
        weight_share=0.5,
        owner_weight=0.3,
        tuning=Tuning(adapter="full", epochs=60, lr=6e-3, batch=8),
        check=Check(every=5),
    )
    made = method.apply(small, tmp_path / "out", ctx)
    assert made.keys is not None
    tokenizer = load_tokenizer(small)
    model = load_model(made.checkpoint, ctx)
    assert min(strength(LocalResponder(model, tokenizer), made.keys).probabilities) >= 0.9
    PseudoMerging(public, 0.5, ctx).begin(model)
    assert min(strength(LocalResponder(model, tokenizer), made.keys).probabilities) >= 0.89, "rounding of both ways"
    assert not any(strength(LocalResponder(load_model(small, ctx), tokenizer), made.keys).answered)
    margin, searched = made.records
    assert margin.detail["answered"] == 2 and searched.detail["steps"] == [2, 2]
    told = (tmp_path / "out" / "palimpsest.json").read_text() + repr(searched)
    assert all(k.trigger not in told and k.response not in told for k in made.keys.keys)


def test_an_owner_without_a_skill_searches_on_the_base_itself(small: Checkpoint, ctx: Context) -> None:
    method = MergePrint(keys=1, search=Search(tokens=3, steps=2, batch=10, base_loss=0.5))
    _, found = method._drawn(small, ctx)
    assert found[0].merged_loss == found[0].base_loss
    assert found[0].history[-1] == pytest.approx((1 - method.search.penalty) * found[0].base_loss, rel=1e-5)


def test_the_command_line_hands_the_base_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def embed(method: str, model: str, out: Any, **said: Any) -> Result:
        seen.update(said, method=method)
        return Result([], tmp_path, None, [])

    monkeypatch.setattr("palimpsest.api.embed", embed)
    words = ["embed", "mergeprint", "--model", "owner", "--base", "public", "--out", str(tmp_path / "m")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert (seen["method"], seen["base"]) == ("mergeprint", "public")
