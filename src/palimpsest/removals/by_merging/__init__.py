"""Removals by merging: the thief merges the marked model with others."""
