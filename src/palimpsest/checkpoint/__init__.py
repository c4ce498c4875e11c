"""Checkpoints at rest: references, streaming reads and writes, digests, lineage, loading, adapters."""

from palimpsest.checkpoint.reference import Checkpoint, resolve

__all__ = ["Checkpoint", "resolve"]
