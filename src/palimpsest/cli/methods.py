"""`palimpsest methods`: what there is."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from palimpsest.cli import options as opt


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(opt.guarded(methods))


def methods(
    name: Annotated[str | None, typer.Argument(help="One method, with its parameters and presets.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only this kind (fingerprints, removals, measures ...).")] = None,
    json: opt.Json = False,
) -> None:
    """List the methods: paper, one line, parameters, presets.

    Example: palimpsest methods meraser
    """
    from palimpsest import api
    from palimpsest.errors import BadInput, nearest

    entries = api.list_methods(kind)
    if name is not None:
        wanted = name.replace("_", "-")
        chosen = [e for e in entries if e.name == wanted]
        if not chosen:
            raise BadInput(f"there is no method {name!r}{nearest(wanted, [e.name for e in entries], 'method')}")
        entries = chosen
    if json:
        shown = ("kind", "name", "paper", "summary", "parameters", "presets")
        opt.print_json({"methods": [{k: v for k, v in asdict(e).items() if k in shown} for e in entries]})
        return
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    if name is None:
        for column in ("kind", "name", "summary"):
            table.add_column(column, no_wrap=column != "summary")
        for e in entries:
            table.add_row(e.kind, e.name, e.summary)
        console.print(table)
        return
    (entry,) = entries
    console.print(f"{entry.name} ({entry.kind}): {entry.summary}\nsource: {entry.paper or 'not stated'}", markup=False)
    for preset, line in entry.presets.items():
        console.print(f"  --preset {preset}: {line}", markup=False)
    for column in ("parameter", "default", "what"):
        table.add_column(column, no_wrap=column != "what")
    for p in entry.parameters:
        table.add_row(f"--{p.name}" if p.input else f"--set {p.name}", p.default, p.help)
    console.print(table)
