"""How far a study is: what is done, failed, left out, open, and what runs now. Reads the folder; changes no step."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from palimpsest.study import lock
from palimpsest.study.index import Index
from palimpsest.study.store import Store


@dataclass
class Status:
    """steps: how many the study has. failed: name and error. running: name and where. by: whose run is at work."""

    title: str
    steps: int
    done: int
    open: int
    failed: list[tuple[str, str]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    running: list[tuple[str, str]] = field(default_factory=list)
    by: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "title": self.title,
            "steps": self.steps,
            "done": self.done,
            "open": self.open,
            "failed": [{"step": name, "error": error} for name, error in self.failed],
            "skipped": self.skipped,
            "running": [{"step": name, "where": where} for name, where in self.running],
            "run": {name: self.by[name] for name in ("host", "pid", "since") if name in self.by} or None,
        }

    def lines(self) -> list[str]:
        """For people."""
        counts = [f"{self.done} of {self.steps} steps done"]
        counts += [f"{len(self.failed)} failed"] if self.failed else []
        counts += [f"{len(self.running)} running"] if self.running else []
        counts += [f"{self.open} open"] if self.open else []
        whose = (
            f"a run is at work (process {self.by.get('pid')} on {self.by.get('host')}, since {self.by.get('since')})"
            if self.by
            else "no run is at work"
        )
        found = [f"{self.title}: {', '.join(counts)}; {whose}"]
        found += [f"running: {name} ({where})" for name, where in self.running]
        found += [f"failed: {name}: {error}" for name, error in self.failed]
        return found + (self.skipped if not self.by else [])


def status(folder: Path | str) -> Status:
    """Of a study's folder. Raises BadInput where it holds none."""
    store = Store.open(folder)
    study = store.study()
    index = Index.of(store)
    try:
        states, errors = index.states(), index.errors()
    finally:
        index.close()
    steps = {str(s["id"])[:16]: str(s["name"]) for s in study.get("steps", [])}
    by = lock.at_work(store.folder)
    partial = store.folder / "steps" / ".partial"
    running = []
    for entry in sorted(partial.iterdir()) if by and partial.is_dir() else []:
        id, _, where = entry.name.partition(".")
        host, _, pid = where.rpartition(".")[0].rpartition(".")
        if id in steps and states.get(id) != "done":
            running.append((steps[id], f"process {pid} on {host}"))
    failed = [(name, errors.get(id, "")) for id, name in steps.items() if states.get(id) == "failed"]
    done = sum(states.get(id) == "done" for id in steps)
    return Status(
        str(study.get("title") or store.folder.name),
        len(steps),
        done,
        len(steps) - done - len(failed) - len(running),
        failed,
        [str(line) for line in study.get("left_out", [])],
        running,
        by,
    )
