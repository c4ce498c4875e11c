"""The report of a study: report.html (one file, opens offline), report.md, the CSVs, and the terminal's table.

All of it is made from records.jsonl and study.json of the study's folder; key files and samples are never
opened, so no trigger and no response can enter.
"""

from __future__ import annotations

import re
from dataclasses import astuple
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from palimpsest.checkpoint.output import write_text
from palimpsest.errors import BadInput
from palimpsest.records import Record
from palimpsest.study import plots, published, summary, tables
from palimpsest.study.grouped import Grouped
from palimpsest.study.overview import overviews
from palimpsest.study.store import Store
from palimpsest.study.tables import Block, Column
from palimpsest.study.text_report import csv_text, markdown, summary_csv
from palimpsest.study.view import View

MEANING = {
    "owned": "the owner can claim this model",
    "not-shown": "a claim is not supported at this level",
    "refuted": "an intact mark would have answered",
    "kept": "the mark survived and still bears a claim",
    "reduced": "the mark is weaker and still bears a claim",
    "claim-lost": "the claim is lost; whether the mark is gone is not shown",
    "suppressed": "the claim is lost, and the mark is still inside",
    "removed": "the mark is gone, as far as this many keys can show",
    "ruined": "whatever became of the mark, the model is ruined",
    "undecided": "the numbers do not decide",
}


def write_report(folder: Path | str) -> dict[str, Path]:
    """Write report.html, report.md, report.csv and summary.csv into a study's folder; the paths by kind."""
    store = Store.open(folder)
    records, study = Grouped(store.records()), store.study()
    if not records and not study.get("failed"):
        raise BadInput(f"{folder}: the study has no finished measure yet; `palimpsest study run` goes on with it")
    view = View.of(study, records)
    texts = {"html": html(study, records, view), "md": markdown(study, records, view), "csv": csv_text(records)}
    paths = {kind: store.folder / f"report.{kind}" for kind in texts}
    texts["summary"], paths["summary"] = summary_csv(records), store.folder / "summary.csv"
    for kind, text in texts.items():
        write_text(paths[kind], text)
    return paths


def html(study: dict[str, Any], records: list[Record], view: View | None = None) -> str:
    """The page; view: its contents, where they were made already."""
    environment = Environment(
        loader=PackageLoader("palimpsest.study", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    css = Markup(environment.loader.get_source(environment, "report.css")[0])  # type: ignore[union-attr]
    view = view or View.of(study, records)
    sections = [_section(block, records, view.crowded) for block in view.blocks]
    groups: list[tuple[list[Column], list[dict[str, Any]]]] = []
    for section in sections:
        if not groups or groups[-1][0] != section["block"].columns:
            groups.append((section["block"].columns, []))
        groups[-1][1].append(section)
    sweeps = [(s, [Markup(plots.sweep_plot(title, axis, some)) for title, axis, some in s.plots]) for s in view.sweeps]
    return environment.get_template("report.html.j2").render(
        study=study,
        css=css,
        view=view,
        summary=summary,
        sweeps=sweeps,
        sections=sections,
        overviews=overviews(view.blocks),
        groups=groups,
        meaning=MEANING,
        words=_words(sections),
        tables=tables,
        total=sum(r.seconds or 0 for r in tables.costs(records)),
        published_notes=published.notes(view.published, view.registered),
        form_legend=Markup(plots.legend([tables.FORM_WORDS[f] for f in _forms(view.blocks)])),
        perplexity_legend=Markup(plots.legend(["neutral text", "dialogues"])),
        accuracy_legend=Markup(plots.legend(_stages(view.blocks))),
        sweep_legend=Markup(plots.legend(["hits, chat template", "utility kept"])),
        saved=study.get("requested", 0) - len(study.get("steps", [])),
        alpha=study["spec"].get("alpha", 1e-6),
    )


def _section(block: Block, records: list[Record], crowded: bool) -> dict[str, Any]:
    """A block with its pictures and single keys, which a crowded page leaves to records.jsonl."""
    rows = tables.rows_of(records, block.cell)
    keyed = []
    for column in block.columns if not crowded else []:
        found = tables.per_key(tables.records_at(rows, column), block.forms)
        if found:
            keyed.append((column, found))
    task_columns, task_rows = tables.tasks(records, block.cell)
    return {
        "block": block,
        "fsr": Markup("" if crowded else plots.fsr_plot(block, rows)),
        "rank": Markup("" if crowded else plots.rank_plot(block, rows)),
        "tokens": Markup("" if crowded else plots.key_plot(block, rows)),
        "perplexity": Markup("" if crowded else plots.perplexity_plot(block, rows)),
        "accuracy": Markup("" if crowded else plots.accuracy_plot(block, rows)),
        "keys": keyed,
        "task_columns": task_columns,
        "task_rows": task_rows,
        "facts": _facts(rows),
        "anchor": re.sub(r"[^\w.=-]+", "-", "-".join(["mark", *map(str, astuple(block.cell))])),
    }


def _words(sections: list[dict[str, Any]]) -> list[str]:
    """The verdict words of the page, in the order of their meaning."""
    used: set[str | None] = set()
    for block in (s["block"] for s in sections):
        drawn = (block.verdict, *block.control_verdicts, *block.ownership.values())
        used |= {r.verdict for r in drawn if r is not None}
    return [word for word in MEANING if word in used]


def _facts(rows: list[Record]) -> dict[str, Any]:
    found = [r.detail["keys"] for r in rows if r.measure == "cost" and isinstance(r.detail.get("keys"), dict)]
    return dict(found[0]) if found else {}


def _stages(shown: list[Block]) -> list[str]:
    """The stages of the pictures of accuracy, as many as there are kinds of mark."""
    columns = max((b.columns for b in shown), key=len, default=[])
    return [c.title for c in columns if c.control is None][: plots.MARKS]


def _forms(shown: list[Block]) -> list[str]:
    return max((b.forms for b in shown), key=len, default=[])


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
