"""Studies of stand-ins: seconds, no model is loaded."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import fakes


@pytest.fixture(autouse=True)
def _stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry finds the stand-ins."""
    fakes.install(monkeypatch.setattr)
