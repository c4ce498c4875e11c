"""`study run` and `study status` as a person meets them: one line an error, exit codes, what failed and was skipped."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[1] / "study"))

import fakes

from palimpsest.cli import app
from palimpsest.study.scheduler import Scheduler
from palimpsest.study.store import Store


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A study file of stand-ins, one of which fails."""
    values = fakes.portable(fakes.study(tmp_path, title="A try", removals=["breaks", "fake-eraser"]))
    file = tmp_path / "try.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def called(*words: Any) -> Any:
    return CliRunner().invoke(app, [str(w) for w in words])


def test_what_failed_and_what_was_skipped_is_listed_and_the_exit_code_is_1(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    result = called("study", "run", study, "--out", out, "-q")
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert lines[0] == "failed: tiny > fake-mark > breaks: RuntimeError: it broke"
    assert [
        line.startswith("skipped: ") and "because tiny > fake-mark > breaks failed" in line for line in lines[1:3]
    ] == [True] * 2
    assert lines[3:] == ["palimpsest: 1 step(s) failed, 2 were skipped; --retry-failed tries again what failed"]

    found = called("study", "status", out)
    assert found.exit_code == 0
    assert found.stdout.splitlines()[0] == "A try: 11 of 14 steps done, 1 failed, 2 open; no run is at work"
    assert "failed: tiny > fake-mark > breaks: RuntimeError: it broke" in found.stdout
    values = json.loads(called("study", "status", out, "--json").stdout)
    assert (values["steps"], values["done"], values["open"], values["run"]) == (14, 11, 2, None)
    assert values["failed"] == [{"step": "tiny > fake-mark > breaks", "error": "RuntimeError: it broke"}]

    monkeypatch.setenv("FAKE_MENDED", "1")
    again = called("study", "run", study, "--out", out, "--retry-failed", "--json", "-q")
    assert again.exit_code == 0
    values = json.loads(again.stdout)
    assert (
        values["steps"] == {"ran": 3, "found": 11, "again": 0, "dropped": 0}
        and values["failed"] == values["skipped"] == []
    )


def test_the_status_of_a_run_that_is_at_work(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    called("study", "run", study, "--out", out, "-q")
    store = Store(out)
    step = next(s for s in store.study()["steps"] if s["name"] == "tiny > fake-mark > breaks")
    store.forget(step["id"])
    with store.alone(), store.making(step["id"]) as partial:
        (partial / "record.json").write_text('{"status": "failed"}')
        said = called("study", "status", out).stdout
        refused = called("study", "run", study, "--out", out, "-q")
    assert "11 of 14 steps done, 1 running, 2 open; a run is at work (process " in said
    assert "running: tiny > fake-mark > breaks (process " in said
    assert refused.exit_code == 2 and refused.stderr.count("\n") == 1 and "another run is at work" in refused.stderr


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--max-disk", "much"], "--max-disk much: is no size; write it as 20GB or 512MiB"),
        (["--max-disk", "2KB"], "--max-disk 2.0 KiB: the steps that are left need about"),
        (["--ray", "auto", "--slurm", "gpu"], "--ray and --slurm: a study runs on one of them"),
        (["--memory", "3GB"], "--memory and --time are those of a Slurm job; give --slurm PARTITION"),
        (["--gpus", "1", "--workers", "2"], "--gpus is that of a Slurm job or a Ray worker"),
    ],
)
def test_bad_options_are_one_line_and_nothing_runs(study: Path, tmp_path: Path, options: list[str], line: str) -> None:
    result = called("study", "run", study, "--out", tmp_path / "out", "-q", *options)
    assert result.exit_code == 2 and result.stderr.count("\n") == 1 and line in result.stderr
    assert not list(tmp_path.glob("out/steps/*/record.json"))


def test_a_folder_without_a_study_has_no_status(tmp_path: Path) -> None:
    result = called("study", "status", tmp_path)
    assert result.exit_code == 2 and "holds no study" in result.stderr


def test_an_interruption_keeps_what_is_finished_and_exits_with_130(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished: list[str] = []
    true_finish = Scheduler._finish

    def finish(self: Scheduler, worker: str, outcome: Any) -> None:
        true_finish(self, worker, outcome)
        finished.append(outcome.id)
        if len(finished) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(Scheduler, "_finish", finish)
    result = called("study", "run", study, "--out", tmp_path / "out", "-q")
    assert result.exit_code == 130 and "finished steps are kept" in result.stderr
    assert {p.parent.name for p in tmp_path.glob("out/steps/*/record.json")} == {i[:16] for i in finished}
    monkeypatch.setattr(Scheduler, "_finish", true_finish)
    again = json.loads(called("study", "run", study, "--out", tmp_path / "out", "-q", "--json").stdout)
    assert again["steps"]["found"] == 4
