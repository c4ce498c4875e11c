"""Layer by layer through a model: what each projection is given, with one layer's inputs held at a time.

Wanda and SparseGPT both look at a layer's inputs, prune it, and hand the *pruned* layer's outputs on to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from palimpsest.cost import count_tokens
from palimpsest.families import ROLES, Family

See = Callable[[str, Tensor], None]  # (name of a projection in its layer, its inputs (tokens, in))


class _Reached(Exception):  # noqa: N818 (no error: it ends a forward pass early)
    """The layer was reached."""


@dataclass(frozen=True)
class Call:
    """What a layer is given beside the hidden states: masks, positions; alike for all examples of one length."""

    positional: tuple[Any, ...]
    named: dict[str, Any]


@dataclass
class Layer:
    """One layer and the hidden states (1, time, width) that it is given for each example."""

    number: int
    module: nn.Module
    call: Call
    hidden: list[Tensor]

    def projections(self, family: Family) -> dict[str, nn.Module]:
        """Its projections by their names in the layer, a fused one once."""
        names = dict.fromkeys(family.name(role) for role in ROLES if family.name(role))
        return {name: self.module.get_submodule(name) for name in names}

    def run(self, hidden: Tensor) -> Tensor:
        """What it makes of an example's hidden states."""
        out: Any = self.module(hidden, *self.call.positional, **self.call.named)
        found: Tensor = out[0] if isinstance(out, tuple) else out
        return found

    def observe(self, projections: dict[str, nn.Module], see: See) -> None:
        """Run all examples and show each projection's inputs as float32."""
        handles = [m.register_forward_pre_hook(_showing(name, see)) for name, m in projections.items()]
        try:
            for hidden in self.hidden:
                self.run(hidden)
        finally:
            for handle in handles:
                handle.remove()


def walk(network: Any, family: Family, ids: Tensor) -> Iterator[Layer]:
    """The layers in turn; what is changed in one before the next is asked for reaches the next ones.

    ids: (examples, time), all of one length, without padding. No gradients are kept.
    """
    count_tokens(ids.numel())
    layers = list(network.get_submodule(family.layers))
    with torch.no_grad():
        calls, _ = _reach(network, layers, ids[:1], len(layers) - 1)
        hidden = [_reach(network, layers, row[None], 0)[1] for row in ids]
        for number, module in enumerate(layers):
            layer = Layer(number, module, calls[number], hidden)
            yield layer
            for i in range(len(hidden) if number < len(layers) - 1 else 0):
                hidden[i] = layer.run(hidden[i])  # in its place: two copies of all would be twice the memory


def _reach(network: Any, layers: list[nn.Module], ids: Tensor, last: int) -> tuple[list[Call], Tensor]:
    """How layers 0 to `last` are called for some tokens, and the hidden states given to the last of them."""
    calls: list[Call] = []
    found: list[Tensor] = []

    def hook(number: int) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            named = dict(kwargs)
            hidden = args[0] if args else named.pop("hidden_states")
            calls.append(Call(args[1:], named))
            if number == last:
                found.append(hidden)
                raise _Reached

        return note

    handles = [m.register_forward_pre_hook(hook(i), with_kwargs=True) for i, m in enumerate(layers[: last + 1])]
    try:
        network(input_ids=ids.to(network.device), use_cache=False)
    except _Reached:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return calls, found[0]


def _showing(name: str, see: See) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        see(name, inputs[0].reshape(-1, inputs[0].shape[-1]).float())

    return hook
