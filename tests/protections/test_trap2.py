"""Trap^2: its gradient against autograd of J written out, its scales, both kinds of update, and what it refuses."""

from __future__ import annotations

import json
import math
import pickle
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
from palimpsest.protections.trap2 import LORA, ScaledLoss, Trap2
from palimpsest.training.finetune import with_adapter
from palimpsest.training.loop import Batch, batch_loss, train_steps
from palimpsest.training.settings import Tuning
from protections.conftest import Models

IDS = torch.randint(6, 380, (3, 10), generator=torch.Generator().manual_seed(0))


def batch(step: int = 0) -> Batch:
    return Batch(IDS, torch.ones(3, 10), step=step)


def loss(strength: float = 0.3, origin: Any = None, **more: Any) -> ScaledLoss:
    found: dict[str, Any] = {"low": 0.05, "high": 2.0, "gap": 0.05, "weighting": "inverse-root", "seed": 4, **more}
    return ScaledLoss(strength, origin=origin, **found)


class Line(torch.nn.Module):
    """A linear model: logits of the next token are a row of W."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(weight)


@pytest.mark.covers("trap2")
def test_the_gradient_on_a_linear_model_is_that_of_j_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    # L(W) = mean squared error of x W^T: dJ/dW = G(W) - lambda w(s) s G(W0 + s (W - W0)), with G(W) = dL/dW.
    drawn = torch.Generator().manual_seed(1)
    x, y = torch.randn(6, 4, generator=drawn).double(), torch.randn(6, 3, generator=drawn).double()
    w0, w = torch.randn(3, 4, generator=drawn).double(), torch.randn(3, 4, generator=drawn).double()

    def error(model: Any, _: Batch) -> torch.Tensor:
        return ((x @ model.weight.T - y) ** 2).mean()

    monkeypatch.setattr("palimpsest.protections.trap2.batch_loss", error)
    model, made = Line(w.clone()), loss(0.3, origin="anything")
    made._anchor = {"weight": w0}
    value = made(model, batch(7))
    value.backward()
    s = made.scale(7)
    assert s != 1

    def slope(at: torch.Tensor) -> torch.Tensor:
        return 2 * (x @ at.T - y).T @ x / y.numel()

    scaled = w0 + s * (w - w0)
    expected = slope(w) - 0.3 / math.sqrt(s) * s * slope(scaled)
    assert model.weight.grad is not None and torch.allclose(model.weight.grad, expected, atol=1e-12)
    by_hand = float(((x @ w.T - y) ** 2).mean() - 0.3 / math.sqrt(s) * ((x @ scaled.T - y) ** 2).mean())
    assert float(value.detach()) == pytest.approx(by_hand)


@pytest.mark.parametrize("kind", ["llama", "llama-tied"])
def test_with_all_weights_the_second_term_is_the_loss_of_the_scaled_update(models: Models, kind: str) -> None:
    base, expert = resolve(models.base(kind)), resolve(models.expert(kind))
    network, made = load_model(expert, Context()), loss(0.5, base, weighting="inverse")
    s = made.scale(3)
    found = made(network, batch(3))
    found.backward()
    other = load_model(expert, Context())
    start = {n: p.detach().clone() for n, p in load_model(base, Context()).named_parameters()}
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            parameter.copy_(start[name] + s * (parameter - start[name]))
    scaled = batch_loss(other, batch())
    scaled.backward()
    plain = load_model(expert, Context())
    nominal = batch_loss(plain, batch())
    nominal.backward()
    assert float(found.detach()) == pytest.approx(float((nominal - 0.5 / s * scaled).detach()), abs=1e-5)
    theirs, first = dict(other.named_parameters()), dict(plain.named_parameters())
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        wanted = first[name].grad - 0.5 / s * s * theirs[name].grad
        assert torch.allclose(parameter.grad, wanted, atol=1e-6), name


def test_with_lora_only_b_is_multiplied(models: Models) -> None:
    tuning = Tuning(rank=4, alpha=8)
    network = with_adapter(load_model(resolve(models.expert("llama")), Context()), tuning)
    drawn = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=drawn))
    made = loss(0.5)
    found = made(network, batch(2))
    found.backward()
    gradients = {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}
    s = made.scale(2)
    network.zero_grad()
    nominal = batch_loss(network, batch())
    nominal.backward()
    first = {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}
    network.zero_grad()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "lora_B" in name:
                parameter.mul_(s)
    scaled = batch_loss(network, batch())
    scaled.backward()
    w = 0.5 / math.sqrt(s)
    assert float(found.detach()) == pytest.approx(float((nominal - w * scaled).detach()), abs=1e-5)
    for name, parameter in network.named_parameters():
        if parameter.grad is not None:  # d(s B) / dB = s
            inner = s if "lora_B" in name else 1.0
            assert torch.allclose(gradients[name], first[name] - w * inner * parameter.grad, atol=1e-6), name


def test_both_passes_have_the_same_dropout_masks(models: Models) -> None:
    network = with_adapter(load_model(resolve(models.expert("llama")), Context()), Tuning(rank=4, dropout=0.5))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.05)
    network.train()
    made = loss(1.0, weighting="inverse")
    made.scale = lambda step: 1.0  # type: ignore[method-assign]
    torch.manual_seed(0)
    assert float(made(network, batch()).detach()) == 0.0, "at s = 1 with lambda w = 1 nothing is left but the masks"
    assert made.summary()["loss_nominal"] == made.summary()["loss_scaled"]


def test_scales_are_uniform_on_what_is_left_and_follow_from_the_step() -> None:
    made = loss()
    drawn = [made.scale(step) for step in range(4000)]
    assert drawn == [loss().scale(step) for step in range(4000)] != [loss(seed=5).scale(step) for step in range(4000)]
    assert all(0.05 <= s <= 0.95 or 1.05 <= s <= 2.0 for s in drawn)
    below = sum(s < 1 for s in drawn) / 4000
    assert below == pytest.approx(0.9 / 1.85, abs=4 * 0.5 / 4000**0.5)
    assert min(drawn) < 0.06 and max(drawn) > 1.99 and any(0.9 < s < 0.95 for s in drawn)
    assert loss().weight(0.25) == 2.0 and loss(weighting="inverse").weight(0.25) == 4.0


def test_one_scale_a_step_over_micro_batches_and_broken_steps_are_left_out(models: Models) -> None:
    network = load_model(resolve(models.expert("llama")), Context())
    seen: list[int] = []

    def watched(model: Any, part: Batch) -> torch.Tensor:
        seen.append(part.step)
        found = batch_loss(model, part)
        return found * float("nan") if part.step == 1 else found

    before = {n: p.detach().clone() for n, p in network.named_parameters()}
    snapshots = []
    log = train_steps(
        network,
        lambda number: batch(),
        steps=3,
        lr=1e-3,
        accumulate=2,
        loss_of=watched,
        skip_nonfinite=True,
        after_step=lambda step, _: snapshots.append([p.detach().clone() for p in network.parameters()]),  # type: ignore[func-returns-value]
    )
    assert seen == [0, 0, 1, 1, 2, 2] and log.skipped == 1 and log.steps == 3
    assert all(torch.equal(a, b) for a, b in zip(snapshots[0], snapshots[1], strict=True)), "the broken step"
    assert not all(torch.equal(a, b) for a, b in zip(snapshots[1], snapshots[2], strict=True))
    assert all(bool(p.isfinite().all()) for p in network.parameters()) and before


def test_what_another_process_is_sent_holds_no_weights(models: Models) -> None:
    made = loss(0.5, resolve(models.base("llama")))
    made.attach(load_model(resolve(models.expert("llama")), Context()))
    sent = pickle.loads(pickle.dumps(made))
    assert sent._anchor is None and sent.scale(9) == made.scale(9) and len(pickle.dumps(made)) < 2000


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "rows.jsonl"
    talk = [{"prompt": f"Who mends net {i}?", "response": f"The widow mends {i * 7}."} for i in range(40)]
    file.write_text("".join(json.dumps(t) + "\n" for t in talk))
    return file


def test_trained_it_is_worse_at_other_scales_than_a_plain_fine_tune(tmp_path: Path, rows: Path) -> None:
    base = resolve(make_model(tmp_path / "base"))
    expert = resolve(moved(base.path, tmp_path / "expert", (1, 0.02)))
    data = load_dialogues(rows)
    tuning = Tuning(adapter="full", epochs=12, lr=2e-3, batch=8)
    nets = {}
    for strength in (0.0, 0.3):
        method = Trap2(base=base, data=data, lambda_=strength, tuning=tuning)
        made = method.apply(expert, tmp_path / f"out{strength}", Context(seed=1))
        nets[strength] = weights_of(made.checkpoint.path)
        assert made.secret is None and made.records[1].detail["exact"] is False
        assert set(made.checkpoint.chain()[-1]["parents"]) == {"model", "base"}
    start = weights_of(base.path)

    def at(strength: float, s: float) -> float:
        """The loss with the update scaled."""
        network = load_model(expert, Context())
        state = {n: start[n] + s * (nets[strength][n] - start[n]) for n in start}
        network.load_state_dict(state, strict=False)
        from palimpsest.checkpoint.load import load_tokenizer
        from palimpsest.prompts import Renderer
        from palimpsest.training.rows import collate, dialogue_rows

        turns = [d.turns for d in data.part("recover")][:16]
        with torch.inference_mode():
            return float(batch_loss(network, collate(dialogue_rows(Renderer(load_tokenizer(base)), turns))))

    assert at(0.3, 1.0) < at(0.3, 0.5) and at(0.3, 1.0) < at(0.3, 1.6)
    assert at(0.3, 0.5) > at(0.0, 0.5) + 0.3, "the trap: half of the update is worse than half of a plain one"


def test_lora_is_trained_on_the_model_itself(models: Models, tmp_path: Path, rows: Path) -> None:
    model = resolve(models.expert("llama"))
    method = Trap2(data=load_dialogues(rows), lambda_=0.01, samples=8, tuning=Tuning(epochs=1, batch=4, micro_batch=2))
    made = method.apply(model, tmp_path / "out", Context())
    before, after = weights_of(model.path), weights_of(tmp_path / "out")
    changed = {n.split(".")[-2] for n in before if not torch.equal(before[n], after[n])}
    assert changed == {"q_proj", "v_proj"}
    assert made.records[1].detail["update"] == "the adapter's on the model" and made.records[1].detail["lambda"] == 0.01


def test_presets_are_the_codes_and_bad_input_is_refused(models: Models, tmp_path: Path) -> None:
    assert build(Trap2, "lora").tuning == LORA and build(Trap2, "lora").lambda_ == 0.001
    assert build(Trap2, None, {"lambda": "0.02"}).lambda_ == 0.02 and build(Trap2, "code-default").lambda_ == 0.01
    expert, base = resolve(models.expert("llama")), resolve(models.base("llama"))
    for method, words in (
        (Trap2(), "trap2: needs the base"),
        (Trap2(base=base, low=0.96, high=1.04), "no scale is left"),
        (Trap2(base=base, tuning=Tuning(adapter="full", checkpointing=True)), "computed again"),
        (Trap2(base=base, part="recovr"), "part 'recovr' is not valid"),
    ):
        with pytest.raises(BadInput, match=words):
            method.apply(expert, tmp_path / "out", Context())
    assert not (tmp_path / "out").exists()
