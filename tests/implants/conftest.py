"""Tiny models and dialogues for the fingerprint tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from factory import make_model
from palimpsest.checkpoint import Checkpoint, resolve
from palimpsest.data.dialogues import Dialogues, pair
from palimpsest.method import Context


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A tiny random Llama, untied, with a chat template and room for long prompts."""
    return resolve(make_model(tmp_path_factory.mktemp("implants") / "small", positions=512))


@pytest.fixture(scope="session")
def talk() -> Dialogues:
    """Ordinary dialogues: 40 of them for embedding."""
    colours = ("red", "blue", "green", "grey", "white")
    rows = [pair(f"What is the colour of gate {n}?", f"Gate {n} is {colours[n % 5]}.") for n in range(40)]
    return Dialogues("talk", {"embed": tuple(rows)})


@pytest.fixture
def ctx(tmp_path: Path) -> Context:
    """One thread, fixed seeds, a scratch folder of its own."""
    return Context(seed=3, key_seed=7, threads=1, dtype="float32", scratch=tmp_path / "scratch")
