"""Tiny models of every family, and their logits with some weights changed while they run."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from factory import make_model
from palimpsest.checkpoint import Checkpoint
from palimpsest.checkpoint.probe import computing_in_float32
from palimpsest.method import Context
from palimpsest.removals.weights.rewriting import rewrite
from palimpsest.symmetry import Gauge, Legality, edit_for, legal
from palimpsest.symmetry.editing import head_copy

Edit = Callable[[str, Tensor], None]
IDS = torch.randint(5, 390, (2, 40), generator=torch.Generator().manual_seed(1))
_FOLDER = tempfile.TemporaryDirectory(prefix="palimpsest-symmetry-")


@dataclass(frozen=True, eq=False)
class Network:
    """A checkpoint and its model in float32."""

    checkpoint: Checkpoint
    model: Any

    @property
    def config(self) -> dict[str, Any]:
        return self.checkpoint.config

    def logits(self, edit: Edit | None = None) -> Tensor:
        """(2, 40, vocabulary), with each weight changed by `edit` while its module runs."""
        with torch.inference_mode(), computing_in_float32(self.model, edit):
            return self.model(input_ids=IDS).logits  # type: ignore[no-any-return]

    def moved(self, edit: Edit) -> float:
        """The largest change of a logit over the largest logit."""
        before = self.logits()
        return float((self.logits(edit) - before).abs().max() / before.abs().max())

    def moved_by(self, gauge: Gauge) -> float:
        return self.moved(edit_for(gauge, self.checkpoint)[0])


def load(checkpoint: Checkpoint) -> Network:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint.path, dtype=torch.float32)
    return Network(checkpoint, model.eval())


@functools.cache
def network(family: str, **changes: Any) -> Network:
    """One of the factory's; kept for the session."""
    folder = Path(_FOLDER.name) / f"{family}-{len(list(Path(_FOLDER.name).iterdir()))}"
    return load(Checkpoint(make_model(folder, family, **changes), family))


def write(network_: Checkpoint, gauge: Gauge, out: Path, untie: bool = False) -> Checkpoint:
    """The checkpoint under a gauge, written as protections write it."""
    edit, names, config = edit_for(gauge, network_, untie)
    copies = head_copy(network_) if untie else None
    return rewrite(network_, out, Context(), "test", edit, names, config=config, copies=copies).checkpoint


def everything(allowed: Legality, turned: bool = True) -> tuple[str, ...]:
    """All legal components; a rotation of the residual stream rather than a permutation where it is legal."""
    rotated = turned and allowed.allows("residual-rotation")
    less = "residual-permutation" if rotated else "residual-rotation"
    return tuple(c for c in allowed.allowed if c != less)


def legality(network_: Network) -> Legality:
    return legal(network_.config)


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
