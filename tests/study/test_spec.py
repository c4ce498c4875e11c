"""Everything checkable in a study file is refused in one line that says where and what would be right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fakes
import pytest
import yaml

from palimpsest.errors import BadInput
from palimpsest.study.graph import plan
from palimpsest.study.spec import RECIPES, load_spec, parse_spec, published_rows, recipes


def test_methods_are_written_as_names_or_with_parameters(tmp_path: Path) -> None:
    removals = ["none", {"fake_eraser": {"erase": {"seconds": 1}, "id": "slow"}}]
    spec = parse_spec(fakes.study(tmp_path, removals=removals))
    assert [(r.name, r.id) for r in spec.removals] == [("none", "none"), ("fake-eraser", "slow")]
    assert spec.attacks[0].settings == {"erase": {"seconds": 1}}
    assert spec.data == [str(tmp_path / "data.jsonl")] and spec.seeds == [0]


def test_two_presets_of_a_method_are_told_apart(tmp_path: Path) -> None:
    given = [{"fake-eraser": {"preset": "toy"}}, {"fake-eraser": {"preset": "toy", "id": "again"}}, "fake-eraser"]
    assert [r.id for r in parse_spec(fakes.study(tmp_path, removals=given)).removals] == [
        "fake-eraser-toy",
        "again",
        "fake-eraser",
    ]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"implant": ["if-sft"]}, "implant: unknown field; did you mean implants?"),
        ({"models": [{"id": "a", "pat": "b"}]}, "models[0].pat: unknown field; did you mean path?"),
        ({"removals": ["fake-erasr"]}, "removals[0]: there is no removal, protection or realignment 'fake-erasr'"),
        ({"removals": [{"fake-eraser": {"erase": {"second": 1}}}]}, "parameter 'second'; did you mean seconds?"),
        ({"removals": [{"fake-eraser": {"clean": 0}}]}, "removals[0]: fake-eraser: clean: 0 is out of range"),
        ({"removals": [{"fake-eraser": {"preset": "tyo"}}]}, "has no preset 'tyo'; did you mean toy?"),
        ({"removals": [{"fake-eraser": 3}]}, "removals[0]: what stands under 'fake-eraser'"),
        ({"removals": ["fake-eraser", "fake-eraser"]}, "removals: two have the id 'fake-eraser'"),
        ({"implants": []}, "implants: "),
        ({"measures": ["hitrate"]}, "measures[0]: there is no measure 'hitrate'"),
        ({"controls": ["clean-same-schedul"]}, "there is no 'clean-same-schedul'; did you mean clean-same-schedule"),
        ({"negatives": ["unrelated-model"]}, "unrelated: name a model with the same tokenizer"),
        ({"on": ["tinny"]}, "on[0]: there is no model 'tinny'; did you mean tiny?"),
        ({"seeds": ["a"]}, "seeds[0]: "),
        ({"seeds": [1, 1]}, "seeds: one value is given twice"),
        ({"alpha": 2}, "alpha: "),
        ({"text": "/nowhere.txt"}, "text: there is no file /nowhere.txt"),
        ({"published": "meraser-tabel1"}, "published: there is no record 'meraser-tabel1'; did you mean meraser-t"),
    ],
)
def test_wrong_fields_are_refused_in_one_line(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    with pytest.raises(BadInput) as refused:
        parse_spec(fakes.study(tmp_path, **change), "study.yaml")
    assert str(refused.value).startswith("study.yaml: ")
    assert expected in str(refused.value) and "\n" not in str(refused.value)


def test_the_field_on_is_a_word_and_not_yaml_s_truth(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text("models: [toy]\non: [tyo]\nimplants: [utf]\nmeasures: [hit-rate]\n")
    with pytest.raises(BadInput, match=r"on\[0\]: there is no model 'tyo'; did you mean toy"):
        load_spec(file)


def test_files_that_are_no_study_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    for text, expected in (
        ("models: [toy\n", "s.yaml:2: is no YAML"),
        ("- a\n", "holds no study"),
        ("seeds: [0]\nseeds: [1]\n", "s.yaml:2: 'seeds' is given twice"),
    ):
        file.write_text(text)
        with pytest.raises(BadInput, match=expected):
            load_spec(file)
    with pytest.raises(BadInput, match="there is no study file 'meraser-tabl1'; did you mean meraser-table1"):
        load_spec("meraser-tabl1")


def test_missing_models_and_data_are_found_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"models: tiny: there is no model folder"):
        plan(parse_spec({**fakes.study(tmp_path), "models": [{"id": "tiny", "path": str(tmp_path / "none")}]}))
    with pytest.raises(BadInput, match="there is no such file"):
        plan(parse_spec(fakes.study(tmp_path, data=str(tmp_path / "none.jsonl"))))


def test_paths_take_their_folders_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = fakes.study(tmp_path)
    (tmp_path / "neutral.txt").write_text("Some text.")
    named = {
        **plain,
        "models": [{"id": "tiny", "path": "${PLACE}/base"}],
        "data": "${PLACE}/data.jsonl",
        "text": "${PLACE}/neutral.txt",
    }
    monkeypatch.setenv("PLACE", str(tmp_path))
    spec = parse_spec(named)
    assert set(plan(spec).steps) == set(plan(parse_spec({**plain, "text": str(tmp_path / "neutral.txt")})).steps)
    assert str(tmp_path) not in spec.model_dump_json(), "what is stored names no folder of this machine"
    monkeypatch.delenv("PLACE")
    with pytest.raises(BadInput, match=r"\$\{PLACE\}/neutral\.txt: the environment has no PLACE"):
        parse_spec(named)


def test_recipes_are_found_by_name_and_hold_only_known_fields() -> None:
    assert "meraser-table1" in recipes()
    raw = yaml.safe_load((RECIPES / "meraser-table1.yaml").read_text(encoding="utf-8"))
    assert raw["models"] == ["toy"] and raw["title"] and raw["notes"]
    assert {row["table"] for row in published_rows(raw["published"])} == {"1"}
