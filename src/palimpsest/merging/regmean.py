"""RegMean: linear layers that answer each model's inputs as nearly as can be as that model did (2212.09849)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from palimpsest.checkpoint import Checkpoint
from palimpsest.data import Dialogues
from palimpsest.errors import BadInput
from palimpsest.merging.forward import logits_of, read_models
from palimpsest.merging.linear import Linear
from palimpsest.merging.passes import Chunk, MergeMethod, Passes, Sample, TensorFacts, per_model
from palimpsest.merging.statistics import Statistics
from palimpsest.method import Context, method, param, takes
from palimpsest.training.rows import Row

HELD = 2 << 30  # bytes of products held at a time: larger models are read more than once
_RIDGE = 1e-6  # of the mean diagonal: inputs that are always zero leave the mean of the models


@method("merges", "regmean", paper="arXiv 2212.09849")
@dataclass(frozen=True)
class RegMean(MergeMethod):
    """W = sum of W_i G_i (sum of G_i)^-1 for linear layers W_i: (out, in), G_i = weight_i X_i^T X_i / tokens: (in, in).

    X_i: (tokens, in) are the layer's inputs in model i on dialogues; off-diagonal elements of G_i are multiplied by
    `alpha`. All other tensors, biases and a head tied to the embedding among them, are
    averaged. It assumes that the models' inner spaces correspond; a rotation of one undoes it. Models are causal.
    """

    data: Dialogues | tuple[Dialogues, ...] | None = takes("dialogues, of all models or of each (default: the toy's)")
    weight: tuple[float, ...] = param((1.0,), "weight of each model", low=0)
    samples: int = param(256, "dialogues read for each model", low=1)
    alpha: float = param(0.9, "factor of the off-diagonal products of inputs", low=0, high=1)
    by_rows: ClassVar = True

    def collect(self, models: Sequence[Checkpoint], statistics: Statistics, ctx: Context) -> None:
        """Products of the inputs of each linear layer, by the name of its weight."""
        for network, rows in read_models(models, self.data, self.samples, ctx, "regmean"):
            statistics.add(input_products(network, rows))

    def passes(self, tensor: TensorFacts) -> Passes:
        """Factors first, by one worker; then rows by matrices. An average where the tensor is no linear layer's."""
        found: Statistics | None = tensor.statistics
        if found is None or not found.has(tensor.name):
            return Linear(self.weight).passes(tensor)
        return self._regress(tensor, found)

    def _regress(self, tensor: TensorFacts, found: Statistics) -> Passes:
        weights = per_model(self.weight, tensor.models, "weight")

        def solve(_: Chunk) -> list[Tensor]:
            products = (found.whole(i, tensor.name) * w for i, w in enumerate(weights))
            return regression_factors([shrunk(p, self.alpha) for p in products])

        factors = yield Sample(solve, 1)  # not while other workers wait
        width = tensor.row

        def apply(chunk: Chunk) -> Tensor:
            first = chunk.models[0]
            merged = first.clone().view(-1, width)
            for model, factor in zip(chunk.models[1:], factors[1:], strict=True):
                merged.addmm_((model - first).view(-1, width), factor.to(first.device))
            return merged.flatten()

        return apply


def shrunk(products: Tensor, alpha: float) -> Tensor:
    """Off-diagonal elements times alpha, in float64: (in, in)."""
    found = products.double()
    diagonal = found.diagonal().clone()
    found = found * alpha
    found.diagonal().copy_(diagonal)
    return found


def regression_factors(products: Sequence[Tensor]) -> list[Tensor]:
    """P_i = G_i (sum of G_i)^-1 such that W = sum of W_i P_i; they sum to the identity. Each (in, in) float32."""
    size = len(products[0])
    ridge = _RIDGE * float(torch.stack([p.diagonal().mean() for p in products]).mean()) or 1.0
    raised = [p + ridge * torch.eye(size, dtype=p.dtype) for p in products]
    whole = torch.stack(raised).sum(0)
    return [torch.linalg.solve(whole, p).T.float().contiguous() for p in raised]  # both are symmetric


def input_products(network: Any, rows: Sequence[Row], held: int = HELD) -> dict[str, Tensor]:
    """X^T X / tokens of every linear layer by its weight's name, each (in, in) float32.

    At most about `held` bytes of them are summed up on the model's device in one reading of the rows.
    """
    parameters = dict(network.named_parameters())  # without a tied head, whose weight is the embedding's
    layers = {f"{n}.weight": m for n, m in network.named_modules() if isinstance(m, nn.Linear)}
    layers = {n: m for n, m in layers.items() if n in parameters}
    if not layers:
        raise BadInput("regmean: the architecture has no linear layers of torch's own kind")
    found: dict[str, Tensor] = {}
    for group in _groups(layers, held):
        sums = {n: torch.zeros(m.in_features, m.in_features, device=network.device) for n, m in group.items()}
        handles = [m.register_forward_pre_hook(_adding(sums[n])) for n, m in group.items()]
        try:
            with torch.no_grad():
                for row in rows:
                    logits_of(network, row)
        finally:
            for handle in handles:
                handle.remove()
        tokens = sum(len(row.ids) for row in rows)
        found |= {n: (s / tokens).cpu() for n, s in sums.items()}
    return found


def _adding(total: Tensor) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        x = inputs[0].reshape(-1, total.shape[0]).float()
        total.addmm_(x.T, x)

    return hook


def _groups(layers: dict[str, nn.Linear], held: int) -> Iterator[dict[str, nn.Linear]]:
    group: dict[str, nn.Linear] = {}
    size = 0
    for name, layer in layers.items():
        own = 4 * layer.in_features**2
        if group and size + own > held:
            yield group
            group, size = {}, 0
        group[name] = layer
        size += own
    yield group
