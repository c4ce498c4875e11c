"""Removals by further training."""
