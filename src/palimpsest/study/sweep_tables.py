"""A sweep of a study as one table and its plots: a line a point, the axis on the left."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from palimpsest.study.summary import SummaryLine, SummaryTable
from palimpsest.study.sweeps import point_text

Point = dict[str, Any]


@dataclass
class SweepTable:
    """The points of one sweep for one fingerprint (or of a swept fingerprint for one removal).

    axes: names of the parameters. points: where each line stands on them.
    """

    title: str
    axes: list[str]
    points: list[Point]
    table: SummaryTable

    @property
    def plots(self) -> list[tuple[str, str, list[tuple[Any, SummaryLine]]]]:
        """(title, axis, points along it) of every plot: one for each setting of the other axes."""
        along = self._longest()
        if along is None:
            return []
        groups: dict[str, list[tuple[Any, SummaryLine]]] = {}
        for point, line in zip(self.points, self.table.lines, strict=True):
            rest = point_text({a: v for a, v in point.items() if a != along})
            groups.setdefault(rest, []).append((point[along], line))
        return [(f"{self.title}{', ' if rest else ''}{rest}", along, some) for rest, some in groups.items()]

    def _longest(self) -> str | None:
        """The axis with most numbers on it; None where none has two."""
        sizes = {a: len({str(p[a]) for p in self.points}) for a in self.axes}
        numeric = [a for a in self.axes if all(isinstance(p[a], int | float) for p in self.points) and sizes[a] > 1]
        return max(numeric, key=lambda a: sizes[a], default=None)


def split(tables: Sequence[SummaryTable], spec: Mapping[str, Any]) -> tuple[list[SummaryTable], list[SweepTable]]:
    """The lines that are no point of a sweep, as tables of removals; and a table for every sweep.

    spec: the study as it was asked for (study.json).
    """
    removals = {m["id"]: m["point"] for m in spec.get("removals", []) if m.get("point")}
    implants = {m["id"]: m["point"] for m in spec.get("implants", []) if m.get("point")}
    rest: list[SummaryTable] = []
    swept: dict[tuple[Any, ...], SweepTable] = {}
    many = len({t.model for t in tables}) > 1
    for table in tables:
        mark = next((ln for ln in table.lines if ln.kind == "mark"), None)
        own = implants.get(table.implant)
        left: list[SummaryLine] = []
        for line in table.lines:
            point = removals.get(line.removal or "")
            if point is not None and line.kind != "mark":
                key = (table.model, table.implant, point["of"])
                _point(swept, key, f"{point['of']}, {table.implant}", point["at"], line, table, many)
            elif own is not None and line.kind != "mark":
                key = (table.model, own["of"], line.removal)
                _point(swept, key, f"{line.removal}, {own['of']}", own["at"], line, table, many)
            elif own is None:
                left.append(line)
        if own is not None and mark is not None:
            _point(swept, (table.model, own["of"], None), f"{own['of']}, no removal", own["at"], mark, table, many)
        if any(line.kind != "mark" for line in left) or (mark is not None and own is None and len(table.lines) == 1):
            rest.append(dataclasses.replace(table, lines=left))
    return rest, list(swept.values())


def _point(
    swept: dict[tuple[Any, ...], SweepTable],
    key: tuple[Any, ...],
    title: str,
    at: Point,
    line: SummaryLine,
    table: SummaryTable,
    many: bool,
) -> None:
    if line.kind == "control":
        return  # of the points themselves; a control's line stands in its own block
    if key not in swept:
        shown = f"{title}, on {table.model}" if many else title
        cut = dataclasses.replace(table, lines=[])
        swept[key] = SweepTable(shown, list(at), [], cut)
    swept[key].points.append(at)
    swept[key].table.lines.append(
        SummaryLine(point_text(at), line.note, line.kind, line.cells, line.removal, line.implant, line.numbers)
    )
