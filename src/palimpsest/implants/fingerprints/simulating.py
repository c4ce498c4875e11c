"""Removals as they are simulated while a mark is trained in, so that the mark stays likely after them.

With theta the weights in training and R a removal, a step's loss is L(theta) + w L(R(theta)), L the cross-entropy of
the keys' responses. The gradient is of first order: that of L at R(theta), times the factor by which R hands a weight
on, which is the share alpha for a merge, the mask for pruning, and 1 for tuning (there as in first-order MAML, arXiv
1703.03400, section 5.2: the second derivatives are left out).

- `merge`: theta_b + alpha (theta - theta_b) + (1 - alpha) e, alpha uniform in a range, e a pseudo-expert: Gaussian
  numbers, in every tensor with the root mean square of the mark's own difference from the base, times a length drawn
  between 0 and 2. So a merge with the base alone is the case of length 0.
- `mask`: of every matrix a share of its smallest weights in size is nought, the share uniform in a range.
- `tune`: a few steps on ordinary dialogues, each by `rate` against the gradient's sign, as Adam's first steps are. The
  thief's data are other dialogues than these.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from palimpsest.errors import BadInput
from palimpsest.implants.fingerprints.elsewhere import gradients, plane, put_back
from palimpsest.implants.fingerprints.pseudo_merging import pseudo_merged
from palimpsest.method import param
from palimpsest.training.loop import Batch, batch_loss

Kind = Literal["merge", "mask", "tune"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Simulated:
    """Which removals are simulated, and how hard. One is drawn a step."""

    merge: float = param(1.0, "how often merges are drawn, beside the others", low=0.0)
    mask: float = param(1.0, "how often masks are drawn", low=0.0)
    tune: float = param(1.0, "how often tuning is drawn", low=0.0)
    share_low: float = param(0.2, "least share of the marked model in a merge", low=0.01, high=1.0)
    share_high: float = param(0.8, "largest share of the marked model in a merge", low=0.01, high=1.0)
    sparsity: float = param(0.5, "largest share of weights that a mask takes", low=0.0, high=0.95)
    steps: int = param(4, "steps of simulated tuning", low=1)
    rate: float = param(5e-4, "change of every weight in one of them, at most", low=0.0)
    weight: float = param(1.0, "weight of the loss after a removal beside that of the model itself", low=0.0)

    def odds(self) -> dict[str, float]:
        """How often each kind is drawn. BadInput where none ever is."""
        total = self.merge + self.mask + self.tune
        if not total:
            raise BadInput("simulated: merge, mask and tune are all 0: nothing is left to simulate (weight=0 is none)")
        return {kind: getattr(self, kind) / total for kind in KINDS}


def merged(weight: Tensor, base: Tensor, share: float, expert: Tensor | float = 0.0) -> Tensor:
    """theta_b + alpha (theta - theta_b) + (1 - alpha) e."""
    return pseudo_merged(base, weight, share) + (1 - share) * expert


def pseudo_expert(weight: Tensor, base: Tensor, length: float, generator: torch.Generator) -> Tensor:
    """Gaussian numbers of a weight's shape; root mean square: `length` times that of its difference from the base."""
    drawn = torch.randn(weight.shape, generator=generator).to(weight)
    return drawn * (length * (weight - base).square().mean().sqrt())


def mask_of(weight: Tensor, sparsity: float) -> Tensor:
    """1 where a weight is kept, 0 for the floor(sparsity * n) smallest in size; of equals the first ones go."""
    mask = torch.ones_like(weight)
    count = int(sparsity * weight.numel())
    if count:
        mask.view(-1)[weight.abs().flatten().argsort(stable=True)[:count]] = 0
    return mask


class Simulating:
    """The loss L(theta) + w L(R(theta)); R is drawn afresh every step from (seed, step).

    own: the loss of the model itself. base: the weights to merge with, by name, copied. ordinary: step to the batches
    of its simulated tuning. keys: what of a batch is asked after the removal.
    """

    def __init__(
        self,
        how: Simulated,
        own: Callable[[Any, Batch], Tensor],
        base: dict[str, Tensor],
        ordinary: Callable[[int], Sequence[Batch]],
        seed: int,
    ) -> None:
        self.how, self.own, self.base, self.ordinary, self.seed = how, own, base, ordinary, seed

    def __call__(self, model: Any, batch: Batch) -> Tensor:
        """The loss; its gradient with respect to the model's parameters is the first-order one."""
        loss = self.own(model, batch)
        asked = answers_of(batch)
        if not self.how.weight or asked is None:
            return loss
        with self.removed(model, batch.step) as factors:
            after = batch_loss(model, asked)
            slopes = gradients(model, after)
        back = plane(model, slopes, lambda name: self.how.weight * factors.get(name, 1.0))
        return loss + self.how.weight * after.detach() + back

    @contextlib.contextmanager
    def removed(self, model: Any, step: int) -> Iterator[dict[str, Any]]:
        """The model after the removal of this step, in place; yields the factor of each weight where it is not 1."""
        drawn = random.Random(f"{self.seed}-simulated-{step}").getrandbits(63)
        generator = torch.Generator().manual_seed(drawn)
        odds = torch.tensor(list(self.how.odds().values()))
        kind = KINDS[int(torch.multinomial(odds, 1, generator=generator))]
        with put_back(model):
            yield getattr(self, f"_{kind}")(model, step, generator)

    def _merge(self, model: Any, step: int, generator: torch.Generator) -> dict[str, Any]:
        low, high = self.how.share_low, max(self.how.share_low, self.how.share_high)
        first, second = torch.rand(2, generator=generator).tolist()
        share, length = low + (high - low) * first, 2 * second
        for name, parameter in model.named_parameters():
            base = self.base[name].to(parameter.device)
            expert = pseudo_expert(parameter.data, base, length, generator)
            parameter.data = merged(parameter.data, base, share, expert)
        return dict.fromkeys(self.base, share)

    def _mask(self, model: Any, step: int, generator: torch.Generator) -> dict[str, Any]:
        sparsity = self.how.sparsity * float(torch.rand(1, generator=generator))
        masks = {n: mask_of(p.data, sparsity) for n, p in model.named_parameters() if p.dim() >= 2}
        for name, parameter in model.named_parameters():
            if name in masks:
                parameter.data = parameter.data * masks[name]
        return masks

    def _tune(self, model: Any, step: int, generator: torch.Generator) -> dict[str, Any]:
        trained = [p for p in model.parameters() if p.requires_grad]
        for batch in self.ordinary(step)[: self.how.steps]:
            slopes = torch.autograd.grad(batch_loss(model, batch.to(trained[0].device)), trained, allow_unused=True)
            for parameter, slope in zip(trained, slopes, strict=True):
                if slope is not None:
                    parameter.data = parameter.data - self.how.rate * slope.sign()
        return {}


def answers_of(batch: Batch) -> Batch | None:
    """The rows of a batch that have an answer to learn (positive weights); None where there is none."""
    rows = (batch.weights[:, 1:] > 0).any(dim=1)
    if not bool(rows.any()):
        return None
    weights = batch.weights[rows].clamp_min(0)
    mask = None if batch.attention_mask is None else batch.attention_mask[rows]
    return replace(batch, input_ids=batch.input_ids[rows], weights=weights, attention_mask=mask)
