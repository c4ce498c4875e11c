"""What a merge method is: passes over one tensor, chunk by chunk, so that no whole tensor is ever held.

A method's `passes(tensor)` is a generator. Each `yield` asks for a pass over all chunks of the tensor and gets
its result back; what it returns makes one chunk of the merged tensor. A method that needs nothing of the whole
tensor ends with `return at_once(function)`. Norms, dot products and thresholds are thus computed first, and the
weights are read again for the last pass: reading twice costs less than holding a tensor of a billion numbers.

    def passes(self, tensor):
        products = yield Sum(lambda chunk: gram(chunk.models))       # (models, models), float64
        first, second = factors(products, self.t)
        return lambda chunk: first * chunk.models[0] + second * chunk.models[1]

`merge_tensors` runs a method on tensors in memory: the pure function, for tests and for small things.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from palimpsest.errors import BadInput

_RUN = 1024  # numbers whose products are added up in float32
CHUNK = 1 << 19  # numbers: small enough for the caches, large enough that calls cost little


@dataclass(frozen=True)
class TensorFacts:
    """What a method may know of a tensor before it reads it.

    shape: of the merged tensor. seed: of the run; random methods draw from (seed, name, model, position).
    statistics: what a method with `collect` found in data (see `statistics`).
    """

    name: str
    shape: tuple[int, ...]
    models: int
    has_base: bool = True
    seed: int = 0
    statistics: Any = None

    @property
    def count(self) -> int:
        """How many numbers it holds."""
        return torch.Size(self.shape).numel()

    @property
    def row(self) -> int:
        """Numbers in a row: the last dimension; a tensor of one dimension is one row."""
        return self.shape[-1] if self.shape else 1


@dataclass
class Chunk:
    """A stretch of one tensor in all models, flat and in float32, in whatever they are stored.

    models: in the order of the merge, each (n,). base: (n,) or None. first: position of the first number in the
    flattened tensor. number: of this chunk, from 0. All of it is the method's to overwrite, and gone with the chunk:
    memory is taken once and used again, since asking for it anew costs more than the arithmetic.
    """

    tensor: TensorFacts
    models: list[Tensor]
    base: Tensor | None
    first: int = 0
    number: int = 0
    scratch: Callable[[int], Tensor] = torch.empty
    _deltas: list[Tensor] | None = None

    @property
    def deltas(self) -> list[Tensor]:
        """Task vectors: each model minus the base, each (n,). They take the place of `models`."""
        if self._deltas is None:
            assert self.base is not None  # the method says that it needs one
            self._deltas = [m.sub_(self.base) for m in self.models]
        return self._deltas

    def new(self) -> Tensor:
        """Memory for (n,) numbers, whatever is in it, that lasts as long as the chunk."""
        return self.scratch(self.count)

    @property
    def count(self) -> int:
        """How many numbers it holds."""
        return self.models[0].numel() if self.models else 0


@dataclass(frozen=True)
class Sum:
    """A pass whose results, float64 tensors of one shape, are added up in the order of the chunks."""

    of: Callable[[Chunk], Tensor]


@dataclass(frozen=True)
class Gather:
    """A pass whose results come back as a list in the order of the chunks."""

    of: Callable[[Chunk], Any]


@dataclass(frozen=True)
class Sample:
    """A look at about `count` numbers, in runs of `run` spread evenly over the tensor, as one chunk.

    Only for functions of single numbers: a run is not a row, and its `first` means nothing.
    """

    of: Callable[[Chunk], Any]
    count: int = 1 << 14
    run: int = 1 << 8

    def starts(self, total: int) -> list[int]:
        """Where its runs begin in a tensor of `total` numbers; none where the sample is the whole tensor."""
        runs = max(1, self.count // self.run)
        if total <= runs * self.run:
            return []
        return [i * (total - self.run) // max(1, runs - 1) for i in range(runs)]


Pass = Sum | Gather | Sample
Apply = Callable[[Chunk], Tensor]
Passes = Generator[Pass, Any, Apply]


def at_once(apply: Apply) -> Passes:
    """The passes of a method that needs nothing of the whole tensor."""
    return apply
    yield  # makes this a generator


class MergeMethod(ABC):
    """A merge method: a frozen dataclass of its parameters, and what it does to one tensor.

    base: whether it `needs` the models' common base, takes it as `origin` where it is given, counts it as the first of
    its models (`model`), or takes `none`. fewest, most: how many models, with the base where it counts as one.
    by_rows: whether chunks must hold whole rows. Parameters typed `tuple[float, ...]` have a value for each model.
    """

    base: ClassVar[Literal["needs", "origin", "model", "none"]] = "none"
    fewest: ClassVar[int] = 1
    most: ClassVar[int | None] = None
    by_rows: ClassVar[bool] = False

    @abstractmethod
    def passes(self, tensor: TensorFacts) -> Passes:
        """The passes over one tensor."""


def per_model(values: Sequence[float], count: int, name: str) -> list[float]:
    """One value for each model; a single value stands for all. Raises BadInput for another number of them."""
    if len(values) == 1:
        return [float(values[0])] * count
    if len(values) != count:
        raise BadInput(f"{name}: {len(values)} values for {count} models; give one for each, or one for all")
    return [float(v) for v in values]


def chunk_bounds(tensor: TensorFacts, by_rows: bool, size: int = CHUNK) -> list[tuple[int, int]]:
    """(first, end) of the chunks: equal stretches of whole rows where rows fit, or where the method needs them."""
    row = max(1, tensor.row)
    step = max(1, size // row) * row if row <= size or by_rows else size
    return [(at, min(at + step, tensor.count)) for at in range(0, tensor.count, step)]


def merge_tensors(
    method: Any,
    models: Sequence[Tensor],
    base: Tensor | None = None,
    *,
    name: str = "tensor",
    seed: int = 0,
    size: int = CHUNK,
) -> Tensor:
    """Merge tensors of one shape that are in memory; the result is float32."""
    shape = tuple((models[0] if models else base).shape)  # type: ignore[union-attr]
    facts = TensorFacts(name, shape, len(models), base is not None, seed)
    flat = [m.reshape(-1).float() for m in models]
    flat_base = None if base is None else base.reshape(-1).float()

    def read(first: int, end: int, number: int) -> Chunk:
        part = None if flat_base is None else flat_base[first:end].clone()
        return Chunk(facts, [m[first:end].clone() for m in flat], part, first, number)

    if not facts.count:
        return torch.empty(shape)

    def sample(wanted: Sample) -> Chunk:
        at = [torch.arange(first, first + wanted.run) for first in wanted.starts(facts.count)]
        if not at:
            return read(0, facts.count, 0)
        places = torch.cat(at)
        return Chunk(facts, [m[places] for m in flat], None if flat_base is None else flat_base[places])

    bounds = chunk_bounds(facts, method.by_rows, size)
    program = method.passes(facts)
    answer: Any = None
    while True:
        try:
            wanted = program.send(answer)
        except StopIteration as stopped:
            apply = stopped.value
            break
        if isinstance(wanted, Sample):
            answer = wanted.of(sample(wanted))
        else:
            answer = combined(wanted, [wanted.of(read(a, b, i)) for i, (a, b) in enumerate(bounds)])
    out = torch.empty(facts.count)
    for number, (first, end) in enumerate(bounds):
        out[first:end] = apply(read(first, end, number))
    return out.reshape(shape)


def combined(wanted: Pass, results: list[Any]) -> Any:
    """The result of a pass from those of its chunks, in their order."""
    if isinstance(wanted, Sum):
        total = results[0].cpu()
        for result in results[1:]:
            total = total + result.cpu()
        return total
    return results


def weighted_sum(vectors: Sequence[Tensor], weights: Sequence[float], out: Tensor | None = None) -> Tensor:
    """Sum of weight times vector, (n,), in `out` where it is given (which may be the first vector)."""
    total = torch.mul(vectors[0], weights[0], out=out)
    for vector, weight in zip(vectors[1:], weights[1:], strict=True):
        total.add_(vector, alpha=weight)
    return total


def gram(vectors: Sequence[Tensor]) -> Tensor:
    """Dot products of all pairs, (vectors, vectors) in float64: runs of 1,024 in float32, then float64."""
    whole = vectors[0].numel() // _RUN * _RUN
    runs = [v[:whole].view(-1, _RUN) for v in vectors]
    ends = [v[whole:].double().cpu().numpy() for v in vectors]
    product = _on_cpu if vectors[0].device.type == "cpu" else _on_device
    if product is _on_cpu:
        runs = [r.numpy() for r in runs]  # type: ignore[misc]
    out = [[0.0] * len(vectors) for _ in vectors]
    for i in range(len(vectors)):
        for j in range(i + 1):
            out[i][j] = out[j][i] = product(runs[i], runs[j]) + float(ends[i] @ ends[j])
    return torch.tensor(out, dtype=torch.float64)


def _on_cpu(first: Any, second: Any) -> float:
    """The sum of the dot products of rows, (runs, run) each; NumPy's are twice as fast as torch's."""
    return float(np.vecdot(first, second).sum(dtype=np.float64))


def _on_device(first: Tensor, second: Tensor) -> float:
    return float(torch.linalg.vecdot(first, second).sum(dtype=torch.float64))
