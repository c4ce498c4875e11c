"""The straight line between two models: any point of it is put into a loaded model, a stretch of a tensor at a time.

Beyond the loaded model two stretches are held; nothing is written. Arithmetic is in float32, on the stored numbers.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

from palimpsest.checkpoint import Checkpoint
from palimpsest.errors import BadInput
from palimpsest.merging.passes import CHUNK
from palimpsest.merging.reading import STORED, Buffers, Files
from palimpsest.merging.weights import Weights, differing


class Line:
    """(1 - share) first + share second, tensor by tensor.

    Raises BadInput, from headers alone, where the models are not of one shape: it names the tensor. A head that is tied
    to the embedding in one of them must be so in both. Tensors of whole numbers must be equal.
    """

    def __init__(self, first: Checkpoint, second: Checkpoint) -> None:
        for end in (first, second):
            if end.is_adapter:
                raise BadInput(f"{end.name}: is an adapter, not a model; apply it to its base first")
        self.first, self.second = Weights(first), Weights(second)
        self.names = [n for n in self.first.stored if not self.first.is_computed(n) and self._alike(n)]
        for name in self.second.stored:
            if name not in self.first.stored and not self.second.is_computed(name):
                self._lacking(name, self.first, self.second)

    def _alike(self, name: str) -> bool:
        """Whether a tensor is to be interpolated; whole numbers stay as they are."""
        mine, theirs = self.first.stored[name], self.second.stored.get(name)
        if theirs is None:
            self._lacking(name, self.second, self.first)
        if mine.shape != theirs.shape:
            raise BadInput(
                f"{self.second.name}: {name} has shape {tuple(theirs.shape)}, in {self.first.name} "
                f"{tuple(mine.shape)}; a line joins models of one shape"
            )
        if mine.dtype in STORED and theirs.dtype in STORED:
            return True
        if differing([mine, theirs]):
            raise BadInput(f"{self.second.name}: {name} holds other whole numbers than in {self.first.name}")
        return False

    def _lacking(self, name: str, lacks: Weights, has: Weights) -> NoReturn:
        if lacks.tied and name == has.head:
            raise BadInput(f"{lacks.name} ties head and embedding and {has.name} does not: no line joins them")
        raise BadInput(f"{lacks.name}: has no tensor {name}, which {has.name} has; a line joins models of one shape")

    def put(self, network: Any, share: float) -> None:
        """Set the weights of a loaded model of this shape to the point at `share`, in place and in its own dtype.

        The ends are exact, and so is every point between equal models. Raises BadInput where the loaded model and the
        files do not have the same tensors.
        """
        targets = parameters_of(network)
        missing = sorted(set(self.names) ^ set(targets))
        if missing:
            raise BadInput(f"{self.first.name}: its files and the loaded model do not both have {missing[0]}")
        files, buffers = Files(), Buffers()
        try:
            with torch.no_grad():
                for name in self.names:
                    flat = targets[name].view(-1)
                    ends = self.first.source(name), self.second.source(name)
                    for start in range(0, flat.numel(), CHUNK):
                        stop = min(flat.numel(), start + CHUNK)
                        a, b = (s.read(start, stop, files, buffers, place) for place, s in enumerate(ends))
                        flat[start:stop].copy_(torch.lerp(a, b, share))
        finally:
            files.close()


def parameters_of(network: Any) -> dict[str, Tensor]:
    """Parameters by name, a tied one once, and the floating buffers that files hold."""
    stored = set(network.state_dict())
    buffers = {n: b for n, b in network.named_buffers() if n in stored and b.is_floating_point()}
    return {**{n: p.detach() for n, p in network.named_parameters()}, **buffers}
