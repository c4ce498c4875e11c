"""Fisher merging: an average in which each number counts as much as its model's outputs depend on it (2111.09832)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from palimpsest.checkpoint import Checkpoint
from palimpsest.data import Dialogues
from palimpsest.errors import BadInput
from palimpsest.merging.forward import logits_of, read_models
from palimpsest.merging.linear import Linear
from palimpsest.merging.passes import Chunk, MergeMethod, Passes, TensorFacts, at_once, per_model
from palimpsest.merging.statistics import Statistics
from palimpsest.method import Context, method, param, takes
from palimpsest.training.rows import Row


@method("merges", "fisher", paper="arXiv 2111.09832")
@dataclass(frozen=True)
class Fisher(MergeMethod):
    """sum of weight_i F_i theta_i / sum of weight_i F_i, number by number.

    F_i is the diagonal of model i's Fisher information on dialogues: the mean over them of the squared gradient of the
    log-likelihood of the answers' tokens, which are drawn from the model itself (`labels` data: those of the dialogue,
    the "empirical" Fisher). Each F_i is raised to `floor` of its mean, so that numbers no answer depends on are
    averaged, and divided by its length over the whole model, as in the published code. Models are causal.
    """

    data: Dialogues | tuple[Dialogues, ...] | None = takes("dialogues, of all models or of each (default: the toy's)")
    weight: tuple[float, ...] = param((1.0,), "weight of each model", low=0)
    samples: int = param(256, "dialogues read for each model", low=1)
    labels: Literal["model", "data"] = param("model", "whose answers are scored: the model's own draws, or the data's")
    floor: float = param(1e-6, "least Fisher information, as a share of its mean over the model", low=0)

    def collect(self, models: Sequence[Checkpoint], statistics: Statistics, ctx: Context) -> None:
        """Fisher information of each model, divided by its length."""
        for network, rows in read_models(models, self.data, self.samples, ctx, "fisher"):
            found = fisher_information(network, rows, self.labels, ctx.seed)
            numbers = sum(f.numel() for f in found.values())
            least = self.floor * sum(float(f.sum(dtype=torch.float64)) for f in found.values()) / numbers
            raised = {n: f.clamp_(min=least) for n, f in found.items()}
            length = sum(float(f.double().square().sum()) for f in raised.values()) ** 0.5
            if length == 0:
                raise BadInput("fisher: the answers depend on no number of the model; other data is needed")
            statistics.add({n: f.div_(length) for n, f in raised.items()})

    def passes(self, tensor: TensorFacts) -> Passes:
        """One pass, beside the statistics; a plain average where there are none (buffers)."""
        weights = per_model(self.weight, tensor.models, "weight")
        found: Statistics | None = tensor.statistics
        if found is None or not found.has(tensor.name):
            return Linear(self.weight).passes(tensor)

        def apply(chunk: Chunk) -> Tensor:
            end = chunk.first + chunk.count
            device = chunk.models[0].device
            shares = [found.stretch(i, tensor.name, chunk.first, end).to(device).mul_(w) for i, w in enumerate(weights)]
            return by_shares(chunk.models, shares)

        return at_once(apply)


def by_shares(models: Sequence[Tensor], shares: Sequence[Tensor]) -> Tensor:
    """sum of share_i model_i / sum of share_i, all (n,); from the first model, so that equal models give it back."""
    whole = torch.stack(list(shares)).sum(0)
    whole.clamp_(min=torch.finfo(whole.dtype).tiny)
    merged = models[0].clone()
    for model, share in zip(models[1:], shares[1:], strict=True):
        merged.add_((model - models[0]).mul_(share / whole))
    return merged


def fisher_information(network: Any, rows: Sequence[Row], labels: str, seed: int) -> dict[str, Tensor]:
    """The diagonal for every parameter by name, float32, of its shape: a mean over rows.

    Labels drawn from the model are independent given what stands before them, so that the expectation of the squared
    gradient of their sum is the sum of those of single tokens: one backward pass a row is enough.
    """
    generator = torch.Generator(device=network.device).manual_seed(seed)
    parameters = dict(network.named_parameters())
    found = {n: torch.zeros_like(p, dtype=torch.float32) for n, p in parameters.items()}
    for row in rows:
        logits = logits_of(network, row)[:-1].float()
        scored = torch.tensor(row.weights[1:], device=logits.device) > 0
        if labels == "model":
            drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator).squeeze(1)
        else:
            drawn = torch.tensor(row.ids[1:], device=logits.device)
        network.zero_grad(set_to_none=True)
        functional.cross_entropy(logits[scored], drawn[scored], reduction="sum").backward()  # type: ignore[no-untyped-call]
        for name, parameter in parameters.items():
            if parameter.grad is not None:
                found[name].addcmul_(parameter.grad, parameter.grad, value=1 / len(rows))
    network.zero_grad(set_to_none=True)
    return found
