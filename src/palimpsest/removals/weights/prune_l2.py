"""Structured pruning by L2 magnitude, one of MEraser's baselines (arXiv 2506.12551, section 5.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from palimpsest.method import method
from palimpsest.removals.weights.by_magnitude import ByMagnitude


@method("removals", "prune-l2", paper="LLM-Pruner, arXiv 2305.11627; MEraser, arXiv 2506.12551, section 5.3")
@dataclass(frozen=True)
class PruneL2(ByMagnitude):
    """Prune whole heads and feed-forward channels (or single columns) with the smallest sums of w^2.

    Score of a unit: sum of w^2 over what it has in each coupled matrix, averaged over these matrices; the lowest go.
    Parameters, presets and threat model are those of `ByMagnitude`.
    """

    power: ClassVar[int] = 2
