"""The embedded toy world: a text generator and the small models trained on it that ship in the package."""

from __future__ import annotations

from pathlib import Path

__all__ = ["toy_path", "unrelated_path"]

_WEIGHTS = Path(__file__).resolve().parent / "weights"


def toy_path() -> Path:
    """Folder of the base trained on the toy world, in the Hugging Face layout."""
    return _WEIGHTS / "base"


def unrelated_path() -> Path:
    """Folder of a model of the same architecture trained on another world: a negative control."""
    return _WEIGHTS / "unrelated"
