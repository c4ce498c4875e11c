"""The optimisation loop: transformers' own loss, hand-worked rates, killed runs that end as if they had not been."""

from __future__ import annotations

import copy
import math
import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from factory import FAMILIES, make_config
from palimpsest.training.loop import Batch, batch_loss, learning_rate_at, train_steps
from palimpsest.training.rows import Batches, Row, collate


@cache
def _model(family: str) -> Any:
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(make_config(family, 2, 64, 120, None, 64)).eval()


def model_of(family: str = "llama") -> Any:
    """A fresh tiny model."""
    return copy.deepcopy(_model(family))


def rows_of(count: int, low: int = 4, high: int = 20, seed: int = 0) -> list[Row]:
    """Random rows; the second half of each is trained."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        ids = tuple(rng.randrange(3, 120) for _ in range(rng.randint(low, high)))
        rows.append(Row(ids, tuple(float(2 * i >= len(ids)) for i in range(len(ids)))))
    return rows


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("even", [True, False])
def test_the_loss_is_that_of_transformers_with_masked_labels(family: str, even: bool) -> None:
    model, batch = model_of(family), collate(rows_of(5, 12 if even else 4, 12 if even else 20))
    labels = batch.input_ids.masked_fill(batch.weights == 0, -100)
    theirs = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels).loss
    theirs.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    ours = batch_loss(model, batch)
    ours.backward()
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), abs=1e-5)
    for name, parameter in model.named_parameters():
        if name in gradients:
            torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-5, rtol=1e-3, msg=name)


def test_weights_make_a_weighted_mean_and_the_first_column_is_never_predicted() -> None:
    model = model_of()
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.inference_mode():
        logs = model(input_ids=ids).logits[0].log_softmax(-1)
    nats = [-float(logs[i - 1, ids[0, i]]) for i in range(1, 4)]
    with torch.inference_mode():
        found = float(batch_loss(model, Batch(ids, torch.tensor([[9.0, 1.0, 0.0, 0.25]]))))
    assert found == pytest.approx((nats[0] + 0.25 * nats[2]) / 1.25, abs=1e-5)
    weights = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    assert batch_loss(model, Batch(ids, weights)).item() == 0.0 and weights[0, 0] == 1.0  # left as it was


@pytest.mark.parametrize(
    ("schedule", "warmup", "rates"),
    [
        ("constant", 0, [8, 8, 8, 8, 8, 8, 8, 8, 8, 8]),
        ("constant", 4, [2, 4, 6, 8, 8, 8, 8, 8, 8, 8]),
        ("linear", 0, [8, 7.2, 6.4, 5.6, 4.8, 4, 3.2, 2.4, 1.6, 0.8]),
        ("linear", 2, [4, 8, 8, 7, 6, 5, 4, 3, 2, 1]),
        ("cosine", 0, [4 * (1 + math.cos(math.pi * i / 10)) for i in range(10)]),
        ("cosine", 2, [4, 8, 8, *(4 + 4 * c for c in (0.92388, 0.70711, 0.38268, 0, -0.38268, -0.70711, -0.92388))]),
        ("trapezoid", 0, [8, 8, 8, 8, 8, 8, 8, 8, 8, 4]),
        ("trapezoid", 5, [1.6, 3.2, 4.8, 6.4, 8, 8, 8, 8, 8, 8]),
    ],
)
def test_learning_rates_by_hand(schedule: Any, warmup: int, rates: list[float]) -> None:
    assert [learning_rate_at(i, 10, 8.0, schedule, warmup) for i in range(10)] == pytest.approx(rates, abs=1e-4)


def test_the_rates_are_those_the_optimiser_uses() -> None:
    weight = nn.Parameter(torch.zeros(1))
    module = nn.Module()
    module.weight = weight
    places: list[float] = []
    train_steps(
        module,
        lambda step: Batch(torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1)),
        steps=5,
        lr=1.0,
        schedule="linear",
        clip=None,
        loss_of=lambda m, b: m.weight.sum(),  # type: ignore[union-attr]
        after_step=lambda step, loss: places.append(float(weight.detach())),
    )
    moves = [a - b for a, b in zip([0.0, *places], places, strict=False)]
    assert moves == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2], abs=1e-5)  # Adam moves by the rate on a constant slope


def test_one_step_is_adamw_with_decay_on_matrices_only_and_the_clipped_gradient() -> None:
    ours, theirs, batch = model_of(), model_of(), collate(rows_of(4))
    train_steps(ours, lambda _: batch, steps=1, lr=1e-2, weight_decay=0.1, clip=0.01)
    theirs.train()
    batch_loss(theirs, batch).backward()
    norm = torch.sqrt(sum((p.grad**2).sum() for p in theirs.parameters()))
    for parameter in theirs.parameters():
        gradient = parameter.grad * min(1.0, 0.01 / (float(norm) + 1e-6))
        moved = parameter.data * (1 - 1e-2 * (0.1 if parameter.dim() >= 2 else 0.0))
        parameter.data = moved - 1e-2 * gradient / (gradient.abs() + 1e-8)
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4, msg=name)


def test_accumulated_micro_batches_equal_one_large_batch_of_rows_of_one_size() -> None:
    rows = rows_of(12, 10, 10)
    large, small = model_of(), model_of()
    one = train_steps(large, lambda step: collate(rows), steps=3, lr=1e-3)
    two = train_steps(small, lambda n: collate(rows[4 * (n % 3) : 4 * (n % 3) + 4]), steps=3, lr=1e-3, accumulate=3)
    assert one.tokens == two.tokens == 360 and one.losses[-1][1] == pytest.approx(two.losses[-1][1], abs=1e-5)
    for a, b in zip(large.parameters(), small.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


class Killed(BaseException):
    """Stands for a kill in the middle of a run."""


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("die_at", [1, 7, 11])
def test_a_killed_run_goes_on_to_the_bit_where_the_uninterrupted_one_ends(
    tmp_path: Path, dropout: float, die_at: int
) -> None:
    batches = Batches(rows_of(20), 4, 0)
    options: dict[str, Any] = {"steps": 12, "lr": 1e-3, "schedule": "cosine", "warmup": 2, "weight_decay": 0.01}

    def fresh() -> Any:
        torch.manual_seed(3)
        model = model_of()
        model.model.layers[0].mlp.act_fn = nn.Sequential(nn.SiLU(), nn.Dropout(dropout))
        return model

    whole = fresh()
    log = train_steps(whole, batches, **options)
    state = tmp_path / "scratch" / "training.state"

    def die(step: int, loss: float) -> None:
        if step == die_at:
            raise Killed

    with pytest.raises(Killed):
        train_steps(fresh(), batches, after_step=die, state_file=state, state_seconds=0.0, **options)
    assert state.is_file() == (die_at > 1)
    torch.manual_seed(99)  # the new process is in another state
    second = model_of()
    second.model.layers[0].mlp.act_fn = nn.Sequential(nn.SiLU(), nn.Dropout(dropout))
    if die_at == 1:
        second = fresh()
    steps: list[int] = []
    again = train_steps(second, batches, state_file=state, after_step=lambda step, loss: steps.append(step), **options)
    assert steps == list(range(max(die_at, 1), 13))  # the step that died is done again, none before it
    for (name, a), b in zip(whole.named_parameters(), second.named_parameters(), strict=True):
        assert torch.equal(a, b[1]), name
    assert (again.steps, again.tokens) == (log.steps, log.tokens)
    assert list(state.parent.glob("*")) == [] if state.parent.exists() else True


@pytest.mark.parametrize("content", [b"", b"no state", b"\x80\x02}q\x00."])
def test_a_state_file_that_cannot_be_read_starts_afresh(tmp_path: Path, content: bytes) -> None:
    batches = Batches(rows_of(8), 4, 0)
    model, other = model_of(), model_of()
    train_steps(model, batches, steps=3, lr=1e-3)
    (tmp_path / "s").write_bytes(content)
    train_steps(other, batches, steps=3, lr=1e-3, state_file=tmp_path / "s")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_a_state_file_of_another_model_starts_afresh(tmp_path: Path) -> None:
    batches = Batches(rows_of(8), 4, 0)

    def die(step: int, loss: float) -> None:
        if step == 2:
            raise Killed

    options: dict[str, Any] = {"steps": 3, "lr": 1e-3, "state_file": tmp_path / "s"}
    with pytest.raises(Killed):
        train_steps(model_of("gpt2"), batches, state_seconds=0.0, after_step=die, **options)
    assert (tmp_path / "s").is_file()
    assert train_steps(model_of(), batches, **options).steps == 3


@pytest.mark.parametrize("other", [{"lr": 2e-3}, {"schedule": "linear"}, {"rows": 1}], ids=str)
def test_a_state_file_of_another_run_on_the_same_model_starts_afresh(tmp_path: Path, other: dict[str, Any]) -> None:
    seen: list[int] = []

    def note(step: int, loss: float) -> None:
        seen.append(step)
        if len(seen) == 2:
            raise Killed

    options: dict[str, Any] = {"steps": 3, "lr": 1e-3, "after_step": note}
    with pytest.raises(Killed):
        train_steps(model_of(), Batches(rows_of(8), 4, 0), state_file=tmp_path / "s", state_seconds=0.0, **options)
    batches = Batches(rows_of(8, seed=other.pop("rows", 0)), 4, 0)
    train_steps(model_of(), batches, state_file=tmp_path / "s", **{**options, **other})
    assert seen == [1, 2, 1, 2, 3]


def test_only_parameters_that_require_a_gradient_change() -> None:
    model = model_of()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("mlp" in name)
    train_steps(model, Batches(rows_of(8), 4, 0), steps=3, lr=1e-2)
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {n for n in before if "mlp" in n}
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter"):
        train_steps(model, Batches(rows_of(8), 4, 0), steps=1, lr=1e-2)


def test_training_stops_where_it_is_told_to_and_ends_in_evaluation_mode() -> None:
    model = model_of()
    log = train_steps(model, Batches(rows_of(8), 4, 0), steps=50, lr=1e-3, after_step=lambda step, loss: step == 3)
    assert log.steps == 3 and not model.training
    assert log.tokens == sum(Batches(rows_of(8), 4, 0)(n).tokens for n in range(3))
