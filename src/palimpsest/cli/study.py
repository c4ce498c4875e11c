"""`palimpsest study`: check, run and report a declared grid."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from palimpsest.cli import options as opt

Spec = Annotated[str, typer.Argument(help="A study file, or the name of a shipped recipe (meraser-table1).")]
Folder = Annotated[Path, typer.Argument(help="The study's folder.")]


def register(app: typer.Typer) -> None:
    """Add the group of commands."""
    group = typer.Typer(no_args_is_help=True, help="Declared grids: check, run, report.")
    group.command()(opt.guarded(check))
    group.command()(opt.guarded(run))
    group.command()(opt.guarded(report))
    app.add_typer(group, name="study")


def check(spec: Spec, json: opt.Json = False) -> None:
    """Check a study file completely, list its steps, and say what memory and disk it will take; runs nothing.

    Example: palimpsest study check meraser-table1
    """
    from palimpsest.checkpoint.load import pick_device
    from palimpsest.study.graph import plan
    from palimpsest.study.needs import needs_of
    from palimpsest.study.spec import load_spec

    planned = plan(load_spec(spec))
    steps, needs = planned.listed(), needs_of(planned, pick_device("auto"))
    if json:
        opt.print_json({"steps": [str(s) for s in steps], **needs.to_json()})
        return
    for step in steps:
        typer.echo(str(step))
    typer.echo(f"{len(steps)} steps\n{needs}")


def run(
    spec: Spec,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the study; an unfinished one goes on.")],
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run failed steps again.")] = False,
    seed: opt.Seed = None,
    device: opt.Device = "auto",
    threads: opt.Threads = None,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:
    """Run a study; a killed one goes on where it was.

    Example: palimpsest study run meraser-table1 --out table1
    """
    from palimpsest import api

    result = api.run_study(
        spec, out, retry_failed=retry_failed, run=opt.run_options(seed, device, threads, quiet, json, verbose)
    )
    show_study(result, out, json)


def report(folder: Folder, json: opt.Json = False) -> None:
    """Write report.html, report.md and report.csv of a study folder.

    Example: palimpsest study report palimpsest-demo
    """
    from palimpsest import api

    paths = api.study_report(folder)
    if json:
        opt.print_json({name: str(path) for name, path in paths.items()})
        return
    for path in paths.values():
        typer.echo(str(path))


def show_study(result: Any, out: Path, json: bool) -> None:
    """Print a study's table and where its report lies; exit code 1 where steps failed."""
    if json:
        opt.print_json({"records": [r.to_json() for r in result.records], "path": str(out)})
    else:
        from rich.console import Console

        from palimpsest.study.report import terminal_table

        console = Console(highlight=False)
        console.print(terminal_table(out))
        console.print(f"report: {out / 'report.html'}", markup=False)
    if result.failed:
        typer.echo(f"palimpsest: {len(result.failed)} step(s) failed; see the report", err=True)
        raise typer.Exit(1)
