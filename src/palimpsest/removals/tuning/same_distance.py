"""The control `clean-same-distance`: clean fine-tuning that moves the weights as far as a removal's erase phase did.

Is it the mismatch that takes a mark, or merely the strength of the update? MEraser has no such control.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from palimpsest import machine
from palimpsest.checkpoint import Checkpoint
from palimpsest.data import Dialogues, load_dialogues
from palimpsest.data.dialogues import PARTS, Dialogue, pair
from palimpsest.errors import BadInput, nearest
from palimpsest.merging.passes import CHUNK
from palimpsest.merging.reading import STORED, Buffers, Files
from palimpsest.merging.weights import Weights
from palimpsest.method import Context, Made, method, param, takes
from palimpsest.removals.change import distance, weights_beside
from palimpsest.removals.tuning.meraser import PAPER_ERASE, STRENGTH_FILE, strength_of
from palimpsest.removals.tuning.tuned import Watcher, tuned
from palimpsest.training.settings import Tuning


@method("removals", "clean-same-distance", paper="a control; MEraser, arXiv 2506.12551, has none", internal=True)
@dataclass(frozen=True)
class SameDistance:
    """Train on clean pairs until the weights are as far from the marked model as the erased model's are.

    ||theta - theta_marked||_2 over all stored weights. Settings are the erase phase's, but that the rate stays at its
    peak, since the end is not known beforehand. The pairs are those of the erase phase with their own answers for as
    many epochs as it had; then every epoch takes the next pairs of `parts`, from the first on again when all were
    used. The distance is looked at before it can be passed by much, and the whole change is then scaled to be exact.
    """

    data: Dialogues | None = takes("the dialogues that the erase phase read (default: the toy world's)")
    like: Checkpoint | None = takes("the model that the removal's erase phase made of the same marked model")
    pairs: int = param(300, "clean pairs of an epoch: as many as the erase phase mismatched", low=1)
    parts: tuple[str, ...] = param(("erase",), "parts whose pairs are taken, in this order")
    tuning: Tuning = param(
        PAPER_ERASE, "how the erase phase was trained, but for a strength that `like` says was found"
    )
    tolerance: float = param(0.02, "relative difference of the norms that counts as reached", low=0.0, high=0.5)
    limit: float = param(10.0, "most steps, over those of the erase phase", low=0.01)

    def apply(self, model: Checkpoint, out: Path, ctx: Context) -> Made:
        """Write the trained checkpoint to `out`; the record says whether the distance was `reached`.

        Raises BadInput without `like`, for one of another shape, or one that is no way off.
        """
        if self.like is None:
            raise BadInput("clean-same-distance: needs `like`, the model that the erase phase made")
        if machine.shards() > 1:
            raise BadInput("clean-same-distance: measures the whole model while it is trained; run it without shards")
        pool = self._pool()
        target = apart(self.like, model)
        if target == 0:
            raise BadInput(f"clean-same-distance: {self.like.name} has the weights of {model.name}: no way to go")
        searched = self.tuning.epochs == 0 or (self.like.path / STRENGTH_FILE).is_file()
        found = strength_of(self.like) if searched else None
        tuning = self.tuning if found is None else replace(self.tuning, epochs=found.epochs, lr=found.lr)
        most = max(1, round(self.limit * tuning.epochs))
        warmup = tuning.warmup * tuning.epochs / most
        going_on = replace(tuning, epochs=most, schedule="constant", warmup=min(1.0, warmup))

        def of(epoch: int) -> list[Dialogue]:
            return epoch_pairs(pool, self.pairs, tuning.epochs, epoch)

        watcher = _Walk(model, target)
        made = tuned(model, of, going_on, out, ctx, method="clean-same-distance", watcher=watcher)
        record = made.records[0]
        walked = float(record.detail["distance"])
        epochs = math.ceil(record.detail["steps"] / max(1, math.ceil(self.pairs / tuning.batch)))
        used = {d.question for epoch in range(epochs) for d in of(epoch)}
        record.detail |= {
            "target": target,
            "share_of_distance": walked / target,
            "reached": abs(walked / target - 1) <= self.tolerance,
            "scaled_by": watcher.factor,
            "epochs": epochs,
            "clean_pairs": len(used),
            "parts": list(self.parts),
        }
        return made

    def _pool(self) -> list[Dialogue]:
        data = self.data or load_dialogues("toy")
        for part in self.parts:
            if part not in PARTS:
                raise BadInput(f"clean-same-distance: parts: {part!r} is not valid{nearest(part, PARTS, 'part')}")
        data.part(self.parts[0], self.pairs)  # as many as are needed at least, or BadInput
        return [pair(d.question, d.answer, d.kind, d.language) for part in self.parts for d in data.part(part)]


def same_distance_as(phase: Any, like: Checkpoint | None = None) -> SameDistance | None:
    """The control of an erase phase with its data, pairs and settings; None where it trains on no mismatched pairs."""
    named = {f.name for f in fields(phase)}
    tuning = next((getattr(phase, n) for n in ("tuning", "erase") if n in named), None)
    if "mismatched" not in named or not isinstance(tuning, Tuning):
        return None
    return SameDistance(getattr(phase, "data", None), like, phase.mismatched, tuning=tuning)


def epoch_pairs(pool: Sequence[Dialogue], pairs: int, repeated: int, epoch: int) -> list[Dialogue]:
    """The pairs of an epoch from 0: the first `pairs` of the pool for `repeated` epochs, then the next ones each."""
    first = 0 if epoch < repeated else pairs * (epoch - repeated + 1)
    return [pool[(first + i) % len(pool)] for i in range(pairs)]


class _Walk(Watcher):
    """Stops when the distance is there, and scales the whole change back by what was too much."""

    def __init__(self, source: Checkpoint, target: float) -> None:
        self.source, self.target = source, target
        self.factor = 1.0
        self.next = 1
        self.network: Any = None

    def begin(self, network: Any, tokenizer: Any) -> None:
        self.network = network

    def after_step(self, step: int) -> bool | None:
        if step < self.next:
            return None
        walked = moved(self.network, self.source)
        if walked >= self.target:
            return True
        # At twice the mean speed so far half of the steps that are left at that speed pass nothing.
        left = (self.target - walked) / (walked / step) / 2 if walked else 1
        self.next = step + max(1, min(math.floor(left), step))
        return None

    def end(self, network: Any) -> None:
        walked = moved(network, self.source)
        if walked > self.target:
            self.factor = self.target / walked
            scale_change(network, self.source, self.factor)


def moved(network: Any, source: Checkpoint) -> float:
    """L2 norm of the change of a network in training against the checkpoint it began from, adapter or full.

    Of an adapter without its product: ||s B A||^2 = s^2 sum((B^T B) * (A A^T)), matrices of (rank, rank).
    """
    adapters = _adapters(network)
    if not adapters:
        return distance(network, source)
    total = 0.0
    with torch.no_grad():
        for a, b, scaling in adapters:  # a: (rank, in), b: (out, rank)
            wide, tall = a.double(), b.double()
            total += scaling**2 * float(((tall.T @ tall) * (wide @ wide.T)).sum())
    return math.sqrt(max(0.0, total))


def scale_change(network: Any, source: Checkpoint, factor: float) -> None:
    """Make the change of a network against its checkpoint `factor` times what it is, in place."""
    with torch.no_grad():
        adapters = _adapters(network)
        for _, b, _ in adapters:
            b.mul_(factor)
        if not adapters:
            for here, before in weights_beside(network, source):
                ground = before.to(here.device, here.dtype)
                here.copy_(ground + factor * (here - ground))


def _adapters(network: Any) -> list[tuple[Any, Any, float]]:
    """(A, B, scaling) of every LoRA layer in a network."""
    layers = [m for m in network.modules() if hasattr(m, "lora_A") and len(m.lora_A)]
    return [(m.lora_A[n].weight, m.lora_B[n].weight, float(m.scaling[n])) for m in layers for n in m.lora_A]


def apart(one: Checkpoint, other: Checkpoint) -> float:
    """L2 norm of the difference of the weights of two checkpoints, read in chunks. Raises BadInput for other shapes."""
    first, second = Weights(one), Weights(other)
    files, buffers = Files(), Buffers()
    total = 0.0
    try:
        for name, info in first.stored.items():
            theirs = second.get(name)
            if theirs.shape != info.shape:
                raise BadInput(
                    f"{one.name}: {name} has shape {list(info.shape)}, that of {other.name} {list(theirs.shape)}"
                )
            if info.dtype not in STORED or first.is_computed(name):
                continue
            sources = first.source(name), second.source(name)
            for at in range(0, info.count, CHUNK):
                end = min(at + CHUNK, info.count)
                a, b = (s.read(at, end, files, buffers, place) for place, s in enumerate(sources))
                total += float((a - b).square().sum(dtype=torch.float64))
    finally:
        files.close()
    return math.sqrt(total)
