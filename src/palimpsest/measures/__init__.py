"""Measures: hit rate, rank among decoys, perplexity, task accuracy, ordinary answers."""

from palimpsest.measures.subject import Subject

__all__ = ["Subject"]
