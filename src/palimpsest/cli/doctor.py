"""`palimpsest doctor`: is this installation in order, and will these models run here?"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from palimpsest.cli import options as opt


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(opt.guarded(doctor))


def doctor(
    models: Annotated[
        list[str] | None, typer.Argument(help="Models to look at too: `toy`, folders, hub ids.", metavar="[MODEL]")
    ] = None,
    json: opt.Json = False,
) -> None:
    """Look at Python, packages, GPUs, memory, disk, cache, extras, plug-ins and the embedded base.

    Exit code 1 where something is broken, with one line each that says how to mend it.

    Example: palimpsest doctor marked/model
    """
    from palimpsest import api

    found = api.doctor(models or ())
    if json:
        opt.print_json(found.to_json())
    else:
        show_diagnosis(found)
    if found.broken:
        raise typer.Exit(1)


def show_diagnosis(found: Any) -> None:
    """Print one line a check, and how to mend what needs it; then the models."""
    from rich.console import Console
    from rich.markup import escape

    from palimpsest.cli.info import show_finding, show_rows

    console = Console(highlight=False)
    colours = {"ok": "green", "note": "yellow", "broken": "red"}
    rows = []
    for check in found.checks:
        rows.append((f"[{colours[check.state]}]{check.state}[/]", check.name, escape(check.what)))
        if check.mend:
            rows.append(("", "", f"[dim]mend:[/dim] {escape(check.mend)}"))
    show_rows(rows, console)
    for finding in found.findings:
        console.print()
        show_finding(finding, console)
    broken = sum(c.state == "broken" for c in found.checks) + sum(f.broken for f in found.findings)
    console.print(f"\n{broken} broken" if broken else "\nall in order", style="red" if broken else "green")
