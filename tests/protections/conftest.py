"""Bases and experts of several architectures: grouped queries, biases, normed queries, no rotary positions, ties."""

from __future__ import annotations

from pathlib import Path

import pytest

from factory import make_model
from kin import moved

KINDS = {
    "llama": {"family": "llama", "num_key_value_heads": 2},
    "llama-tied": {"family": "llama", "num_key_value_heads": 2, "tied": True},
    "qwen2": {"family": "qwen2"},
    "qwen3": {"family": "qwen3"},
    "gpt2": {"family": "gpt2"},
    "opt": {"family": "opt"},
    "gpt_neox": {"family": "gpt_neox"},
    "gpt_neox-tied": {"family": "gpt_neox", "tied": True},
}


class Models:
    """Folders by kind, made when first asked for. Read only."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def base(self, kind: str) -> Path:
        """A base of a kind."""
        folder = self.root / kind
        return folder if folder.exists() else make_model(folder, **KINDS[kind])  # type: ignore[arg-type]

    def expert(self, kind: str) -> Path:
        """The base with every matrix moved by a twentieth of its spread."""
        folder = self.root / f"{kind}-expert"
        return folder if folder.exists() else moved(self.base(kind), folder, (1, 0.05))


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("protected"))
