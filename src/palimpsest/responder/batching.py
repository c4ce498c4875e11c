"""Rows of one forward pass: like lengths together, so that little is padded, within a budget of tokens."""

from __future__ import annotations

from collections.abc import Sequence


def by_length(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Row numbers in batches: sorted by length, each of at most `budget` padded tokens (or of one row)."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    batches: list[list[int]] = []
    current: list[int] = []
    for row in order:
        if current and (len(current) + 1) * lengths[row] > budget:
            batches.append(current)
            current = []
        current.append(row)
    return [*batches, current] if current else batches
