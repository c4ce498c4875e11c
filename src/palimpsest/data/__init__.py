"""Data: dialogues from any usual file, disjoint parts of them, mismatched and clean sets, plain text."""

from palimpsest.data.dialogues import Dialogue, Dialogues, load_dialogues
from palimpsest.data.labelled import LabelledItem, LabelledItems, load_labelled

__all__ = ["Dialogue", "Dialogues", "LabelledItem", "LabelledItems", "load_dialogues", "load_labelled"]
