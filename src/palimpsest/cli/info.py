"""`palimpsest info`: what a folder or file is, and what can be done with it here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from palimpsest.cli import options as opt


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(opt.guarded(info))


def info(
    paths: Annotated[
        list[str],
        typer.Argument(help="Models (`toy`, folders, hub ids), adapters, key files, studies.", metavar="PATH"),
    ],
    digest: Annotated[
        bool, typer.Option("--digest", help="Compute digests that are not known yet: reads all weights.")
    ] = False,
    json: opt.Json = False,
) -> None:
    """Say what each path is, what is wrong with it, and what can be done with it here. Loads no model.

    Key files: what kind of keys, never a trigger or a response.

    Example: palimpsest info marked marked/keys.json toy
    """
    from palimpsest import api

    found = [api.info(path, digest=digest) for path in paths]
    if json:
        opt.print_json({"records": [], "findings": [f.to_json() for f in found]})
        return
    from rich.console import Console

    console = Console(highlight=False)
    for number, finding in enumerate(found):
        if number:
            console.print()
        show_finding(finding, console)


def show_finding(finding: Any, console: Any, indent: int = 0) -> None:
    """Print a finding: title, facts, problems, what can be done."""
    from rich.markup import escape

    console.print(
        f"{' ' * indent}[bold]{escape(finding.path)}[/bold]: {escape(finding.title)}", soft_wrap=not console.is_terminal
    )
    rows = []
    for name, value in finding.facts.items():
        rows += [(name if number == 0 else "", text) for number, text in enumerate(_lines(name, value))]
    rows += [("[red]wrong[/red]", problem) for problem in finding.problems]
    rows += [("note", note) for note in finding.notes]
    for ability in finding.abilities:
        word = "[green]can[/green]" if ability.possible else "[yellow]cannot[/yellow]"
        rows.append((word, f"{ability.command}{_reason(ability)}"))
    show_rows([(name, escape(text)) for name, text in rows], console, indent + 2)
    for part in finding.parts:
        show_finding(part, console, indent + 2)


def show_rows(rows: Sequence[tuple[str, ...]], console: Any, indent: int = 0) -> None:
    """Print rows of markup in columns; the last is wrapped on a terminal and left whole in a pipe."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(" " * max(0, indent - 2), *row) if indent else table.add_row(*row)
    if console.is_terminal:
        console.print(table)
        return
    widths = [max(len(Text.from_markup(cell)) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [Text.from_markup(cell).plain for cell in row]
        padded = [f"{cell:<{width}}" for cell, width in zip(cells[:-1], widths[:-1], strict=True)]
        console.print(" " * indent + "  ".join([*padded, cells[-1]]), soft_wrap=True, markup=False)


def _lines(name: str, value: Any) -> list[str]:
    from palimpsest.machine import in_words

    if name == "size":
        return [in_words(value)]
    if name == "lineage":
        return [_entry(entry) for entry in value]
    return [f"{value:,}" if isinstance(value, int) else str(value)]


def _entry(entry: dict[str, Any]) -> str:
    parents = ", ".join(f"{role} {str(digest)[:12]}" for role, digest in entry["parents"].items())
    committed = f", commitment {entry['commitment'][:12]}" if entry.get("commitment") else ""
    return f"{entry['method']}{' of ' + parents if parents else ''}{committed}"


def _reason(ability: Any) -> str:
    from palimpsest.machine import in_words

    if ability.why:
        return f": {ability.why}"
    return f": up to about {in_words(ability.needs)} of memory" if ability.needs else ""
