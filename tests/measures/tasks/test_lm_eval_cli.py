"""The harness finds the model `palimpsest`, and its results are those of its own model."""

from __future__ import annotations

import json
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")
pytest.importorskip("datasets")

from palimpsest.measures.tasks import FastLM, lm_eval_cli

TASK = """
task: tiny-questions
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{passage}}}}\\nQuestion: {{{{question}}}}?\\nAnswer:"
doc_to_target: label
doc_to_choice: ["no", "yes"]
metric_list: [{{metric: acc}}]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A task of the harness on a local file."""
    rows = [
        {"passage": "The old gate is blue.", "question": f"is it {c}", "label": n % 2} for n, c in enumerate("abcdef")
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "tiny.yaml").write_text(TASK.format(file=tmp_path / "rows.jsonl"))
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "task"


def test_the_harness_evaluates_it_by_name_as_its_own_model(folder: Path, tiny_model: Path) -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager

    lm_eval_cli.register()
    lm_eval_cli.register()  # a second time changes nothing
    tasks = TaskManager(include_path=str(folder), include_defaults=False)
    found = {}
    for name in ("palimpsest", "hf"):
        result = lm_eval.simple_evaluate(
            model=name,
            model_args=f"pretrained={tiny_model},dtype=float32",
            device="cpu",
            tasks=["tiny-questions"],
            task_manager=tasks,
            bootstrap_iters=0,
        )
        samples = sorted(result["samples"]["tiny-questions"], key=lambda s: s["doc_id"])
        found[name] = result["results"]["tiny-questions"]["acc,none"], [s["filtered_resps"] for s in samples]
    assert found["palimpsest"][0] == found["hf"][0]
    for ours, theirs in zip(found["palimpsest"][1], found["hf"][1], strict=True):
        assert [o[0] for o in ours] == pytest.approx([t[0] for t in theirs], abs=1e-4)
        assert [o[1] for o in ours] == [t[1] for t in theirs]


def test_the_module_registers_and_then_runs_the_harness(monkeypatch: pytest.MonkeyPatch) -> None:
    import lm_eval.__main__
    from lm_eval.api.registry import get_model

    ran: list[Any] = []
    monkeypatch.setattr(lm_eval.__main__, "cli_evaluate", lambda: ran.append(get_model("palimpsest")))
    lm_eval_cli.main()
    assert ran == [FastLM]


def test_bad_input_is_one_line_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import lm_eval.__main__

    monkeypatch.setattr(lm_eval.__main__, "cli_evaluate", lambda: FastLM(pretrained="./nowhere"))
    with pytest.raises(SystemExit) as left:
        lm_eval_cli.main()
    assert left.value.code == 2 and capsys.readouterr().err.strip().startswith("palimpsest: error:")


def test_without_the_harness_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.__main__", None)
    with pytest.raises(SystemExit) as left:
        lm_eval_cli.main()
    assert left.value.code == 2 and "palimpsest-lm[eval]" in capsys.readouterr().err


def test_the_entry_point_for_later_versions_names_the_class() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, _, name = project["entry-points"]["lm_eval.models"]["palimpsest"].partition(":")
    assert getattr(import_module(module), name) is FastLM
