"""The report of a study: report.html (one file, opens offline), report.md and report.csv, and the terminal's table.

All of it is made from records.jsonl and study.json of the study's folder; key files and samples are never
opened, so no trigger and no response can enter.
"""

from __future__ import annotations

import csv
import io
from dataclasses import astuple
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from palimpsest.checkpoint.output import write_text
from palimpsest.errors import BadInput
from palimpsest.records import Record
from palimpsest.study import plots, tables
from palimpsest.study.overview import Overview, overviews
from palimpsest.study.spec import published_rows
from palimpsest.study.store import Store
from palimpsest.study.tables import Block, Column

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
CSV_FIELDS = (
    "measure",
    "model",
    "seed",
    "implant",
    "implant_id",
    "removal",
    "stage",
    "control",
    "prompt_form",
    "task",
    "value",
    "count",
    "n",
    "low",
    "high",
    "confidence",
    "sided",
    "verdict",
    "reason",
    "seconds",
    "tokens",
    "peak_bytes",
    "device",
    "dtype",
    "threads",
    "digest",
)


def write_report(folder: Path | str) -> dict[str, Path]:
    """Write report.html, report.md and report.csv into a study's folder; returns the paths by kind."""
    store = Store.open(folder)
    records, study = store.records(), store.study()
    if not records and not study.get("failed"):
        raise BadInput(f"{folder}: the study has no finished measure yet; `palimpsest study run` goes on with it")
    texts = {"html": html(study, records), "md": markdown(study, records), "csv": csv_text(records)}
    paths = {kind: store.folder / f"report.{kind}" for kind in texts}
    for kind, text in texts.items():
        write_text(paths[kind], text)
    return paths


def html(study: dict[str, Any], records: list[Record]) -> str:
    """The page."""
    environment = Environment(
        loader=PackageLoader("palimpsest.study", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    css = Markup(environment.loader.get_source(environment, "report.css")[0])  # type: ignore[union-attr]
    shown = tables.blocks(records, _published(study))
    sections = [_section(block, records) for block in shown]
    costs = tables.costs(records)
    groups: list[tuple[list[Column], list[dict[str, Any]]]] = []
    for section in sections:
        if not groups or groups[-1][0] != section["block"].columns:
            groups.append((section["block"].columns, []))
        groups[-1][1].append(section)
    return environment.get_template("report.html.j2").render(
        study=study,
        css=css,
        sections=sections,
        overviews=overviews(shown),
        groups=groups,
        cost_name=cost_name,
        meaning=MEANING,
        words=_words(sections),
        tables=tables,
        costs=costs,
        total=sum(r.seconds or 0 for r in costs),
        versions=_versions(records),
        published_notes=_published_notes(study),
        form_legend=Markup(plots.legend([tables.FORM_WORDS[f] for f in _forms(shown)])),
        perplexity_legend=Markup(plots.legend(["neutral text", "dialogues"])),
        saved=study.get("requested", 0) - len(study.get("steps", [])),
        alpha=study["spec"].get("alpha", 1e-6),
    )


def _section(block: Block, records: list[Record]) -> dict[str, Any]:
    rows = tables.rows_of(records, block.cell)
    keyed = []
    for column in block.columns:
        found = tables.per_key(tables.records_at(rows, column), block.forms)
        if found:
            keyed.append((column, found))
    task_columns, task_rows = tables.tasks(records, block.cell)
    return {
        "block": block,
        "fsr": Markup(plots.fsr_plot(block, rows)),
        "rank": Markup(plots.rank_plot(block, rows)),
        "perplexity": Markup(plots.perplexity_plot(block, rows)),
        "keys": keyed,
        "task_columns": task_columns,
        "task_rows": task_rows,
        "facts": _facts(rows),
        "anchor": "-".join(["mark", *map(str, astuple(block.cell))]),
    }


def _words(sections: list[dict[str, Any]]) -> list[str]:
    """The verdict words of the page, in the order of their meaning."""
    used: set[str | None] = set()
    for block in (s["block"] for s in sections):
        used |= {r.verdict for r in (block.verdict, block.control_verdict, *block.ownership.values()) if r is not None}
    return [word for word in MEANING if word in used]


def _facts(rows: list[Record]) -> dict[str, Any]:
    found = [r.detail["keys"] for r in rows if r.measure == "cost" and isinstance(r.detail.get("keys"), dict)]
    return dict(found[0]) if found else {}


def _forms(shown: list[Block]) -> list[str]:
    return max((b.forms for b in shown), key=len, default=[])


def _published(study: dict[str, Any]) -> list[dict[str, str]]:
    return published_rows(study["spec"].get("published"))


def _published_notes(study: dict[str, Any]) -> list[str]:
    return tables.published_notes(_published(study), list(study.get("implants", {}).values()))


def _versions(records: list[Record]) -> list[str]:
    return sorted({f"{name} {version}" for r in records for name, version in r.versions.items()})


# -- Markdown and CSV -----------------------------------------------------------------------------------


def markdown(study: dict[str, Any], records: list[Record]) -> str:
    """The same tables as Markdown."""
    out = [f"# {study.get('title') or 'Study'}", ""]
    if study.get("shape_only"):
        out += ["> **Shape only.** These numbers come from a toy model; they say how things move, not how much.", ""]
    out += [f"> {note}" for note in study.get("notes", [])] + [""]
    for failed in study.get("failed", []):
        out += [f"- failed: {failed['name']}: {failed['error']}"]
    shown = tables.blocks(records, _published(study))
    for overview in overviews(shown):
        out += _md_overview(overview)
    for block in shown:
        out += ["", f"## {block.title}{', ' + block.subtitle if block.subtitle else ''}", ""]
        for record in (block.verdict, block.control_verdict):
            if record is not None:
                control = f" (control {record.control})" if record.control else ""
                out += [f"**{record.verdict}**{control}: {record.reason}", ""]
        out += [f"Strength of erasing, found by auto: {block.searched}.", ""] if block.searched else []
        out += [_md_row(["", *(c.title for c in block.columns)]), _md_row(["---"] * (len(block.columns) + 1))]
        for line in block.lines:
            name = f"*{line.title} ({line.note})*" if line.kind == "published" else line.title
            out.append(_md_row([name, *(v.text + (f"; {v.note}" if v.note else "") for v in line.values)]))
        if block.negatives:
            out += [
                "",
                "Negative controls, FSR:",
                "",
                _md_row(["", *(tables.FORM_WORDS[f] for f in block.forms)]),
                _md_row(["---"] * (len(block.forms) + 1)),
            ]
            out += [_md_row([name, *(f"{v.text}; {v.note}" for v in values)]) for name, values in block.negatives]
    out += ["", *[f"- {note}" for note in _published_notes(study)]]
    out += ["", "## Cost", "", _md_row(["step", "seconds", "tokens", "peak memory"]), _md_row(["---"] * 4)]
    out += [
        _md_row(
            [
                cost_name(r),
                tables.seconds_text(r.seconds),
                f"{r.tokens:,}" if r.tokens else "–",
                tables.bytes_text(r.peak_bytes),
            ]
        )
        for r in tables.costs(records)
    ]
    return "\n".join([*out, "", "Repeat with:", "", f"    {study['command']}", "", ", ".join(_versions(records)), ""])


def _md_overview(overview: Overview) -> list[str]:
    """The table over seeds of one mark and removal."""
    out = ["", f"## {overview.title}, seeds {', '.join(map(str, overview.seeds))}", ""]
    out += [f"- {what}: {', '.join(words)}" for what, words in overview.verdicts]
    out += ["", _md_row(["", *(c.title for c in overview.columns)]), _md_row(["---"] * (len(overview.columns) + 1))]
    for line in overview.lines:
        name = f"*{line.title} ({line.note})*" if line.kind == "published" else line.title
        out.append(_md_row([name, *(v.text for v in line.values)]))
    return out


def cost_name(record: Record) -> str:
    """What a cost record is about: method, implant, control."""
    parts = [str(record.task), *[p for p in (record.detail.get("implant"), record.control) if p and p != record.task]]
    return ", ".join(parts)


def _md_row(cells: list[str]) -> str:
    return "| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |"


def csv_text(records: list[Record]) -> str:
    """All records as CSV, one a line, without their details."""
    file = io.StringIO()
    writer = csv.DictWriter(file, CSV_FIELDS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for record in records:
        own = {"implant_id": record.detail.get("implant"), "removal": record.detail.get("removal")}
        writer.writerow({**record.to_json(), **own})
    return file.getvalue()


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
    parts: list[Any] = []
    for block in tables.blocks(store.records()):
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
        for record in (block.verdict, block.control_verdict):
            if record is not None:
                control = f" (control {record.control})" if record.control else ""
                parts.append(Text.assemble((f"{record.verdict}{control}: ", "bold"), str(record.reason)))
    for failed in study.get("failed", []):
        parts.append(Text(f"failed: {failed['name']}: {failed['error']}", style="bold"))
    if study.get("shape_only"):
        parts += [Text(""), Text("Shape only: a toy model shows how things move, not how much.")]
    return Group(*parts)


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
