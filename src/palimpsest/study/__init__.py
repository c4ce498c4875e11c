"""Studies: a declared grid, run once, resumed by itself, and a report worth sending.

spec = load_spec("meraser-table1")              a shipped recipe, or a YAML file; checked completely
steps = check(spec)                             what would run, and what is shared
result = run_study(spec, folder, ctx)           StudyResult(folder, records, failed)
paths = write_report(folder)                    report.html, report.md, report.csv, summary.csv
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "load_spec": "spec",
    "recipes": "spec",
    "StudySpec": "spec",
    "check": "graph",
    "PlannedStep": "graph",
    "run_study": "run",
    "StudyResult": "run",
    "write_report": "report",
    "terminal_table": "report",
}
__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"palimpsest.study.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'palimpsest.study' has no attribute {name!r}")
