"""Removals: anything that tries to make an implant go away. They exist to judge protection."""
