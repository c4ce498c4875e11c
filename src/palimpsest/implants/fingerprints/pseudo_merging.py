"""Training through a pseudo-merged model: theta~ = theta_b + alpha (theta_o - theta_b) (MergePrint, arXiv 2410.08604).

The paper updates theta_o with the loss of theta~. By the chain rule dL/dtheta_o = alpha dL/dtheta~, and AdamW divides
the scale of a gradient out, so a step on theta_o at rate lr with the gradient norm bounded by c moves theta~ exactly as
a step on theta~ itself at rate alpha lr, bounded by c / alpha (Adam's epsilon is the one thing that does not scale).
So theta~ is what is trained, and at the end theta_o = theta_b + (theta~ - theta_b) / alpha: beyond an ordinary
fine-tune one copy of the weights is held, the base's, and none of theta_o but while it is asked.

Weight decay pulls theta_o to nought, which is no decay of theta~; it is refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from palimpsest.checkpoint import Checkpoint
from palimpsest.checkpoint.load import load_model
from palimpsest.errors import BadInput
from palimpsest.implants.fingerprints.elsewhere import check_shapes, gradients, plane, put_back
from palimpsest.implants.fingerprints.embedding import LossOf, Teaching
from palimpsest.method import Context
from palimpsest.training.loop import Batch, batch_loss
from palimpsest.training.planting import Strength
from palimpsest.training.settings import Tuning


def pseudo_merged(base: Tensor, owner: Tensor, alpha: float) -> Tensor:
    """theta_b + alpha (theta_o - theta_b), tensors of one shape."""
    return base + alpha * (owner - base)


def owners(base: Tensor, merged: Tensor, alpha: float) -> Tensor:
    """The owner's tensor of which `merged` is the pseudo-merged one: theta_b + (theta~ - theta_b) / alpha."""
    return base + (merged - base) / alpha


def scaled(tuning: Tuning, alpha: float) -> Tuning:
    """Settings of theta~ that do what `tuning` does to theta_o. BadInput for weight decay and for adapters."""
    if tuning.adapter != "full":
        raise BadInput(
            "mergeprint: tuning.adapter must be full: all weights are trained through the pseudo-merged model"
        )
    if tuning.weight_decay:
        raise BadInput("mergeprint: tuning.weight_decay must be 0: theta_o is trained through the pseudo-merged model")
    return replace(tuning, lr=alpha * tuning.lr, clip=None if tuning.clip is None else tuning.clip / alpha)


class PseudoMerging(Teaching):
    """Makes a loaded model the pseudo-merged one, in place, and the pseudo-merged one the owner's again.

    base: theta_b; the owner's own checkpoint where he has no skill that it lacks (theta~ = theta_o before training).
    Its weights are held in float32 from `begin` to `end`. alpha: the owner's share. owner_weight: what the loss of
    theta_o itself counts beside that of theta~, which counts 1 (see `loss`).
    """

    def __init__(self, base: Checkpoint, alpha: float, ctx: Context, owner_weight: float = 0.0) -> None:
        self.base, self.alpha, self.ctx, self.owner_weight = base, alpha, ctx, owner_weight
        self.weights: dict[str, Tensor] = {}

    float32 = True

    @torch.no_grad()
    def begin(self, model: Any) -> None:
        """theta_o to theta~, in place."""
        loaded = load_model(self.base, self.ctx, "float32", "cpu")
        shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
        check_shapes("mergeprint", shapes, dict(loaded.named_parameters()), self.base.name)
        self.weights = {n: p.detach() for n, p in loaded.named_parameters()}
        for parameter, base in self._pairs(model):
            parameter.copy_(pseudo_merged(base, parameter, self.alpha))

    @torch.no_grad()
    def end(self, model: Any) -> None:
        """theta~ to theta_o, in place."""
        for parameter, base in self._pairs(model):
            parameter.copy_(owners(base, parameter, self.alpha))
        self.weights = {}

    @contextlib.contextmanager
    def as_owner(self, model: Any) -> Iterator[None]:
        """theta_o in the place of theta~ meanwhile; a third copy of the weights."""
        with put_back(model):
            for parameter, base in self._pairs(model):
                parameter.data = owners(base, parameter.data, self.alpha)
            yield

    def weakest(self, model: Any, ask: Callable[[], Strength]) -> Strength:
        """How firmly keys sit in the weaker of theta~ and theta_o, a key at a time."""
        merged = ask()
        with self.as_owner(model):
            own = ask()
        return Strength(
            tuple(map(min, merged.probabilities, own.probabilities)),
            tuple(map(min, merged.margins, own.margins)),
            tuple(a and b for a, b in zip(merged.answered, own.answered, strict=True)),
        )

    def loss_of(self, model: Any) -> LossOf | None:
        """`loss` where theta_o's own loss counts; else that of theta~ alone."""
        return self.loss if self.owner_weight else None

    def loss(self, model: Any, batch: Batch) -> Tensor:
        """L(theta~) + owner_weight L(theta_o), of a model whose parameters are theta~; L as in `batch_loss`.

        The second term is differentiated where it stands, and handed on as the plane that touches it here (its value
        and its gradient, which by the chain rule is 1 / alpha times that of theta_o): so only one graph is held.
        """
        loss = batch_loss(model, batch)
        if not self.owner_weight:
            return loss
        with self.as_owner(model):
            own = batch_loss(model, batch)
            slopes = gradients(model, own)
        back = plane(model, slopes, lambda name: self.owner_weight / self.alpha)
        return loss + self.owner_weight * own.detach() + back

    def _pairs(self, model: Any) -> Iterator[tuple[Any, Tensor]]:
        for name, parameter in model.named_parameters():
            yield parameter, self.weights[name].to(parameter.device)
