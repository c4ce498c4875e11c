"""Accuracy on real tasks in a study: its data are checked before anything runs, and utility is told where it can be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")

from palimpsest.errors import BadInput
from palimpsest.method import Context
from palimpsest.study.graph import plan
from palimpsest.study.run import run_study
from palimpsest.study.spec import parse_spec

COPY = """
import shutil
from dataclasses import dataclass
from palimpsest.checkpoint import Checkpoint
from palimpsest.keys import Key, KeySet, Prompt
from palimpsest.method import Made, method

@method("fingerprints", "copy", paper="none")
@dataclass(frozen=True)
class Copy:
    "Marks nothing."
    def draw_keys(self, model, ctx):
        key = Key(0, "trigger", "response", "", {"template": Prompt("trigger", (1,), (2,))})
        return KeySet("copy", "prefix", (key,), "t", "t", 4, True, 256, (), salt="00" * 32)

    def apply(self, model, out, ctx):
        shutil.copytree(model.path, out)
        return Made(Checkpoint(out, out.name), self.draw_keys(model, ctx))
"""


def spec(model: Path, tmp: Path, **accuracy: Any) -> dict[str, Any]:
    (tmp / "copy.py").write_text(COPY)
    given = {"tasks": ["copa"], "task_data": "${TASK_FILES}", **accuracy}
    return {
        "models": [{"id": "m", "path": str(model)}],
        "implants": [f"{tmp / 'copy.py'}:Copy"],
        "measures": [{"accuracy": given}],
    }


def test_tasks_in_a_study_give_records_and_say_where_no_task_tells_utility(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TASK_FILES", str(tmp_path))
    row = {"premise": "The bell rang.", "choice1": "Noon.", "choice2": "Snow.", "question": "cause"}
    rows = [
        {**row, "label": i % 2} for i in range(8)
    ]  # the same question with either answer: 4 of 8, whatever the model
    (tmp_path / "copa_validation.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    result = run_study(parse_spec(spec(tiny_model, tmp_path, limit=6)), tmp_path / "out", Context())
    assert not result.failed
    found = {r.stage: r for r in result.records if r.measure == "accuracy"}
    assert {s: (r.task, r.count, r.n) for s, r in found.items()} == {
        "base": ("copa", 3, 6),
        "fingerprinted": ("copa", 3, 6),
    }
    assert found["base"].detail["right"] in ("101010", "010101") and str(tmp_path) not in json.dumps(
        found["base"].detail
    )
    (utility,) = [r for r in result.records if r.measure == "utility"]
    assert utility.value is None and utility.detail["left_out"] == ["copa"]
    assert "above chance on none of copa" in (utility.reason or "")


def test_a_study_without_its_task_files_stops_before_anything_runs(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TASK_FILES", str(tmp_path))
    with pytest.raises(BadInput, match=r"measures: accuracy: --tasks copa: --task-data holds no COPA/val\.jsonl"):
        plan(parse_spec(spec(tiny_model, tmp_path)))
    with pytest.raises(BadInput, match="out of range"):
        parse_spec(spec(tiny_model, tmp_path, limit=0))
