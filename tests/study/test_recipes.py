"""Every shipped recipe is a valid study of methods that exist."""

from __future__ import annotations

import pytest

from palimpsest.study.spec import load_spec, recipes


@pytest.mark.parametrize("name", sorted(recipes()))
def test_shipped_recipes_are_valid(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the real registry
    spec = load_spec(name)
    assert spec.targets and spec.implants and spec.measures
