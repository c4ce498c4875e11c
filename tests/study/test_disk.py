"""Checkpoints that nothing needs any more go, a bound on disk holds, and what went can be made again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fakes
import pytest

from palimpsest.errors import BadInput
from palimpsest.method import Context
from palimpsest.study import disk, run
from palimpsest.study.disk import Room, models_of, size_of
from palimpsest.study.graph import plan
from palimpsest.study.run import Options, StudyResult, run_study
from palimpsest.study.spec import parse_spec
from palimpsest.study.store import Store, folder_bytes

MANY = [{"fake-eraser": {"clean": n, "id": f"eraser {n}", "erase": {"seconds": n / 1e6}}} for n in range(1, 7)]
RESULTS = Options(keep="results")


def models(folder: Path) -> set[str]:
    return {p.name for p in folder.glob("steps/*") if (p / "model").is_dir()}


def numbers(result: StudyResult) -> list[dict[str, Any]]:
    """What a run measured, times and memory left out."""
    found = [r.to_json() for r in result.records]
    return [
        {
            k: v
            for k, v in r.items()
            if k not in ("seconds", "peak_bytes", "grown_bytes") and not (k == "value" and r["measure"] == "cost")
        }
        for r in found
    ]


@pytest.mark.parametrize(
    ("text", "size"),
    [("20GB", 20e9), ("1.5 TB", 1.5e12), ("512MiB", 512 * 2**20), ("100", 100), ("7k", 7000), ("2gib", 2 * 2**30)],
)
def test_sizes(text: str, size: float) -> None:
    assert size_of(text, "--max-disk") == size


@pytest.mark.parametrize("text", ["", "GB", "-3GB", "0", "1.2.3GB", "20XB", "a lot"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match=r"--max-disk .*is no size; write it as 20GB"):
        size_of(text, "--max-disk")


def test_results_alone_are_kept_and_are_the_same(tmp_path: Path) -> None:
    spec = parse_spec(fakes.full(tmp_path))
    kept = run_study(spec, tmp_path / "kept", Context())
    dropped = run_study(spec, tmp_path / "dropped", Context(), options=RESULTS)
    assert models(tmp_path / "dropped") == set() and len(models(tmp_path / "kept")) == dropped.dropped > 10
    assert numbers(kept) == numbers(dropped)
    for step in plan(spec).steps.values():
        body = Store(tmp_path / "dropped").record(step.id)
        assert body is not None and body["status"] == "done"
        assert (Store(tmp_path / "dropped").path(step.id) / "keys.json").exists() == ("keys" in body)
    assert run_study(spec, tmp_path / "dropped", Context(), options=RESULTS).ran == 0


def test_a_dropped_checkpoint_that_is_needed_again_is_made_again_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "log"))
    run_study(parse_spec(fakes.study(tmp_path)), tmp_path / "out", Context(), options=RESULTS)
    records = {p: p.read_bytes() for p in tmp_path.glob("out/steps/*/record.json")}
    wider = parse_spec(fakes.study(tmp_path, removals=["fake-eraser", {"fake-eraser": {"clean": 10, "id": "short"}}]))
    result = run_study(wider, tmp_path / "out", Context(), options=RESULTS)
    assert (result.ran, result.again, result.failed) == (3, 2, [])  # the mark and its erasure were made again
    assert (tmp_path / "log").read_text().splitlines().count("mark 0") == 2
    assert models(tmp_path / "out") == set() and {p: p.read_bytes() for p in records} == records
    assert numbers(result) == numbers(run_study(wider, tmp_path / "whole", Context()))


def test_one_that_comes_out_differently_is_said_and_stops_only_what_needs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_study(parse_spec(fakes.study(tmp_path)), tmp_path / "out", Context(), options=RESULTS)
    true_derive = fakes.derive
    monkeypatch.setattr(
        fakes, "derive", lambda model, out, name, **c: true_derive(model, out, name, **{**c, "ppl": 12.0})
    )
    wider = parse_spec(
        fakes.study(tmp_path, removals=["fake-eraser", {"fake-eraser": {"pairing": "matched", "id": "m"}}])
    )
    before = {p: p.read_bytes() for p in tmp_path.glob("out/steps/*/record.json")}
    result = run_study(wider, tmp_path / "out", Context(), options=RESULTS)
    assert [f.name for f in result.failed] == ["tiny > fake-mark"]
    assert "came out differently when it was made again" in result.failed[0].error
    assert len(result.left_out) == 6 and all("because tiny > fake-mark failed" in line for line in result.left_out)
    assert {p: p.read_bytes() for p in before} == before and models(tmp_path / "out") == set()


def test_a_bound_holds_where_all_together_would_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = parse_spec(fakes.study(tmp_path, removals=MANY))
    whole = run_study(spec, tmp_path / "whole", Context())
    one = max(folder_bytes(p / "model") for p in (tmp_path / "whole").glob("steps/*"))
    count = len(models(tmp_path / "whole"))
    assert count == 13
    monkeypatch.setattr(disk, "estimated", lambda plan, step: one if step.kind == "transform" else 0)
    bound = 4 * one
    with pytest.raises(BadInput, match=r"--max-disk .*need about .*--keep results drops"):
        run_study(spec, tmp_path / "out", Context(), options=Options(max_disk=bound))
    with pytest.raises(BadInput, match=r"--max-disk .*need about "):
        run_study(spec, tmp_path / "out", Context(), options=Options(max_disk=2 * one, keep="results"))
    assert not list(tmp_path.glob("out/steps/*/record.json"))
    most = 0
    true_note = run.Index.note

    def note(index: Any, step: str) -> None:
        nonlocal most
        true_note(index, step)
        most = max(most, sum(folder_bytes(p / "model") for p in (tmp_path / "out").glob("steps/*")))

    monkeypatch.setattr(run.Index, "note", note)
    result = run_study(spec, tmp_path / "out", Context(), options=Options(max_disk=bound, keep="results"))
    assert not result.failed and not result.left_out and numbers(result) == numbers(whole)
    assert 2 * one <= most <= bound


def test_what_turns_out_larger_than_thought_is_left_out_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = parse_spec(fakes.study(tmp_path, removals=MANY[:2]))
    monkeypatch.setattr(disk, "estimated", lambda plan, step: 10 if step.kind == "transform" else 0)
    result = run_study(spec, tmp_path / "out", Context(), options=Options(max_disk=50))
    assert not result.failed and result.ran and result.left_out
    assert all(line.endswith("because it would not fit below --max-disk") for line in result.left_out)
    again = run_study(spec, tmp_path / "out", Context())
    assert not again.left_out and again.found == result.ran


def test_branches_that_run_side_by_side_never_wait_for_each_other_s_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two half-made branches fill the disk: the first one's next step must still have room."""
    made = plan(parse_spec(fakes.study(tmp_path, implants=["fake-mark", "other-mark"], removals=MANY[:2])))
    monkeypatch.setattr(disk, "estimated", lambda plan, step: 10 if step.kind == "transform" else 0)
    for bound in range(30, 100, 10):
        for late in range(5):
            room = Room(made, Store(tmp_path / "none"), made.steps, True, bound)
            monkeypatch.setattr(room.store, "drop_model", lambda step: None)
            monkeypatch.setattr(room.store, "state", lambda step: "done")
            done: set[str] = set()
            running: list[str] = []
            while len(done) < len(made.steps):
                for id in reversed(made.steps):  # the worst order: the last branch is asked for first
                    ready = id not in done and id not in running and all(p in done for p in made.steps[id].parents)
                    if ready and len(running) <= late and room.may_start(id):
                        room.starts(id)
                        running.append(id)
                assert running, "nothing runs and nothing may start"
                assert sum(room.held.values()) <= bound
                ended = running.pop(0)
                done.add(ended)
                room.ends(ended, 10 if made.steps[ended].kind == "transform" else 0)


def test_only_models_that_are_read_keep_a_checkpoint(tmp_path: Path) -> None:
    made = plan(parse_spec(fakes.full(tmp_path)))
    for step in made.steps.values():
        assert set(models_of(step)) <= set(step.parents)
        assert (step.keys in models_of(step)) == (step.keys is not None and step.keys == step.model)
