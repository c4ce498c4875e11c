"""Perplexity: how windows lie on a text, how likely a model finds it, and the measure made of that."""

from palimpsest.data.texts import read_texts
from palimpsest.measures.perplexity.likelihood import (
    Likelihood,
    answer_likelihoods,
    dialogue_likelihoods,
    text_likelihoods,
)
from palimpsest.measures.perplexity.measure import ALL_SIDES, SIDES, Perplexity
from palimpsest.measures.perplexity.windows import Reading

__all__ = [
    "ALL_SIDES",
    "SIDES",
    "Likelihood",
    "Perplexity",
    "Reading",
    "answer_likelihoods",
    "dialogue_likelihoods",
    "read_texts",
    "text_likelihoods",
]
