"""A curve as a person reads it on a terminal: a line for each point."""

from __future__ import annotations

from palimpsest.records import Record

WIDTH = 40


def curve_lines(record: Record) -> list[str]:
    """The loss along a line between two models: share of the other, loss, a bar from the least to the highest."""
    points = record.detail["curve"]
    least, most = min(p["loss"] for p in points), max(p["loss"] for p in points)
    found = [f"loss from {record.model} (0) to {record.detail['against']['name']} (1), nats per token"]
    for point in points:
        length = round(WIDTH * (point["loss"] - least) / (most - least)) if most > least else 0
        found.append(f"  {point['share']:5.2f}  {point['loss']:9.4f}  {'#' * length}".rstrip())
    return found
