"""A finished step is never run again, a killed run goes on, a failing step stops only what needs it."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import fakes
import pytest

from palimpsest.errors import BadInput
from palimpsest.method import Context
from palimpsest.records import Record
from palimpsest.study import run
from palimpsest.study.graph import plan
from palimpsest.study.run import run_study
from palimpsest.study.spec import parse_spec
from palimpsest.study.store import Store

RUN = """
import sys, json
sys.path.insert(0, {here!r})
import fakes
fakes.install()
from pathlib import Path
from palimpsest.method import Context
from palimpsest.study.run import run_study
from palimpsest.study.spec import parse_spec
run_study(parse_spec(json.loads(Path({spec!r}).read_text())), Path({out!r}), Context())
"""


def counted(log: Path) -> dict[str, int]:
    lines = log.read_text().splitlines() if log.is_file() else []
    return {line: lines.count(line) for line in lines}


def test_every_step_leaves_its_record_and_secrets_are_0600(tmp_path: Path) -> None:
    spec = parse_spec(fakes.full(tmp_path))
    result = run_study(spec, tmp_path / "out", Context())
    assert not result.failed and not result.left_out
    store = Store.open(tmp_path / "out")
    for step in plan(spec).steps.values():
        body = store.record(step.id)
        assert body is not None and body["status"] == "done" and body["id"] == step.id and "key_seed" not in body
        if step.kind == "transform":
            assert (store.path(step.id) / "model" / "config.json").is_file() and body["digest"] and body["tokens"]
    for file in (tmp_path / "out").rglob("*"):
        if file.is_file() and fakes.SECRET.encode() in file.read_bytes():
            assert file.name in ("keys.json", "samples.jsonl"), file
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    assert not list((tmp_path / "out" / "steps" / ".scratch").iterdir())


def test_records_are_filled_and_placed(tmp_path: Path) -> None:
    result = run_study(parse_spec(fakes.full(tmp_path)), tmp_path / "out", Context(threads=1))
    hits = [r for r in result.records if r.measure == "hit-rate" and r.detail["implant"] == "fake-mark"]
    assert {(r.stage, r.control) for r in hits} == {
        ("base", "clean-base"),
        ("fingerprinted", None),
        ("base", "sibling"),
        ("base", "unrelated-model"),
        ("fingerprinted", "other-owner"),
        ("erased", None),
        ("recovered", None),
        ("revived", "revival"),
        ("erased", "clean-same-schedule"),
        ("recovered", "clean-same-schedule"),
        ("erased", "clean-base"),
        ("recovered", "clean-base"),
        ("revived", "clean-base"),
    }
    for record in result.records:
        assert record.model == "tiny" and record.seed == 0 and record.versions
        if record.measure in ("hit-rate", "perplexity", "cost"):
            assert record.digest and record.seconds is not None and record.peak_bytes and record.threads == 1
    recovered = next(r for r in hits if (r.stage, r.control) == ("recovered", None))
    assert [c["method"] for c in recovered.chain] == ["fake-mark", "fake-erase", "fake-recover"]
    marked = next(r for r in result.records if r.measure == "perplexity" and r.stage == "fingerprinted")
    assert marked.implant == "fake-mark"
    verdicts = {(r.detail["implant"], r.control): r.verdict for r in result.records if r.measure == "removal"}
    assert verdicts == {
        ("fake-mark", None): "claim-lost",
        ("fake-mark", "clean-same-schedule"): "kept",
        ("other-mark", None): "claim-lost",
        ("other-mark", "clean-same-schedule"): "kept",
    }
    owned = {
        (r.detail["implant"], r.stage): r.verdict
        for r in result.records
        if r.measure == "ownership" and r.control is None
    }
    assert owned[("fake-mark", "fingerprinted")] == "owned" and owned[("fake-mark", "recovered")] == "refuted"
    assert owned[("other-mark", "fingerprinted")] == "not-shown", "one response for all bears no claim at 1e-6"


def test_a_second_run_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "log"))
    spec = parse_spec(fakes.full(tmp_path))
    first = run_study(spec, tmp_path / "out", Context())
    ran = counted(tmp_path / "log")
    assert ran["mark 0"] == 2, "one mark an implant, however many removals and controls"
    second = run_study(spec, tmp_path / "out", Context())
    assert counted(tmp_path / "log") == ran and second.ran == 0 and second.found == first.ran
    assert [r.to_json() for r in second.records] == [r.to_json() for r in first.records]


def test_a_widened_study_runs_only_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "log"))
    run_study(parse_spec(fakes.study(tmp_path)), tmp_path / "out", Context())
    wider = fakes.study(tmp_path, removals=["fake-eraser", {"fake-eraser": {"clean": 10, "id": "short"}}])
    result = run_study(parse_spec(wider), tmp_path / "out", Context())
    assert result.ran == 3  # one recovery, with its hit rate and perplexity
    assert counted(tmp_path / "log")["erase derangement"] == 1


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = fakes.study(tmp_path, removals=[{"fake-eraser": {"erase": {"seconds": 60}}}])
    (tmp_path / "spec.json").write_text(json.dumps(values))
    here = str(Path(fakes.__file__).parent)
    program = RUN.format(here=here, spec=str(tmp_path / "spec.json"), out=str(tmp_path / "out"))
    environment = {**os.environ, "FAKE_LOG": str(tmp_path / "log")}
    child = subprocess.Popen([sys.executable, "-c", program], env=environment, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while "erase derangement" not in counted(tmp_path / "log") and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    before = counted(tmp_path / "log")
    assert before["mark 0"] == 1 and before["erase derangement"] == 1
    steps = tmp_path / "out" / "steps"
    finished = {p: p.stat().st_mtime_ns for p in steps.glob("*/record.json")}
    assert finished and list((steps / ".partial").iterdir())

    monkeypatch.setattr(fakes.time, "sleep", lambda _: None)
    monkeypatch.setattr(fakes.time, "monotonic", iter(float(i) for i in range(0, 10**9, 61)).__next__)
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "log"))
    result = run_study(parse_spec(values), tmp_path / "out", Context())
    assert not result.failed and result.found == len(finished)
    assert {p: p.stat().st_mtime_ns for p in finished} == finished
    assert counted(tmp_path / "log")["mark 0"] == 1
    assert not list((steps / ".partial").iterdir())


def test_a_failing_step_stops_only_what_needs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "log"))
    values = fakes.study(tmp_path, removals=["breaks", "fake-eraser"], controls=["revival"])
    result = run_study(parse_spec(values), tmp_path / "out", Context())
    assert [(f.name, f.error) for f in result.failed] == [("tiny > fake-mark > breaks", "RuntimeError: it broke")]
    assert len(result.left_out) == 5  # its two measures, its revival and that one's two measures
    assert any(r.measure == "removal" and r.detail["removal"] == "fake-eraser" for r in result.records)

    again = run_study(parse_spec(values), tmp_path / "out", Context())
    assert counted(tmp_path / "log")["breaks"] == 1 and [f.error for f in again.failed] == ["RuntimeError: it broke"]
    monkeypatch.setenv("FAKE_MENDED", "1")
    mended = run_study(parse_spec(values), tmp_path / "out", Context(), retry_failed=True)
    assert not mended.failed and not mended.left_out and mended.ran == 6


def test_an_implant_that_does_not_take_is_told_in_its_own_words(tmp_path: Path) -> None:
    values = fakes.study(tmp_path, implants=[{"fake-mark": {"took": False}}, "other-mark"])
    result = run_study(parse_spec(values), tmp_path / "out", Context())
    assert [f.error for f in result.failed] == ["the implant did not take: 3 of 10 keys"]
    assert {r.detail.get("implant") for r in result.records} == {None, "other-mark"}


def test_folders_of_something_else_and_runs_beside_are_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    spec = parse_spec(fakes.study(tmp_path))
    with pytest.raises(BadInput, match="not empty and holds no study"):
        run_study(spec, tmp_path / "other", Context())
    store = Store.create(tmp_path / "out")
    with store.alone(), pytest.raises(BadInput, match="another run is at work"):
        run_study(spec, tmp_path / "out", Context())


def test_records_are_there_while_the_study_still_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "KEEP_UP_SECONDS", 0.0)
    monkeypatch.setattr(run, "KEEP_UP_PAUSES", 0.0)  # else a slow disk leaves writings out
    seen: list[int] = []
    true_write = Store.write_records

    def write(store: Store, records: list[Record]) -> None:
        seen.append(len(records))
        true_write(store, records)

    monkeypatch.setattr(Store, "write_records", write)
    run_study(parse_spec(fakes.study(tmp_path)), tmp_path / "out", Context())
    assert len(seen) > 2 and seen == sorted(seen) and seen[0] < seen[-1]
