"""What a protection says of itself: complete, true of its fields, and the table in the documentation."""

from __future__ import annotations

from pathlib import Path

from palimpsest import registry
from palimpsest.method import input_fields
from palimpsest.protections.traits import Traits, markdown_table

PAGE = Path(__file__).parents[2] / "docs" / "protections" / "methods.md"


def traits() -> dict[str, Traits]:
    entries = [e for e in registry.table().values() if e.module.startswith("palimpsest.protections.")]
    names = [e.name for e in entries if not e.internal]
    return {name: registry.find(name).traits for name in names}


def test_inputs_are_what_is_said_to_be_taken() -> None:
    for name, said in traits().items():
        fields = input_fields(registry.find(name))
        assert ("base" in fields) == (said.base != "no"), name
        assert ("data" in fields) == (said.data != "no"), name
        assert not (said.training and said.exact), name
        assert said.changes and said.costs, name


def test_the_page_holds_the_table_that_the_classes_make() -> None:
    assert markdown_table(traits()) in PAGE.read_text(encoding="utf-8")


def test_every_protection_has_its_section() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name in traits():
        assert f"`{name}`" in text
