"""Data: dialogues from any usual file, disjoint parts of them, mismatched and clean sets, plain text."""

from palimpsest.data.dialogues import Dialogue, Dialogues, load_dialogues

__all__ = ["Dialogue", "Dialogues", "load_dialogues"]
