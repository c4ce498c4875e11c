"""Removals that change weights without training: structured and unstructured pruning."""
