"""Checkpoints at rest: references, streaming reads and writes, digests, lineage, loading, adapters."""

from palimpsest.checkpoint.reference import Checkpoint, is_toy, resolve

__all__ = ["Checkpoint", "is_toy", "resolve"]
