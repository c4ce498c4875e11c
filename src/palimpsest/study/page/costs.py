"""What each removal took: time, tokens, samples and memory, a line a cell, a value a seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from palimpsest.records import Record
from palimpsest.study.summary import SummaryTable
from palimpsest.study.sweep_tables import SweepTable
from palimpsest.study.tables import percent

COLUMNS = ("seconds", "tokens", "samples", "memory", "latency")
HEADINGS = ("time", "tokens read", "of training the base", "samples", "peak memory", "time a token")


@dataclass(frozen=True)
class CostRow:
    """One removal of one fingerprint; the values of its seeds in their order."""

    implant: str
    removal: str
    values: tuple[str, ...]


def shares(records: Sequence[Record]) -> dict[tuple[str, str, str], list[tuple[float, str]]]:
    """Tokens read as a share of the base's training and the word on it, by (model, implant, removal): one a seed."""
    found: dict[tuple[str, str, str], list[tuple[float, str]]] = {}
    for r in records:
        if r.measure == "constraint" and r.task == "cost" and r.value is not None:
            key = (str(r.model), str(r.detail.get("implant")), str(r.detail.get("removal")))
            found.setdefault(key, []).append((r.value, str(r.verdict)))
    return found


def rows(
    tables: Sequence[SummaryTable], sweeps: Sequence[SweepTable], of_base: Mapping[tuple[str, str, str], Any]
) -> list[CostRow]:
    """A line a cell, of tables of removals and of sweeps alike; marks alone and controls cost the thief nothing."""
    made: list[CostRow] = []
    many = len({t.model for t in tables} | {s.table.model for s in sweeps}) > 1
    for table in [*tables, *(s.table for s in sweeps)]:
        for line in table.lines:
            if line.kind != "removal" or line.removal is None:
                continue
            cells = [line.cells[c].text if c in line.cells else "" for c in COLUMNS]
            cells.insert(2, share_text(of_base.get((table.model, line.implant, line.removal), [])))
            if any(text not in ("", "–") for text in cells):
                on = f", on {table.model}" if many else ""
                made.append(CostRow(line.implant + on, line.removal, tuple(text or "–" for text in cells)))
    return made


def share_text(found: Sequence[tuple[float, str]]) -> str:
    """`2.1 %`, the largest of the seeds; where it breaks the limit it says so."""
    if not found:
        return ""
    worst = max(value for value, _ in found)
    above = any(word == "fail" for _, word in found)
    return percent(round(worst, 3)) + (" (above the limit)" if above else "")


def shown(made: Sequence[CostRow]) -> list[int]:
    """The columns in which any line has something."""
    return [i for i in range(len(HEADINGS)) if any(row.values[i] != "–" for row in made)]
