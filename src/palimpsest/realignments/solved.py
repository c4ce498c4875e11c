"""What one layer's solvers share: what may be changed, and what was found so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from palimpsest.families.family import Place
from palimpsest.realignments.reading import Layer
from palimpsest.symmetry.gauge import LayerGauge, Sizes
from palimpsest.symmetry.legality import Legality

GAIN_MOVED = 0.05  # a gain that differs by more (in its logarithm) was rescaled; tuning moves it less
MANY_MOVED = 0.1  # of all gains: beyond it those that differ by less were rescaled too
LARGEST = 1e4  # factors and condition numbers beyond it are no gauge that keeps a stored function


@dataclass(frozen=True)
class Shape:
    """What may be changed in a layer of an architecture, and its sizes.

    whole_norm: query and key are normed over all heads. folded: gains were folded into their readers by a rotation,
    so that every gain is to be found again, however near to 1 the anchor's is.
    """

    sizes: Sizes
    legality: Legality
    whole_norm: bool
    folded: bool = False

    def form(self, component: str) -> str:
        """How a component may be changed; empty where not at all (`symmetry.legality`)."""
        return self.legality.form(component)

    @property
    def places(self) -> dict[Place, tuple[str, ...]]:
        """Norms whose gains are free, with the roles that read each."""
        return self.legality.places  # type: ignore[return-value]


@dataclass
class Solved:
    """The gauge found so far, the layer under it, and figures of each component for the report."""

    gauge: LayerGauge
    aligned: Layer
    found: dict[str, Any] = field(default_factory=dict)


def moved_share(order: Tensor) -> float:
    """Share of a permutation that is not in its place."""
    return float((order != torch.arange(len(order))).float().mean())


def gain_ratio(anchor: Tensor, mine: Tensor, folded: bool = False) -> Tensor:
    """Factors that give the anchor's gains back, (n,).

    1 where a gain is tiny, and where it is nearly the anchor's, unless gains were folded or more than a tenth of them
    changed: then all were rescaled.
    """
    floor = 1e-3 * float(anchor.abs().median())
    ratio = torch.where((anchor.abs() > floor) & (mine.abs() > 1e-12), anchor / mine, torch.ones_like(anchor))
    return torch.where(rescaled(ratio, folded), ratio, torch.ones_like(ratio))


def rescaled(ratio: Tensor, folded: bool = False) -> Tensor:
    """Which of these factors are no tuning's: (n,) bool; all within bounds where more than a tenth are none."""
    bounded = (ratio.abs() < LARGEST) & (ratio.abs() > 1 / LARGEST)
    changed = bounded & ((ratio < 0) | (ratio.abs().log().abs() > GAIN_MOVED))
    return bounded if folded or float(changed.float().mean()) > MANY_MOVED else changed
