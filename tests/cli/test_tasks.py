"""Tasks on the command line: listed, found in a folder, asked with one JSON document, refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.test_bad_input import refused
from palimpsest.cli import app
from palimpsest.cli.evaluate import GROUPS as SPOKEN
from palimpsest.measures.tasks.groups import GROUPS, expand


def run(*args: str) -> Any:
    result = CliRunner().invoke(app, list(args))
    assert result.exit_code == 0, (result.output, result.exception)
    return result


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    row = {"premise": "The bell rang.", "choice1": "Noon.", "choice2": "Snow.", "question": "cause"}
    lines = [json.dumps({**row, "label": i % 2}) for i in range(6)]
    (tmp_path / "copa_validation.jsonl").write_text("\n".join(lines))
    return tmp_path


def test_the_help_names_every_group() -> None:
    assert SPOKEN.split(", ") == list(GROUPS)


def test_groups_hold_tasks_and_expand_once() -> None:
    assert expand(["superglue", "copa", "sciq"])[-2:] == ["multirc", "sciq"]
    assert all(name not in GROUPS for group in GROUPS.values() for name in group.tasks)


def test_tasks_are_listed_with_their_files(folder: Path) -> None:
    found = json.loads(run("tasks", "--json", "--task-data", str(folder)).stdout)
    there = {task["name"]: task["there"] for task in found["tasks"]}
    assert there["copa"] == ["copa_validation.jsonl"] and there["boolq"] == []
    assert [g["name"] for g in found["groups"]] == list(GROUPS)
    shown = run("tasks", "--task-data", str(folder)).stdout
    assert "copa: copa_validation.jsonl\n" in shown and "boolq: not there: BoolQ/val.jsonl" in shown


def test_evaluate_prints_one_document_or_a_table_with_chance(tiny_model: Path, folder: Path) -> None:
    pytest.importorskip("lm_eval")
    asked = ["evaluate", "--model", str(tiny_model), "--tasks", "copa", "--task-data", str(folder), "--limit", "4"]
    (record,) = json.loads(run(*asked, "--json").stdout)["records"]
    assert (record["task"], record["count"], record["n"], record["detail"]["chance"]) == ("copa", 2, 4, 0.5)
    assert record["seconds"] > 0 and record["tokens"] > 0
    shown = run(*asked).stdout
    assert "chance" in shown and "50.0 %" in shown and "2 of 4" in shown


def test_what_is_wrong_is_said_in_one_line(tiny_model: Path, folder: Path) -> None:
    pytest.importorskip("lm_eval")
    model = ["evaluate", "--model", str(tiny_model)]
    assert "no such folder" in refused([*model, "--tasks", "copa", "--task-data", str(folder / "none")])
    assert "holds no BoolQ/val.jsonl" in refused([*model, "--tasks", "boolq", "--task-data", str(folder)])
    assert "limit: 0 is out of range" in refused([*model, "--tasks", "copa", "--limit", "0"])
    assert "goes with --tasks" in refused([*model, "--task-data", str(folder), "--perplexity", "none.txt"])
    assert "did you mean" in refused(["evaluate", "--model", "toy", "--tasks", "boolqq"])
