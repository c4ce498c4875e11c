"""Every shipped recipe is a valid study of methods that exist."""

from __future__ import annotations

from pathlib import Path

import pytest

from palimpsest.study.spec import load_spec, recipes


@pytest.mark.parametrize("name", sorted(recipes()))
def test_shipped_recipes_are_valid(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()  # the real registry
    (tmp_path / "lm").mkdir()
    (tmp_path / "lm" / "books_heldout.jsonl").write_text('{"text": "A book."}')
    for variable in ("DATA", "BASE", "UNRELATED"):
        monkeypatch.setenv(variable, str(tmp_path))
    spec = load_spec(name)
    assert spec.targets and spec.implants and spec.measures
