"""Channels of the feed-forward that clean data leaves dormant: how active each is, which go, and zeroing them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from palimpsest.families.family import Family
from palimpsest.removals.roles import down_modules


class Activity:
    """Mean |activation| of every channel over the tokens seen: `means` (layers, channels)."""

    def __init__(self) -> None:
        self._sums: dict[int, Tensor] = {}
        self.tokens = 0
        self.mask: Tensor | None = None  # (rows, time) of the batch that is read; padding does not count

    def add(self, layer: int, inputs: Tensor) -> None:
        """inputs: (rows, time, channels) or (rows * time, channels), what the second projection reads."""
        flat = inputs.detach().flatten(0, -2).abs().double()
        mask = self.mask
        if mask is not None:  # the loss of language models reads a row without its last token
            mask = mask[:, : len(flat) // len(mask)].flatten()
            flat = flat * mask[:, None].to(flat.device)
        found = flat.sum(0).cpu()
        self._sums[layer] = self._sums.get(layer, torch.zeros_like(found)) + found
        if layer == 0:
            self.tokens += len(flat) if mask is None else int(mask.sum())

    @property
    def means(self) -> Tensor:
        """(layers, channels)."""
        return torch.stack([self._sums[layer] for layer in sorted(self._sums)]) / max(1, self.tokens)


@contextmanager
def watched(network: Any, what: str) -> Any:
    """An `Activity` that sees every forward pass of the network inside."""
    seen = Activity()
    with ExitStack() as stack:
        for layer, module in enumerate(down_modules(network, what)):
            handle = module.register_forward_pre_hook(_hook(seen, layer))
            stack.callback(handle.remove)
        yield seen


def _hook(seen: Activity, layer: int) -> Callable[[Any, Any], None]:
    def look(module: Any, inputs: Any) -> None:
        seen.add(layer, inputs[0])

    return look


def dormant(means: Tensor, layers: Sequence[int], ratio: float) -> list[tuple[int, Tensor]]:
    """(layer, numbers of the channels that go): the int(ratio * channels) least active of each of the layers.

    means: (layers, channels); of equal ones the lower number goes first.
    """
    count = int(ratio * means.shape[1] + 1e-9)
    return [(layer, means[layer].argsort(stable=True)[:count].sort().values) for layer in layers]


def zeroing(family: Family, config: Any, gone: Sequence[tuple[int, Tensor]]) -> dict[str, tuple[int, Tensor]]:
    """What to zero, by the tensor's name in the model: (dimension, places). Gate, up and down of the channels.

    With nothing going in and nothing coming out, and activations that are 0 at 0 as all known ones are, a channel gets
    no gradient either: fine-tuning all weights leaves it at zero.
    """
    found: dict[str, tuple[int, Tensor]] = {}
    for layer, channels in gone:
        for role in ("gate", "up"):
            module = family.name(role)  # type: ignore[arg-type]
            if not module:
                continue
            fused = family.up == family.gate  # rows of one projection, whose first half is the gate's
            rows = torch.tensor(family.rows(role, config))[channels] if fused else channels  # type: ignore[arg-type]
            for part in ("weight", "bias"):
                name = f"{family.layers}.{layer}.{module}.{part}"
                across = 1 if family.transposed and part == "weight" else 0
                before = found.get(name)
                found[name] = (across, rows if before is None else torch.cat([before[1], rows]))
        found[f"{family.layers}.{layer}.{family.down}.weight"] = (0 if family.transposed else 1, channels)
    return found
