"""The one optimisation loop: fine-tuning (full or LoRA), pretraining, embedding and erasing all run it.

A caller gives `batch_at(step)`, a pure function of the step number, so a killed run goes on from its
state file with the same batches. The loss is computed on supervised positions only: the output head,
which for small vocabularies costs a quarter of a step and for large ones most of it, sees no others.
"""

from __future__ import annotations

import hashlib
import math
import os
import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from palimpsest.training.head_loss import weighted_loss

Schedule = Literal["constant", "linear", "cosine", "trapezoid"]


@dataclass(frozen=True)
class Batch:
    """One optimisation step's rows.

    input_ids: (rows, time) token ids.
    weights: (rows, time) how much predicting the token *at* this position counts; 0 is not supervised.
        Column 0 is never predicted.
    attention_mask: (rows, time) of 1 and 0, or None where no row is padded.
    """

    input_ids: Tensor
    weights: Tensor
    attention_mask: Tensor | None = None

    @property
    def tokens(self) -> int:
        """Tokens read, padding left out."""
        return int(self.input_ids.numel() if self.attention_mask is None else self.attention_mask.sum())


@dataclass
class TrainLog:
    """What a run cost and how its loss went: `losses` holds (step, mean loss since the last entry)."""

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    losses: list[tuple[int, float]] = field(default_factory=list)


def batch_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Weighted mean cross-entropy (nats per supervised token) of one batch, a scalar."""
    chosen = batch.weights != 0
    chosen[:, 0] = False
    return weighted_loss(model, batch.input_ids, batch.attention_mask, chosen, batch.weights[chosen].float())


def learning_rate_at(step: int, steps: int, lr: float, schedule: Schedule, warmup: int) -> float:
    """Learning rate of `step` (from 0): linear warm-up, then constant, or a fall to 0 at `steps`.

    `trapezoid` stays constant and falls linearly over the last fifth.
    """
    if step < warmup:
        return lr * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    if schedule == "linear":
        return lr * (1.0 - done)
    if schedule == "cosine":
        return lr * 0.5 * (1.0 + math.cos(math.pi * done))
    if schedule == "trapezoid":
        return lr * min(1.0, (1.0 - done) / 0.2)
    return lr


def train_steps(
    model: nn.Module,
    batch_at: Callable[[int], Batch],
    *,
    steps: int,
    lr: float,
    schedule: Schedule = "constant",
    warmup: int = 0,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    clip: float | None = 1.0,
    accumulate: int = 1,
    autocast: torch.dtype | None = None,
    loss_of: Callable[[nn.Module, Batch], Tensor] = batch_loss,
    after_step: Callable[[int, float], bool | None] | None = None,
    state_file: Path | None = None,
    state_seconds: float = 60.0,
) -> TrainLog:
    """Run `steps` AdamW steps on `model` in place; only parameters that require a gradient change.

    batch_at: micro-batch number (from 0; `accumulate` of them make a step) to `Batch`, on any device.
    lr: peak learning rate; `warmup` in steps; `clip`: bound on the gradient norm, None for no bound.
    after_step: called with (steps done, loss); returning True stops early.
    state_file: parameters, optimiser and step number are stored there every `state_seconds`, and a run
        that finds the file goes on from it; it is removed when the run is finished.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("no parameter of the model requires a gradient")
    decayed = [p for p in parameters if p.dim() >= 2]
    plain = [p for p in parameters if p.dim() < 2]
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=lr,
        betas=betas,
        eps=1e-8,
    )
    device = parameters[0].device
    log = TrainLog()
    first = 0
    run = ""
    if state_file is not None:
        run = _run_digest(batch_at(0), steps, lr, schedule, warmup, weight_decay, betas, clip, accumulate)
        if state_file.is_file():
            first = _restore(state_file, parameters, optimiser, log, run)
    model.train()
    started = saved = time.monotonic()
    carried = log.seconds
    running, since = 0.0, 0
    for step in range(first, steps):
        rate = learning_rate_at(step, steps, lr, schedule, warmup)
        for group in optimiser.param_groups:
            group["lr"] = rate
        total = 0.0
        for part in range(accumulate):
            batch = _to(batch_at(step * accumulate + part), device)
            with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
                loss = loss_of(model, batch) / accumulate
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
            log.tokens += batch.tokens
        if clip is not None:
            nn.utils.clip_grad_norm_(parameters, clip)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        log.steps = step + 1
        running, since = running + total, since + 1
        if (step + 1) % 25 == 0 or step + 1 == steps:
            log.losses.append((step + 1, running / since))
            running, since = 0.0, 0
        log.seconds = carried + time.monotonic() - started
        stop = after_step(step + 1, total) if after_step is not None else None
        if stop:
            break
        if state_file is not None and time.monotonic() - saved > state_seconds:
            _store(state_file, parameters, optimiser, log, run)
            saved = time.monotonic()
    if state_file is not None:
        state_file.unlink(missing_ok=True)
    model.eval()
    return log


def _to(batch: Batch, device: torch.device) -> Batch:
    mask = None if batch.attention_mask is None else batch.attention_mask.to(device)
    return Batch(batch.input_ids.to(device), batch.weights.to(device), mask)


def _run_digest(first: Batch, *settings: Any) -> str:
    """What a state file belongs to: settings and first batch. Phases of one step may share a name."""
    return hashlib.sha256(repr((first.input_ids.tolist(), first.weights.tolist(), settings)).encode()).hexdigest()


def _store(
    path: Path, parameters: list[nn.Parameter], optimiser: torch.optim.Optimizer, log: TrainLog, run: str
) -> None:
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    state: dict[str, Any] = {
        "run": run,
        "parameters": [p.detach().cpu() for p in parameters],
        "optimiser": optimiser.state_dict(),
        "log": vars(log),
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all() if parameters[0].is_cuda else [],
    }
    torch.save(state, partial)
    partial.replace(path)


def _restore(
    path: Path, parameters: list[nn.Parameter], optimiser: torch.optim.Optimizer, log: TrainLog, run: str
) -> int:
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError):
        return 0
    if not isinstance(state, dict) or "parameters" not in state or state.get("run", run) != run:
        return 0
    if [p.shape for p in state["parameters"]] != [p.shape for p in parameters]:
        return 0  # the state of another run: start afresh
    with torch.no_grad():
        for old, new in zip(parameters, state["parameters"], strict=True):
            old.copy_(new)
    optimiser.load_state_dict(state["optimiser"])
    torch.set_rng_state(state["rng"])
    if state.get("cuda_rng"):
        torch.cuda.set_rng_state_all(state["cuda_rng"])
    for name, value in state["log"].items():
        setattr(log, name, [tuple(entry) for entry in value] if name == "losses" else value)
    return log.steps
