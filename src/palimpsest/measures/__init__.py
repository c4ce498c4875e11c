"""Measures: hit rate, rank among decoys, perplexity, task accuracy, ordinary answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from palimpsest.measures.subject import Subject

__all__ = ["Subject"]


def __getattr__(name: str) -> Any:
    """`Subject` when it is asked for: what only draws pictures of measures needs no torch."""
    if name != "Subject":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from palimpsest.measures import subject

    return subject.Subject
