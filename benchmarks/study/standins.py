"""Studies of stand-ins, which copy a folder and write down numbers: what is measured is the runner itself."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "study"))

import fakes

from palimpsest.study.graph import plan
from palimpsest.study.spec import StudySpec, parse_spec
from palimpsest.study.store import Store

MEASURES = ["hit-rate", "rank", "perplexity", {"accuracy": {"items": 50}}, "answers"]


def spec_of(folder: Path, removals: int, seeds: int, controls: bool = True, other_processes: bool = False) -> StudySpec:
    """A grid of two marks, so many removals and seeds; with controls about thirty steps a cell.

    other_processes: name the stand-ins by their file, so that workers find them too.
    """
    many = [
        {"fake-eraser": {"id": f"eraser {n}", "clean": n + 1, "erase": {"seconds": n / 1e9}}} for n in range(removals)
    ]
    values: dict[str, Any] = fakes.full(folder, removals=many, measures=MEASURES, seeds=list(range(seeds)))
    if not controls:
        values |= {"controls": [], "negatives": []}
    return parse_spec(fakes.portable(values) if other_processes else values)


def filled(spec: StudySpec, small: Path, folder: Path) -> int:
    """A folder in which every step of `spec` is done, its numbers copied from a study `small` that was run.

    Returns how many step records there are.
    """
    templates: dict[str, tuple[dict[str, Any], str]] = {}
    for path in small.glob("steps/*/record.json"):
        body = json.loads(path.read_text())
        templates.setdefault(body["method"], (body, (path.parent / "records.jsonl").read_text()))
    made, store, count = plan(spec), Store.create(folder), 0
    for step in made.steps.values():
        body, records = templates[step.method_name]
        body = {**body, "id": step.id, "name": step.name, "kind": step.kind, "seed": step.seed, "model": step.model}
        path = store.path(step.id)
        path.mkdir()
        (path / "record.json").write_text(json.dumps(body, indent=1) + "\n")
        (path / "records.jsonl").write_text(records)
        if step.kind == "transform":
            (path / "model").mkdir()
        count += records.count("\n")
    return count


def numbers(records: list[Any]) -> list[dict[str, Any]]:
    """What was measured, without times and memory."""
    rows = [r.to_json() for r in records]
    left_out = ("seconds", "peak_bytes", "grown_bytes")
    return [
        {k: v for k, v in r.items() if k not in left_out and not (k == "value" and r["measure"] == "cost")}
        for r in rows
    ]


def quiet_environment(folder: Path) -> None:
    """The stand-ins keep their log in the folder."""
    os.environ["FAKE_LOG"] = str(folder / "log")
    fakes.install()
