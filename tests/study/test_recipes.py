"""Every shipped recipe is a valid study of methods that exist."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from palimpsest.cli import app
from palimpsest.data import toy
from palimpsest.study.spec import load_spec, published_rows, recipes


@pytest.mark.parametrize("name", sorted(recipes()))
def test_shipped_recipes_are_valid(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()  # the real registry
    (tmp_path / "lm").mkdir()
    (tmp_path / "lm" / "books_heldout.jsonl").write_text('{"text": "A book."}')
    monkeypatch.setenv("MARK", "hashchain")
    for variable in ("DATA", "BASE", "UNRELATED"):
        monkeypatch.setenv(variable, str(tmp_path))
    spec = load_spec(name)
    assert spec.targets and spec.implants and spec.measures


FIGURES = ("meraser-fig2", "meraser-fig2-7b")  # a picture without numbers, which the recipe's notes say
UNNAMED = ("not stated", "three base models")
NUMBERED = [n for n in sorted(recipes()) if n.startswith(("meraser-table", "meraser-fig")) and n not in FIGURES]


def test_the_recipe_of_a_figure_without_numbers_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    spec = load_spec("meraser-fig2")
    assert not spec.published and "no published number" in " ".join(spec.notes)
    (accuracy,) = [m for m in spec.measures if m.name == "accuracy"]
    asked = toy.tasks(accuracy.settings["tasks"])
    assert {"boolq", "cb", "rte", "wic", "wsc", "copa", "multirc", "sciq"} == set(asked)  # those of section 5.2
    assert [i.name for i in spec.implants] == ["if-sft", "utf", "hashchain"]


@pytest.mark.parametrize("name", NUMBERED)
def test_published_numbers_stand_under_the_recipe_s_own_names(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    spec = load_spec(name)
    published = published_rows(spec.published)
    cells = {(row["model"], row["fingerprint"]) for row in published}
    assert {row["paper"] for row in published} == {"2506.12551"} and all(row["value"] for row in published)
    if not spec.is_toy:
        marks = {implant.id for implant in spec.implants}
        for model in spec.targets:  # some tables and figures of the paper name no model
            of_it = {fingerprint for named, fingerprint in cells if named in (model.id, *UNNAMED)}
            assert marks <= of_it or "most" in of_it
    removals = {"none", *(removal.id for removal in spec.removals)}
    named = {id for row in published for id in (row.get("beside") or "none").split("|")}
    assert named <= removals, "a row stands beside a removal that the recipe does not have"
    fingerprints = {fingerprint for _, fingerprint in cells}
    assert "most" in fingerprints or {implant.name for implant in spec.implants} <= fingerprints


def test_a_model_that_is_not_there_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the network is off in all tests
    result = CliRunner().invoke(app, ["study", "check", "meraser-table4-opt"])
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert result.exit_code == 2 and len(lines) == 1, result.output
    assert "models: OPT-125M: there is no folder 'facebook/opt-125m'" in lines[0]
