"""What a study will do, in ten lines, before it does anything: its grid, its steps, time, memory and disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palimpsest.checkpoint.load import pick_device
from palimpsest.study.graph import plan
from palimpsest.study.needs import Needs, needs_of
from palimpsest.study.spec import StudySpec
from palimpsest.study.steps import Plan
from palimpsest.study.store import Store
from palimpsest.study.timing import Times, times_of

MOST_NAMES = 6  # of a kind, in a line


@dataclass
class Outlook:
    """A study that was checked and not begun. todo: ids of the steps that are not done. out: its folder, or None."""

    plan: Plan
    needs: Needs
    times: Times
    todo: list[str]
    out: Path | None = None

    @property
    def saved(self) -> int:
        """Steps that sharing saves: without it every line of the tables would make its own."""
        return self.plan.requested - len(self.plan.steps)

    def lines(self) -> list[str]:
        """For people: what, then what it takes."""
        spec, kinds = self.plan.spec, Counter(s.kind for s in self.plan.steps.values())
        attacks = len(spec.attacks)
        over = f" under {attacks} removals" if attacks > 1 else f" under {spec.attacks[0].id}" if attacks else ""
        marks = [i.id for i in spec.marks] + (["no mark"] if len(spec.marks) < len(spec.implants) else [])
        seeds = f"seeds {_named(list(map(str, spec.seeds)))}" if len(spec.seeds) > 1 else f"seed {spec.seeds[0]}"
        left_out, cells = self._cells()
        grid = f"{_named(marks)}{over} on {_named([m.id for m in spec.targets])}, {seeds}: {cells:,} cells"
        did = f"{kinds['transform'] + kinds['adapter']:,} make a model, {kinds['measure']:,} measure one"
        did += f", {kinds['keys']:,} draw keys" if kinds["keys"] else ""
        rows = [
            ("study", spec.title or spec.source),
            ("models", self._models()),
            ("grid", grid + (f" ({left_out:,} excluded)" if left_out else "")),
            ("measured", _named([m.id for m in spec.measures], 10)),
            ("beside", "; ".join(p for p in self._beside() if p)),
            ("steps", f"{len(self.plan.steps):,}: {did}; sharing saves {self.saved:,} of {self.plan.requested:,}"),
            ("done", f"{len(self.plan.steps) - len(self.todo):,} of these, in {self.out}" if self.out else ""),
            ("time", str(self.times)),
            *(tuple(line.split(": ", 1)) for line in str(self.needs).splitlines()),
        ]
        width = max(len(name) for name, *_ in rows) + 2
        found = [f"{name + ':':<{width}}{said}" for name, said in rows if said]
        return found + [f"{'note:':<{width}}{note}" for note in self.plan.notes]

    def steps(self) -> list[str]:
        """Every step, a line each."""
        return [str(s) for s in self.plan.listed()]

    def to_json(self) -> dict[str, Any]:
        """Plain values; disk and memory in bytes, time in seconds."""
        left_out, cells = self._cells()
        return {
            "title": self.plan.spec.title,
            "cells": cells,
            "excluded": left_out,
            "steps": self.steps(),
            "requested": self.plan.requested,
            "saved": self.saved,
            "done": len(self.plan.steps) - len(self.todo),
            "time": self.times.to_json(),
            **self.needs.to_json(),
            "notes": self.plan.notes,
        }

    def _cells(self) -> tuple[int, int]:
        """Cells that are left out, and those that are run: removals of marks, or marks where nothing is removed."""
        spec = self.plan.spec
        found = [c for c in spec.cells() if (c.removal is not None) == bool(spec.attacks)]
        whole = len(spec.targets) * len(spec.seeds) * len(spec.implants) * max(1, len(spec.attacks))
        return whole - len(found), len(found)

    def _models(self) -> str:
        spec = self.plan.spec
        read = [m.id + ("" if m.id == m.path else f" ({m.path})") for m in spec.models if not m.is_made]
        made = [
            f"{m.id} (of {' > '.join([m.start, *(link.id for link in m.links)])})" for m in spec.models if m.is_made
        ]
        made += [f"{e.id} (of each base > {e.name})" for e in spec.experts]
        return _named(read) + (f"; made once a seed: {_named(made)}" if made else "")

    def _beside(self) -> list[str]:
        spec = self.plan.spec
        own = [r for r in spec.attacks if r.controls is not None]
        controls = f"controls {', '.join(spec.controls)}" if spec.controls else ""
        if own:
            controls += f"{', and ' if controls else ''}{len(own)} removals with controls of their own"
        return [controls, f"negatives {', '.join(spec.negatives)}" if spec.negatives else ""]


def outlook(spec: StudySpec, out: Path | None = None, like: Sequence[Path] = (), device: str = "auto") -> Outlook:
    """Check a study completely and say what it would do. out: its folder, where it may have begun. like: folders of
    earlier studies that time is taken from. Raises BadInput for what cannot run."""
    made = plan(spec)
    begun = out is not None and (out / "study.json").is_file()
    store = Store.open(out) if out is not None and begun else None
    device = pick_device(device)
    needs = needs_of(made, device, store)
    todo = [id for id in made.steps if store is None or store.state(id) != "done"]
    folders = [*like, *([store.folder] if store is not None else [])]
    return Outlook(made, needs, times_of(made, todo, folders, device), todo, store.folder if store else None)


def _named(names: Sequence[str], most: int = MOST_NAMES) -> str:
    """`a, b, c`, or the first of many and how many more."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
