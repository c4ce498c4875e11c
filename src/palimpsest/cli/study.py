"""`palimpsest study`: check, run and report a declared grid."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from palimpsest.cli import options as opt

Spec = Annotated[str, typer.Argument(help="A study file, or the name of a shipped recipe (meraser-table1).")]
Folder = Annotated[Path, typer.Argument(help="The study's folder.")]


class Keep(StrEnum):
    """What a run keeps of the checkpoints it makes."""

    all = "all"
    results = "results"


def register(app: typer.Typer) -> None:
    """Add the group of commands."""
    group = typer.Typer(no_args_is_help=True, help="Declared grids: check, run, status, report.")
    group.command()(opt.guarded(check))
    group.command()(opt.guarded(run))
    group.command()(opt.guarded(status))
    group.command()(opt.guarded(report))
    app.add_typer(group, name="study")


def check(
    spec: Spec,
    like: Annotated[
        list[Path] | None,
        typer.Option("--like", metavar="DIR", help="Take the time from the steps of this earlier study; repeatable."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The study's folder: what is done there counts no more.")
    ] = None,
    steps: Annotated[bool, typer.Option("--steps", help="List every step.")] = False,
    device: opt.Device = "auto",
    json: opt.Json = False,
    verbose: opt.Verbose = False,
) -> None:
    """Check a study file completely, and say what it will do: its grid, steps, time, memory and disk; runs nothing.

    Example: palimpsest study check meraser-table1 --like my-earlier-study
    """
    from palimpsest import api

    found = api.study_check(spec, out=out, like=like or (), device=device)
    if json:
        opt.print_json(found.to_json())
        return
    for line in [*(found.steps() if steps or verbose else ()), *found.lines()]:
        typer.echo(line)


def run(
    spec: Spec,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the study; an unfinished one goes on.")],
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run failed steps again.")] = False,
    keep: Annotated[
        Keep, typer.Option("--keep", help="Keep every checkpoint, or results only: each goes when nothing needs it.")
    ] = Keep.all,
    max_disk: Annotated[
        str | None, typer.Option("--max-disk", help="What the study's folder may take, as 20GB; see --keep.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, help="Processes of this machine; with --ray or --slurm the most at a time."),
    ] = None,
    ray: Annotated[
        str | None, typer.Option("--ray", metavar="ADDRESS", help="Run on a Ray cluster: its address, auto, or local.")
    ] = None,
    slurm: Annotated[str | None, typer.Option("--slurm", metavar="PARTITION", help="Run as Slurm jobs.")] = None,
    memory: Annotated[str | None, typer.Option("--memory", help="Of one Slurm job, as 64GB.")] = None,
    time: Annotated[int | None, typer.Option("--time", min=1, help="Of one Slurm job, in minutes.")] = None,
    gpus: Annotated[int | None, typer.Option("--gpus", min=0, help="Of one Slurm job or Ray worker.")] = None,
    seed: opt.Seed = None,
    device: opt.Device = "auto",
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="CPU threads of one worker (default: the cores divided).")
    ] = None,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:
    """Run a study; a killed one goes on where it was, wherever it is run.

    Example: palimpsest study run meraser-table1 --out table1 --workers 2
    """
    from palimpsest import api
    from palimpsest.study.disk import size_of

    where = {"workers": workers, "ray": ray, "slurm": slurm, "minutes": time, "gpus": gpus}
    result = api.run_study(
        spec,
        out,
        retry_failed=retry_failed,
        keep=keep.value,
        max_disk=size_of(max_disk, "--max-disk") if max_disk is not None else None,
        where={**where, "memory": size_of(memory, "--memory") if memory is not None else None},
        run=opt.run_options(seed, device, threads, quiet, json, verbose),
    )
    show_study(result, out, json)


def status(folder: Folder, json: opt.Json = False) -> None:
    """What of a study is done, failed, left out and open, and what runs now.

    Example: palimpsest study status palimpsest-demo
    """
    from palimpsest import api

    found = api.study_status(folder)
    if json:
        opt.print_json(found.to_json())
        return
    for line in found.lines():
        typer.echo(line)


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
        opt.print_json(
            {
                "records": [r.to_json() for r in result.records],
                "path": str(out),
                "steps": {n: getattr(result, n) for n in ("ran", "found", "again", "dropped")},
                "failed": [{"step": f.name, "error": f.error} for f in result.failed],
                "skipped": result.left_out,
            }
        )
    elif result.records or result.failed:
        from rich.console import Console

        from palimpsest.study.report import terminal_table

        console = Console(highlight=False)
        console.print(terminal_table(out))
        console.print(f"report: {out / 'report.html'}", markup=False)
    if result.failed or result.left_out:
        for failed in result.failed:
            typer.echo(f"failed: {failed.name}: {failed.error}", err=True)
        for line in result.left_out:
            typer.echo(line, err=True)
        counts = f"{len(result.failed)} step(s) failed, {len(result.left_out)} were skipped"
        typer.echo(f"palimpsest: {counts}; --retry-failed tries again what failed", err=True)
        raise typer.Exit(1)
