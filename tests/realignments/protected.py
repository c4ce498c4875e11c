"""A base, a model tuned from it, and that model under a drawn gauge: what realignment is tried on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from factory import make_model
from kin import moved
from palimpsest.checkpoint import Checkpoint
from palimpsest.method import Context
from palimpsest.removals.weights.rewriting import rewrite
from palimpsest.symmetry.drawing import draw
from palimpsest.symmetry.editing import edit_for
from palimpsest.symmetry.gauge import Gauge
from palimpsest.symmetry.legality import legal

CTX = Context()


@dataclass
class Case:
    base: Checkpoint
    tuned: Checkpoint
    protected: Checkpoint
    gauge: Gauge


def every_component(config: dict[str, Any], rotated: bool = False, untied: bool = False) -> list[str]:
    """All that is legal, with one of the two changes of the residual stream."""
    left_out = "residual-permutation" if rotated else "residual-rotation"
    return [c for c in legal(config, untied).allowed if c != left_out]


def under(gauge: Gauge, model: Checkpoint, out: Path, untie: bool = False) -> Checkpoint:
    """The model written under a gauge."""
    edit, names, changes = edit_for(gauge, model, untie)
    return rewrite(model, out, CTX, "protection", edit, names, config=changes).checkpoint


def case(at: Path, family: str = "llama", *, seed: int = 5, size: float = 0.1, rotated: bool = False,
         components: list[str] | None = None, **model: Any) -> Case:  # fmt: skip
    """size: of the tuning, as a share of the weights' spread."""
    base = Checkpoint(make_model(at / "base", family, **model), "base")
    tuned = Checkpoint(moved(base.path, at / "tuned", (seed + 100, size)), "tuned")
    chosen = components if components is not None else every_component(tuned.config, rotated)
    gauge = draw(tuned.config, chosen, torch.Generator().manual_seed(seed))
    return Case(base, tuned, under(gauge, tuned, at / "protected"), gauge)
