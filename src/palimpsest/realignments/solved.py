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
    """Factors that give the anchor's gains back, (n,); 1 where one is tiny, or nearly the anchor's and not folded."""
    floor = 1e-3 * float(anchor.abs().median())
    ratio = torch.where((anchor.abs() > floor) & (mine.abs() > 1e-12), anchor / mine, torch.ones_like(anchor))
    changed = ((ratio < 0) | (ratio.abs().log().abs() > (0.0 if folded else GAIN_MOVED))) & (ratio.abs() < LARGEST)
    changed &= ratio.abs() > 1 / LARGEST
    return torch.where(changed, ratio, torch.ones_like(ratio))
