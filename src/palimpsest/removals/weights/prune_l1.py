"""Structured pruning by L1 magnitude, one of MEraser's baselines (arXiv 2506.12551, section 5.3)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from palimpsest.checkpoint import Checkpoint
from palimpsest.method import Context, Made, method, param
from palimpsest.removals.weights.by_magnitude import Units, prune_by_magnitude
from palimpsest.removals.weights.choosing import Scope


@method("removals", "prune-l1", paper="LLM-Pruner, arXiv 2305.11627; MEraser, arXiv 2506.12551, section 5.3")
@dataclass(frozen=True)
class PruneL1:
    """Prune whole heads and feed-forward channels (or single columns) with the smallest sums of |w|.

    Score of a unit: sum of |w| over what it has in each coupled matrix, averaged over these matrices; the lowest go.
    The thief needs neither data nor training. `coupled` units are KV groups (LLM-Pruner breaks on grouped attention)
    and channels; they become exact zeros in the original shape, which computes the same as a model without them, or
    really go with `compact`. `columns` zeroes input features of query, key, value and feed-forward matrices, each
    matrix by itself, as MEraser's Appendix H has it: another method than section 5.3 of the same paper runs.
    """

    ratio: float = param(0.05, "share of units removed in each layer (local) or of all (global)", low=0, high=1)
    units: Units = param("coupled", "what goes together: coupled (heads, channels) or columns")
    scope: Scope = param("local", "budget: local (each layer) or global (one pool of scores)")
    start: float = param(0.09375, "layers from this share of the depth on (3 of 32)", low=0, high=1)
    end: float = param(0.96875, "layers below this share of the depth (31 of 32)", low=0, high=1)
    compact: bool = param(False, "write smaller tensors where all layers are alike")

    @classmethod
    def llm_pruner(cls) -> PruneL1:
        """LLM-Pruner's rules and script: layers 3 to 31 of 32, each by itself; 5 % as in MEraser, section 5.3."""
        return cls()

    @classmethod
    def appendix_h(cls) -> PruneL1:
        """MEraser, Appendix H: norms of columns over their matrix's mean, one pool over all layers."""
        return cls(units="columns", scope="global", start=0.0, end=1.0)

    def apply(self, model: Checkpoint, out: Path, ctx: Context) -> Made:
        """Write the pruned checkpoint to `out`."""
        return prune_by_magnitude(
            model,
            out,
            ctx,
            "prune-l1",
            1,
            ratio=self.ratio,
            units=self.units,
            scope=self.scope,
            start=self.start,
            end=self.end,
            compact=self.compact,
        )
