"""Trap^2 (arXiv 2601.21898, ICML 2026): an update that is good at its own scale and bad at every other."""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from palimpsest.checkpoint import Checkpoint
from palimpsest.data import Dialogues
from palimpsest.errors import BadInput
from palimpsest.method import Context, Made, method, param, takes
from palimpsest.protections.anchor import anchor_tensors, chosen_dialogues
from palimpsest.protections.applying import needed_base, protection_record
from palimpsest.protections.traits import Traits
from palimpsest.removals.tuning.tuned import tuned
from palimpsest.training.loop import Batch, batch_loss
from palimpsest.training.settings import Tuning

FULL = Tuning(adapter="full", epochs=1, lr=2e-5, batch=16, warmup=0.02)
LORA = Tuning(rank=16, alpha=16, targets="all-linear", epochs=1, lr=1e-4, batch=4, warmup=0.02)


@method("protections", "trap2", paper="Trap^2, arXiv 2601.21898 (ICML 2026); code ml-postech/Trap2 ef65a26")
@dataclass(frozen=True)
class Trap2:
    """Train the update to work only as it is: merging scales it, and scaled it misleads.

    J = L(W0 + dW) - lambda E_s[w(s) L(W0 + s dW)] with s uniform on [`low`, 1 - `gap`] and [1 + `gap`, `high`], one s a
    step (the same over its micro-batches), w(s) = 1/s or 1/sqrt(s), L the mean cross-entropy of the answers' tokens.
    From the published code: both passes under the same dropout masks, AdamW, gradients clipped at 1, a step whose
    gradient is not finite left out. There the gradient of the second term is subtracted by hand; here J itself is
    differentiated, which is the same gradient at the memory of both passes.

    All weights (`tuning.adapter=full`): W0 is `--base`, dW what `--model` and this training add to it. LoRA: W0 is
    `--model`, dW the adapter's, of which B is multiplied by s; the merged model is written. Published: LoRA on q, k,
    v, o (here: query and value, or all linear layers), early stopping with patience 10 (not here). Not a symmetry:
    nothing to align. Threat model: a merger with a coefficient other than 1; at 1 on this update s stays 1.
    """

    traits: ClassVar[Traits] = Traits(
        base="optional",
        data="needed",
        training=True,
        exact=False,
        changes="all weights, or an adapter's update",
        costs="about twice a fine-tune's time: two passes a step; with all weights two more copies of them",
        unpublished="learning rate and steps with all weights; early stopping is left out",
    )
    base: Checkpoint | None = takes("W0, the model that the update is counted from (needed with all weights)")
    data: Dialogues | None = takes("dialogues of the skill (default: the toy world's)")
    lambda_: float = param(
        0.005, "weight of the scaled loss: 0.005 for all weights, 0.001 for LoRA (its README)", low=0.0
    )
    low: float = param(0.05, "smallest scale s", low=1e-3, high=1.0)
    high: float = param(2.0, "largest scale s", low=1.0)
    gap: float = param(0.05, "scales closer to 1 than this are not drawn", low=0.0, high=0.9)
    weighting: Literal["inverse", "inverse-root"] = param(
        "inverse-root", "w(s): 1/s (its vision runs), 1/sqrt(s) (maths)"
    )
    part: str = param("all", "part of the data: all, erase, recover, revival, test or embed")
    samples: int | None = param(None, "dialogues used, the first ones of the part; none means all", low=1)
    tuning: Tuning = param(FULL, "how it is trained")

    @classmethod
    def lora(cls) -> Trap2:
        """LoRA r 16, alpha 16 at 1e-4, batches of 4, lambda 0.001: the README's and the code's for Llama-3.1-8B."""
        return cls(lambda_=0.001, tuning=LORA)

    @classmethod
    def code_default(cls) -> Trap2:
        """The code's own default lambda, 0.01, with all weights."""
        return cls(lambda_=0.01)

    def apply(self, model: Checkpoint, out: Path, ctx: Context) -> Made:
        """Write the protected checkpoint to `out`."""
        full = self.tuning.adapter == "full"
        origin = needed_base(self.base, "trap2", "W0 of its update with all weights") if full else None
        if self.low > 1 - self.gap and self.high < 1 + self.gap:
            raise BadInput(f"trap2: no scale is left in [{self.low}, {self.high}] outside {self.gap} around 1")
        if self.tuning.checkpointing:
            raise BadInput(
                "trap2: activations computed again in the backward pass would be those of the other scale; "
                "use a smaller --set tuning.micro_batch"
            )
        rows = chosen_dialogues(self.data, self.part, self.samples, "trap2")
        loss = ScaledLoss(self.lambda_, self.low, self.high, self.gap, self.weighting, ctx.seed, origin)
        parents = {"base": origin.digest()} if origin is not None else {}
        made = tuned(
            model, rows, self.tuning, out, ctx, method="trap2", loss_of=loss, skip_nonfinite=True, parents=parents
        )
        detail = {
            "lambda": self.lambda_,
            "scales": [self.low, self.high, self.gap],
            "weighting": self.weighting,
            "update": "all weights against the base" if full else "the adapter's on the model",
            **loss.summary(),
        }
        moved = {n: made.records[0].detail[n] for n in ("weight_change", "distance")}
        made.records.append(protection_record(made.checkpoint, "trap2", self.traits, moved, detail))
        return made


class ScaledLoss:
    """J of Trap^2, for `tune(loss_of=...)`: L(W0 + dW) - lambda w(s) L(W0 + s dW), a scalar (nats a token).

    origin: W0 where all weights are trained; None for a LoRA adapter, whose B is then multiplied by s.
    """

    def __init__(
        self,
        strength: float,
        low: float,
        high: float,
        gap: float,
        weighting: Literal["inverse", "inverse-root"],
        seed: int,
        origin: Checkpoint | None = None,
    ) -> None:
        self.strength, self.low, self.high, self.gap = strength, low, high, gap
        self.weighting, self.seed, self.origin = weighting, seed, origin
        self._anchor: dict[str, Tensor] | None = None
        self._seen: dict[int, list[float]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """What another process is sent: no weights, it reads them itself."""
        return {**self.__dict__, "_anchor": None, "_seen": {}}

    def attach(self, model: nn.Module) -> None:
        """Take the weights of W0 beside this model's (another process's own, where several train)."""
        if self.origin is not None:
            names = [name for name, p in model.named_parameters() if p.requires_grad]
            self._anchor = anchor_tensors(self.origin, model, names)

    def scale(self, step: int) -> float:
        """s of a step: uniform on what `low`, `high` and `gap` leave; follows from seed and step alone."""
        below, above = max(0.0, 1 - self.gap - self.low), max(0.0, self.high - 1 - self.gap)
        at = random.Random(f"trap2-{self.seed}-{step}").random() * (below + above)
        return self.low + at if at < below else 1 + self.gap + at - below

    def weight(self, s: float) -> float:
        """w(s)."""
        return 1 / s if self.weighting == "inverse" else 1 / math.sqrt(s)

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """J of a batch, or its share of the step's."""
        state = _random_state()
        nominal = batch_loss(model, batch)
        if self.strength == 0:
            return nominal
        s = self.scale(batch.step)
        _set_random_state(state)
        scaled = self._scaled(model, batch, s)
        self._note(batch.step, float(nominal.detach()), float(scaled.detach()))
        return nominal - self.strength * self.weight(s) * scaled

    def _scaled(self, model: nn.Module, batch: Batch, s: float) -> Tensor:
        """L(W0 + s dW)."""
        if self.origin is None:
            with _times(model, s):
                return batch_loss(model, batch)
        if self._anchor is None:
            self.attach(model)
        assert self._anchor is not None
        parameters = dict(model.named_parameters())
        there = {f"model.{n}": w0 + s * (parameters[n] - w0) for n, w0 in self._anchor.items()}
        found: Tensor = functional_call(_Loss(model), there, (batch,))
        return found

    def _note(self, step: int, nominal: float, scaled: float) -> None:
        kept = self._seen.setdefault(step, [0.0, 0.0])
        kept[0], kept[1] = kept[0] + nominal, kept[1] + scaled
        while len(self._seen) > 25:
            self._seen.pop(min(self._seen))

    def summary(self) -> dict[str, float]:
        """Mean losses of the last 25 steps seen here: of the update as it is, and scaled."""
        rows = list(self._seen.values())
        if not rows:
            return {}
        return {
            "loss_nominal": math.fsum(r[0] for r in rows) / len(rows),
            "loss_scaled": math.fsum(r[1] for r in rows) / len(rows),
        }


class _Loss(nn.Module):
    """The loss as a module, so that a model can be called with other weights."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        return batch_loss(self.model, batch)


@contextlib.contextmanager
def _times(model: nn.Module, s: float) -> Iterator[None]:
    """All B of a LoRA adapter count s times: what they give is multiplied."""

    def hook(_: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output * s

    handles = [m.register_forward_hook(hook) for name, m in model.named_modules() if ".lora_B." in name]
    if not handles:
        raise ValueError("the model has no LoRA adapter to scale")
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _random_state() -> tuple[Tensor, list[Tensor]]:
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []


def _set_random_state(state: tuple[Tensor, list[Tensor]]) -> None:
    torch.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])
