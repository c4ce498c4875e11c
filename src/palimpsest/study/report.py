"""The report of a study: report.html (one file, opens offline), report.md, the CSVs, and the terminal's table.

All numbers are made from records.jsonl and study.json of the study's folder. Of the secret files only the ordinary
answers are shown, and of those none that shares anything with a key (`page.answers`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from palimpsest.checkpoint.output import write_text
from palimpsest.errors import BadInput
from palimpsest.study import summary, tables
from palimpsest.study.grouped import Grouped
from palimpsest.study.page.answers import ordinary
from palimpsest.study.page.document import html
from palimpsest.study.store import Store
from palimpsest.study.text_report import csv_text, markdown, summary_csv
from palimpsest.study.view import View


def write_report(folder: Path | str) -> dict[str, Path]:
    """Write report.html, report.md, report.csv and summary.csv into a study's folder; the paths by kind."""
    store = Store.open(folder)
    records, study = Grouped(store.records()), store.study()
    if not records and not study.get("failed"):
        raise BadInput(f"{folder}: the study has no finished measure yet; `palimpsest study run` goes on with it")
    view = View.of(study, records)
    texts = {
        "html": html(study, records, view, ordinary(store, records)),
        "md": markdown(study, records, view),
        "csv": csv_text(records),
    }
    paths = {kind: store.folder / f"report.{kind}" for kind in texts}
    texts["summary"], paths["summary"] = summary_csv(view.numbers), store.folder / "summary.csv"
    for kind, text in texts.items():
        write_text(paths[kind], text)
    return paths


# -- the terminal ---------------------------------------------------------------------------------------

SHORT = {
    "FSR, chat template": "FSR template",
    "FSR, bare prompt": "FSR bare",
    "FSR, answer begun": "FSR prefilled",
    "FSR, sampled": "FSR sampled",
    "perplexity, neutral": "PPL neutral",
    "perplexity, dialogue": "PPL dialogue",
    "task accuracy": "accuracy",
    "utility kept": "utility",
    "ordinary answers, right": "answers right",
    "ordinary answers, as before": "as before",
}


def terminal_table(folder: Path | str) -> Any:
    """The main table in the form of Table 1, as a rich renderable."""
    from rich.box import SIMPLE_HEAD
    from rich.columns import Columns
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    store = Store.open(folder)
    study = store.study()
    view = View.of(study, store.records())
    parts: list[Any] = [_removals_table(view, table) for table in view.removals] if view.crowded else []
    parts += [_removals_table(view, sweep.table, sweep.title) for sweep in view.sweeps]
    for block in [] if view.crowded else view.blocks:
        subtitle = f", {block.subtitle}" if block.subtitle else ""
        lines = max(len(c.parts) for c in block.columns)
        halves = []  # stages and controls stand side by side where the terminal is wide enough
        for chosen in (False, True):
            at = [i for i, c in enumerate(block.columns) if (c.control is not None) == chosen]
            table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
            table.add_column("controls" if chosen else "")
            for i in at:
                words = block.columns[i].parts
                table.add_column("\n" * (lines - len(words)) + "\n".join(words), justify="right")
            for line in block.lines:
                table.add_row(_label(line), *(_short(line.values[i]) for i in at))
            halves += [table] if at else []
        parts += [Text(""), Text(f"{block.title}{subtitle}", style="bold"), Columns(halves, padding=(0, 2))]
        for record in (block.verdict, *block.control_verdicts):
            if record is not None:
                control = f" (control {record.control})" if record.control else ""
                parts.append(Text.assemble((f"{record.verdict}{control}: ", "bold"), str(record.reason)))
    for failed in study.get("failed", []):
        parts.append(Text(f"failed: {failed['name']}: {failed['error']}", style="bold"))
    if study.get("shape_only"):
        parts += [Text(""), Text("Shape only: a toy model shows how things move, not how much.")]
    return Group(*parts)


TERMINAL_COLUMNS = ("verdict", "hits", "rank", "utility", "neutral", "seconds", "constraints")


def _removals_table(view: View, table: summary.SummaryTable, title: str | None = None) -> Any:
    """The removals of one fingerprint, or the points of a sweep, with the columns that a terminal has room for."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    columns = [c for c in table.columns if c in TERMINAL_COLUMNS]
    made = Table(box=SIMPLE_HEAD, pad_edge=False, title=title or view.title_of(table), title_justify="left")
    made.add_column("")
    for column in columns:
        made.add_column(table.heading(column), justify="right")
    for line in table.lines:
        made.add_row(line.title, *(line.cells[c].text for c in columns))
    return made


def _label(line: tables.Line) -> str:
    ranked = next((v.record for v in line.values if v.record is not None and v.record.measure == "rank"), None)
    if ranked is not None:
        return f"rank /{int(ranked.detail.get('decoys', 0)) + 1:,}"
    return SHORT.get(line.title, line.title)


def _short(value: tables.Value) -> str:
    record = value.record
    if record is not None and record.count is not None:
        return f"{value.text.replace(' %', '%')} {record.count}/{record.n}"
    return value.text.replace(" %", "%").partition(" of ")[0]
